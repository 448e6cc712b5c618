"""Registered data sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorate.errors import AlreadyExistsError, InputError, NotFoundError, WrongStateError
from quorate_client.site.agreement import Dataset, Origin, is_of_kind
from quorate_client.site.database import SiteDatabase, transaction

if TYPE_CHECKING:
    from quorate.study.study import Study
    from quorate_client.ledger.ledger import Ledger


_MAKE_ONE = "Make one with `quorate-client synthetic make`"


class Datasets:
    """The data sets that the administrator registered."""

    def __init__(self, state: SiteDatabase, clock: Callable[[], float]) -> None:
        self._database = state.database
        self._clock = clock

    def add(self, dataset: Dataset) -> None:
        """Raises AlreadyExistsError when the name is taken."""
        with transaction(self._database):
            self.require_free(dataset.name)
            self._database.execute(
                "INSERT INTO datasets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    dataset.name,
                    dataset.kind,
                    str(dataset.path),
                    json.dumps(dataset.schema),
                    dataset.test_fraction,
                    dataset.records,
                    dataset.units,
                    dataset.content,
                    None if dataset.index is None else str(dataset.index),
                    self._clock(),
                    None if dataset.origin is None else json.dumps(dataset.origin.to_plain()),
                ),
            )

    def require_free(self, name: str) -> None:
        """Raises AlreadyExistsError when the name is taken."""
        if self.find(name) is not None:
            raise AlreadyExistsError(
                f"There is a data set {name} already",
                action=f"Choose another name, or run `quorate-client data remove {name}` first",
            )

    def find(self, name: str) -> Dataset | None:
        row = self._database.execute(f"SELECT {_DATASET} FROM datasets WHERE name = ?", (name,)).fetchone()  # noqa: S608  # constant
        return None if row is None else _dataset(row)

    def get(self, name: str) -> Dataset:
        """Raises NotFoundError when there is no such data set."""
        dataset = self.find(name)
        if dataset is None:
            raise NotFoundError(
                f"There is no data set {name}",
                expected=", ".join(each.name for each in self.all()) or "none is registered yet",
                action="Register it with `quorate-client data add NAME PATH --schema FILE`",
            )
        return dataset

    def choose(self, study: Study, name: str | None) -> Dataset:
        """The data set of that name or, if nobody names one, the only one of the kind that the study trains on.

        Raises:
            NotFoundError: there is none of that name. InputError: there is none of the kind, or several.
        """
        if name is not None:
            return self.get(name)
        registered = [each for each in self.all() if is_of_kind(each, study)]
        if len(registered) == 1:
            return registered[0]
        is_real = study.training_data == "real"
        kind = "data set of real records" if is_real else "synthetic data set"
        if not registered:
            command = "Register one with `quorate-client data add`" if is_real else _MAKE_ONE
            raise InputError(f"There is no {kind} here for the study {study.name}", action=command)
        raise InputError(
            f"Which {kind} is the study {study.name} to use?",
            expected=", ".join(each.name for each in registered),
            action="Name it with --dataset",
        )

    def all(self) -> list[Dataset]:
        rows = self._database.execute(f"SELECT {_DATASET} FROM datasets ORDER BY name").fetchall()  # noqa: S608  # constant
        return [_dataset(row) for row in rows]

    def by_age(self) -> list[Dataset]:
        """What was registered first comes first."""
        rows = self._database.execute(f"SELECT {_DATASET} FROM datasets ORDER BY added_unix_s, name").fetchall()  # noqa: S608  # constant
        return [_dataset(row) for row in rows]

    def remove(self, name: str) -> None:
        """Forget a data set; the records themselves are not touched. Studies that use it are refused from now on.

        Raises:
            NotFoundError: there is no such data set. WrongStateError: others were made from it.
        """
        self.get(name)
        with transaction(self._database):
            made = [each.name for each in self.all() if each.origin is not None and each.source.name == name]
            if made:
                raise WrongStateError(
                    f"Synthetic data sets were made from {name}, and models that are trained on them are tried on its "
                    "held-out records",
                    got=", ".join(made),
                    action="Remove these first",
                )
            self._database.execute("DELETE FROM datasets WHERE name = ?", (name,))


_DATASET = "name, kind, path, schema, test_fraction, records, units, content, record_index, origin"


@lru_cache(maxsize=64)
def _dataset(row: tuple[Any, ...]) -> Dataset:
    """Asked for with each instruction, and nearly always the same row again."""
    name, kind, path, schema, test_fraction, records, units, content, index, origin = row
    place = None if index is None else Path(index)
    made = None if origin is None else Origin.from_plain(json.loads(origin))
    return Dataset(name, kind, Path(path), json.loads(schema), test_fraction, records, units, content, place, made)


def open_account(dataset: Dataset, ledger: Ledger) -> set[str]:
    """Give a registered data set its account; all names that have it in common.

    Raises:
        DataError: what was registered before cannot be compared, or was split otherwise. LedgerError.
    """
    from quorate_client.tasks.data.datasets import index_of  # imports numpy
    from quorate_client.tasks.data.record_index import shared_with

    index, path = index_of(dataset)
    records = bytes.fromhex(path.name)
    return ledger.register(dataset.name, dataset.unit, records, lambda known: shared_with(index, known, path.parent))


def require_account(dataset: Dataset, ledger: Ledger) -> None:
    """Open its account unless it has one: whoever wrote a site file may have registered the records without.

    Raises:
        As ``open_account``.
    """
    if dataset.index is None or not ledger.is_registered(dataset.name, bytes.fromhex(dataset.index.name)):
        open_account(dataset, ledger)
