"""Who takes part in a sum, and what they bring: the hellos, and the uploads, which are added here."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from quorate.errors import BlobMissingError, ContributionError, FrameError, QuorateError, QuorumMissingError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Phase, Reply
from quorate.secagg.aggregator import AddedSum, Aggregator, Upload
from quorate.secagg.terms import Hello, Terms
from quorate.wire.secure_messages import SecureAnswer, SecureWork, box_places, opening_from_bytes, secure_work_to_bytes
from quorate_server.rounds.aggregate import SecureAdder
from quorate_server.rounds.phases import PhaseTally
from quorate_server.rounds.secure.model import way_to_newest
from quorate_server.rounds.secure.results import note_rates
from quorate_server.rounds.secure.state import RunState, parsed

log = structlog.get_logger()


def greet(state: RunState, terms: Terms, polynomials: int) -> tuple[Aggregator, tuple[PhaseTally, ...]]:
    """Who takes part: those who said hello with their last reveal, and those of the others who say it now."""
    aggregator = Aggregator(terms, state.members, polynomials, _said_before(state, terms))
    others = aggregator.unheard
    if not others:
        return aggregator, ()

    def take(site: SiteName, answer: SecureAnswer, _: Reply) -> None:
        aggregator.hello(site, answer.hello)

    def work(site: SiteName) -> tuple[bytes, tuple[Blob, ...]]:
        parts = () if site in state.holders else state.parts[site]
        return secure_work_to_bytes(SecureWork(parts=parts)), ()

    done = state.phases.open(
        Phase.HELLO,
        terms.round_number,
        work,
        parsed(take),
        invited=others,
        quorum=max(0, state.members.quorum - len(aggregator.greeted)),
        attempt=terms.attempt,
    )
    return aggregator, (done,)


def _said_before(state: RunState, terms: Terms) -> tuple[Hello, ...]:
    """The hellos for this sum that came with the reveals of the last one.

    They are of the last sum's attempt: a sum that is begun anew, or of which the last one is, has none.
    """
    last = state.progress.secure_sums[-1:]
    if not last or (last[0].round_number + 1, last[0].attempt) != (terms.round_number, terms.attempt):
        return ()
    with state.exchange.open(last[0].opening) as file:
        return opening_from_bytes(file.read()).following


def collect(state: RunState, aggregator: Aggregator) -> tuple[AddedSum, PhaseTally]:
    """The uploads of those who said hello, added up: of the largest group that arrived at the same state."""
    terms, members, greeted = aggregator.terms, state.members, aggregator.greeted
    told: dict[SiteName, Mapping[int, Mapping[str, float]]] = {}

    def places_in(shares: Blob) -> Mapping[SiteName, range]:
        with state.exchange.open(shares) as file:
            return box_places(file.read())

    def take(site: SiteName, answer: SecureAnswer, reply: Reply) -> None:
        state.passing |= {blob.id for blob in reply.blobs if blob.inline is None}
        upload = Upload(
            answer.counts, answer.has_ciphertext, reply.blobs, answer.model, answer.dimension, answer.opened
        )
        aggregator.upload(site, upload, places_in)
        told[site] = answer.metrics

    done = state.phases.open(
        Phase.UPLOAD,
        terms.round_number,
        way_to_newest(state, aggregator.hellos),
        parsed(take),
        invited=greeted,
        # As many refusals are heard as if all sites were asked: they may say that the last sum does not open.
        quorum=members.quorum - len(aggregator.unheard),
        attempt=terms.attempt,
    )
    _require_quorum(state, len(aggregator.uploads), done)
    forms = {site: upload.form for site, upload in aggregator.uploads.items()}
    (_, masked, dimension), agreeing = state.phases.agreement(forms, done)
    state.holders = agreeing
    note_rates(state, [told[site] for site in sorted(agreeing)], before=terms.round_number - 1)
    if terms.round_number == 0:
        if dimension < 1:
            raise ContributionError("The sites have no model to train")
        state.progress = state.progress.after(dimension=dimension)
    chosen = aggregator.survivors(agreeing)
    state.counts = max(state.counts, masked)
    return _added(state, aggregator, chosen, done), done


def _added(state: RunState, aggregator: Aggregator, chosen: frozenset[SiteName], done: PhaseTally) -> AddedSum:
    adder = SecureAdder(aggregator.polynomials)
    survivors: list[SiteName] = []
    for site in sorted(chosen):
        ciphertext = aggregator.uploads[site].ciphertext
        try:
            if ciphertext is not None:
                with state.exchange.open(ciphertext) as file:
                    adder.fold(file)
        except (FrameError, BlobMissingError) as error:
            _leave_out(state, site, error, done)
            continue
        survivors.append(site)
    _require_quorum(state, len(survivors), done)
    total = state.exchange.put(adder.blocks()) if aggregator.polynomials else None
    if total is not None:
        state.passing.add(total.id)
    return AddedSum(aggregator, survivors, total)


def _leave_out(state: RunState, site: SiteName, error: QuorateError, done: PhaseTally) -> None:
    """A reply that was taken turned out to be of no use."""
    log.warning("contribution refused", run=state.members.run, site=site, code=error.code, reason=str(error))
    state.exchange.refuse(done.asked[site].message_id, error.code)
    done.left_out[site] = error.code


def _require_quorum(state: RunState, count: int, done: PhaseTally) -> None:
    """Of those who are left after some were left out."""
    quorum = state.members.quorum
    if count < quorum:
        missing = ", ".join(f"{site} ({code})" for site, code in sorted(done.missing().items()))
        error = QuorumMissingError(
            f"Too few sites took part in the phase {done.standing.rule.phase!s}",
            expected=f"at least {quorum} of {len(done.standing.rule.invited)} sites",
            got=f"{count}; missing: {missing}",
            action="See what the missing sites' codes mean (docs/reference/errors.md), then `quorate run resume`",
        )
        error.codes = tuple(done.missing().values())
        raise error
