"""``quorate-client``: the daemon and the commands of a site's administrator.

Exit codes: 0 done, 1 another failure, 2 wrong input, 3 refused (identity, policy, approval), 4 the server cannot be
reached. The daemon besides: 10 another daemon took over, 11 the identity was copied, 12 the certificate was revoked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from quorate.errors import CertificateRevokedError, IdentityClonedError, QuorateError, SupersededError
from quorate.process.storage_errors import storage_errors
from quorate.process.terminal import unexpected_ends_it
from quorate_client.cli import attest, daemon, data, ledger, models, policy, privacy, site, studies, synthetic, upkeep
from quorate_client.cli.output import show_error

app = typer.Typer(
    name="quorate-client",
    help="Take part in federated studies: join a consortium, register data, approve studies, run the daemon.",
    epilog="Exit codes: 0 done, 1 other failure, 2 wrong input, 3 refused, 4 server unreachable; "
    "the daemon: 10 taken over, 11 identity copied, 12 certificate revoked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
app.command()(site.join)
app.command()(daemon.run)
app.command()(site.status)
app.command()(site.pause)
app.command()(site.resume)
app.command()(site.doctor)
app.command()(upkeep.upgrade)
app.command()(upkeep.backup)
app.command()(upkeep.restore)
app.command("studies")(studies.studies)
app.command()(studies.show)
app.command()(studies.approve)
app.command()(studies.reject)
app.command()(studies.diff)
app.add_typer(data.app, name="data")
app.add_typer(synthetic.app, name="synthetic")
app.add_typer(models.app, name="model")
app.add_typer(policy.app, name="policy")
app.add_typer(privacy.app, name="privacy")
app.add_typer(ledger.app, name="ledger")
app.add_typer(attest.app, name="attest")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit. Expected failures are one message; a traceback is a mistake of ours."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with unexpected_ends_it():
        try:
            with storage_errors():
                app(given)
        except QuorateError as error:
            show_error(error, as_json="--json" in given)
            sys.exit(exit_code(error))


def exit_code(error: QuorateError) -> int:
    """As for all commands, but the daemon says which end of its identity it met."""
    match error:
        case SupersededError():
            return 10
        case IdentityClonedError():
            return 11
        case CertificateRevokedError():
            return 12
        case _:
            return error.exit_code
