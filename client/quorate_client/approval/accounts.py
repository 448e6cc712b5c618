"""The account that a registered data set gets in the privacy ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorate_client.site.agreement import Dataset
from quorate_client.tasks.data.datasets import index_of
from quorate_client.tasks.data.record_index import (
    shared_with,
)

if TYPE_CHECKING:
    from quorate_client.ledger.ledger import Ledger


def open_account(dataset: Dataset, ledger: Ledger) -> set[str]:
    """Give a registered data set its account; all names that have it in common.

    Raises:
        DataError: what was registered before cannot be compared, or was split otherwise. LedgerError.
    """
    index, path = index_of(dataset)
    records = bytes.fromhex(path.name)
    return ledger.register(dataset.name, dataset.unit, records, lambda known: shared_with(index, known, path.parent))
