"""Each attack against loops over a handful of records."""

from __future__ import annotations

import numpy as np
import pytest

from quorate_client.synthetic.report.disclosure import attribute, linkability, membership, singling_out
from quorate_client.synthetic.report.figures import generator_of
from quorate_client.synthetic.report.records import (
    Records,
    Space,
    nearest,
    one_of_each_unit,
    records_of,
    variables_of,
)
from quorate_client.tasks.data.table import Table
from tests.client.synthetic.report.population import TABULAR, copying, honest, people, split

VARIABLES = variables_of(TABULAR)


def few() -> tuple[Space, Records, Records, Records]:
    training, held_out = split(people(60, 1), 20)
    parts = [records_of(TABULAR, table) for table in (training, held_out, honest(training, b"made"))]
    return Space.of(VARIABLES, np.concatenate(parts[:2])), *parts


def distance(space: Space, one: Records, other: Records, without: int | None = None) -> float:
    """Squared, column by column, as the page describes it."""
    first, second = (space.places(record[None])[0] for record in (one, other))
    total = 0.0
    for place, variable in enumerate(VARIABLES):
        if place == without:
            continue
        a, b = first[place], second[place]
        if not variable.is_number:
            total += float(not (a == b or (np.isnan(a) and np.isnan(b))))
        elif np.isnan(a) != np.isnan(b):
            total += (float(np.nansum([a, b])) - 0.5) ** 2 + 0.75
        elif not np.isnan(a):
            total += (a - b) ** 2
    return total


def test_a_number_s_place_is_the_share_of_records_below_it() -> None:
    pool = np.array([[1.0], [2.0], [2.0], [4.0]])
    space = Space.of(VARIABLES[:1], pool)
    assert space.places(np.array([[1.0], [2.0], [3.0], [9.0], [np.nan]]))[:, 0] == pytest.approx(
        [0.125, 0.5, 0.6875, 0.875, np.nan], nan_ok=True
    )


def test_the_closest_records_are_those_that_loops_find() -> None:
    space, training, _, synthetic = few()
    found, distances = nearest(np.hstack(space.coordinates(training)), np.hstack(space.coordinates(synthetic)), 3)
    for place, record in enumerate(training):
        by_hand = [distance(space, record, row) for row in synthetic]
        assert distances[place] == pytest.approx(np.sqrt(np.sort(by_hand)[:3]), abs=1e-6)
        assert [by_hand[at] for at in found[place]] == pytest.approx(np.sort(by_hand)[:3].tolist(), abs=1e-9)


def test_an_attribute_is_guessed_from_the_record_that_is_closest_in_all_others() -> None:
    space, training, _, synthetic = few()
    right = attribute.guesses(space, training, synthetic, [1, 2, 6])
    places, guessed = space.places(training), space.places(synthetic)
    for person, record in enumerate(training):
        for at, place in enumerate([1, 2, 6]):
            closest = int(np.argmin([distance(space, record, row, without=place) for row in synthetic]))
            a, b = places[person, place], guessed[closest, place]
            within = 0.05 if VARIABLES[place].is_number else 0.0
            assert right[person, at] == float((np.isnan(a) and np.isnan(b)) or abs(a - b) <= within)


def test_only_named_columns_that_differ_are_attacked() -> None:
    space, training, held_out, synthetic = few()
    for part in (training, held_out, synthetic):
        part[:, 7] = 1.0
    assert [column.name for column in attribute.attack(space, training, held_out, synthetic).columns] == [
        variable.name for variable in VARIABLES if variable.name != "smoker"
    ]
    named = attribute.attack(space, training, held_out, synthetic, ["income", "smoker"])
    assert [column.name for column in named.columns] == ["income"]


def test_two_halves_are_linked_where_the_same_record_is_closest_to_both() -> None:
    space, training, _, synthetic = few()
    first, second = [0, 1, 2, 3], [4, 5, 6, 7, 8]
    linked = linkability.linked(space, training, synthetic, first, second)
    for person, record in enumerate(training[:15]):
        closest = []
        for half in (first, second):
            others = [place for place in range(len(VARIABLES)) if place not in half]
            total = [
                distance(space, record, row) - sum(_of_column(space, record, row, place) for place in others)
                for row in synthetic
            ]
            closest.append(int(np.argmin(np.round(total, 9))))
        assert linked[person] == float(closest[0] == closest[1])


def _of_column(space: Space, one: Records, other: Records, place: int) -> float:
    return distance(space, one, other) - distance(space, one, other, without=place)


def test_a_guess_of_a_value_singles_out_whoever_has_it_alone_in_a_group() -> None:
    column = np.array([1.0, 2.0, 2.0, 3.0, 2.0, 3.0, 3.0, np.nan])
    assert singling_out.singled_by_value(column, 4, np.array([2.0, 3.0, 9.0])).tolist() == [0, 0, 0, 1, 1, 0, 0, 0]


def test_values_that_occur_once_are_guessed() -> None:
    values = singling_out.single_values(np.array([1.0, 2.0, 2.0, 3.0, np.nan]), np.random.default_rng(1))
    assert sorted(values.tolist()) == [1.0, 3.0]


def test_a_guess_of_several_columns_holds_for_one_synthetic_record_and_is_counted_by_loops() -> None:
    _, training, _, synthetic = few()
    made = list(singling_out.guesses(VARIABLES, synthetic, np.random.default_rng(1)))
    assert len(made) > 100
    by_hand = np.zeros(len(training))
    for conditions in made:
        assert sum(_holds(record, conditions) for record in synthetic) == 1
        for start in (0, 20):
            matches = [place for place in range(start, start + 20) if _holds(training[place], conditions)]
            if len(matches) == 1:
                by_hand[matches[0]] += 1
    assert singling_out.singled(training, 20, made).tolist() == by_hand.tolist()


def _holds(record: Records, conditions: tuple[singling_out.Condition, ...]) -> bool:
    return all(
        {"=": record[place] == value, "<": record[place] <= value, ">": record[place] >= value}[sign]
        for place, sign, value in conditions
    )


def test_the_groups_of_both_parts_have_one_size() -> None:
    _, training, held_out, synthetic = few()
    found = singling_out.attack(VARIABLES, training, held_out, synthetic, np.random.default_rng(1))
    assert found.group == 20
    turned = singling_out.attack(VARIABLES, held_out, training, synthetic, np.random.default_rng(1))
    assert turned.group == 20


def test_likelihood_ratios_are_those_of_two_gaussians() -> None:
    """One feature that only members have: whoever is above the middle of its own two means is taken for a member."""
    rng = np.random.default_rng(1)
    inside = np.argsort(rng.random((16, 40)), axis=0) < 8
    base = rng.normal(0, 10, 40)
    seen = (base + 3.0 * inside + rng.normal(0, 0.5, inside.shape))[:, :, None]
    now = (base + 3.0 * (np.arange(40) < 20))[:, None]
    scores = membership.likelihood_ratios(seen, inside, now)
    assert scores[:20].min() > 0 > scores[20:].max()


def test_each_target_is_in_half_of_the_shadows_and_all_other_records_in_each() -> None:
    training, held_out = split(people(100, 1), 20)
    tables: list[Table] = []

    def again(table: Table, seed: bytes) -> Table:
        tables.append(table)
        return honest(table, seed)

    found = membership.attack(TABULAR, training, held_out, honest(training, b"made"), again, b"seed")
    assert (found.members, found.others, found.shadows) == (20, 20, len(tables))
    assert {table.records for table in tables} == {training.records}
    times = {
        value: sum(value in table.columns["income"] for table in tables)
        for part in (training, held_out)
        for value in part.columns["income"]
    }
    assert sorted(times.values()) == [16] * 40 + [32] * 60
    assert {times[value] for value in held_out.columns["income"]} == {16}


def test_shadows_are_drawn_with_seeds_of_their_own() -> None:
    training, held_out = split(people(100, 1), 20)
    seeds: list[bytes] = []

    def again(table: Table, seed: bytes) -> Table:
        seeds.append(seed)
        return honest(table, seed)

    membership.attack(TABULAR, training, held_out, honest(training, b"made"), again, b"seed")
    assert len(set(seeds)) == len(seeds)
    assert b"seed" not in seeds


def test_records_of_one_unit_are_in_or_out_together_and_found_together() -> None:
    single = people(150, 1)
    units = np.arange(300) // 2
    double = Table(
        {name: np.repeat(values, 2) + (name == "income") * np.arange(300) for name, values in single.columns.items()},
        np.repeat(single.labels, 2),
        units,
    )
    is_out = np.isin(units, np.arange(50))
    tables: list[Table] = []

    def again(table: Table, seed: bytes) -> Table:
        tables.append(table)
        return copying(table, seed)

    training, held_out = double.part(~is_out), double.part(is_out)
    found = membership.attack(TABULAR, training, held_out, copying(training, b"made"), again, b"seed")
    assert (found.members, found.others) == (50, 50)
    assert found.auc.found >= 0.98
    for table in tables:
        assert table.units is not None
        assert set(np.unique(table.units, return_counts=True)[1].tolist()) == {2}


def test_of_each_unit_one_record_is_attacked() -> None:
    units = np.array([3, 3, 1, 1, 1, 7])
    chosen = one_of_each_unit(units, 10, generator_of(b"seed", "people"))
    assert sorted(units[chosen].tolist()) == [1, 3, 7]
    assert len(one_of_each_unit(units, 2, generator_of(b"seed", "people"))) == 2


def test_a_set_that_was_made_from_other_people_gives_nobody_away() -> None:
    def unrelated(table: Table, seed: bytes) -> Table:
        return people(table.records, int.from_bytes(seed[:4]))

    training, held_out = split(people(700, 9), 140)
    found = membership.attack(TABULAR, training, held_out, unrelated(training, b"made"), unrelated, b"seed")
    assert found.auc.low < 0.5 < found.auc.high
    assert found.advantage.counted == 0
