"""What is remembered of records: split, comparison, and what happens when some of it is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quorate.errors import DataError, WrongStateError
from quorate.process.private_files import write_private
from quorate_client.tasks.data.fingerprints import Fingerprints
from quorate_client.tasks.data.record_index import (
    RecordIndex,
    content_digest,
    read_index,
    records_key,
    shared_with,
    write_index,
)
from tests.client.data_kit import a_site

COLUMNS = ("age", "ill", "pressure", "smoker")


def numbers(count: int, seed: int = 1) -> Fingerprints:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64, endpoint=False)


def index(
    records: Fingerprints, units: Fingerprints | None = None, columns: tuple[str, ...] = COLUMNS, check: str = "k"
) -> RecordIndex:
    return RecordIndex(columns, 0.2, check, records, units)


def test_an_index_is_read_back_and_named_by_its_digest(tmp_path: Path) -> None:
    for units in (None, numbers(50, 2)):
        written = index(numbers(50), units)
        path = write_index(tmp_path / "records", written)
        read = read_index(path)
        assert (read.columns, read.fraction, read.key_check) == (COLUMNS, 0.2, "k")
        assert (read.records == written.records).all()
        assert (read.units is None) if units is None else (read.units == units).all()
        assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_an_index_that_is_gone_or_was_changed_is_refused(tmp_path: Path) -> None:
    path = write_index(tmp_path, index(numbers(50)))
    write_private(path, path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="are damaged"):
        read_index(path)
    path.unlink()
    with pytest.raises(DataError, match="Cannot read the fingerprints"):
        read_index(path)


def test_units_are_held_out_whole_and_counted_once() -> None:
    units = np.repeat(numbers(1000), 3)
    split = index(numbers(3000, 2), units)
    assert len(set(zip(units.tolist(), split.held_out.tolist(), strict=True))) == 1000
    trained_on, held_out = split.counts
    assert trained_on + held_out == 1000
    assert 150 < held_out < 250
    assert split.unit_numbers is not None
    assert len({*split.unit_numbers.tolist()}) == 1000
    assert index(numbers(3000, 2)).unit_numbers is None
    assert sum(index(numbers(3000, 2)).counts) == 3000


@pytest.mark.parametrize(("common", "are_shared"), [(5, False), (6, True), (100, True)])
def test_more_than_a_twentieth_of_either_is_shared(common: int, are_shared: bool) -> None:
    small, large = numbers(100), np.append(numbers(100)[:common], numbers(5000, 2))
    assert index(small).shares_with(index(large)) is are_shared
    assert index(large).shares_with(index(small)) is are_shared
    of_units = index(numbers(100, 3), small), index(numbers(len(large), 4), large)
    assert of_units[0].shares_with(of_units[1]) is are_shared


def test_records_of_other_columns_are_taken_for_the_same_people_if_most_columns_are() -> None:
    one = index(numbers(100))
    assert one.shares_with(index(numbers(100, 2), columns=(*COLUMNS[:3], "weight")))
    assert not one.shares_with(index(numbers(100, 2), columns=(*COLUMNS[:2], "weight", "height")))
    assert not one.shares_with(index(numbers(100, 2), columns=COLUMNS))


def test_units_decide_where_both_name_them() -> None:
    other_columns = (*COLUMNS[:3], "weight")
    one, other = (index(numbers(100, seed), numbers(100, seed + 2), (COLUMNS, other_columns)[seed]) for seed in (0, 1))
    assert not one.shares_with(other)
    assert one.shares_with(replace(other, units=None))
    assert one.shares_with(replace(other, units=one.units))
    assert one.shares_with(replace(other, records=one.records, columns=COLUMNS))


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    known = [("visits", bytes.fromhex(write_index(tmp_path, index(numbers(100))).name))]
    assert shared_with(index(numbers(100)), known, tmp_path) == ["visits"]
    assert shared_with(index(numbers(100, 2)), known, tmp_path) == []
    with pytest.raises(DataError, match="under another key"):
        shared_with(index(numbers(100, 2), check="other"), known, tmp_path)
    with pytest.raises(DataError, match="Cannot read the fingerprints"):
        shared_with(index(numbers(100, 2)), [("scans", bytes(32))], tmp_path)


def test_another_share_of_the_same_records_cannot_be_held_out(tmp_path: Path) -> None:
    known = [("visits", bytes.fromhex(write_index(tmp_path, index(numbers(100))).name))]
    with pytest.raises(DataError, match=r"between training and test.*0\.2.*0\.3"):
        shared_with(replace(index(numbers(100)), fraction=0.3), known, tmp_path)
    assert shared_with(replace(index(numbers(100, 2)), fraction=0.3), known, tmp_path) == []


def test_the_key_is_made_once_and_not_again(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    path = site.keys / "records.key"
    path.unlink()
    key = records_key(site.keys, site.records)
    assert len(key) == 32
    assert records_key(site.keys, site.records) == key
    assert path.stat().st_mode & 0o777 == 0o600
    write_index(site.records, index(numbers(50)))
    path.unlink()
    with pytest.raises(WrongStateError, match="is not there"):
        records_key(site.keys, site.records)
    write_private(path, key[:31])
    with pytest.raises(WrongStateError, match="is no key"):
        records_key(site.keys, site.records)


def test_any_change_of_a_file_or_folder_changes_its_digest(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"one")
    (tmp_path / "a" / "2.png").write_bytes(b"two")
    seen = {content_digest(tmp_path), content_digest(tmp_path / "a" / "1.png")}
    (tmp_path / "a" / "2.png").rename(tmp_path / "a" / "3.png")
    seen.add(content_digest(tmp_path))
    (tmp_path / "a" / "3.png").write_bytes(b"too")
    seen.add(content_digest(tmp_path))
    assert len(seen) == 4
