"""Commands about the site's privacy ledger: what its data sets have spent, and proof of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from quorate.errors import AlreadyExistsError, InputError, KeyMismatchError, LedgerRolledBackError, NotFoundError
from quorate.identity import fingerprint
from quorate_client.cli.output import DEFAULT_STATE, JsonOption, StateOption, cell, out, say, show_json, table, warn
from quorate_client.folder import SiteFolder
from quorate_client.keys import load_identity, load_keys
from quorate_client.ledger import Ledger, open_ledger
from quorate_client.ledger_book import Book, verify
from quorate_client.ledger_entries import Account, Limits
from quorate_client.ledger_export import read_export, write_export
from quorate_client.ledger_limits import Accountants, finite, shipped_accountants
from quorate_client.policy import PrivacyPolicy, read_policy

app = typer.Typer(help="What the site's data sets have spent of their privacy, and proof of it.", no_args_is_help=True)

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
    policy = read_policy(SiteFolder(state).policy).privacy
    with site_ledger(state) as ledger:
        book = ledger.book()
        accounts = [each for each in book.accounts() if dataset is None or dataset in book.names(each.dataset)]
        if dataset is not None and not accounts:
            raise NotFoundError(f"The privacy ledger holds nothing of a data set {dataset}")
        try:
            ledger.require_newest()
        except LedgerRolledBackError as error:
            warn(str(error))
    accountants = shipped_accountants()
    statements = [_statement(book, each, _limits(policy, book, each), accountants) for each in accounts]
    if as_json:
        show_json(statements)
        return
    for statement in statements:
        _print(statement)
    if not statements:
        say("Nothing was spent yet.")


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
            count = write_export(file, load_identity(folder.keys).site, key, ledger.entries())
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
            book = ledger.verify([_key(text) for text in key or ()])
    else:
        named, entries = read_export(file)
        keys = [_key(text, named) for text in key] if key else [_own_key(state)]
        book = verify(entries, keys)
    newest = book.hash.hex() if book.head else ""
    if as_json:
        show_json({"entries": book.number, "newest": newest})
        return
    say(f"All {book.number} entries are in order. The newest one's hash is {newest or '-'}.", "green")


@contextmanager
def site_ledger(state: Path) -> Iterator[Ledger]:
    folder = SiteFolder(state)
    load_identity(folder.keys)  # a folder that is no site's is told so
    ledger = open_ledger(folder.ledger, folder.database, load_keys(folder.keys).signing, shipped_accountants())
    try:
        yield ledger
    finally:
        ledger.close()


def _statement(book: Book, account: Account, limits: Limits, accountants: Accountants) -> dict[str, Any]:
    """What an account has spent and has left, at its newest entry's delta. None where there is no finite epsilon."""
    delta = limits.delta
    year = book.of_last_year(account, max(time.time(), book.unix_s))
    spent = {"ever": accountants.adaptive(book.ever(account), delta), "year": accountants.adaptive(year, delta)}
    return {
        "dataset": account.dataset,
        "datasets": sorted(book.names(account.dataset)),
        "unit": account.unit,
        "delta": delta,
        "accountant": accountants.name,
        "epsilon_ever": finite(spent["ever"]),
        "epsilon_last_year": finite(spent["year"]),
        "left_ever": _left(limits.epsilon_ever, spent["ever"]),
        "left_this_year": _left(limits.epsilon_per_year, spent["year"]),
        "runs": [
            {
                "run": sums.run,
                "study": sums.study,
                "rounds": len(sums.rounds),
                "unsettled": sums.open,
                "epsilon": finite(epsilon := accountants.planned(book.of_run(account, sums.run), delta)),
                "left": _left(limits.epsilon_per_run, epsilon),
            }
            for sums in book.runs(account)
        ],
    }


def _limits(policy: PrivacyPolicy, book: Book, account: Account) -> Limits:
    """The policy's, which are per record: what is stated of whole sites has none."""
    delta = book.delta(account)
    if account.unit == "site":
        return Limits(delta)
    return Limits(
        delta,
        epsilon_per_run=policy.epsilon_per_run,
        epsilon_per_year=policy.epsilon_per_year,
        epsilon_ever=policy.epsilon_ever,
    )


def _print(statement: dict[str, Any]) -> None:
    title = f"{', '.join(statement['datasets'])}, per {statement['unit']}, at delta {statement['delta']:g}; runs by PLD"
    rows = table("study", "run", "rounds", "unsettled", "epsilon", "left", title=title)
    for run in statement["runs"]:
        numbers = (str(run["rounds"]), str(run["unsettled"]), _number(run["epsilon"]), _number(run["left"], "no limit"))
        rows.add_row(cell(run["study"]), cell(run["run"]), *numbers)
    for name, spent, left in (
        ("365 days (RDP)", "epsilon_last_year", "left_this_year"),
        ("in all (RDP)", "epsilon_ever", "left_ever"),
    ):
        rows.add_row(name, "", "", "", _number(statement[spent]), _number(statement[left], "no limit"))
    out().print(rows)


def _left(limit: float | None, spent: float) -> float | None:
    return None if limit is None else max(0.0, limit - spent)


def _number(value: float | None, absent: str = "none") -> str:
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
