"""A site with a registered table, its ledger, and somebody who makes synthetic data sets there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quorate_client.approval.datasets import Datasets, open_account
from quorate_client.approval.policy import Policy
from quorate_client.ledger.ledger import Ledger, open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.site.agreement import Dataset
from quorate_client.site.database import make_state, site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.synthetic.making import Made, Maker
from quorate_client.synthetic.order import Order
from quorate_client.tasks.data.datasets import register

from ..data_kit import a_site
from ..ledger_kit import KEY, NOW
from .making_kit import Spy
from .records import SCHEMA, a_table, write_table

RECORDS, ROWS = 500, 300
ORDER = Order("made", "visits", ROWS, 3.0)


@dataclass
class Site:
    folder: SiteFolder
    datasets: Datasets
    ledger: Ledger
    source: Dataset
    spy: Spy = field(default_factory=Spy)

    def make(self, order: Order = ORDER, policy: Policy | None = None) -> Made:
        return self.maker(policy).make(order)

    def maker(self, policy: Policy | None = None, page: Callable[..., str] | None = None) -> Maker:
        tools = self.spy.tools() if page is None else self.spy.tools_with(page)
        return Maker(self.folder, self.datasets, self.ledger, policy or Policy(), tools, lambda: NOW)

    def everything(self) -> dict[str, bytes]:
        """All files but the databases' own."""
        files = (path for path in self.folder.root.rglob("*") if path.is_file() and ".sqlite" not in path.name)
        return {str(path.relative_to(self.folder.root)): path.read_bytes() for path in files}

    def entries(self) -> list[Any]:
        return [entry.content for entry in self.ledger.entries.all()]


@contextmanager
def opened_site(folder: SiteFolder) -> Iterator[Site]:
    """As a process has it from its start to its end."""
    ledger = open_ledger(folder.ledger, folder.database, KEY, shipped_accountants())
    try:
        with site_state(folder.database) as state:
            datasets = Datasets(state, lambda: NOW)
            yield Site(folder, datasets, ledger, datasets.get("visits"))
    finally:
        ledger.close()


def register_visits(tmp_path: Path, records: int = RECORDS) -> SiteFolder:
    folder = a_site(tmp_path)
    make_state(folder.database)
    source = register("visits", write_table(tmp_path / "visits.csv", a_table(records)), SCHEMA, 0.2, folder)
    ledger = open_ledger(folder.ledger, folder.database, KEY, shipped_accountants())
    with site_state(folder.database) as state:
        open_account(source, ledger)
        Datasets(state, lambda: NOW).add(source)
    ledger.close()
    return folder
