"""What the daemon hands to the process that runs a run's sums, and what that says at its end."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from quorate.errors import QuorateError, RunWorkerError
from quorate.identity import RunId, SiteName
from quorate.rounds.instruction import MessageId
from quorate.rounds.run import RunState
from quorate.study.study import Study
from quorate.wire.refusal import error_to_text
from quorate_server.rounds.pipe import Verb
from quorate_server.rounds.progress import StudyProgress

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Order:
    """To go on with a run from where it is.

    Args:
        progress: What was committed, as JSON; empty at the beginning.
        attempts: As for ``Phases``.
        forgiven: Messages whose refusals do not count any more; for guest apps.
        spool: The daemon's folder of bulk data, for a process of the same machine.
    """

    run: RunId
    study: Study
    progress: str
    attempts: Mapping[tuple[int, str, SiteName], int]
    forgiven: set[MessageId] = field(default_factory=set)
    spool: str = ""

    @property
    def standing(self) -> StudyProgress:
        return StudyProgress.model_validate_json(self.progress) if self.progress else StudyProgress()

    def to_json(self) -> bytes:
        return json.dumps(
            {
                "run": self.run,
                "study": base64.b64encode(self.study.canonical()).decode(),
                "spool": self.spool,
                "progress": self.progress,
                "attempts": [[list(key), attempt] for key, attempt in self.attempts.items()],
                "forgiven": [message.hex() for message in self.forgiven],
            }
        ).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Order:
        order = json.loads(content)
        return cls(
            run=RunId(order["run"]),
            study=Study.from_canonical(base64.b64decode(order["study"])),
            progress=order["progress"],
            attempts={(key[0], key[1], SiteName(key[2])): value for key, value in order["attempts"]},
            forgiven={MessageId(bytes.fromhex(name)) for name in order["forgiven"]},
            spool=order["spool"],
        )


class Teller(Protocol):
    """Whom the end is told to."""

    def note(self, verb: Verb, value: Any) -> None: ...


def tell_end(teller: Teller, run: RunId, work: Callable[[], None], log_place: str) -> None:
    """Do the work, and tell the daemon how it ended.

    Args:
        log_place: Where people find what an exception said. It stays there: a guest app's can hold anything.
    """
    try:
        work()
    except QuorateError as error:
        log.warning("run paused", run=run, code=error.code, reason=str(error))
        teller.note(Verb.DONE, {"state": RunState.PAUSED.value, "reason": error_to_text(error)})
    except Exception:
        logging.getLogger(__name__).exception("the run's app failed")
        failure = RunWorkerError(
            "The run's app raised an exception",
            action=f"Read {log_place}; correct the app and start a new run",
        )
        teller.note(Verb.DONE, {"state": RunState.FAILED.value, "reason": error_to_text(failure)})
    else:
        teller.note(Verb.DONE, {"state": RunState.COMPLETED.value, "reason": None})
