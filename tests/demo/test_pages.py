"""Both pages, of figures that nobody measured: what has to be said is on them, and they load nothing."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from demo.collaborative import page as collaborative
from demo.collaborative.repeated import Luck
from demo.collaborative.variants import VARIANTS
from demo.fraud import page as fraud
from demo.fraud.comparison import EACH, NEURAL, POOLED, PRIVATE, REAL, SYNTHETIC, Comparison
from demo.fraud.measures import Figure, Quality, Stakes

RISKS = dict.fromkeys(("membership", "attribute", "singling_out", "linkability"), 0.0)


def made(membership: float = 0.0, utility_loss: float = 0.0) -> dict[str, Any]:
    """What a site says of its set; the limit on lost utility was lifted."""
    about = {"records": 210, "epsilon": 3.0, "delta": 1e-3, "training": 70, "held_out": 30}
    risks = RISKS | {"membership": membership}
    return about | {"risks": risks, "utility_loss": utility_loss, "is_usable": membership <= 0.09}


def fraud_told(**sets: dict[str, Any]) -> fraud.Told:
    figure = Figure(0.3, 0.2, 0.4)
    way = Quality(figure, figure, figure, figure, figure)
    alone = Quality(figure, figure, figure, figure, figure, Figure(-0.1, -0.2, -0.05))
    ways = dict.fromkeys((SYNTHETIC, NEURAL, PRIVATE, REAL, POOLED), way) | dict.fromkeys((EACH, *sets), alone)
    return fraud.Told(Comparison(ways, dict.fromkeys(sets, (70, 30)), 4, Stakes()), sets, 3.0, 60.0)


def cancer_told(**sets: dict[str, Any]) -> collaborative.Told:
    luck = Luck(0.9, 0.8, 0.95)
    found = {
        each.name: collaborative.Found(0.9, luck, 23.0 if each.update or each.average else None) for each in VARIANTS
    }
    return collaborative.Told(found, sets, 116, 25, 60.0)


def test_the_page_says_first_what_was_found_and_that_it_is_not_better() -> None:
    page = unescape(fraud.html(fraud_told(atlas=made(), dune=made())))
    assert fraud_told(atlas=made()).lead in page
    assert "The model of synthetic claims is not better than an insurer alone." in page
    assert page.index("is not better than") < page.index("What was done")


def test_an_insurer_whose_set_was_refused_is_named_and_so_is_one_that_others_would_have_refused() -> None:
    told = fraud_told(atlas=made(), cedar=made(utility_loss=0.3), dune=made(membership=0.3))
    page = unescape(fraud.html(told))
    assert told.absent == ["dune"]
    assert "dune took no part in the studies on synthetic claims" in page
    assert [told.refused(name) for name in told.made] == ["", "utility", "membership"]
    assert "took no part" not in fraud.html(fraud_told(atlas=made()))


def test_the_page_says_plainly_what_noise_among_four_hospitals_comes_to() -> None:
    told = cancer_told(north=made(), east=made(membership=0.3))
    page = unescape(collaborative.html(told))
    assert "costs much or promises little" in page
    assert "as good as no promise" in page
    assert "east took no part in the studies on synthetic records" in page
    assert told.to_json()["absent"] == ["east"]


def test_neither_page_loads_or_runs_anything() -> None:
    for page in (fraud.html(fraud_told(atlas=made())), collaborative.html(cancer_told(north=made()))):
        assert not re.search(r"(src|href)=|<script|url\(|style=|\son[a-z]+=", page)
