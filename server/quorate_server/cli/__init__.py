"""The command ``quorate-server``, for the administrator of the server."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from quorate.errors import EXIT_OTHER, QuorateError
from quorate.process.terminal import say, unexpected_ends_it
from quorate_server.cli import upkeep
from quorate_server.cli.doctor import examine
from quorate_server.cli.failures import machine_errors
from quorate_server.cli.founding import add_operator, found, open_registry
from quorate_server.cli.options import State
from quorate_server.consortium.config import CONFIG_NAME, ServerConfig
from quorate_server.logs import configure_logging

app = typer.Typer(help="The coordinator of a Quorate consortium.", no_args_is_help=True, pretty_exceptions_enable=False)
operator_app = typer.Typer(help="Credentials of operators.", no_args_is_help=True)
app.add_typer(operator_app, name="operator")

app.command()(upkeep.upgrade)
app.command()(upkeep.backup)
app.command()(upkeep.restore)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the server's state.")],
    consortium: Annotated[str, typer.Option(help="The consortium's name: lower-case letters, digits, hyphens.")],
    address: Annotated[str, typer.Option(help="HOST:PORT at which sites and operators reach the server.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen at.")] = "0.0.0.0:8443",
) -> None:
    """Found a consortium: certificate authority, configuration, the first operator's credential."""
    credential = found(folder, consortium=consortium, address=address, listen=listen, now=time.time())
    say(f"The consortium {consortium} has a server in {folder}.")
    say("What to do next:")
    say(f"  1. Back up {folder / 'ca'} to a safe place; whoever reads it can admit anybody.")
    say(f"  2. Look through {folder / CONFIG_NAME}, then start the server: quorate-server run --state {folder}")
    say(f"  3. Hand {credential} to the operator, who sets QUORATE_PROFILE to it")
    say("     and invites the first site: quorate site invite NAME")


@app.command()
def run(state: State) -> None:
    """Run the server until it is told to stop (SIGTERM or Ctrl-C)."""
    config = ServerConfig.read(state)
    configure_logging(config.log_format, config.log_level)
    # Only the running server needs what this imports.
    from quorate_server.daemon import serve

    asyncio.run(serve(config))


@app.command()
def doctor(state: State) -> None:
    """Check what would keep this server from working."""
    findings = list(examine(state, time.time()))
    for finding in findings:
        say(f"{'ok    ' if finding.ok else 'BROKEN'} {finding.subject}: {finding.detail}")
        if finding.action:
            say(f"       {finding.action}.")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(EXIT_OTHER)


@operator_app.command("add")
def operator_add(
    name: Annotated[str, typer.Argument(help="The operator's name, as it appears in the log.")],
    state: State,
    output: Annotated[Path, typer.Option("-o", "--output", help="A new folder for the credential.")],
) -> None:
    """Issue a credential to an operator; also to replace one that will expire."""
    add_operator(ServerConfig.read(state), name, output, time.time())
    say(f"The credential of {name} is in {output}. Hand it over; operator.key is secret.")


@operator_app.command("list")
def operator_list(state: State) -> None:
    """Show all credentials of operators."""
    with open_registry(ServerConfig.read(state)) as registry:
        records = registry.operators()
    for record in records:
        until = datetime.fromtimestamp(record.expires_unix_s, UTC)
        status = "revoked" if record.revoked else f"valid until {until:%Y-%m-%d}"
        say(f"{record.name}  {status}  serial {record.serial:x}")


@operator_app.command("revoke")
def operator_revoke(name: Annotated[str, typer.Argument(help="The operator's name.")], state: State) -> None:
    """Revoke all credentials of an operator, from the next call on."""
    with open_registry(ServerConfig.read(state)) as registry:
        registry.revoke_operator(name)
    say(f"All credentials of {name} are revoked.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. A refusal is one message on standard error and an exit code (``quorate.errors``)."""
    # The transport's own lines are not in the form of the log; whoever needs them sets the variable.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with unexpected_ends_it():
        try:
            with machine_errors():
                app(args=arguments)
        except QuorateError as error:
            say(f"quorate-server: {error}", to_stderr=True)
            sys.exit(error.exit_code)
