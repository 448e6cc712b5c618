"""What the exchanges of a run share: the study, the way to the sites, and how far the run is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import Reply
from quorate.rounds.run import RoundResult, SumStep
from quorate.study.study import Study
from quorate.wire.sum_messages import SumAnswer, sum_answer_from_bytes
from quorate_server.rounds.phases import Exchange, Phases, Take
from quorate_server.rounds.progress import StudyProgress
from quorate_server.rounds.sum_figures import Stopwatch


@dataclass(slots=True)
class RunState:
    """One run in this process.

    Args:
        quorum: Uploads without which there is no sum.
        progress: What is committed, and beside it what the next commit will hold.
        stopwatch: For the server's own work on the open sum.
        newest: Updates and opening of the last sum, with their content where that is small.
        holders: The sites that held the last model.
        passing: What an open sum left in the spool; nobody needs it once the sum is closed or given up.
    """

    run: RunId
    study: Study
    quorum: int
    exchange: Exchange
    phases: Phases
    progress: StudyProgress
    stopwatch: Stopwatch
    newest: tuple[Blob | None, Blob] | None = None
    holders: set[SiteName] = field(default_factory=set)
    passing: set[BlobId] = field(default_factory=set)

    def trains(self, number: int) -> bool:
        """Whether a sum holds updates."""
        return 1 <= number <= self.study.rounds.count

    def commit(
        self, progress: StudyProgress, result: RoundResult | None = None, obsolete: Iterable[BlobId] = ()
    ) -> None:
        # Not what is still needed: a site may send back as its update what it downloaded as a sum.
        self.exchange.commit(progress, result, set(obsolete) - progress.blobs())
        self.progress = progress

    def parsed(self, use: Callable[[SiteName, SumAnswer, Reply], None]) -> Take:
        """Reads a reply as an answer; FrameError refuses one that is none."""

        def take(site: SiteName, reply: Reply) -> None:
            with self.stopwatch.on(SumStep.PARSE):
                answer = sum_answer_from_bytes(reply.body)
            with self.stopwatch.on(SumStep.CHECK):
                use(site, answer, reply)

        return take
