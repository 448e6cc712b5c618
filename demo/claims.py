"""A simulator of death claims at life insurers, about three in a hundred of them found to be fraudulent.

Real claims cannot be had: they are about named, dead people and their families, and no insurer shows which it
disputed. So the claims are made up, from what the trade says in public about its business. No figure below was fitted
to an insurer's records. A claim is drawn as an honest one first; a fraud is an honest-looking claim in which some signs
of one of five mechanisms show, each sign in a part of the cases only. What the label says is what was found out: part
of the frauds were paid and count as genuine, and a few honest families were accused.

Needs numpy alone. The schema is claims.toml, whose ranges are wider than what is drawn here.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LABEL, GENUINE, FRAUD = "outcome", "genuine", "fraud"
Row = dict[str, int | float | str | None]
Columns = dict[str, np.ndarray]

# Frauds that were never found out, of all; and honest claims that were taken for one.
UNNOTICED, ACCUSED = 0.08, 0.0003


@dataclass(frozen=True, slots=True)
class Book:
    """What an insurer sells, to whom, and who cheats it. Shares need not add up to one."""

    products: Mapping[str, float] = field(
        default_factory=lambda: {"term": 0.40, "whole_life": 0.30, "credit": 0.15, "funeral": 0.15}
    )
    channels: Mapping[str, float] = field(
        default_factory=lambda: {"agent": 0.45, "broker": 0.25, "bank": 0.20, "online": 0.10}
    )
    mechanisms: Mapping[str, float] = field(
        default_factory=lambda: {"early": 0.25, "staged": 0.10, "takeover": 0.27, "undisclosed": 0.25, "ring": 0.13}
    )
    fraud: float = 0.031
    older_by_years: float = 0.0
    median_income: float = 38_000.0


def insurers() -> dict[str, tuple[int, Book]]:
    """Four insurers of different size: how many claims each has, and its book of business."""
    return {
        # A large general insurer, with somewhat of everything.
        "atlas": (6_000, Book()),
        # Sells term insurance through brokers to people with money: large sums, cheated early and from abroad.
        "beacon": (
            3_000,
            Book(
                products={"term": 0.70, "whole_life": 0.25, "credit": 0.05},
                channels={"broker": 0.70, "agent": 0.10, "online": 0.20},
                mechanisms={"early": 0.45, "staged": 0.20, "takeover": 0.10, "undisclosed": 0.20, "ring": 0.05},
                older_by_years=-2.0,
                median_income=52_000.0,
            ),
        ),
        # A bank's insurer: loans and savings, questions on a form, nobody examined.
        "cedar": (
            1_500,
            Book(
                products={"credit": 0.60, "whole_life": 0.30, "term": 0.10},
                channels={"bank": 0.85, "online": 0.15},
                mechanisms={"early": 0.10, "takeover": 0.35, "undisclosed": 0.50, "ring": 0.05},
                median_income=36_000.0,
            ),
        ),
        # An old burial society, sold at the door by agents: small sums, old people, rings and take-overs.
        "dune": (
            800,
            Book(
                products={"funeral": 0.75, "whole_life": 0.25},
                channels={"agent": 0.90, "online": 0.10},
                mechanisms={"takeover": 0.50, "ring": 0.40, "undisclosed": 0.10},
                fraud=0.035,
                older_by_years=3.0,
                median_income=27_000.0,
            ),
        ),
    }


def simulate(records: int, seed: int, book: Book | None = None) -> list[Row]:
    """Claims of one book of business; None stands for a cell that was left empty. Same arguments, same claims."""
    book = book or Book()
    rng = np.random.default_rng(seed)
    claims = _honest(records, book, rng)
    names = [name for name in MECHANISMS if book.mechanisms.get(name, 0.0) > 0.0]
    mechanism = _drawn(rng, {name: book.mechanisms[name] for name in names}, records)
    cheats = rng.random(records) < book.fraud
    for name in names:
        MECHANISMS[name](claims, np.flatnonzero(cheats & (mechanism == name)), rng)
    _money(claims, rng)
    claims |= {name: np.clip(claims[name], low, high) for name, (low, high) in LIMITS.items()}
    found = np.where(cheats, rng.random(records) >= UNNOTICED, rng.random(records) < ACCUSED)
    claims[LABEL] = np.where(found, FRAUD, GENUINE)
    return _rows(claims, _left_empty(claims, rng))


def write(path: Path, rows: Iterable[Row]) -> None:
    """As a CSV file; what is empty stays empty."""
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


# ---- an honest claim --------------------------------------------------------------------------------------------

# Years of age at death: mean and spread. Term and credit insurance end with working life.
AGES = {"term": (54.0, 11.0), "whole_life": (68.0, 12.0), "credit": (52.0, 12.0), "funeral": (74.0, 10.0)}
# Median sum insured at a median income, and months that a contract has run.
SUMS = {"term": 95_000.0, "whole_life": 40_000.0, "credit": 22_000.0, "funeral": 7_000.0}
MONTHS = {"term": 90.0, "whole_life": 170.0, "credit": 40.0, "funeral": 95.0}
DIAGNOSES = ("cardiovascular", "cancer", "respiratory", "infection", "accident", "violence", "unknown")
# Days of treatment before death, on average.
TREATMENT = dict(zip(DIAGNOSES, (9.0, 55.0, 20.0, 12.0, 2.0, 1.0, 3.0), strict=True))
# Yearly premium for a sum of 1,000 at the age of 50.
PRICE = {"term": 4.0, "whole_life": 22.0, "credit": 6.0, "funeral": 34.0}


def _honest(records: int, book: Book, rng: np.random.Generator) -> Columns:
    claims: Columns = {"product": _drawn(rng, book.products, records), "channel": _drawn(rng, book.channels, records)}
    _person(claims, book, rng)
    _contract(claims, book, rng)
    _conduct(claims, rng)
    _death(claims, rng)
    return claims


def _person(claims: Columns, book: Book, rng: np.random.Generator) -> None:
    records = len(claims["product"])
    mean, spread = (_of(claims["product"], {name: AGES[name][i] for name in AGES}) for i in (0, 1))
    age = np.round(rng.normal(mean + book.older_by_years, spread))
    claims["age"] = age
    claims["smoker"] = rng.random(records) < np.where(age < 70, 0.29, 0.16)
    claims["bmi"] = rng.gamma(30.0, 27.5 / 30.0, records)
    pressure = 118 + 0.25 * age + 0.8 * (claims["bmi"] - 27) + rng.normal(0, 15, records)
    claims["systolic_pressure"] = pressure
    ill = _sigmoid(-3.2 + 0.035 * (age - 40) + 0.02 * (pressure - 130))
    claims["declared_condition"] = rng.random(records) < ill
    income = book.median_income * rng.lognormal(0.0, 0.5, records) * np.where(age > 67, 0.7, 1.0)
    claims["income"] = income


def _contract(claims: Columns, book: Book, rng: np.random.Generator) -> None:
    product, records = claims["product"], len(claims["product"])
    wealth = (claims["income"] / book.median_income) ** np.where(product == "funeral", 0.1, 0.7)
    claims["sum_insured"] = _of(product, SUMS) * wealth * rng.lognormal(0.0, 0.55, records)
    claims["months_since_inception"] = np.floor(rng.gamma(2.0, _of(product, MONTHS) / 2.0))
    large = claims["sum_insured"] > 120_000
    asked = rng.random(records) < _of(product, {"term": 0.9, "whole_life": 0.75, "credit": 0.4, "funeral": 0.1})
    examined = (rng.random(records) < np.where(large, 0.75, 0.08)) & asked
    claims["underwriting"] = np.where(examined, "examination", np.where(asked, "questions", "none"))
    claims["policies"] = 1 + rng.poisson(0.45, records)
    grew = rng.random(records) < 0.06
    claims["recent_increase"] = np.where(grew, rng.gamma(2.0, 15.0, records), 0.0)


def _conduct(claims: Columns, rng: np.random.Generator) -> None:
    """How premiums were paid, and what was changed in the last year."""
    records = len(claims["product"])
    pinched = _sigmoid(-1.6 - 0.9 * np.log(claims["income"] / 38_000))
    claims["missed_premiums"] = np.where(rng.random(records) < pinched, rng.geometric(0.45, records), 0)
    claims["account_changed"] = rng.random(records) < 0.05
    claims["beneficiary_changed"] = rng.random(records) < 0.04
    heirs = {"spouse": 0.50, "child": 0.32, "parent": 0.05, "relative": 0.08, "unrelated": 0.05}
    lender = (claims["product"] == "credit") & (rng.random(records) < 0.7)
    claims["beneficiary"] = np.where(lender, "lender", _drawn(rng, heirs, records))


def _death(claims: Columns, rng: np.random.Generator) -> None:
    records, old = len(claims["product"]), claims["age"] >= 50
    young_mix = dict(zip(DIAGNOSES, (0.20, 0.22, 0.05, 0.05, 0.28, 0.10, 0.10), strict=True))
    old_mix = dict(zip(DIAGNOSES, (0.36, 0.31, 0.12, 0.07, 0.05, 0.01, 0.08), strict=True))
    cause = np.where(old, _drawn(rng, old_mix, records), _drawn(rng, young_mix, records))
    sudden = np.isin(cause, ["accident", "violence", "unknown"])
    calm = _drawn(rng, {"hospital": 0.55, "home": 0.28, "care_home": 0.13, "public": 0.02, "abroad": 0.012}, records)
    abrupt = _drawn(rng, {"hospital": 0.28, "home": 0.30, "care_home": 0.03, "public": 0.34, "abroad": 0.04}, records)
    place = np.where(sudden, abrupt, calm)
    papers = {
        "hospital": {"hospital": 0.93, "registry": 0.07},
        "home": {"family_doctor": 0.80, "coroner": 0.15, "registry": 0.05},
        "care_home": {"family_doctor": 0.90, "registry": 0.10},
        "public": {"coroner": 0.65, "hospital": 0.25, "registry": 0.10},
        "abroad": {"foreign_authority": 0.60, "foreign_hospital": 0.40},
    }
    claims["diagnosis"], claims["place_of_death"] = cause, place
    claims["documents"] = np.empty(records, dtype=object)
    for where, mix in papers.items():
        here = place == where
        claims["documents"][here] = _drawn(rng, mix, int(here.sum()))
    claims["treatment_days"] = np.floor(rng.gamma(0.8, _of(cause, TREATMENT) / 0.8))
    waited = rng.gamma(1.6, np.where(place == "abroad", 35.0, 14.0))
    claims["days_to_notification"] = np.floor(waited)
    # A doctor who certifies deaths often is no sign by itself: care homes have one.
    busy = rng.gamma(0.7, np.where(np.isin(place, ["hospital", "care_home"]), 2.0, 0.7))
    claims["claims_of_same_doctor"] = rng.poisson(busy)
    claims["claims_of_same_contact"] = (rng.random(records) < 0.015) * rng.geometric(0.7, records)


# ---- five ways to cheat ------------------------------------------------------------------------------------------


def _early(claims: Columns, cheats: np.ndarray, rng: np.random.Generator) -> None:
    """A claim soon after a large contract that the income does not explain.

    Many countries' laws let an insurer contest a contract in its first two or three years, and every claims department
    looks twice at a death in that time: who knows of a coming death, or plans one, has no reason to wait.
    """
    _put(claims, "product", _some(rng, cheats, 0.8), lambda n: np.full(n, "term"))
    _put(claims, "months_since_inception", _some(rng, cheats, 0.9), lambda n: np.floor(rng.gamma(1.8, 7.0, n)))
    _put(claims, "income", _some(rng, cheats, 0.7), lambda n: rng.uniform(8_000, 26_000, n))
    _put(claims, "sum_insured", _some(rng, cheats, 0.9), lambda n: 160_000 * rng.lognormal(0.0, 0.5, n))
    _put(claims, "policies", _some(rng, cheats, 0.5), lambda n: 2 + rng.poisson(1.0, n))
    _put(claims, "recent_increase", _some(rng, cheats, 0.4), lambda n: rng.gamma(2.0, 40.0, n))


def _staged(claims: Columns, cheats: np.ndarray, rng: np.random.Generator) -> None:
    """A death that did not take place, with papers that were bought.

    Investigators tell of certificates from abroad that come from few offices and few doctors, of deaths by accident
    with no stay in a hospital, and of families that take long to write.
    """
    _put(claims, "place_of_death", _some(rng, cheats, 0.75), lambda n: np.full(n, "abroad"))
    foreign = {"foreign_authority": 0.75, "foreign_hospital": 0.25}
    _put(claims, "documents", _some(rng, cheats, 0.75), lambda n: _drawn(rng, foreign, n))
    _put(claims, "diagnosis", _some(rng, cheats, 0.7), lambda n: _drawn(rng, {"accident": 0.6, "unknown": 0.4}, n))
    _put(claims, "treatment_days", _some(rng, cheats, 0.9), lambda n: rng.poisson(0.4, n))
    _put(claims, "age", _some(rng, cheats, 0.7), lambda n: np.round(rng.normal(41, 8, n)))
    _put(claims, "days_to_notification", _some(rng, cheats, 0.6), lambda n: np.floor(rng.gamma(3.0, 30.0, n)))
    _put(claims, "claims_of_same_doctor", _some(rng, cheats, 0.6), lambda n: 2 + rng.poisson(3.0, n))
    _put(claims, "sum_insured", _some(rng, cheats, 0.5), lambda n: 150_000 * rng.lognormal(0.0, 0.4, n))


def _takeover(claims: Columns, cheats: np.ndarray, rng: np.random.Generator) -> None:
    """Somebody else collects: the contract of a person who has died alone, or never knew of it.

    Warnings on account take-over name the same steps everywhere: new bank details, a new beneficiary, contact that is
    only online, then the money. The contracts are old, and premiums stopped when their holder did.
    """
    _put(claims, "account_changed", _some(rng, cheats, 0.9), lambda n: np.full(n, True))
    _put(claims, "beneficiary_changed", _some(rng, cheats, 0.7), lambda n: np.full(n, True))
    _put(claims, "beneficiary", _some(rng, cheats, 0.6), lambda n: _drawn(rng, {"unrelated": 0.7, "relative": 0.3}, n))
    _put(claims, "channel", _some(rng, cheats, 0.5), lambda n: np.full(n, "online"))
    _put(claims, "age", _some(rng, cheats, 0.7), lambda n: np.round(rng.normal(77, 7, n)))
    _put(claims, "missed_premiums", _some(rng, cheats, 0.6), lambda n: 1 + rng.poisson(2.5, n))
    _put(claims, "days_to_notification", _some(rng, cheats, 0.4), lambda n: np.floor(rng.gamma(2.0, 45.0, n)))


def _undisclosed(claims: Columns, cheats: np.ndarray, rng: np.random.Generator) -> None:
    """An illness that was known when the contract was made and was not declared.

    The commonest dispute in life insurance: questions were answered with no, nobody examined, and a long treatment for
    an illness that takes years ends in the first ones of the contract.
    """
    chronic = {"cancer": 0.5, "cardiovascular": 0.35, "respiratory": 0.15}
    _put(claims, "diagnosis", _some(rng, cheats, 0.9), lambda n: _drawn(rng, chronic, n))
    _put(claims, "declared_condition", _some(rng, cheats, 0.9), lambda n: np.full(n, False))
    _put(claims, "underwriting", _some(rng, cheats, 0.9), lambda n: _drawn(rng, {"questions": 0.7, "none": 0.3}, n))
    _put(claims, "treatment_days", _some(rng, cheats, 0.8), lambda n: 20 + np.floor(rng.gamma(2.0, 45.0, n)))
    _put(claims, "months_since_inception", _some(rng, cheats, 0.85), lambda n: np.floor(rng.gamma(2.5, 8.0, n)))
    _put(claims, "bmi", _some(rng, cheats, 0.5), lambda n: rng.normal(35, 4, n))
    _put(claims, "systolic_pressure", _some(rng, cheats, 0.5), lambda n: rng.normal(163, 13, n))


def _ring(claims: Columns, cheats: np.ndarray, rng: np.random.Generator) -> None:
    """Claims of people who do not know each other and share a doctor, an address, a telephone number.

    Cases before the courts show the pattern: sums just below the limit at which somebody is examined, several contracts
    a head through one agent, paid for with effort, and the same few names on the papers.
    """
    _put(claims, "claims_of_same_doctor", _some(rng, cheats, 0.8), lambda n: 3 + rng.poisson(3.0, n))
    _put(claims, "claims_of_same_contact", _some(rng, cheats, 0.65), lambda n: rng.geometric(0.5, n))
    _put(claims, "sum_insured", _some(rng, cheats, 0.7), lambda n: rng.uniform(60_000, 120_000, n))
    _put(claims, "policies", _some(rng, cheats, 0.6), lambda n: 2 + rng.poisson(1.2, n))
    _put(claims, "channel", _some(rng, cheats, 0.7), lambda n: np.full(n, "agent"))
    _put(claims, "missed_premiums", _some(rng, cheats, 0.5), lambda n: 1 + rng.poisson(1.5, n))
    _put(claims, "beneficiary", _some(rng, cheats, 0.5), lambda n: _drawn(rng, {"relative": 0.6, "unrelated": 0.4}, n))
    _put(claims, "months_since_inception", _some(rng, cheats, 0.5), lambda n: np.floor(rng.gamma(2.5, 9.0, n)))


MECHANISMS: dict[str, Callable[[Columns, np.ndarray, np.random.Generator], None]] = {
    "early": _early,
    "staged": _staged,
    "takeover": _takeover,
    "undisclosed": _undisclosed,
    "ring": _ring,
}


# ---- what follows from the rest, and what is missing -------------------------------------------------------------


def _money(claims: Columns, rng: np.random.Generator) -> None:
    """Premium and arrears: by age, smoking, sum and product, and by what was not paid."""
    records = len(claims["product"])
    risk = np.exp(0.035 * (np.minimum(claims["age"], 75) - 50)) * np.where(claims["smoker"], 1.5, 1.0)
    yearly = claims["sum_insured"] / 1_000 * _of(claims["product"], PRICE) * risk * rng.lognormal(0.0, 0.15, records)
    claims["premium"] = yearly / 12
    claims["arrears"] = claims["missed_premiums"] * np.minimum(yearly / 12, 1_000) * rng.uniform(0.3, 1.0, records)


# What an insurer's system lets somebody enter, or counts up to. Within the ranges of claims.toml.
LIMITS = {
    "age": (18, 99),
    "bmi": (15, 55),
    "systolic_pressure": (85, 220),
    "treatment_days": (0, 365),
    "income": (6_000, 250_000),
    "premium": (3, 1_000),
    "sum_insured": (1_500, 500_000),
    "missed_premiums": (0, 12),
    "arrears": (0, 5_000),
    "policies": (1, 10),
    "recent_increase": (0, 100),
    "months_since_inception": (0, 480),
    "days_to_notification": (0, 365),
    "claims_of_same_doctor": (0, 30),
    "claims_of_same_contact": (0, 10),
}


def _left_empty(claims: Columns, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Which cells nobody filled in: measures of the body where nobody measured, income where nobody asked."""
    records = len(claims["product"])
    measured = claims["underwriting"] == "examination"
    chance = {
        "bmi": np.where(measured, 0.01, 0.12),
        "systolic_pressure": np.where(measured, 0.02, 0.30),
        "income": np.where(np.isin(claims["product"], ["funeral", "credit"]), 0.20, 0.04),
        "treatment_days": np.full(records, 0.03),
        "beneficiary": np.full(records, 0.01),
        "diagnosis": np.full(records, 0.02),
    }
    return {name: rng.random(records) < each for name, each in chance.items()}


# Decimals of what is measured; other numbers are whole, or a yes or no.
DECIMALS = {"bmi": 1, "recent_increase": 0, "premium": 2, "arrears": 2, "income": -2, "sum_insured": -2}
ORDER = (
    *("age", "bmi", "systolic_pressure", "smoker", "declared_condition", "diagnosis", "treatment_days"),
    *("income", "premium", "sum_insured", "missed_premiums", "arrears", "policies", "recent_increase"),
    *("account_changed", "beneficiary_changed", "beneficiary"),
    *("product", "channel", "underwriting", "months_since_inception"),
    *("place_of_death", "documents", "days_to_notification", "claims_of_same_doctor", "claims_of_same_contact"),
    LABEL,
)


def _rows(claims: Columns, empty: Mapping[str, np.ndarray]) -> list[Row]:
    columns = []
    for name in ORDER:
        cells = [_cell(name, value) for value in claims[name]]
        gaps = empty.get(name, np.zeros(len(cells), dtype=bool))
        columns.append([None if gap else cell for cell, gap in zip(cells, gaps, strict=True)])
    return [dict(zip(ORDER, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _cell(name: str, value: Any) -> int | float | str:
    if isinstance(value, str):
        return str(value)
    return round(float(value), DECIMALS[name]) if name in DECIMALS else int(value)


def _drawn(rng: np.random.Generator, shares: Mapping[str, float], size: int) -> np.ndarray:
    """Words, drawn by their shares."""
    weights = np.array(list(shares.values()))
    return np.array(list(shares), dtype=object)[rng.choice(len(weights), size, p=weights / weights.sum())]


def _of(words: np.ndarray, values: Mapping[str, float]) -> np.ndarray:
    return np.array([values[word] for word in words])


def _some(rng: np.random.Generator, rows: np.ndarray, share: float) -> np.ndarray:
    """Those of the rows in which a sign shows."""
    return rows[rng.random(len(rows)) < share]


def _put(claims: Columns, name: str, rows: np.ndarray, draw: Callable[[int], np.ndarray]) -> None:
    claims[name][rows] = draw(len(rows))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
