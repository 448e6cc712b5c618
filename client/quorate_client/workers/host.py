"""What runs inside a task worker: the task, its open session, and the verbs by which the daemon calls it.

Everything here is on the task's side of the fence: the daemon trusts nothing that comes out of it.
"""

from __future__ import annotations

import base64
import errno
import importlib
import json
import os
import time
import traceback
import zipfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorate.errors import (
    DiskFullError,
    PrivacyUnsupportedError,
    SiteRefusalError,
    TaskFailedError,
    TaskMissingError,
)
from quorate.study.study import TaskRef
from quorate.study.task_digest import installed_task, require_accepted
from quorate_client.site.agreement import Dataset
from quorate_client.tasks import PrivateSession, PrivateSettings
from quorate_client.tasks.loading import load_task
from quorate_client.workers.compared_code import ComparedCode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from quorate_client.tasks import TaskSession
    from quorate_client.tasks.training.dp_sgd import PrivateTraining

OUT_OF_MEMORY = "out_of_memory"
"""The code by which a worker says that it should be replaced."""

_EARLIEST_IN_ZIP = (1980, 1, 1, 0, 0, 0)


class TaskHost:
    """One task with at most one open session. ``answer`` is all that the daemon sees.

    Args:
        code: What of the task may be run.
        wall: Unix seconds, by which a version is accepted until a day.
    """

    def __init__(self, code: ComparedCode, wall: Callable[[], float] = time.time) -> None:
        self._code = code
        self._wall = wall
        self._task: tuple[TaskRef, str] | None = None  # what was opened, with the digest that it was found to have
        self._session: TaskSession | None = None
        self._private: PrivateTraining | None = None
        self._has_units = False
        self._guest_app: object = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do one request.

        Returns:
            What the verb gives, or ``{"code": ...}``. The text of an exception may hold a patient's values: it is
            printed, and what is printed stays at the site.
        """
        try:
            return self._perform_as_compared(request.pop("verb"), request)
        except Exception as error:  # noqa: BLE001  # whatever a task raises becomes a code
            with suppress(OSError):  # the log's disk may be full, which may be what the exception is about
                traceback.print_exc()
            return {"code": _code_of(error)}

    def _perform_as_compared(self, verb: str, request: dict[str, Any]) -> dict[str, Any]:
        """A task may catch the refusal of a file that was replaced, and go on without it, as nobody agreed to."""
        try:
            return self._perform(verb, request)
        finally:
            self._code.require_unchanged()

    def _perform(self, verb: str, request: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case "open":
                return self._open(**request)
            case "measure":
                return self._measure()
            case "begin":
                self._begin(tuple(request["statistics"]))
                return {}
            case "initial":
                _write(Path(request["path"]), self._opened.initial())
                return {}
            case "train":
                return self._train(**request)
            case "train_privately":
                return self._train_privately(**request)
            case "evaluate":
                return {"extras": list(self._opened.evaluate(_theta(request["theta"])).encode())}
            case "export":
                return self._export(**request)
            case "guest":
                return self._guest(**request)
            case _:
                raise TaskFailedError(f"A task worker has no verb {verb!r}")

    @property
    def _opened(self) -> TaskSession:
        if self._session is None:
            raise TaskFailedError("The task has no open session")
        self._require_accepted()
        return self._session

    def _require_accepted(self) -> None:
        """Asked before each use: a session lives on when the last day of its version is over."""
        if self._task is not None:
            require_accepted(*self._task, datetime.fromtimestamp(self._wall(), UTC).date())

    def _compare(self, task: TaskRef) -> str:
        """Before anything of the task is executed. Gives what its name stands for here.

        Raises:
            TaskMissingError: it is not installed. TaskMismatchError: the study does not mean what is installed, or what
                ran here already.
        """
        installed = installed_task(task.name)
        self._task = task, installed.digest
        self._require_accepted()
        self._code.hold(installed)
        return installed.reference

    def _open(self, task: dict[str, Any], dataset: dict[str, Any], seed: int) -> dict[str, Any]:
        self._session = self._private = None  # before the new one takes its memory
        meant = TaskRef.model_validate(task)
        loaded = load_task(self._compare(meant))
        loaded.check(meant.parameters)
        described = Dataset.from_plain(dataset)
        self._has_units = described.unit == "unit"
        self._session = loaded.open(meant.parameters, described, seed)
        return {}

    def _begin(self, statistics: tuple[int, ...]) -> None:
        self._private = None
        self._opened.begin(statistics)

    def _measure(self) -> dict[str, Any]:
        """What the site counts for the first sum. The model's size is the same with whatever statistics it is built."""
        statistics = self._opened.statistics()
        self._begin(statistics)
        return {
            "records": self._opened.records,
            "statistics": list(statistics),
            "dimension": int(self._opened.initial().size),
        }

    def _train(
        self, theta: dict[str, Any], update: str, round_number: int, rng_seed: int, proximal_mu: float
    ) -> dict[str, Any]:
        values, report = self._opened.train(_theta(theta), round_number, rng_seed, proximal_mu)
        _write(Path(update), values)
        return {"records": report.records, "loss_sum": report.loss_sum}

    def _train_privately(
        self, theta: dict[str, Any], update: str, settings: dict[str, Any], proximal_mu: float
    ) -> dict[str, Any]:
        """The loop is ours. What it trains is the task's, as it was begun the last time."""
        session = self._opened
        if self._private is None:
            self._private = _private_training(session, has_units=self._has_units)
        _write(Path(update), self._private.train(_theta(theta), PrivateSettings(**settings), proximal_mu))
        return {"records": session.records}

    def _export(self, theta: dict[str, Any], path: str) -> dict[str, Any]:
        arrays, metadata = self._opened.export(_theta(theta))
        write_model(Path(path), arrays, metadata)
        return {}

    def _guest(
        self,
        task: dict[str, Any],
        body: str,
        content: str,
        reply: str,
        state: str,
        run_config: dict[str, Any],
        node_config: dict[str, Any],
    ) -> dict[str, Any]:
        """One message through a stock ClientApp. What it keeps in its context lasts for the run, on disk."""
        from quorate_client.flower.guest import handle  # flwr is for guest apps only

        if self._guest_app is None:
            meant = TaskRef.model_validate(task)
            self._guest_app = _load_guest(self._compare(meant))
        self._require_accepted()
        kept = Path(state)
        before = kept.read_bytes() if kept.exists() else b""
        answer = handle(
            self._guest_app,
            body=base64.b64decode(body),
            content=Path(content).read_bytes(),
            state=before,
            run_config=run_config,
            node_config=node_config,
        )
        if answer.state != before:
            _replace(kept, answer.state)
        Path(reply).write_bytes(answer.content)
        return {"body": base64.b64encode(answer.body).decode()}


def _private_training(session: TaskSession, *, has_units: bool) -> PrivateTraining:
    """DP-SGD of what a task hands over.

    Raises:
        PrivacyUnsupportedError: it cannot hand over anything, or other records than it counted, or no units where the
            account is theirs.
    """
    if not isinstance(session, PrivateSession):
        raise PrivacyUnsupportedError(
            "The task cannot train with differential privacy", action="Take a task that can, or leave it out"
        )
    from quorate_client.tasks.training.dp_sgd import PrivateTraining  # Opacus takes two seconds and 120 MB

    trainable = session.trainable()
    if has_units and trainable.units is None:
        raise PrivacyUnsupportedError(
            "The task draws records where the account is of units", expected="the units that load_table gave it"
        )
    if not len(trainable.features) == len(trainable.labels) == session.records:
        raise PrivacyUnsupportedError(
            "The task hands over other records than those that it counted",
            expected=f"{session.records} records",
            got=f"{len(trainable.features)} features and {len(trainable.labels)} labels",
            action="Tell the author of the task",
        )
    return PrivateTraining(trainable)


def _load_guest(reference: str) -> object:
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise TaskMissingError(f"The Flower app {reference} cannot be loaded") from error


def write_model(path: Path, arrays: dict[str, npt.NDArray[Any]], metadata: dict[str, Any]) -> None:
    """An .npz file with the same bytes for the same content, at every site and time.

    ``metadata`` is in it as JSON, in the uint8 array ``__metadata__``.
    """
    import numpy as np

    described = np.frombuffer(json.dumps(metadata, sort_keys=True).encode(), np.uint8)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted({**arrays, "__metadata__": described}.items()):
            entry = zipfile.ZipInfo(f"{name}.npy", _EARLIEST_IN_ZIP)
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def _theta(place: dict[str, Any]) -> npt.NDArray[np.float32]:
    """The model's parameters, read from the daemon's state file."""
    import numpy as np

    return np.fromfile(place["path"], "<f4", place["dimension"], offset=place["offset"])


def _write(path: Path, values: npt.NDArray[np.float32]) -> None:
    import numpy as np

    # Not tofile: the exception that it raises on a full disk does not say so.
    path.write_bytes(np.ascontiguousarray(values, "<f4").data)


def _replace(path: Path, content: bytes) -> None:
    scratch = path.with_suffix(".new")
    with scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _code_of(error: Exception) -> str:
    # torch raises its own classes, and on a processor a plain RuntimeError.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    ):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError.code
    return error.code if isinstance(error, SiteRefusalError) else TaskFailedError.code
