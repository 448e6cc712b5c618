"""What the exchanges of a run share: the study, the way to the sites, and how far the run is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from quorate.aggregation.schemes import packing_of
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import Reply
from quorate.rounds.run import RoundResult
from quorate.secagg.aggregator import Members
from quorate.secagg.study_key import SealedPart
from quorate.study.study import Study
from quorate.wire.secure_messages import SecureAnswer, secure_answer_from_bytes
from quorate_server.rounds.phases import Exchange, Phases, Take
from quorate_server.rounds.progress import StudyProgress

USUAL_COUNTS = 1024
"""Words beside an update for which room is kept until a sum has shown how many they are: an evaluation of two classes
has half as many."""


@dataclass(slots=True)
class RunState:
    """One run in this process.

    Args:
        progress: What is committed, and beside it what the next commit will hold.
        parts: Of the study key, by recipient.
        newest: Ciphertext and opening of the last sum, with their content where that is small.
        holders: The sites that held the last model.
        counts: Words beside an update, at most so far.
        passing: What an open sum left in the spool; nobody needs it once the sum is closed or given up.
    """

    study: Study
    members: Members
    exchange: Exchange
    phases: Phases
    progress: StudyProgress
    parts: dict[SiteName, tuple[SealedPart, ...]] = field(default_factory=dict)
    newest: tuple[Blob | None, Blob] | None = None
    holders: set[SiteName] = field(default_factory=set)
    counts: int = USUAL_COUNTS
    passing: set[BlobId] = field(default_factory=set)

    def polynomials(self, number: int) -> int:
        """Of an update in this sum; 0 where nobody trains."""
        trains = 1 <= number <= self.study.rounds.count
        return packing_of(self.study).polynomials(self.progress.dimension) if trains else 0

    def commit(
        self, progress: StudyProgress, result: RoundResult | None = None, obsolete: Iterable[BlobId] = ()
    ) -> None:
        self.exchange.commit(progress, result, set(obsolete) - progress.blobs())
        self.progress = progress


def parsed(use: Callable[[SiteName, SecureAnswer, Reply], None]) -> Take:
    """Reads a reply as an answer; FrameError refuses one that is none."""

    def take(site: SiteName, reply: Reply) -> None:
        use(site, secure_answer_from_bytes(reply.body), reply)

    return take
