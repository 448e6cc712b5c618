"""Synthetic sets at each site of a consortium, by the commands that its administrator would type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from demo.consortium import Consortium, write_settings
from demo.kit.models import held_out

MADE_FOR_ONE = 3
"""Synthetic records for each record that they are made from: fewer draw the same tables less exactly."""


def begin(consortium: Consortium, tables: Mapping[str, Path], schema: Path) -> None:
    """Found it, register each site's records, lift one limit, start all daemons."""
    consortium.found()
    consortium.start_server()
    consortium.set_up_sites(tables, schema)
    for name in tables:
        _allow_any_loss(consortium, name)
        consortium.start_site(name)


def _allow_any_loss(consortium: Consortium, site: str) -> None:
    """Lift the limit on what a model loses by training on a set: a small site's set passes it, and pages say whose."""
    write_settings(consortium.site_state(site) / "policy.toml", {"largest_utility_loss": "1.0"}, section="synthetic")


def make(consortium: Consortium, name: str, epsilon: float) -> dict[str, Any]:
    """Make a set at each site, and write its report beside the logs. Returns what each site says of its set, with
    the numbers of records that it was made from and held out.

    Args:
        name: Of the set.
    """
    with ThreadPoolExecutor(2) as pool:
        making = {site: pool.submit(_make, consortium, site, name, epsilon) for site in consortium.sites}
        return {site: done.result() for site, done in making.items()}


def _make(consortium: Consortium, site: str, name: str, epsilon: float) -> dict[str, Any]:
    tested = held_out(consortium.site_state(site), consortium.dataset)
    training = int((~tested).sum())
    order = ("--name", name, "--rows", str(MADE_FOR_ONE * training), "--epsilon", str(epsilon))
    told = consortium.site(site, "synthetic", "make", consortium.dataset, *order, "--json")
    consortium.site(site, "synthetic", "report", name, "-o", consortium.root / f"{site}.report.html")
    return {**json.loads(told), "training": training, "held_out": int(tested.sum())}


def usable(made: Mapping[str, Any]) -> list[str]:
    """The sites whose policy lets studies use the set. The others take no part in studies on synthetic records."""
    return [site for site, told in made.items() if told["is_usable"]]
