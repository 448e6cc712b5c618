"""Commands about the site's privacy ledger: what its data sets have spent, and proof of it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from quorate.errors import AlreadyExistsError, InputError, KeyMismatchError, LedgerRolledBackError, NotFoundError
from quorate.identity import fingerprint
from quorate_client.approval.policy_file import read_policy
from quorate_client.approval.privacy_cost import limits_of_policy
from quorate_client.cli.output import (
    DEFAULT_STATE,
    JsonOption,
    StateOption,
    cell,
    moment,
    out,
    say,
    show_json,
    table,
    warn,
)
from quorate_client.ledger.entries import Account, Limits, Unbounded
from quorate_client.ledger.export import read_export, write_export
from quorate_client.ledger.ledger import Ledger, open_ledger
from quorate_client.ledger.limits import Accountants, finite, lasting, shipped_accountants
from quorate_client.ledger.sums import YEAR_S, LedgerSums, verify
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_identity, load_keys

app = typer.Typer(help="What the site's data sets have spent of their privacy, and proof of it.", no_args_is_help=True)

WITHOUT_BOUND = "without bound"
ANYWHERE = "The run {run} of the guest app study {study} may have released any records of this site without a bound"

KeysOption = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        metavar="KEY",
        help="The site's signing key, 64 hex digits, or its fingerprint; several if it had several.",
    ),
]


@app.command()
def show(
    dataset: Annotated[str | None, typer.Argument(metavar="[DATASET]", help="Only this data set.")] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Show what was spent, by data set and run, and what the policy leaves."""
    with site_ledger(state) as ledger:
        policy = read_policy(SiteFolder(state)).privacy
        sums = ledger.entries.sums()
        accounts = [each for each in sums.accounts() if dataset is None or dataset in sums.names(each.dataset)]
        if dataset is not None and not accounts:
            raise NotFoundError(f"The privacy ledger holds nothing of a data set {dataset}")
        try:
            ledger.entries.require_newest()
        except LedgerRolledBackError as error:
            warn(str(error))
    accountants = shipped_accountants()
    changes = _changes_of_limits(sums)
    statements = [
        _statement(sums, each, limits_of_policy(each, policy), accountants) | {"limits": changes} for each in accounts
    ]
    anywhere = [_unbounded_json(each) for each in sums.unbounded(None)] if dataset is None else []
    if as_json:
        show_json({"accounts": statements, "unbounded_anywhere": anywhere})
        return
    for statement in statements:
        _print(statement)
    for each in anywhere:
        warn(ANYWHERE.format(**each))
    if not statements and not anywhere:
        say("Nothing was spent yet.")
    for change in changes:
        _print_change(change)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Write the whole ledger with its signatures, JSON lines, for an auditor."""
    folder = SiteFolder(state)
    key = load_keys(folder.keys).signing.public_key().public_bytes_raw()
    with site_ledger(state) as ledger:
        try:
            count = write_export(file, load_identity(folder.keys).site, key, ledger.entries.all())
        except FileExistsError as error:
            raise AlreadyExistsError(f"{file} exists already", action="Name another file") from error
    if as_json:
        show_json({"path": str(file), "entries": count, "fingerprint": fingerprint(key)})
        return
    say(f"Wrote {count} entries to {file}; they are signed with the key {fingerprint(key)}.", "green")


@app.command("verify")
def verify_ledger(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="An exported ledger; else the site's.")] = None,
    key: KeysOption = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Check each entry of a ledger: its place in the chain, its signature, and that it may be where it is.

    With --key an exported ledger is checked where there is no site's folder.
    """
    if file is None:
        with site_ledger(state) as ledger:
            sums = ledger.entries.verify([_key(text) for text in key or ()])
    else:
        named, entries = read_export(file)
        keys = [_key(text, named) for text in key] if key else [_own_key(state)]
        sums = verify(entries, keys)
    newest = sums.hash.hex() if sums.head else ""
    if as_json:
        show_json({"entries": sums.number, "newest": newest})
        return
    say(f"All {sums.number} entries are in order. The newest one's hash is {newest or '-'}.", "green")


@contextmanager
def site_ledger(state: Path) -> Iterator[Ledger]:
    folder = SiteFolder(state)
    load_identity(folder.keys)  # a folder that is no site's is told so
    ledger = open_ledger(folder.ledger, folder.database, load_keys(folder.keys).signing, shipped_accountants())
    try:
        yield ledger
    finally:
        ledger.close()


def _statement(sums: LedgerSums, account: Account, limits: Limits, accountants: Accountants) -> dict[str, Any]:
    """What an account has spent and has left, at the policy's delta. None where there is no finite epsilon: no noise,
    or records that were released without a bound. What is left is for studies that are not begun."""
    delta, now = limits.delta, max(time.time(), sums.unix_s)
    unbounded = sums.unbounded(account)
    spent = {
        "ever": math.inf if unbounded else accountants.adaptive(sums.ever(account), delta),
        "year": math.inf
        if sums.unbounded(account, now - YEAR_S)
        else accountants.adaptive(sums.of_last_year(account, now), delta),
    }
    left = {held.name: held.left for held in lasting(sums, account, limits, accountants, now)}
    return {
        "dataset": account.dataset,
        "datasets": sorted(sums.names(account.dataset)),
        "unit": account.unit,
        "part": account.part,
        "delta": delta,
        "accountant": accountants.name,
        "epsilon_ever": finite(spent["ever"]),
        "epsilon_last_year": finite(spent["year"]),
        "left_ever": left.get("epsilon_ever"),
        "left_this_year": left.get("epsilon_per_year"),
        "unbounded": [_unbounded_json(each) for each in unbounded],
        "runs": [
            {
                "run": of_run.run,
                "study": of_run.study,
                "rounds": len(of_run.rounds),
                "unsettled": of_run.open,
                "epsilon": finite(accountants.planned(sums.of_run(account, of_run.run), delta)),
            }
            for of_run in sums.runs(account)
        ],
    }


def _unbounded_json(each: Unbounded) -> dict[str, Any]:
    return {"study": each.study, "run": each.run, "unix_s": each.unix_s}


def _changes_of_limits(sums: LedgerSums) -> list[dict[str, Any]]:
    """Each entry about the policy's limits, with the keys that allow more than the one before it."""
    earlier = [{}, *(entry.limits for entry in sums.limits)]
    return [
        {"entry": entry.number, "unix_s": entry.unix_s, "limits": entry.limits, "loosened": entry.loosened(before)}
        for before, entry in zip(earlier, sums.limits, strict=False)
    ]


def _print_change(change: dict[str, Any]) -> None:
    limits = ", ".join(f"{key} = {_limit(limit)}" for key, limit in sorted(change["limits"].items()))
    when = f"Limits since {moment(change['unix_s'])} (entry {change['entry']}): {limits}"
    if change["loosened"]:
        say(f"{when}. LOOSENED: {', '.join(change['loosened'])}", "bold yellow")
    else:
        say(f"{when}.")


def _print(statement: dict[str, Any]) -> None:
    subject = Account(statement["dataset"], statement["unit"], statement["part"]).subject
    title = f"{', '.join(statement['datasets'])}, {subject}, at delta {statement['delta']:g}; runs by PLD"
    rows = table("study", "run", "rounds", "unsettled", "epsilon", "left", title=title)
    for run in statement["unbounded"]:
        rows.add_row(cell(run["study"]), cell(run["run"]), "", "", cell(WITHOUT_BOUND, "bold yellow"), "")
    for run in statement["runs"]:
        numbers = (str(run["rounds"]), str(run["unsettled"]), _number(run["epsilon"]))
        rows.add_row(cell(run["study"]), cell(run["run"]), *numbers, "")
    for name, spent, left in (
        ("365 days (RDP)", "epsilon_last_year", "left_this_year"),
        ("in all (RDP)", "epsilon_ever", "left_ever"),
    ):
        rows.add_row(name, "", "", "", _number(statement[spent]), _number(statement[left], "no limit"))
    out().print(rows)


def _limit(limit: float | str | None) -> str:
    """Delta is too small for three decimals."""
    return limit if isinstance(limit, str) else "no limit" if limit is None else f"{limit:g}"


def _number(value: float | None, absent: str = WITHOUT_BOUND) -> str:
    return absent if value is None else f"{value:.3f}"


def _key(text: str, named: bytes | None = None) -> bytes:
    """A signing key from hex digits, or the one that an exported file names if it has this fingerprint."""
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    if named is None or not re.fullmatch(r"([0-9a-f]{4}-){5}[0-9a-f]{4}", text):
        raise InputError(
            "The signing key is malformed", expected="64 hex digits, or a fingerprint where a FILE is given"
        )
    if fingerprint(named) != text:
        raise KeyMismatchError("The exported ledger is another key's", expected=text, got=fingerprint(named))
    return named


def _own_key(state: Path) -> bytes:
    folder = SiteFolder(state)
    load_identity(folder.keys)
    return load_keys(folder.keys).signing.public_key().public_bytes_raw()
