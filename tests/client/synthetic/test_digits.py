"""Made numbers have as many digits as say something."""

from __future__ import annotations

import numpy as np
import pytest

from quorate_client.synthetic.digits import cut
from quorate_client.tasks.data.schema import TabularSchema, parse_schema
from quorate_client.tasks.data.table import Table


def cut_in(low: float, high: float, *values: float, type_: str = "number") -> list[float]:
    schema = parse_schema(
        {
            "kind": "tabular",
            "columns": [{"name": "a", "type": type_, "range": [low, high], "missing": "mean"}],
            "label": {"name": "ill", "classes": ["no", "yes"]},
        },
        "The schema",
    )
    assert isinstance(schema, TabularSchema)
    table = Table({"a": np.array(values)}, np.zeros(len(values), np.int64))
    return cut(schema, table).columns["a"].tolist()


def test_numbers_are_written_with_six_digits_however_large_they_are() -> None:
    made = cut_in(0, 2e6, 1234567.891, 357.56523619548034, 0.0123456789, 0.0, 20.95083147120556, 1.5)
    assert [repr(each) for each in made] == ["1234570.0", "357.565", "0.0123457", "0.0", "20.9508", "1.5"]
    assert cut_in(-10, 10, -3.14159265) == [-3.14159]


def test_digits_that_all_numbers_of_the_range_have_in_common_do_not_count() -> None:
    assert cut_in(1_000_000, 1_000_001, 1_000_000.123456789) == [1_000_000.12346]


def test_no_number_leaves_the_range_and_none_that_is_missing_comes_back() -> None:
    made = cut_in(0, 0.12345678, 0.12345677, float("nan"))
    assert made[0] == 0.12345678
    assert np.isnan(made[1])


@pytest.mark.parametrize("size", [5e-324, 1e-30, 1e-17, 1e-9, 1.0, 1e9, 1e25, 1.7e308])
def test_a_number_moves_by_a_millionth_of_itself_at_most_or_by_what_nobody_sees(size: float) -> None:
    assert cut_in(-1.79e308, 1.79e308, size / 3)[0] == pytest.approx(size / 3, rel=5.1e-6, abs=1e-22)


def test_whole_numbers_stay_whole() -> None:
    assert cut_in(0, 10**8, 12345678.0, type_="integer") == [12345678.0]
