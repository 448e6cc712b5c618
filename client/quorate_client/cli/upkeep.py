"""Commands that keep a site's state: upgrade the databases, back up, restore."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from quorate.process.backup.archive import Passphrase
from quorate_client.cli.output import DEFAULT_STATE, JsonOption, StateOption, say, show_json, warn
from quorate_client.ledger.backup import backup_site, restore_site
from quorate_client.ledger.upgrading import pending_upgrades, upgrade_site
from quorate_client.site.folder import SiteFolder
from quorate_client.site.forgotten_votes import FOLLOWS
from quorate_client.site.keys import load_identity
from quorate_client.site.layout import Pending

PassphraseFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A file whose first line is a passphrase: seal the backup with it, or open it."),
]


def upgrade(
    state: StateOption = DEFAULT_STATE,
    check: Annotated[bool, typer.Option("--check", help="Only say what would be done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the databases to this version's layouts. The daemon does so by itself when it starts."""
    folder = SiteFolder(state)
    load_identity(folder.keys)
    if check:
        todo = pending_upgrades(folder)
    else:
        with folder.held_by_this_daemon():
            todo = upgrade_site(folder)
    if as_json:
        show_json([_as_json(each) for each in todo])
        return
    for each in todo:
        if not each.steps:
            say(f"{each.path.name}: nothing to do; layout {each.newest} is this version's.")
            continue
        say(f"{each.path.name}: {'would go' if check else 'went'} from layout {each.found} to {each.newest}.")
        for step in each.steps:
            say(f"  {step}")
        say(f"  As it was: {each.copy}")


def backup(
    target: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="A folder for it, or the new file's name.")],
    state: StateOption = DEFAULT_STATE,
    passphrase_file: PassphraseFile = None,
    as_json: JsonOption = False,
) -> None:
    """Back up keys, configuration, ledger and state into one file, while the daemon may be running."""
    folder = SiteFolder(state)
    now = time.time()
    identity = load_identity(folder.keys)
    if target.is_dir():
        target /= f"{identity.consortium}-{identity.site}-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}.backup"
    passphrase = Passphrase.read(passphrase_file) if passphrase_file is not None else None
    made = backup_site(folder, target, passphrase, now)
    if as_json:
        show_json({"path": str(target), "files": len(made.files), "sealed": passphrase is not None})
        return
    say(f"Wrote {len(made.files)} files to {target}.", "green")
    if passphrase is None:
        warn("It holds this site's secret keys, unsealed: whoever reads it can be this site. Keep it like those keys.")
    else:
        say("It is sealed: without the passphrase nobody opens it, you neither.")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup of a site.")],
    state: StateOption = DEFAULT_STATE,
    passphrase_file: PassphraseFile = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Set aside what is in the folder; nothing is deleted.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a backup into an empty folder, or with --replace in the place of what is there."""
    folder = SiteFolder(state)
    passphrase = Passphrase.read(passphrase_file) if passphrase_file is not None else None
    done = restore_site(file, folder, passphrase, replace=replace, now=time.time())
    identity = load_identity(folder.keys)
    aside = str(done.aside) if done.aside.exists() else None
    if as_json:
        show_json({"site": identity.site, "kept_ledger": done.kept_ledger, "set_aside": aside})
        return
    say(f"{identity.site} in {identity.consortium} is in {folder.root} again, as it was at the backup.", "green")
    if aside is not None:
        say(f"What was there is in {aside}.")
    if done.kept_ledger:
        say("The privacy ledger is the one that was there: it knows more than the backup's.")
    else:
        warn("The privacy ledger is the backup's. If anything was spent since, it is refused, and rightly so.")
    say(FOLLOWS)
    say("Start the daemon. Only if the server says identity_cloned: ask the operator for `quorate site reinvite NAME`,")
    say("then run `quorate-client join --keep-keys FILE`: the site was connected after the backup.")


def _as_json(each: Pending) -> dict[str, Any]:
    return asdict(each) | {"path": str(each.path), "copy": str(each.copy) if each.steps else None}
