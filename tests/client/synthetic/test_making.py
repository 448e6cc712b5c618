"""Making a synthetic data set: what it may see, what it costs, and what is refused before anything is spent."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from quorate.errors import (
    AlreadyExistsError,
    BudgetExhaustedError,
    DataError,
    InputError,
    NotFoundError,
    PrivacyRefusedError,
    QuorateError,
    WrongStateError,
)
from quorate_client.approval.policy import Policy, PrivacyPolicy, SyntheticPolicy
from quorate_client.ledger.entries import Limited, Refused, Reserved, Spent, Unbounded
from quorate_client.site.folder import SiteFolder
from quorate_client.synthetic import kept
from quorate_client.synthetic.identifying.identifiers import Mitigation
from quorate_client.synthetic.order import Order
from quorate_client.tasks.data.datasets import load_table, register
from quorate_client.tasks.data.table import Table, read_table

from .records import SCHEMA, a_table, parsed, write_table
from .site_kit import ORDER, RECORDS, ROWS, Site, opened_site, register_visits

WITHOUT = Order("made", "visits", ROWS, None)
ALLOWS_WITHOUT = Policy(synthetic=SyntheticPolicy(without_privacy=True))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with opened_site(register_visits(tmp_path)) as made:
        yield made


def rows_of(table: Table) -> set[tuple[float, ...]]:
    columns = [np.nan_to_num(values, nan=-1.0) for values in table.columns.values()]
    return {tuple(row) for row in np.stack([*columns, table.labels.astype(float)], axis=1).tolist()}


# --- what it sees and gives ---


def test_a_set_is_registered_with_its_records_report_and_lineage(site: Site) -> None:
    made = site.make()
    dataset = site.datasets.get("made")
    assert dataset == made.dataset
    assert (dataset.records, dataset.index, dataset.test_fraction) == (ROWS, None, 0.2)
    assert dataset.origin is not None
    assert (dataset.origin.source, dataset.origin.epsilon) == (site.source, 3.0)
    assert sorted(path.name for path in dataset.path.parent.iterdir()) == sorted(
        (kept.RECORDS, kept.REPORT, kept.PAGE, kept.LINEAGE)
    )
    table = read_table(dataset.path, kept.schema_of(dataset))
    assert table.records == ROWS
    (measured,) = site.spy.measured
    assert rows_of(measured[2]) == rows_of(table), "what was measured is what is kept, to the last digit"
    assert max(len(f"{each!r}") for each in table.columns["pressure"].tolist()) <= len("123.456")
    assert {path.stat().st_mode & 0o777 for path in dataset.path.parent.iterdir()} == {0o600}
    kept.find(site.datasets, "made").require_whole()


def test_no_held_out_record_ever_reaches_the_generator(site: Site) -> None:
    """The report is given them, and only after that."""
    site.make()
    training, held_out = load_table(site.source, parsed())
    outside = rows_of(held_out) - rows_of(training)
    assert len(outside) > 50
    assert len(site.spy.generated_from) == 2
    for given in site.spy.generated_from:
        assert rows_of(given) == rows_of(training)
        assert not rows_of(given) & outside
    (measured,) = site.spy.measured
    assert rows_of(measured[1]) == rows_of(held_out)


def test_the_same_request_gives_the_same_table_and_another_one_another(tmp_path: Path) -> None:
    with opened_site(register_visits(tmp_path)) as site:
        first = site.make().dataset.path.read_bytes()
        commitment = site.make(replace(ORDER, name="other")).lineage["seed_commitment"]
        key = (site.folder.keys / "synthetic.key").read_bytes()
    (tmp_path / "again").mkdir()
    folder = register_visits(tmp_path / "again")
    (folder.keys / "synthetic.key").write_bytes(key)
    with opened_site(folder) as site:
        made = site.make()
        assert made.dataset.path.read_bytes() == first
        assert made.lineage["seed_commitment"] != commitment
        for changed in ({"epsilon": 2.0}, {"delta": 1e-5}, {"answers": Mitigation(keep=frozenset({"age"}))}):
            other = site.make(replace(ORDER, name="x", **changed))
            assert other.lineage["seed_commitment"] != commitment
            kept_there = site.datasets.get("x").path.parent
            site.datasets.remove("x")
            assert kept_there.is_dir()  # a leftover, which the next one of that name takes away
    (folder.keys / "synthetic.key").write_bytes(b"k" * 32)
    with opened_site(folder) as site:
        site.datasets.remove("made")
        assert site.make().dataset.path.read_bytes() != first


def test_the_lineage_tells_how_it_was_made_and_nothing_of_the_source_s_records(site: Site) -> None:
    made = site.make(replace(ORDER, answers=Mitigation(drop=frozenset({"smoker"}))))
    lineage = json.loads((made.dataset.path.parent / kept.LINEAGE).read_bytes())
    assert lineage == made.lineage
    report = (made.dataset.path.parent / kept.REPORT).read_bytes()
    assert lineage["report_sha256"] == hashlib.sha256(report).hexdigest()
    assert lineage["transformations"] == ["dropped smoker"]
    assert lineage["generator"] == "tests.one-way/1"
    assert lineage["parameters"] == {"rows": ROWS, "epsilon": 3.0, "delta": 1e-3}
    told = re.findall(r"[\w.]+", json.dumps(lineage))  # whole words: digits may stand in a digest by chance
    for secret in ("visits", site.source.content, site.source.identity, str(RECORDS), "0.01", "0.02"):
        assert secret not in told, secret
    assert "smoker" not in made.dataset.path.read_text().splitlines()[0]


def test_the_lineage_tells_how_many_sets_were_made_of_the_source_also_of_those_that_are_gone(site: Site) -> None:
    """Whoever makes sets until a report passes has chosen by the report, and each reader of the last one may know."""

    def sets_made(order: Order) -> int:
        lineage = site.make(order, ALLOWS_WITHOUT).lineage
        site.datasets.remove(order.name)
        return int(lineage["source"]["sets_made_of_it"])

    orders = (WITHOUT, ORDER, replace(WITHOUT, rows=ROWS + 1), WITHOUT)
    assert [sets_made(order) for order in orders] == [1, 2, 3, 3], "the same one again is no further one"


def test_a_delta_that_nobody_names_tells_the_magnitude_of_the_source_and_no_more(site: Site) -> None:
    """1 / records^1.1 itself would be the number of records to whoever gets the table."""
    made = site.make()
    trained_on = load_table(site.source, parsed())[0].records
    rule = trained_on**-1.1
    assert made.lineage["parameters"]["delta"] == 10.0 ** math.floor(math.log10(rule)) <= rule


# --- what it costs ---


def test_the_ledger_s_event_is_what_an_independent_account_gives(site: Site) -> None:
    made = site.make()
    reserved, spent = (each for each in site.entries() if isinstance(each, Reserved | Spent))
    (event,) = spent.events
    assert reserved.events == spent.events
    assert (spent.account.dataset, spent.account.unit, spent.account.part) == ("visits", "record", "training")
    assert (spent.purpose, spent.study) == ("synthesise", "synthetic:made")
    accountant = PLDAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(event.noise_multiplier), event.count))
    epsilon = accountant.get_epsilon(made.lineage["parameters"]["delta"])
    assert 2.9 < epsilon <= 3.0 + 1e-3
    assert made.lineage["privacy"]["events"] == [{"noise_multiplier": event.noise_multiplier, "count": event.count}]
    site.ledger.entries.verify()


def test_it_is_paid_before_the_generator_sees_a_record_and_settled_before_anything_is_written(site: Site) -> None:
    seen: list[tuple[list[str], bool]] = []
    spy = site.spy
    spy.interrupt = lambda: seen.append(([each.kind for each in site.entries()], site.folder.synthetic.exists()))
    site.make()
    assert seen[0] == (["registered", "reserve"], False)


def test_limits_hold_it_like_any_other_use(site: Site) -> None:
    policy = Policy(privacy=PrivacyPolicy(epsilon_ever=5.0, delta=1e-3))
    site.make(policy=policy)
    before = site.everything()
    with pytest.raises(BudgetExhaustedError, match=r"left for ever: 1\.\d+"):
        site.make(replace(ORDER, name="second"), policy)
    assert site.everything() == before
    assert [type(each) for each in site.entries()][-1] is Refused
    assert site.datasets.find("second") is None
    assert len(site.spy.generated_from) == 2
    site.make(replace(ORDER, name="second", epsilon=1.0), policy)


def test_a_column_that_is_rounded_a_little_differently_is_paid_for_anew(site: Site) -> None:
    commitments = []
    for step in (20.0, 20.000001):
        made = site.make(replace(ORDER, answers=Mitigation(generalise={"pressure": step})))
        commitments.append(made.lineage["seed_commitment"])
        site.datasets.remove("made")
    assert commitments[0] != commitments[1], "the same noise on two sums: their difference has none"
    assert sum(isinstance(each, Reserved) for each in site.entries()) == 2


def test_a_set_without_privacy_is_on_the_ledger_as_a_use_without_bound(site: Site) -> None:
    kinds: list[list[str]] = []
    site.spy.interrupt = lambda: kinds.append([each.kind for each in site.entries()])
    made = site.make(WITHOUT, ALLOWS_WITHOUT)
    assert "unbounded" in kinds[0]
    (use,) = (each for each in site.entries() if isinstance(each, Unbounded))
    assert (use.study, use.account.dataset if use.account else "") == ("synthetic:made", "visits")
    assert math.isinf(site.ledger.spent(use.account, 1e-5)) if use.account else False
    assert made.dataset.origin is not None
    assert made.dataset.origin.epsilon is None
    assert "WITHOUT privacy" in made.lineage["privacy"]["statement"]
    assert "WITHOUT privacy" in (made.dataset.path.parent / kept.PAGE).read_text()


# --- what is refused: nothing is made, nothing is paid ---


def refused(site: Site, order: Order, policy: Policy, error: type[QuorateError], match: str) -> None:
    """And nothing on disk or on the ledger changed."""
    before, entries = site.everything(), site.entries()
    with pytest.raises(error, match=match):
        site.make(order, policy)
    after = site.everything()
    after.pop("synthetic.lock", None)
    before.pop("synthetic.lock", None)
    assert (after, site.entries()) == (before, entries)
    assert site.spy.generated_from == []
    assert [each.name for each in site.datasets.all()] == ["visits"]


@pytest.mark.parametrize(
    ("order", "policy", "match"),
    [
        (WITHOUT, Policy(), "without_privacy"),
        (
            WITHOUT,
            Policy(synthetic=SyntheticPolicy(without_privacy=True), privacy=PrivacyPolicy(epsilon_ever=9.0)),
            "epsilon_ever",
        ),
        (ORDER, Policy(synthetic=SyntheticPolicy(largest_epsilon=2.0)), "largest_epsilon = 2"),
        (ORDER, Policy(privacy=PrivacyPolicy(least_records=1000)), "least_records = 1000"),
        (WITHOUT, ALLOWS_WITHOUT.model_copy(update={"privacy": PrivacyPolicy(least_records=1000)}), "least_records"),
        (ORDER, Policy(privacy=PrivacyPolicy(least_noise=50.0)), "least_noise = 50"),
        (replace(ORDER, delta=0.01), Policy(), "at most 0.0014"),
        (replace(ORDER, delta=0.0), Policy(), "delta"),
        (replace(ORDER, delta=1e-4), Policy(privacy=PrivacyPolicy(largest_delta=1e-5)), "at most 1e-05"),
        (replace(ORDER, epsilon=60.0), Policy(synthetic=SyntheticPolicy(largest_epsilon=100.0)), "at most 50"),
    ],
)
def test_what_the_policy_or_the_generator_does_not_allow_changes_nothing(
    site: Site, order: Order, policy: Policy, match: str
) -> None:
    refused(site, order, policy, PrivacyRefusedError, match)


@pytest.mark.parametrize(
    ("order", "error", "match"),
    [
        (replace(ORDER, dataset="none"), NotFoundError, "no data set none"),
        (replace(ORDER, name="visits"), AlreadyExistsError, "already"),
        (replace(ORDER, name="../made"), InputError, "data set"),
        (replace(ORDER, rows=3), InputError, "from 20"),
        (replace(ORDER, epsilon=-1.0), InputError, "a number above 0; got --epsilon -1"),
        (replace(ORDER, epsilon=math.nan), InputError, "a number above 0"),
        (replace(ORDER, answers=Mitigation(drop=frozenset({"outcome"}))), DataError, "label"),
        (
            replace(ORDER, answers=Mitigation(keep=frozenset({"nothing"}))),
            DataError,
            "no column nothing. Expected some of age",
        ),
    ],
)
def test_an_order_that_cannot_be_carried_out_changes_nothing(
    site: Site, order: Order, error: type[QuorateError], match: str
) -> None:
    refused(site, order, Policy(), error, match)


def test_a_data_set_that_changed_since_it_was_registered_is_no_source(site: Site) -> None:
    site.source.path.write_text(site.source.path.read_text().replace("north", "west"))
    refused(site, ORDER, Policy(), DataError, "has changed")


def test_images_are_no_source(site: Site, tmp_path: Path) -> None:
    np.savez(tmp_path / "scans.npz", images=np.zeros((40, 2, 2), dtype=np.uint8), labels=np.arange(40) % 2)
    schema = {"kind": "images", "height": 2, "width": 2, "channels": 1, "classes": ["a", "b"]}
    site.datasets.add(register("scans", tmp_path / "scans.npz", schema, 0.5, site.folder))
    with pytest.raises(InputError, match="only tables"):
        site.make(replace(ORDER, dataset="scans"))


def test_a_synthetic_set_is_no_source(site: Site) -> None:
    site.make()
    before, entries = site.everything(), site.entries()
    with pytest.raises(InputError, match="synthetic itself"):
        site.make(Order("second", "made", ROWS, 3.0))
    assert (site.everything(), site.entries()) == (before, entries)


def test_a_column_that_identifies_is_refused_until_it_is_answered_for(tmp_path: Path) -> None:
    schema: dict[str, Any] = {
        **SCHEMA,
        "columns": [{"name": "patient_id", "type": "integer", "range": [0, 10**7]}, *SCHEMA["columns"]],
    }
    (tmp_path / "real").mkdir()
    folder = register_visits(tmp_path / "real")
    lines = write_table(tmp_path / "plain.csv", a_table(RECORDS, seed=5)).read_text().splitlines()
    numbered = [f"patient_id,{lines[0]}", *(f"{7_000_000 + 3 * n},{line}" for n, line in enumerate(lines[1:]))]
    path = tmp_path / "numbered.csv"
    path.write_text("\n".join(numbered) + "\n")
    with opened_site(folder) as site:
        site.datasets.add(register("numbered", path, schema, 0.2, folder))
        order = replace(ORDER, dataset="numbered")
        entries = site.entries()
        with pytest.raises(DataError, match="patient_id"):
            site.make(order)
        assert site.entries() == entries
        assert site.spy.generated_from == []
        made = site.make(replace(order, answers=Mitigation(drop=frozenset({"patient_id"}))))
        assert "patient_id" not in made.dataset.path.read_text()
        assert "patient_id" not in json.dumps(made.dataset.schema)
        assert all("patient_id" not in given.columns for given in site.spy.generated_from)


# --- interrupted ---


def test_an_interrupted_make_is_repeated_without_another_payment_and_gives_the_same_table(
    site: Site, tmp_path: Path
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    site.spy.interrupt = stop
    with pytest.raises(KeyboardInterrupt):
        site.make()
    assert site.datasets.find("made") is None
    site.spy.interrupt = lambda: None
    made = site.make()
    assert "paid for before" in made.notes[0]
    assert [each.kind for each in site.entries()] == ["registered", "reserve", "spend"]
    (tmp_path / "twin").mkdir()
    twin = register_visits(tmp_path / "twin")
    (twin.keys / "synthetic.key").write_bytes((site.folder.keys / "synthetic.key").read_bytes())
    with opened_site(twin) as other:
        assert other.make().dataset.path.read_bytes() == made.dataset.path.read_bytes()


def test_an_interrupted_make_that_cannot_be_repeated_is_paid_for_anew_and_that_is_said(site: Site) -> None:
    """Under another key, or with another program, the same noise would never come again."""

    def stop() -> None:
        raise KeyboardInterrupt

    site.spy.interrupt = stop
    with pytest.raises(KeyboardInterrupt):
        site.make()
    site.spy.interrupt = lambda: None
    made = site.make(replace(ORDER, rows=ROWS + 1))
    assert "paid for anew" in made.notes[0]
    assert [each.kind for each in site.entries()][1:] == ["reserve", "reserve", "spend"]


def test_what_was_removed_is_made_again_as_it_was_and_for_nothing(site: Site) -> None:
    first = site.make().dataset.path.read_bytes()
    entries = site.entries()
    site.datasets.remove("made")
    made = site.make()
    assert made.dataset.path.read_bytes() == first
    assert site.entries() == entries
    assert "nobody had finished" in made.notes[0]
    assert "paid for before" in made.notes[1]


def test_a_make_in_another_s_place_takes_only_its_own_leftovers_away(site: Site) -> None:
    other = site.folder.synthetic / "other"
    other.mkdir(parents=True)
    (site.folder.keys / "synthetic.key").write_bytes(b"k" * 32)
    site.make()
    assert other.is_dir()
    assert kept.leftovers(site.folder, site.datasets) == [other]


def test_without_its_key_nothing_more_is_made_where_something_was(site: Site) -> None:
    """Under a new one the watermark of what there is would be lost without a word."""
    site.make()
    (site.folder.keys / "synthetic.key").unlink()
    entries = site.entries()
    with pytest.raises(WrongStateError, match=r"synthetic\.key"):
        site.make(replace(ORDER, name="second"))
    assert site.entries() == entries


def test_a_full_disk_leaves_nothing_half_made_and_costs_nothing_more_afterwards(site: Site) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        site.maker(page=full).make(ORDER)
    assert site.datasets.find("made") is None
    assert not (site.folder.synthetic / "made").exists()
    assert not (site.folder.root / "synthetic-in-progress").exists()
    site.make()
    assert [each.kind for each in site.entries()][1:] == ["reserve", "spend"]


def test_two_are_not_made_at_once(site: Site) -> None:
    with kept.alone(site.folder), pytest.raises(WrongStateError, match="being made"):
        site.make()


def test_a_name_that_another_make_took_meanwhile_is_not_paid_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = kept.alone

    def after_another(folder: SiteFolder) -> AbstractContextManager[None]:
        monkeypatch.setattr(kept, "alone", alone)
        site.make(replace(ORDER, epsilon=2.0))
        return alone(folder)

    monkeypatch.setattr(kept, "alone", after_another)
    with pytest.raises(AlreadyExistsError):
        site.make()
    assert sum(isinstance(each, Reserved) for each in site.entries()) == 1


def test_the_policy_s_limits_are_noted_before_anything_is_paid(site: Site) -> None:
    site.make(policy=Policy(privacy=PrivacyPolicy(epsilon_ever=20.0)))
    (limited,) = (each for each in site.entries() if isinstance(each, Limited))
    assert limited.limits["epsilon_ever"] == 20.0


def test_a_watermark_that_is_left_out_is_said(site: Site) -> None:
    made = site.make()
    assert made.lineage["is_watermarked"] is False
    assert any("no watermark" in note for note in made.notes)
    marked = site.make(replace(ORDER, name="long", rows=2500))
    assert marked.lineage["is_watermarked"] is True
    assert marked.notes == ()


# --- kept as it was made ---


@pytest.mark.parametrize("name", [kept.RECORDS, kept.REPORT, kept.LINEAGE])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_file_that_is_not_what_was_made_is_found_out(site: Site, name: str, how: str) -> None:
    path = site.make().dataset.path.parent / name
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"0", b"1"))
    with pytest.raises(QuorateError, match=name):
        kept.find(site.datasets, "made").require_whole()


@pytest.mark.parametrize(
    ("key", "value"),
    [("privacy", {"statement": "epsilon 0.01"}), ("transformations", ["dropped age"]), ("id", "quorate-synthetic-0")],
)
def test_no_word_of_a_lineage_can_be_changed(site: Site, tmp_path: Path, key: str, value: object) -> None:
    path = site.make().dataset.path.parent / kept.LINEAGE
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}, indent=2, sort_keys=True) + "\n")
    with pytest.raises(QuorateError, match=kept.LINEAGE):
        kept.find(site.datasets, "made").export(tmp_path / "made.parquet")


def test_a_report_s_file_has_a_salt_and_the_report_none(site: Site) -> None:
    """Its digest is in the lineage, which leaves the site: without a salt its figures could be tried out."""
    made = site.make()
    stored = json.loads((made.dataset.path.parent / kept.REPORT).read_bytes())
    assert len(stored.pop("salt")) == 64
    assert kept.find(site.datasets, "made").report() == stored
