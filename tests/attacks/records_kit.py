"""A site with the commands of its administrator, who registers the same records again and again."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quorate.privacy.events import Event
from quorate_client.approval.datasets import Datasets
from quorate_client.ledger.entries import Account, Charge, Limits
from quorate_client.ledger.ledger import Ledger
from quorate_client.site.agreement import Dataset
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_keys
from tests.client.command_kit import Result, Run
from tests.client.ledger_kit import opened

SPENT = Event(2.0, 0.1, 50)


@dataclass(frozen=True)
class RecordsSite:
    """``files`` is where its tables and schemas lie."""

    folder: SiteFolder
    files: Path
    run: Run

    def register(
        self, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]], schema: str, *more: str
    ) -> Result:
        path, described = self.files / f"{name}.csv", self.files / f"{name}.toml"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        described.write_text(schema)
        return self.run("data", "add", name, path, "--schema", described, *more)

    def get(self, name: str) -> Dataset:
        with site_state(self.folder.database) as state:
            return Datasets(state, lambda: 0.0).get(name)

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        with opened(self.folder.root, key=load_keys(self.folder.keys).signing) as ledger:
            yield ledger

    def spend(self, name: str, event: Event = SPENT) -> None:
        with self.ledger() as ledger:
            charge = Charge(Account(name, self.get(name).unit), "earlier", b"e" * 32, f"run-{name}", 1, 0, (event,))
            ledger.spend(ledger.reserve(charge, Limits(1e-5), 1.7e9), (event,))
