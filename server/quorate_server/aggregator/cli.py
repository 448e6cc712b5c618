"""The command ``quorate-aggregator``: what runs in the trusted execution environment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import structlog
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from quorate.attestation.appraisal import SOFTWARE
from quorate.attestation.policy import ConfidentialSpacePolicy
from quorate.errors import ConfigError, QuorateError
from quorate.process.private_files import write_new
from quorate.process.terminal import say, unexpected_ends_it
from quorate_server.aggregator.attesters.choice import KINDS, attester_of
from quorate_server.aggregator.listener import Listener
from quorate_server.consortium.config import split_address
from quorate_server.logs import configure_logging

log = structlog.get_logger()

_AUDIENCE: str = ConfidentialSpacePolicy.model_fields["audience"].default

app = typer.Typer(
    help="The attested process that adds the sums of studies.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.command()
def run(
    attester: Annotated[str, typer.Option(help=f"How this machine makes evidence: {', '.join(KINDS)}.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT at which the server reaches it.")] = "127.0.0.1:8444",
    endorsements: Annotated[
        Path | None,
        typer.Option(help="With --attester tsm: what the vendor signed, read anew for each piece of evidence."),
    ] = None,
    audience: Annotated[
        str | None, typer.Option(help="With --attester confidential-space: for whom tokens are; quorate if not given.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="With --attester software: the file of its key.")] = None,
    most_runs: Annotated[int, typer.Option(min=1, max=1024, help="Runs at a time, each a process.")] = 32,
) -> None:
    """Add what a server brings, until it is told to stop (SIGTERM or Ctrl-C).

    Making evidence with tsm and confidential-space has not been run on hardware.
    """
    configure_logging("text", "info")
    chosen = attester, _detail(attester, endorsements, audience, key)
    attester_of(*chosen)  # now, and not at the first run
    try:
        listener = Listener(*split_address(listen), chosen, most_runs)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The aggregator cannot listen at {listen}",
            expected="HOST:PORT of this machine that nobody else listens at",
            got=str(error),
        ) from error
    if attester == "software":
        log.error(SOFTWARE)
    log.info("aggregator ready", port=listener.port, attester=attester)
    listener.serve()


def _detail(attester: str, endorsements: Path | None, audience: str | None, key: Path | None) -> str:
    """What belongs to the attester. Raises ConfigError: something was given that belongs to another one."""
    given = {"tsm": ("--endorsements", endorsements), "confidential-space": ("--audience", audience)}
    given["software"] = "--key", key
    for kind, (option, value) in given.items():
        if value is not None and kind != attester:
            raise ConfigError(f"{option} belongs to --attester {kind}", got=f"--attester {attester[:40]}")
    value = given.get(attester, ("", None))[1]
    if value is None and attester == "confidential-space":
        return _AUDIENCE
    return str(value or "")


@app.command("make-key")
def make_key(file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file for the private key.")]) -> None:
    """Make a key for evidence made by software, for development."""
    key = Ed25519PrivateKey.generate()
    write_new(file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    say(SOFTWARE)
    say("In a study or in a site's policy of attestation:")
    say('environment = "development"')
    say(f'software.keys = ["{key.public_key().public_bytes_raw().hex()}"]')


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. A refusal is one message on standard error and an exit code (``quorate.errors``)."""
    with unexpected_ends_it():
        try:
            app(args=arguments)
        except QuorateError as error:
            say(f"quorate-aggregator: {error}", to_stderr=True)
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
