"""Hygiene, fidelity, bias, utility and the dictionary, each against loops over a handful of records."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from quorate_client.synthetic.report.quality import bias, dictionary, fidelity, hygiene, utility
from quorate_client.synthetic.report.records import Parts, Records, Space, records_of, variables_of
from quorate_client.tasks.data.schema import TabularSchema, parse_schema
from quorate_client.tasks.data.table import Table
from tests.client.synthetic.report.population import TABULAR, honest, independent, loose, people, split

VARIABLES = variables_of(TABULAR)
NAN = float("nan")


def parts(count: int = 200) -> tuple[Space, Parts]:
    training, held_out = split(people(count, 2), count // 4)
    three = [records_of(TABULAR, table) for table in (training, held_out, honest(training, b"made"))]
    return Space.of(VARIABLES, np.concatenate(three[:2])), Parts(VARIABLES, *three)


def test_a_copy_equals_a_real_record_in_every_column() -> None:
    real = np.array([[1.0, NAN], [2.0, 3.0]])
    made = np.array([[1.0, NAN], [1.0, NAN], [2.0, NAN], [2.0, 3.0], [3.0, 2.0]])
    assert hygiene.copies(made, real) == 3


def test_one_copy_among_all_is_unclean_where_a_column_is_continuous() -> None:
    space, all_of_them = parts()
    people_of = all_of_them.training[:20], all_of_them.held_out[:20]
    assert hygiene.examine(space, all_of_them, people_of).is_clean
    all_of_them.synthetic[17] = all_of_them.training[3]
    found = hygiene.examine(space, all_of_them, people_of)
    assert (found.copies, found.has_continuous, found.is_clean) == (1, True, False)


def test_records_of_coarse_columns_may_coincide_as_often_as_held_out_ones_do() -> None:
    variables = VARIABLES[5:9]
    training, held_out, made = (records_of(TABULAR, people(n, n))[:, 5:9] for n in (80, 40, 60))
    found = hygiene.examine(
        Space.of(variables, np.concatenate([training, held_out])),
        Parts(variables, training, held_out, made),
        (training, held_out),
    )
    by_hand = [sum(any((row == other).all() for other in real) for row in made) for real in (training, held_out)]
    assert found.copies == by_hand[0] > 0
    assert found.copies_expected == by_hand[1] * 80 / 40
    assert found.is_clean


def test_distances_to_the_closest_record_are_quantiles_of_those_that_loops_find() -> None:
    space, all_of_them = parts()
    some = all_of_them.training[:10], all_of_them.held_out[:12]
    rows = np.hstack(space.coordinates(all_of_them.synthetic))
    found = hygiene.examine(space, all_of_them, some)
    for side, figures in zip(some, (found.training, found.held_out), strict=True):
        closest = [min(math.dist(one, row) for row in rows) for one in np.hstack(space.coordinates(side))]
        assert figures.median == pytest.approx(float(np.median(closest)), abs=1e-6)
        assert figures.lowest_twentieth == pytest.approx(float(np.quantile(closest, 0.05)), abs=1e-6)


def shares(codes: Records) -> dict[object, float]:
    return {code: count / len(codes) for code, count in Counter(map(tuple, codes)).items()}


def variation(first: Records, second: Records) -> float:
    one, other = shares(first), shares(second)
    return sum(abs(one.get(code, 0.0) - other.get(code, 0.0)) for code in {*one, *other}) / 2


def test_distances_of_columns_and_pairs_are_those_of_counted_tables() -> None:
    space, all_of_them = parts()
    found = fidelity.examine(space, all_of_them)
    tenths = [space.bins(part) for part in (all_of_them.training, all_of_them.synthetic, all_of_them.held_out)]
    fifths = [space.bins(part, 5) for part in (all_of_them.training, all_of_them.synthetic, all_of_them.held_out)]
    for place, column in enumerate(found.columns):
        assert column.distance == pytest.approx(variation(tenths[0][:, [place]], tenths[1][:, [place]]))
        assert column.chance == pytest.approx(variation(tenths[0][:, [place]], tenths[2][:, [place]]))
    names = [variable.name for variable in VARIABLES]
    assert found.pairs == len(names) * (len(names) - 1) / 2
    for pair in found.worst_pairs:
        places = [names.index(name) for name in pair.names]
        assert pair.distance == pytest.approx(variation(fifths[0][:, places], fifths[1][:, places]))
        assert pair.chance == pytest.approx(variation(fifths[0][:, places], fifths[2][:, places]))
    assert [pair.distance for pair in found.worst_pairs] == sorted(
        (pair.distance for pair in found.worst_pairs), reverse=True
    )


def test_bins_are_tenths_of_the_real_records_and_what_is_missing_is_one_of_its_own() -> None:
    space, all_of_them = parts(400)
    real = space.bins(np.concatenate([all_of_them.training, all_of_them.held_out]))
    premium = Counter(real[:, 2].tolist())
    assert premium[10] == int(np.isnan(all_of_them.training[:, 2]).sum() + np.isnan(all_of_them.held_out[:, 2]).sum())
    assert max(premium[place] for place in range(10)) - min(premium[place] for place in range(10)) <= 1


def test_the_divergence_of_two_tables_is_jensen_and_shannon_s() -> None:
    first, second = np.array([0, 0, 1, 1]), np.array([1, 1, 1, 2])
    p, q = [0.5, 0.5, 0.0], [0.0, 0.75, 0.25]
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    by_hand = sum(x * math.log2(x / y) / 2 for side in (p, q) for x, y in zip(side, m, strict=True) if x > 0)
    assert fidelity.divergence(first, second) == pytest.approx(by_hand)
    assert fidelity.divergence(np.zeros(3, np.int64), np.ones(5, np.int64)) == pytest.approx(1)


def test_missing_values_classes_and_rare_words_are_counted() -> None:
    space, all_of_them = parts(800)
    found = fidelity.examine(space, all_of_them)
    training, synthetic = all_of_them.training, all_of_them.synthetic
    assert found.columns[2].missing == (np.isnan(training[:, 2]).mean(), np.isnan(synthetic[:, 2]).mean())
    assert found.label[1].training == pytest.approx(training[:, -1].mean())
    assert found.label[1].synthetic == pytest.approx(synthetic[:, -1].mean())
    counts = Counter(training[:, 6].tolist())
    rare = [word for word, count in counts.items() if count < 0.01 * len(training)]
    assert found.rare[0].name == "region"
    assert (found.rare[0].rare, found.rare[0].kept) == (len(rare), len({*rare} & {*synthetic[:, 6].tolist()}))
    assert found.rare[0].share[1] == pytest.approx(np.isin(synthetic[:, 6], rare).mean())


def test_groups_are_counted_and_their_rates_compared() -> None:
    _, all_of_them = parts(800)
    found = {column.name: column for column in bias.examine(all_of_them).columns}
    assert set(found) == {"age", "region", "smoker"}
    training, synthetic = all_of_them.training, all_of_them.synthetic
    smokers = next(group for group in found["smoker"].groups if group.name == "yes")
    assert smokers.share == (training[:, 7].mean(), pytest.approx(synthetic[:, 7].mean()))
    rates = [float(part[part[:, 7] == 1, -1].mean()) for part in (training, synthetic)]
    assert smokers.rate == pytest.approx(rates)
    assert smokers.gap == pytest.approx(rates[1] - rates[0])
    old = next(group for group in found["age"].groups if group.name == "65 to under 80")
    assert old.share[0] == pytest.approx(((training[:, 0] >= 65) & (training[:, 0] < 80)).mean())
    of_regions = [group.rate[0] for group in found["region"].groups]
    assert found["region"].spread[0] == pytest.approx(max(of_regions) - min(of_regions))


def test_a_group_of_fewer_than_ten_people_is_not_shown() -> None:
    _, all_of_them = parts(200)
    assert int((all_of_them.training[:, 6] == 4).sum()) < bias.FEWEST
    regions = next(column for column in bias.examine(all_of_them).columns if column.name == "region")
    assert "isles" not in [group.name for group in regions.groups]


def test_a_group_whose_label_was_turned_round_stands_out() -> None:
    _, all_of_them = parts(800)
    smokers = all_of_them.synthetic[:, 7] == 1
    all_of_them.synthetic[smokers, -1] = 1 - all_of_them.synthetic[smokers, -1]
    widest = bias.examine(all_of_them).widest
    assert widest is not None
    assert (widest[0], widest[1].name) == ("smoker", "yes")


def test_a_group_that_the_set_forgot_has_no_rate() -> None:
    _, all_of_them = parts(800)
    all_of_them.synthetic[:, 7] = 0
    smokers = next(column for column in bias.examine(all_of_them).columns if column.name == "smoker").groups[1]
    assert (smokers.rate[1], smokers.gap, smokers.stands) == (None, None, False)


def test_one_synthetic_record_of_a_group_makes_no_rate_of_it() -> None:
    """It would stand first, with a rate of 0 or 100 %, and hide the groups that are really drawn unlike themselves."""
    _, all_of_them = parts(800)
    all_of_them.synthetic[:, 7] = 0
    all_of_them.synthetic[0, 7] = all_of_them.synthetic[0, -1] = 1
    smokers = next(column for column in bias.examine(all_of_them).columns if column.name == "smoker").groups[1]
    assert smokers.share[1] > 0
    assert (smokers.rate[1], smokers.gap, smokers.stands) == (None, None, False)


def test_a_model_from_the_set_is_tested_on_real_records_beside_one_from_real_ones() -> None:
    training, held_out = split(people(800, 4), 200)
    made = honest(training, b"made")
    found = utility.examine(TABULAR, training, held_out, made, np.random.default_rng(1))
    assert [one.learner for one in found.learners] == ["logistic regression", "boosted trees"]
    assert (found.tested, found.tested_positive) == (200, int(held_out.labels.sum()))
    best = [max(getattr(one, side).found for one in found.learners) for side in ("real", "synthetic")]
    assert found.loss is not None
    assert found.loss.found == pytest.approx(best[0] - best[1])
    for one in found.learners:
        assert one.loss.found == pytest.approx(one.real.found - one.synthetic.found)
        assert one.real.low <= one.real.found <= one.real.high


def test_the_label_that_came_loose_costs_auc_though_every_column_is_as_good_as_before() -> None:
    training, held_out = split(people(1200, 4), 300)
    losses = [
        utility.examine(TABULAR, training, held_out, generator(training, b"made"), np.random.default_rng(1)).loss
        for generator in (honest, loose(), independent)
    ]
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[2] is not None
    assert losses[0].found < 0.05 < 0.1 < min(losses[1].found, losses[2].found)


def test_of_several_classes_the_mean_of_each_against_the_others_counts() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.random((50, 3)), rng.integers(3, size=50)
    by_hand = [roc_auc_score(labels == place, scores[:, place]) for place in range(3)]
    assert utility.mean_auc(scores, labels) == pytest.approx(float(np.mean(by_hand)))
    assert utility.mean_auc(scores[:, :2], labels % 2) == pytest.approx(roc_auc_score(labels % 2, scores[:, 1]))


def test_average_precision_is_shown_where_a_class_is_rare() -> None:
    training, held_out = split(people(900, 4), 300)
    assert all(
        one.real_precision is None
        for one in utility.examine(TABULAR, training, held_out, training, np.random.default_rng(1)).learners
    )
    rare = training.part((training.labels == 0) | (np.arange(training.records) % 8 == 0))
    found = utility.examine(TABULAR, rare, held_out, rare, np.random.default_rng(1)).learners[0]
    assert found.real_precision is not None
    assert found.real_precision == found.synthetic_precision


def test_what_cannot_be_tested_has_no_loss() -> None:
    training, held_out = split(people(200, 4), 50)
    one_class = held_out.part(held_out.labels == 0)
    found = utility.examine(TABULAR, training, one_class, training, np.random.default_rng(1))
    assert (found.loss, found.learners) == (None, ())


def test_a_set_of_one_class_teaches_nothing() -> None:
    training, held_out = split(people(400, 4), 100)
    made = Table(training.columns, np.zeros(training.records, dtype=np.int64))
    found = utility.examine(TABULAR, training, held_out, made, np.random.default_rng(1))
    assert [one.synthetic.found for one in found.learners] == [0.5, 0.5]


def test_the_dictionary_says_what_the_schema_allows() -> None:
    schema = parse_schema(
        {
            "kind": "tabular",
            "columns": [
                {"name": "age", "type": "integer", "range": [0, 100], "missing": "mean"},
                {"name": "stage", "type": "category", "categories": ["I", "II"], "missing": "II"},
                {"name": "smoker", "type": "flag", "missing": True},
                {"name": "dose", "type": "number", "range": [0.5, 2]},
            ],
            "label": {"name": "died", "classes": ["no", "yes"]},
        },
        "The schema of the tests",
    )
    assert isinstance(schema, TabularSchema)
    assert [(entry.name, entry.type, entry.values, entry.missing) for entry in dictionary.entries(schema)] == [
        ("age", "integer", "0 to 100", "stands for the mean"),
        ("stage", "category", "I, II", "stands for II"),
        ("smoker", "flag", "no, yes", "stands for yes"),
        ("dose", "number", "0.5 to 2", "not allowed"),
        ("died", "label", "no, yes", "not allowed"),
    ]
