"""What the doors of enrolment and of the operator need of the rest of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from quorate.errors import QuorateError
from quorate.identity import RunId, SiteName
from quorate.rounds.run import RunView
from quorate.study.study import Study


class RunControl(Protocol):
    """All runs. Each method raises ``NotFoundError`` for a run that it does not know."""

    async def start(self, study: Study) -> RunView: ...

    async def pause(self, run: RunId) -> RunView: ...

    async def resume(self, run: RunId) -> RunView: ...

    async def stop(self, run: RunId) -> RunView: ...

    def list(self) -> list[RunView]: ...

    def view(self, run: RunId) -> RunView: ...

    def changes(self, run: RunId) -> AsyncIterator[RunView]:
        """The run now and after each change; ends when the run is over."""
        ...

    async def report(self, run: RunId, format: str) -> bytes:
        """The report as ``html`` or ``json``."""
        ...

    def model(self, run: RunId) -> Path:
        """The released model.

        Raises:
            WrongStateError: the study does not release it, or the run has not come that far.
        """
        ...


class Presence(Protocol):
    """Who is connected."""

    def state(self, site: SiteName) -> str:
        """``online``, ``silent``, ``paused`` or ``offline``."""
        ...

    def last_seen(self, site: SiteName) -> float:
        """Unix seconds, or 0 when the site was not seen since the server's start."""
        ...

    def version(self, site: SiteName) -> str: ...

    async def drop(self, site: SiteName, error: QuorateError) -> None:
        """End the site's open streams, telling it why."""
        ...


class Announcer(Protocol):
    async def studies_changed(self) -> None:
        """Tell the connected sites that there is a study to read."""
        ...
