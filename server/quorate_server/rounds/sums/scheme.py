"""What the loop leaves to the way in which a study is protected (``rounds/schemes``)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from quorate.identity import SiteName
from quorate.rounds.blobs import Blob
from quorate.secagg.study_key import SealedPart
from quorate.secagg.terms import Hello, Vote
from quorate.wire.sum_messages import SumAnswer
from quorate_server.rounds.aggregate import Adder
from quorate_server.rounds.phases import PhaseTally

Signed = tuple[Blob, Vote | None]
"""What a site made of the model, and its signature where the scheme asks for one."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What a site brings to a sum, once it was accepted.

    Args:
        update: Absent where only counts are summed.
        model: The name of the state from which the site goes on.
        counts: How many there are.
        dimension: Parameters of the model; said in the first sum only.
    """

    update: Blob | None
    model: bytes
    counts: int
    dimension: int

    @property
    def form(self) -> Hashable:
        """In what uploads have to be alike to be added."""
        return self.model, self.counts, self.dimension


@dataclass(frozen=True, slots=True)
class Closed:
    """A sum that the sites can open.

    Args:
        opening: What they need for it beside the summed updates.
        tallies: Of the exchanges that it took after the upload.
        metrics: By round, where the server can tell them itself; None where the sites tell them later.
    """

    opening: bytes
    tallies: tuple[PhaseTally, ...] = ()
    metrics: Mapping[int, Mapping[str, float]] | None = None


class OpenSum(Protocol):
    """One sum, from who takes part in it to its opening.

    ``invited`` may upload; ``quorum`` of them close the upload. ``greeted`` are the exchanges before it, and ``hellos``
    what the sites said in them.
    """

    @property
    def invited(self) -> frozenset[SiteName]: ...
    @property
    def quorum(self) -> int: ...
    @property
    def hellos(self) -> tuple[Hello, ...]: ...
    @property
    def greeted(self) -> tuple[PhaseTally, ...]: ...

    def accept(self, site: SiteName, answer: SumAnswer, blobs: tuple[Blob, ...]) -> Upload:
        """What a site brings, if it has the form of this sum. Raises QuorateError to refuse it."""
        ...

    def choose(self, agreeing: frozenset[SiteName]) -> frozenset[SiteName]:
        """Whose uploads are added, of those of one form."""
        ...

    def leaving(self, survivors: tuple[SiteName, ...], blocks: Iterator[bytes]) -> Iterator[bytes]:
        """The summed updates as they leave, of what the adder gives."""
        ...

    def close(self, survivors: tuple[SiteName, ...], updates: Blob | None) -> Closed:
        """Once the uploads are added."""
        ...


class Scheme(Protocol):
    """One way to protect the sums of a run.

    ``begins_anew`` says whether a sum that failed is begun anew, under a new attempt: what was answered in the last one
    is of no use then. Without, the replies that came count when the run is resumed: no site computes again, and none
    pays twice for privacy.
    """

    @property
    def begins_anew(self) -> bool: ...
    @property
    def attempt(self) -> int | None:
        """Of all sites, where it is not counted for each of them."""
        ...

    def prepare(self) -> None:
        """Before the first sum in this process."""
        ...

    def update_bytes(self, number: int) -> int:
        """Of one site's update in this sum; 0 where only counts are summed."""
        ...

    def beside_bytes(self, number: int) -> int:
        """What else a sum puts on the disk."""
        ...

    def adder(self, number: int) -> Adder: ...

    def parts(self, site: SiteName) -> tuple[SealedPart, ...]:
        """Of the study key, for a site that may not have it yet."""
        ...

    def begin(self, number: int) -> OpenSum: ...

    def checked_checkpoint(self, site: SiteName, answer: SumAnswer, blobs: Sequence[Blob], model_round: int) -> Signed:
        """The state of a round that a site sent. Raises QuorateError to refuse it."""
        ...

    def checked_release(self, site: SiteName, answer: SumAnswer, blobs: Sequence[Blob]) -> Signed | None:
        """The model that a site released, where the study has it sent. Raises QuorateError to refuse it."""
        ...

    def released(self, sent: Mapping[SiteName, Signed]) -> Blob:
        """What the operator gets of models that are the very same bytes; it lies in the spool."""
        ...
