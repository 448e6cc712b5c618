"""Made records are not taken for observed ones: by their mark, and by the watermark where it was cut off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from quorate.errors import InputError
from quorate_client.synthetic import kept
from quorate_client.synthetic.marking.provenance import examine, require_real
from quorate_client.tasks.data.table import read_table

from ..records import SCHEMA, a_table, parsed, write_table
from ..site_kit import ORDER, Site, opened_site, register_visits


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With a long set, which carries the watermark, and a short one."""
    with opened_site(register_visits(tmp_path_factory.mktemp("site"))) as made:
        made.make(replace(ORDER, rows=2500))
        made.make(replace(ORDER, name="short"))
        yield made


def bare(site: Site, target: Path, name: str = "made") -> Path:
    """Without its mark, and written as somebody else would."""
    dataset = site.datasets.get(name)
    return write_table(target, read_table(dataset.path, kept.schema_of(dataset)))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_synthetic_file_is_not_registered_as_real(site: Site, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"records{suffix}"
    kept.find(site.datasets, "made").export(path)
    with pytest.raises(InputError, match="quorate-synthetic-"):
        require_real(path, SCHEMA, site.folder)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_nor_is_one_whose_mark_was_cut_off(site: Site, tmp_path: Path, suffix: str) -> None:
    path = bare(site, tmp_path / "records.csv")
    if suffix == ".parquet":
        pq.write_table(pyarrow.csv.read_csv(path), tmp_path / "records.parquet")
        path = tmp_path / "records.parquet"
    with pytest.raises(InputError, match="watermark of this site"):
        require_real(path, SCHEMA, site.folder)


def test_real_records_are_let_through_also_by_a_site_that_made_some(site: Site, tmp_path: Path) -> None:
    require_real(write_table(tmp_path / "real.csv", a_table(3000, seed=9)), SCHEMA, site.folder)
    require_real(site.source.path, SCHEMA, site.folder)


def test_a_folder_of_images_is_let_through(site: Site, tmp_path: Path) -> None:
    (tmp_path / "scans.csv").mkdir()
    require_real(tmp_path / "scans.csv", SCHEMA, site.folder)
    require_real(tmp_path / "scans.npz", SCHEMA, site.folder)


def test_a_file_from_here_is_known_by_its_mark_and_without_it_by_the_watermark(site: Site, tmp_path: Path) -> None:
    kept.find(site.datasets, "made").export(tmp_path / "made.csv")
    found = examine(tmp_path / "made.csv", site.folder, site.datasets, None)
    assert (found.name, found.is_ours) == ("made", True)
    assert found.watermark is not None
    assert found.watermark.is_ours
    unmarked = examine(bare(site, tmp_path / "bare.csv"), site.folder, site.datasets, None)
    assert (unmarked.mark, unmarked.name, unmarked.is_ours) == (None, None, True)
    assert "made here" in " ".join(unmarked.in_words())


def test_what_cannot_be_told_is_not_claimed(site: Site, tmp_path: Path) -> None:
    short = examine(bare(site, tmp_path / "short.csv", "short"), site.folder, site.datasets, None)
    assert not short.is_ours
    assert "does not show" in " ".join(short.in_words())
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    other = examine(tmp_path / "other.csv", site.folder, site.datasets, None)
    assert (other.mark, other.watermark, other.is_ours) == (None, None, False)
    with pytest.raises(InputError, match="Only tables"):
        examine(tmp_path / "x.npz", site.folder, site.datasets, None)


def test_another_site_s_set_is_known_as_synthetic_and_not_as_its_own(site: Site, tmp_path: Path) -> None:
    kept.find(site.datasets, "made").export(tmp_path / "made.csv")
    with opened_site(register_visits(tmp_path)) as other:
        found = examine(tmp_path / "made.csv", other.folder, other.datasets, None)
        assert found.mark is not None
        assert not found.is_ours
        with pytest.raises(InputError, match="quorate-synthetic-"):
            require_real(tmp_path / "made.csv", SCHEMA, other.folder)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_exported_file_holds_the_same_records(site: Site, tmp_path: Path, suffix: str) -> None:
    found = kept.find(site.datasets, "made")
    path = tmp_path / f"made{suffix}"
    found.export(path)
    schema = found.schema
    assert parsed().columns == schema.columns
    one, other = read_table(path, schema), read_table(found.dataset.path, schema)
    assert all(
        (one.columns[name] == other.columns[name])[~(one.columns[name] != one.columns[name])].all()
        for name in one.columns
    )
    assert (one.labels == other.labels).all()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
