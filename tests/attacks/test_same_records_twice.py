"""The same people under a second name: a second privacy budget, and another part of them held out.

A data set's account went by its name, and which records are held out by the name and a record's number. So a copy of a
file, in another order or with a few rows more, began a new account and moved records between training and test.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.privacy.events import Event
from quorate_client.ledger.entries import Account
from quorate_client.site.folder import SiteFolder
from quorate_client.tasks.data.datasets import load_images, load_table
from quorate_client.tasks.data.schema import ImageSchema, TabularSchema, parse_schema
from tests.attacks.records_kit import SPENT, RecordsSite
from tests.client.command_kit import Result, runner

Row = tuple[str, ...]
NAMES = ("age", "pressure", "stage", "smoker", "ill")
SCHEMA = """
kind = "tabular"
[[columns]]
name = "age"
type = "integer"
range = [0, 120]
[[columns]]
name = "pressure"
type = "number"
range = [0, 300]
missing = "mean"
[[columns]]
name = "stage"
type = "category"
categories = ["I", "II"]
[[columns]]
name = "smoker"
type = "flag"
[label]
name = "ill"
classes = ["no", "yes"]
"""
OTHERWISE = """
kind = "tabular"
[[columns]]
name = "smoker"
type = "category"
categories = [1, 0]
[[columns]]
name = "stage"
type = "category"
categories = ["III", "II", "I"]
[[columns]]
name = "pressure"
type = "number"
range = [0, 1000]
missing = 100
[[columns]]
name = "age"
type = "number"
range = [0, 200]
[label]
name = "ill"
classes = ["no", "yes"]
positive = "no"
"""
PICTURES = 'kind = "images"\nheight = 4\nwidth = 4\nchannels = 1\nclasses = ["a", "b"]\n'


def people(count: int, seed: int = 1) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        (
            str(rng.integers(18, 100)),
            "" if rng.random() < 0.02 else f"{rng.uniform(80, 220):.3f}",
            str(rng.choice(["I", "II"])),
            str(rng.integers(0, 2)),
            str(rng.choice(["no", "yes"])),
        )
        for _ in range(count)
    ]


class Target(RecordsSite):
    def add(
        self, name: str, rows: Iterable[Row], names: Sequence[str] = NAMES, schema: str = SCHEMA, *more: str
    ) -> Result:
        return self.register(name, names, rows, schema, *more)

    def spent(self, name: str) -> list[Event]:
        with self.ledger() as ledger:
            return ledger.events(Account(name, "record"))

    def parts(self, name: str, schema: str = SCHEMA) -> tuple[Counter[Any], Counter[Any]]:
        """The records of the training and of the test part, as text."""
        wanted = parse_schema(_toml(schema), "The study")
        assert isinstance(wanted, TabularSchema)
        training, test = (
            Counter(zip(part.columns["age"].tolist(), part.columns["pressure"].round(3).astype(str), strict=True))
            for part in load_table(self.get(name), wanted)
        )
        return training, test


@pytest.fixture
def target(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, joined: SiteFolder, tmp_path: Path
) -> Target:
    files = tmp_path / "files"
    files.mkdir()
    return Target(joined, files, runner(capsys, monkeypatch, joined))


# --- budgets ----------------------------------------------------------------------------------------------------------

PEOPLE = people(400)
Copy = Callable[[list[Row]], list[Row]]
COPIES: dict[str, Copy] = {
    "the same bytes": lambda rows: rows,
    "in another order": lambda rows: rows[::-1],
    "with as many others": lambda rows: [*rows, *people(400, seed=2)],
    "a tenth of them": lambda rows: rows[:40],
    "a tenth of them among others": lambda rows: [*rows[:40], *people(300, seed=2)],
    "each of them twice": lambda rows: [*rows, *rows],
    "numbers written otherwise": lambda rows: [(f"{r[0]}.0", r[1] and f" {float(r[1]):.5f}", *r[2:]) for r in rows],
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_under_another_name_has_no_budget_of_its_own(target: Target, copied: Copy) -> None:
    assert target.add("patients", PEOPLE).code == 0
    target.spend("patients")
    assert target.add("again", copied(PEOPLE)).code == 0
    assert target.spent("again") == [SPENT]
    target.spend("again")
    assert target.spent("patients") == [Event(2.0, 0.1, 100)]


def without_smoker(rows: list[Row]) -> list[Row]:
    return [(*row[:3], row[4]) for row in rows]


def in_places(names: Sequence[str], rows: list[Row]) -> list[Row]:
    places = [NAMES.index(name.strip().lower()) for name in names]
    return [tuple(row[place] for place in places) for row in rows]


MOVED, RENAMED = ("ill", "smoker", "age", "stage", "pressure"), ("age ", "ILL", *NAMES[1:4])
WRITTEN_OTHERWISE: dict[str, tuple[list[Row], Sequence[str], str]] = {
    "other places of the columns": (in_places(MOVED, PEOPLE), MOVED, SCHEMA),
    "other places and names": (in_places(RENAMED, PEOPLE), RENAMED, SCHEMA.replace('"ill"', '"ILL"')),
    # Other types, ranges, orders of categories and classes, and another rule for what is missing.
    "another schema": (PEOPLE, NAMES, OTHERWISE),
    "a column less": (
        without_smoker(PEOPLE),
        (*NAMES[:3], "ill"),
        SCHEMA[: SCHEMA.index('[[columns]]\nname = "smoker"')] + SCHEMA[SCHEMA.index("[label]") :],
    ),
}


@pytest.mark.parametrize(("rows", "names", "schema"), WRITTEN_OTHERWISE.values(), ids=WRITTEN_OTHERWISE)
def test_the_same_records_written_otherwise_begin_no_account(
    target: Target, rows: list[Row], names: Sequence[str], schema: str
) -> None:
    target.add("patients", PEOPLE)
    target.spend("patients")
    assert target.add("again", rows, names, schema).code == 0
    assert target.spent("again") == [SPENT]


def test_a_second_name_for_a_file_begins_no_account(target: Target) -> None:
    target.add("patients", PEOPLE)
    target.spend("patients")
    linked = target.files / "linked.csv"
    linked.hardlink_to(target.files / "patients.csv")
    assert target.run("data", "add", "again", linked, "--schema", target.files / "patients.toml").code == 0
    assert target.spent("again") == [SPENT]


def test_a_data_set_that_was_removed_is_not_forgotten(target: Target) -> None:
    target.add("patients", PEOPLE)
    target.spend("patients")
    target.run("data", "remove", "patients")
    assert target.add("again", PEOPLE).code == 0
    assert target.spent("again") == [SPENT]


def test_what_a_name_once_stood_for_is_not_forgotten(target: Target) -> None:
    """Other people take the name's place, and the first ones come again under another name."""
    target.add("patients", PEOPLE)
    target.spend("patients")
    target.run("data", "remove", "patients")
    assert target.add("patients", people(400, seed=3)).code == 0
    assert target.spent("patients") == [SPENT]
    assert target.add("again", PEOPLE).code == 0
    assert target.spent("again") == [SPENT]


def test_a_data_set_that_shares_with_two_makes_one_account_of_theirs(target: Target) -> None:
    others = people(400, seed=3)
    target.add("north", PEOPLE)
    target.add("south", others)
    target.spend("north")
    target.spend("south", Event(3.0, 0.2, 7))
    assert target.spent("south") == [Event(3.0, 0.2, 7)]
    assert target.add("both", [*PEOPLE[:200], *others[:200]]).code == 0
    for name in ("north", "south", "both"):
        assert target.spent(name) == [SPENT, Event(3.0, 0.2, 7)]


def test_other_people_have_an_account_of_their_own(target: Target) -> None:
    """Which makes the sentences above mean something: up to a twentieth in common is nothing."""
    target.add("patients", PEOPLE)
    target.spend("patients")
    assert target.add("others", [*PEOPLE[:18], *people(400, seed=2)]).code == 0
    assert target.spent("others") == []
    assert target.add("more", [*PEOPLE[20:50], *people(400, seed=5)]).code == 0
    assert target.spent("more") == [SPENT]


def test_the_administrator_is_told_which_account_it_is(target: Target) -> None:
    assert "an account of its own" in target.add("patients", PEOPLE).out
    told = target.add("again", PEOPLE[::-1])
    assert "shares the privacy account of patients" in told.out
    shown = target.run("data", "show", "again", "--json").json()
    assert shown["account"] == ["again", "patients"]


def test_pictures_are_known_by_their_pixels(target: Target) -> None:
    rng = np.random.default_rng(1)
    pixels, labels = rng.integers(0, 256, (100, 4, 4)).astype(np.uint8), np.arange(100) % 2
    order = rng.permutation(100)
    schema = target.files / "pictures.toml"
    schema.write_text(PICTURES)
    np.savez(target.files / "one.npz", images=pixels, labels=labels)
    np.savez_compressed(target.files / "two.npz", images=pixels[order], labels=1 - labels[order])
    np.savez(target.files / "three.npz", images=255 - pixels, labels=labels)
    for name in ("one", "two", "three"):
        assert target.run("data", "add", name, target.files / f"{name}.npz", "--schema", schema).code == 0
    target.spend("one")
    assert target.spent("two") == [SPENT]
    assert target.spent("three") == []
    wanted = parse_schema(_toml(PICTURES), "The study")
    assert isinstance(wanted, ImageSchema)
    one, two = (load_images(target.get(name), wanted) for name in ("one", "two"))
    for of_one, of_two in zip(one, two, strict=True):
        assert sorted(of_one.pixels.reshape(-1, 16).tolist()) == sorted(of_two.pixels.reshape(-1, 16).tolist())


# --- the test part ----------------------------------------------------------------------------------------------------

SUPERSETS: dict[str, Copy] = {
    "in another order": lambda rows: rows[::-1],
    "with others among them": lambda rows: [
        row for pair in zip(rows, people(len(rows), seed=2), strict=True) for row in pair
    ],
    "without the first": lambda rows: rows[1:],
}


@pytest.mark.parametrize("copied", SUPERSETS.values(), ids=SUPERSETS)
@pytest.mark.parametrize("name", ["patients", "again"])
def test_no_record_changes_between_training_and_test(target: Target, copied: Copy, name: str) -> None:
    """Under whatever name it comes again."""
    target.add("patients", PEOPLE)
    training, test = target.parts("patients")
    assert 40 < test.total() < 120
    target.run("data", "remove", "patients")
    target.add(name, copied(PEOPLE))
    trained_later, tested_later = target.parts(name)
    if len(copied(PEOPLE)) < len(PEOPLE):
        assert trained_later <= training
        assert tested_later <= test
    else:
        assert training <= trained_later
        assert test <= tested_later


def test_another_schema_moves_no_record_to_the_test_part(target: Target) -> None:
    target.add("patients", PEOPLE)
    training, _ = target.parts("patients")
    target.add("again", PEOPLE, NAMES, OTHERWISE)
    assert target.parts("again", OTHERWISE)[0] == training


def test_another_test_fraction_for_the_same_records_is_refused(target: Target) -> None:
    """It would test on records on which was trained."""
    target.add("patients", PEOPLE)
    refused = target.add("again", PEOPLE, NAMES, SCHEMA, "--test-fraction", "0.5")
    assert refused.code != 0
    assert "0.2" in refused.err
    target.run("data", "remove", "patients")
    assert target.add("patients", PEOPLE, NAMES, SCHEMA, "--test-fraction", "0.5").code != 0
    assert target.add("patients", PEOPLE).code == 0


def test_a_file_that_was_changed_in_place_is_not_used(target: Target) -> None:
    """As many records, but others: they would be told apart by fingerprints that are not theirs."""
    target.add("patients", PEOPLE)
    path = target.files / "patients.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines[:0:-1]]))
    with pytest.raises(Exception, match="has changed since it was registered"):
        target.parts("patients")


# --- the fingerprints themselves --------------------------------------------------------------------------------------


def test_fingerprints_are_for_this_user_and_for_who_has_the_key(target: Target) -> None:
    target.add("patients", PEOPLE)
    kept = [path for path in target.folder.records.rglob("*") if path.is_file()]
    key = target.folder.keys / "records.key"
    assert kept
    assert {path.stat().st_mode & 0o777 for path in [key, *kept]} == {0o600}
    assert all(key.read_bytes() not in path.read_bytes() for path in kept)


@pytest.mark.parametrize("loss", ["fingerprints", "one fingerprint", "key"])
def test_nothing_is_registered_where_it_cannot_be_compared(target: Target, loss: str) -> None:
    target.add("patients", PEOPLE)
    target.spend("patients")
    key = target.folder.keys / "records.key"
    for path in target.folder.records.iterdir() if loss != "key" else ():
        path.unlink() if loss == "fingerprints" else path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    if loss == "key":
        key.unlink()
    refused = target.add("again", PEOPLE[::-1])
    assert refused.code != 0
    assert "Restore" in refused.err
    assert [each["name"] for each in target.run("data", "list", "--json").json()] == ["patients"]


def _toml(text: str) -> Any:
    return tomllib.loads(text)
