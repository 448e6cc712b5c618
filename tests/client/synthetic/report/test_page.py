"""The page: its verdict, its words, and that nothing of it can do harm or show a record."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from quorate_client.synthetic.report import Report, assess, render_html
from quorate_client.tasks.data.schema import TabularSchema, parse_schema
from quorate_client.tasks.data.table import Table
from tests.client.synthetic.report.population import NAMES, TABULAR, copying, honest, people, split

LINEAGE = {
    "name": "claims-2026-synth",
    "source": {"name": "claims-2026", "fingerprint": "1f0c88e2", "unit": "unit"},
    "privacy": {"events": [{"noise_multiplier": 12.3456789, "count": 3}]},
    "made_unix_s": 1_700_000_000.1234,
    "is_watermarked": True,
    "generator": "quorate.marginals/1",
    "dropped": ["phone"],
}


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def named(schema: TabularSchema, name: str) -> TabularSchema:
    """The schema with another name for its first column, its categories and its label's classes."""
    content = schema.model_dump(mode="json")
    content["columns"][0]["name"] = name
    content["columns"][6]["categories"][0] = name
    content["label"]["classes"] = ["no", name]
    renamed = parse_schema(content, "The schema of the tests")
    assert isinstance(renamed, TabularSchema)
    return renamed


def measured(
    *, count: int = 400, epsilon: float | None = 3.0, made_by: object = honest, schema: TabularSchema = TABULAR
) -> tuple[Report, Table, Table]:
    training, unseen = split(people(count, 3), count // 5)
    generator = copying if made_by is copying else honest
    made = generator(training, b"made")

    def again(table: Table, seed: bytes) -> Table:
        return renamed(generator(back(table), seed))

    def renamed(table: Table) -> Table:
        return Table(
            {column.name: table.columns[name] for column, name in zip(schema.columns, NAMES, strict=True)},
            table.labels,
        )

    def back(table: Table) -> Table:
        return Table(
            {name: table.columns[column.name] for column, name in zip(schema.columns, NAMES, strict=True)},
            table.labels,
        )

    report = assess(schema, renamed(training), renamed(unseen), renamed(made), again, epsilon, 1e-6, b"seed")
    return report, training, unseen


@pytest.fixture(scope="module")
def honest_page() -> tuple[Report, str, Table, Table]:
    report, training, unseen = measured()
    return report, render_html(report, LINEAGE), training, unseen


@pytest.fixture(scope="module")
def copied() -> Report:
    return measured(made_by=copying, epsilon=None)[0]


def test_the_verdict_stands_first_and_names_what_is_above_its_limit(copied: Report) -> None:
    page = render_html(copied, LINEAGE)
    assert "This set must not be used as it is" in page
    assert "above the limit of 0.09; it repeats records exactly" in page
    assert page.index("must not be used") < page.index("1. Disclosure")


def test_a_set_without_a_guarantee_says_at_the_top_that_it_promises_nothing(copied: Report) -> None:
    page = render_html(copied, LINEAGE)
    assert page.index("This set comes with no promise") < page.index("1. Disclosure")
    assert "low ones do not make it safe" in page


def test_the_limits_are_those_of_the_site(honest_page: tuple[Report, str, Table, Table]) -> None:
    strict = render_html(honest_page[0], LINEAGE, largest_utility_loss=-1.0)
    assert "This set must not be used" in strict
    assert "This set must not be used" not in honest_page[1]


def test_a_set_that_the_site_refuses_for_its_promise_is_not_said_to_be_within_limits(
    honest_page: tuple[Report, str, Table, Table],
) -> None:
    """Its figures may be as good as they like: who reads the page decides by its first line."""
    why = "epsilon 3, where synthetic.largest_epsilon = 2 in this site's policy"
    page = render_html(honest_page[0], LINEAGE, refused=[why], largest_utility_loss=1.0)
    assert "not within limits" in page
    assert f"This set must not be used as it is: {why.replace(chr(39), '&#39;')}." in page
    assert "not within limits" not in honest_page[1]


def test_the_promise_is_to_whom_the_lineage_says(honest_page: tuple[Report, str, Table, Table]) -> None:
    assert "per unit." in honest_page[1]
    assert "per record." in render_html(honest_page[0], {"name": "made"})
    assert "per person" not in honest_page[1]


def test_each_attack_shows_its_baseline_its_interval_and_its_limit(
    honest_page: tuple[Report, str, Table, Table],
) -> None:
    report, page, _, _ = honest_page
    rows = re.findall(r"<tr><th scope=\"row\">(Membership|Attribute|Singling out|Linkability).*?</tr>", page, re.DOTALL)
    assert rows == ["Membership", "Attribute", "Singling out", "Linkability"]
    found = report.linkability.advantage
    for value in (found.training, found.held_out, found.found, found.high):
        assert f"{value:.3f}" in page
    assert page.count('<td class="n">0.090</td>') == 4


def test_few_records_are_said_to_be_few(honest_page: tuple[Report, str, Table, Table]) -> None:
    assert "from what was not found, nothing follows" in honest_page[1]


def test_the_page_says_that_it_stays_at_the_site_and_that_no_epsilon_covers_it(
    honest_page: tuple[Report, str, Table, Table],
) -> None:
    assert "no epsilon covers it" in honest_page[1]
    assert "stays at the site" in honest_page[1]


def test_the_lineage_is_shown_key_by_key(honest_page: tuple[Report, str, Table, Table]) -> None:
    page = honest_page[1]
    assert "<dt>source · fingerprint</dt><dd>1f0c88e2</dd>" in page
    assert "<dt>dropped</dt><dd>phone</dd>" in page
    assert "<dt>privacy · events</dt><dd>noise multiplier 12.3457; count 3</dd>" in page
    assert "<dt>made</dt><dd>2023-11-14 22:13:20 UTC</dd>" in page
    assert "<dt>is watermarked</dt><dd>yes</dd>" in page


def test_the_page_needs_nothing_beside_itself(honest_page: tuple[Report, str, Table, Table]) -> None:
    elements = Elements(honest_page[1]).found
    assert {tag for tag, _ in elements}.isdisjoint({"script", "link", "img", "iframe", "object", "form", "a"})
    attributes = {name for _, attrs in elements for name in attrs}
    assert attributes.isdisjoint({"src", "href", "style", "action"})
    assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in honest_page[1]
    assert "@import" not in honest_page[1]


def test_names_from_elsewhere_are_text_and_nothing_more() -> None:
    evil = "<script>alert('&')</script>\u202e{{ 7 * 7 }}"
    report, _, _ = measured(count=100, schema=named(TABULAR, evil))
    page = render_html(report, {"name": evil, evil: {evil: evil}})
    assert "<script" not in page
    assert "\u202e" not in page
    assert "{{ 7 * 7 }}" in page
    assert not any(tag == "script" for tag, _ in Elements(page).found)


def test_no_record_can_be_read_from_the_page_or_the_figures(honest_page: tuple[Report, str, Table, Table]) -> None:
    """Values that one record has alone, in any way of writing that keeps them recognisable."""
    report, page, training, unseen = honest_page
    told = page + str(report.to_json())
    numbers = set(re.findall(r"\d+\.?\d*", told))
    for table in (training, unseen):
        for name in ("income", "premium", "pressure"):
            values = [value for value in table.columns[name].tolist() if value == value]
            for digits in (2, 3, 6):
                assert numbers.isdisjoint(f"{value:.{digits}f}" for value in values)
            assert numbers.isdisjoint(repr(value) for value in values)
