"""The votes for an added sum, and the reveals that open it, asked for here; whether one counts is decided in
``secagg.aggregator``. What opens the sum goes to the sites; the server cannot."""

from __future__ import annotations

from quorate.identity import SiteName
from quorate.rounds.blobs import INLINE_BYTES, Blob
from quorate.rounds.instruction import Phase, Reply
from quorate.secagg.aggregator import AcceptedUpload, AddedSum, Members
from quorate.secagg.terms import Terms
from quorate.wire.sum_messages import SumAnswer, SumWork, shares_to_bytes, sum_work_to_bytes
from quorate_server.rounds.phases import PhaseTally
from quorate_server.rounds.sums.state import RunState


def collect_votes(state: RunState, members: Members, terms: Terms, added: AddedSum) -> PhaseTally:
    """Asks those whose uploads are in the sum, each with the shares that the others dealt to it."""

    def take(site: SiteName, answer: SumAnswer, _: Reply) -> None:
        added.vote(site, answer.vote)

    def work(site: SiteName) -> tuple[bytes, tuple[Blob, ...]]:
        dealt = ((dealer, upload) for dealer, upload in added.uploads.items() if dealer != site)
        content = shares_to_bytes({dealer: _box(state, upload, site) for dealer, upload in dealt})
        if len(content) <= INLINE_BYTES:
            blob = Blob.of(content)
        else:
            blob = state.exchange.put([content])
            state.passing.add(blob.id)
        asked = SumWork(survivors=added.survivors, digest=added.digest, shares=blob)
        return sum_work_to_bytes(asked), () if blob.inline is not None else (blob,)

    return state.phases.open(
        Phase.VOTE,
        terms.round_number,
        work,
        state.parsed(take),
        invited=frozenset(added.survivors),
        quorum=members.rules.votes,
        attempt=terms.attempt,
    )


def _box(state: RunState, dealt: AcceptedUpload, recipient: SiteName) -> bytes:
    """One share. The others stay in the spool: all shares of a sum are sites² of them, 170 MB for 100 sites."""
    place = dealt.places[recipient]
    with state.exchange.open(dealt.shares) as file:
        file.seek(place.start)
        return file.read(len(place))


def collect_reveals(state: RunState, members: Members, terms: Terms, added: AddedSum) -> PhaseTally:
    """Asks those who voted for their shares of the key's sum; the hellos for the next sum come with them."""

    def take(site: SiteName, answer: SumAnswer, _: Reply) -> None:
        added.reveal(site, answer.reveal, answer.hello)

    body = sum_work_to_bytes(SumWork(votes=added.votes))
    return state.phases.open(
        Phase.REVEAL,
        terms.round_number,
        lambda _: (body, ()),
        state.parsed(take),
        invited=added.voters,
        quorum=members.rules.threshold,
        attempt=terms.attempt,
    )
