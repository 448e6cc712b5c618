"""The model, which the server does not compute: the way to the newest one, its checkpoints, and its release."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from quorate.errors import ContributionError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Phase, Reply
from quorate.secagg.terms import Hello, Vote
from quorate.wire.sum_messages import SumAnswer, SumRef, SumWork, sum_work_to_bytes
from quorate_server.rounds.phases import Work, settled
from quorate_server.rounds.sums.results import Metrics, note_rates
from quorate_server.rounds.sums.scheme import Scheme, Signed
from quorate_server.rounds.sums.state import RunState

log = structlog.get_logger()


def way_to_newest(state: RunState, scheme: Scheme, hellos: tuple[Hello, ...] = ()) -> Work:
    """What leads to the newest model, and the parts of the study key for those who may not have it yet.

    Who held the last model needs the sum after it only; all the others get the whole way.
    """
    progress = state.progress
    refs = [SumRef(stored.round_number, stored.attempt, stored.updates, stored.opening) for stored in progress.sums]
    if refs and state.newest is not None:
        last = refs[-1]
        refs[-1] = SumRef(last.round_number, last.attempt, *state.newest)
    newest = tuple(refs[-1:])
    short = sum_work_to_bytes(SumWork(sums=newest, hellos=hellos)), _named(newest)
    checkpoint, sealer = progress.checkpoint, progress.checkpoint_sealer
    whole = (*_named(refs), *([checkpoint] if checkpoint is not None else []))

    def work(site: SiteName) -> tuple[bytes, tuple[Blob, ...]]:
        if site in state.holders:
            return short
        asked = SumWork(
            parts=scheme.parts(site),
            sums=tuple(refs),
            hellos=hellos,
            checkpoint=checkpoint,
            checkpoint_round=progress.checkpoint_round,
            checkpoint_sealer=Vote(SiteName(sealer[0]), sealer[1]) if sealer is not None else None,
        )
        return sum_work_to_bytes(asked), whole

    return work


def checkpoint_if_due(state: RunState, scheme: Scheme, number: int, survivors: tuple[SiteName, ...]) -> None:
    """One of those who uploaded gives the state before the one that all of them hold; older sums are not needed any
    more then.

    Whoever joins believes it for the sum that led from it to theirs, which is closed and was opened.
    """
    model_round = number - 2
    if model_round - state.progress.checkpoint_round < state.study.rounds.checkpoint_every:
        return
    given: list[Signed] = []

    def take(site: SiteName, answer: SumAnswer, reply: Reply) -> None:
        blob, sealer = scheme.checked_checkpoint(site, answer, reply.blobs, model_round)
        given.append((settled(state.exchange, blob), sealer))

    work = sum_work_to_bytes(SumWork())
    state.phases.ask_one(
        Phase.CHECKPOINT,
        number,
        lambda _: (work, ()),
        state.parsed(take),
        # Not always the same one: what a site sealed may be of no use, and shows only when somebody joins.
        candidates=_turned(survivors, number),
        attempt=scheme.attempt,
    )
    if not given:
        log.warning("no site could upload a checkpoint", run=state.run, round=model_round)
        return
    ((content, sealer),) = given
    progress = state.progress.after(
        checkpoint=content,
        checkpoint_round=model_round,
        checkpoint_sealer=(sealer.site, sealer.signature) if sealer is not None else None,
        sums=tuple(stored for stored in state.progress.sums if stored.round_number > model_round),
    )
    # What the open sum still reads stays, whatever its content has in common with what is dropped.
    state.commit(progress, obsolete=state.progress.blobs() - progress.blobs() - state.passing)


def release(state: RunState, scheme: Scheme) -> None:
    """Every site makes the final model in the form in which it is used and keeps it; some studies have it sent.

    One site alone must not decide what is released: a quorum has to send the very same bytes.
    """
    sent: dict[SiteName, Signed] = {}
    told: list[Metrics] = []
    models: dict[SiteName, bytes] = {}

    def take(site: SiteName, answer: SumAnswer, reply: Reply) -> None:
        if not answer.model:
            raise ContributionError("A site does not say which model it released")
        model = scheme.checked_release(site, answer, reply.blobs)
        if model is not None:
            sent[site] = model
        models[site] = answer.model
        told.append(answer.metrics)

    number = state.study.rounds.count + 2
    done = state.phases.open(Phase.RELEASE, number - 1, way_to_newest(state, scheme), state.parsed(take))
    _, agreeing = state.phases.agreement(models, done)
    obsolete = done.reply_blobs
    if state.study.release.model == "operator":
        _, agreeing = state.phases.agreement({site: sent[site][0].id for site in agreeing}, done)
        chosen = scheme.released({site: sent[site] for site in agreeing})
        state.exchange.keep_model(chosen)
        obsolete = obsolete | {chosen.id}
    note_rates(state, told, before=number)
    state.commit(state.progress.after(released=True), obsolete=obsolete)


def _turned(sites: tuple[SiteName, ...], by: int) -> tuple[SiteName, ...]:
    first = by % len(sites)
    return (*sites[first:], *sites[:first])


def _named(refs: Iterable[SumRef]) -> tuple[Blob, ...]:
    """The blobs of sums without their content: what is small lies in the body."""
    blobs = (blob for ref in refs for blob in (ref.opening, ref.updates) if blob is not None)
    return tuple(Blob(blob.id, blob.size) for blob in blobs)
