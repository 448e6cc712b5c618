"""Commands that keep a server's state: upgrade the database, back up, restore."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from quorate.process.backup.archive import Passphrase
from quorate.process.terminal import say
from quorate_server.cli.options import State
from quorate_server.consortium.backup import backup_server, restore_server
from quorate_server.consortium.config import ServerConfig, held_by_server
from quorate_server.storage.database import LAYOUT

PassphraseFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A file whose first line is a passphrase: seal the backup with it, or open it."),
]


def upgrade(
    state: State,
    check: Annotated[bool, typer.Option("--check", help="Only say what would be done.")] = False,
    new_database: Annotated[
        bool, typer.Option("--new-database", help="Make the tables in an empty database that server.toml names.")
    ] = False,
) -> None:
    """Bring the database to this version's layout. A server on SQLite does so by itself when it starts."""
    from quorate_server.storage.upgrade import Upgrade, make_database, pending_upgrade, upgrade_database

    config = ServerConfig.read(state)

    def tell(todo: Upgrade) -> None:
        for step in todo.steps:
            say(f"  {step}")
        if todo.copy is not None:
            say(f"The database as it was: {todo.copy}")

    if check:
        todo = pending_upgrade(config.engine_url)
        if not todo.steps:
            say(f"The database is of layout {LAYOUT}, this version's. There is nothing to do.")
            return
        say(f"The database is of layout {todo.found}, this version's is {LAYOUT}. `quorate-server upgrade` would do:")
        tell(todo)
        return
    with held_by_server(config):
        if new_database:
            make_database(config.engine_url)
            say("The database is ready and knows nobody. Next: quorate-server operator add NAME")
            return
        done = upgrade_database(config.engine_url)
    if not done.steps:
        say(f"The database is of layout {LAYOUT}, this version's. Nothing was done.")
        return
    say(f"The database was upgraded from layout {done.found} to {LAYOUT}:")
    tell(done)


def backup(
    target: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="A folder for it, or the new file's name.")],
    state: State,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Back up the whole state into one file, while the server may be running."""
    config = ServerConfig.read(state)
    now = time.time()
    if target.is_dir():
        target /= f"{config.consortium}-server-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}.backup"
    passphrase = Passphrase.read(passphrase_file) if passphrase_file is not None else None
    made = backup_server(config, target, passphrase, now)
    say(f"Wrote {len(made.files)} files to {target}.")
    if passphrase is None:
        say("It holds the authority's secret key, unsealed: whoever reads it can admit anybody. Keep it like that key.")
    else:
        say("It is sealed: without the passphrase nobody opens it, you neither.")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup of a server.")],
    state: State,
    passphrase_file: PassphraseFile = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Set aside what is in the folder; nothing is deleted.")
    ] = False,
) -> None:
    """Put a backup into an empty folder, or with --replace in the place of what is there."""
    passphrase = Passphrase.read(passphrase_file) if passphrase_file is not None else None
    aside = restore_server(file, state, passphrase, replace=replace, now=time.time())
    config = ServerConfig.read(state)
    say(f"The consortium {config.consortium} has its server in {state} again, as it was at the backup.")
    if aside.exists():
        say(f"What was there is in {aside}.")
    say("What to do next:")
    say("  1. Revoke again what was revoked since the backup: operators, sites.")
    say(f"  2. Look: quorate-server doctor --state {state}")
    say(f"  3. Start it: quorate-server run --state {state}")
