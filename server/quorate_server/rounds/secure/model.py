"""The model, which the server never sees: the way to the newest one, its checkpoints, and its release."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import structlog

from quorate.errors import ContributionError
from quorate.identity import SiteName
from quorate.rounds.blobs import FRAME_BYTES, Blob
from quorate.rounds.instruction import Phase, Reply
from quorate.secagg.aggregator import checked_checkpoint, checked_release
from quorate.secagg.release import ReleaseTerms, pack_release
from quorate.secagg.terms import Hello, Terms, Vote
from quorate.wire.secure_messages import SecureAnswer, SecureSumRef, SecureWork, secure_work_to_bytes
from quorate_server.rounds.phases import Work, settled
from quorate_server.rounds.secure.results import note_rates
from quorate_server.rounds.secure.state import RunState, parsed

log = structlog.get_logger()


def way_to_newest(state: RunState, hellos: tuple[Hello, ...] = ()) -> Work:
    """What leads to the newest model, and the parts of the study key for those who may not have it yet.

    Who held the last model needs the sum after it only; all the others get the whole way.
    """
    progress = state.progress
    refs = [
        SecureSumRef(stored.round_number, stored.attempt, stored.ciphertext, stored.opening)
        for stored in progress.secure_sums
    ]
    if refs and state.newest is not None:
        last = refs[-1]
        refs[-1] = SecureSumRef(last.round_number, last.attempt, *state.newest)
    newest = tuple(refs[-1:])
    short = secure_work_to_bytes(SecureWork(sums=newest, hellos=hellos)), _named(newest)
    checkpoint, sealer = progress.checkpoint, progress.checkpoint_sealer
    whole = (*_named(refs), *([checkpoint] if checkpoint is not None else []))

    def work(site: SiteName) -> tuple[bytes, tuple[Blob, ...]]:
        if site in state.holders:
            return short
        asked = SecureWork(
            parts=state.parts[site],
            sums=tuple(refs),
            hellos=hellos,
            checkpoint=checkpoint,
            checkpoint_round=progress.checkpoint_round,
            checkpoint_sealer=Vote(SiteName(sealer[0]), sealer[1]) if sealer is not None else None,
        )
        return secure_work_to_bytes(asked), whole

    return work


def checkpoint_if_due(state: RunState, terms: Terms, survivors: tuple[SiteName, ...]) -> None:
    """One of those who uploaded seals the state before the one that all of them hold; older sums are not needed any
    more then.

    Whoever joins believes it for the votes on the sum that led from it to theirs, which is closed and was opened.
    """
    model_round = terms.round_number - 2
    if model_round - state.progress.checkpoint_round < state.study.rounds.checkpoint_every:
        return
    sealed: list[tuple[Blob, Vote]] = []

    def take(site: SiteName, answer: SecureAnswer, reply: Reply) -> None:
        blob, vote = checked_checkpoint(site, reply.blobs, answer.vote, model_round, state.members)
        sealed.append((settled(state.exchange, blob), vote))

    work = secure_work_to_bytes(SecureWork())
    state.phases.ask_one(
        Phase.CHECKPOINT,
        terms.round_number,
        lambda _: (work, ()),
        parsed(take),
        # Not always the same one: what a site sealed may be of no use, and shows only when somebody joins.
        candidates=_turned(survivors, terms.round_number),
        attempt=terms.attempt,
    )
    if not sealed:
        log.warning("no site could upload a checkpoint", run=terms.run, round=model_round)
        return
    ((content, sealer),) = sealed
    progress = state.progress.after(
        checkpoint=content,
        checkpoint_round=model_round,
        checkpoint_sealer=(sealer.site, sealer.signature),
        secure_sums=tuple(s for s in state.progress.secure_sums if s.round_number > model_round),
    )
    # What the open sum still reads stays, whatever its content has in common with what is dropped.
    state.commit(progress, obsolete=state.progress.blobs() - progress.blobs() - state.passing)


def release(state: RunState) -> None:
    """As in a study without protection: a quorum has to send the very same bytes. They are sealed to the operator, and
    each site's signature goes with them."""
    sent: dict[SiteName, tuple[Blob, Vote]] = {}
    told: list[Mapping[int, Mapping[str, float]]] = []
    models: dict[SiteName, bytes] = {}
    study, exchange, phases = state.study, state.exchange, state.phases
    terms = ReleaseTerms.of(study, state.members.run) if study.is_release_sealed else None

    def take(site: SiteName, answer: SecureAnswer, reply: Reply) -> None:
        if not answer.model:
            raise ContributionError("A site does not say which model it released")
        if terms is not None:
            sent[site] = checked_release(site, reply.blobs, answer.vote, terms, state.members)
        models[site] = answer.model
        told.append(answer.metrics)

    number = study.rounds.count + 2
    done = phases.open(Phase.RELEASE, number - 1, way_to_newest(state), parsed(take))
    _, agreeing = phases.agreement(models, done)
    obsolete = done.reply_blobs
    if terms is not None:
        _, agreeing = phases.agreement({site: sent[site][0].id for site in agreeing}, done)
        votes = [sent[site][1] for site in sorted(agreeing)]
        with exchange.open(sent[min(agreeing)][0]) as file:
            chosen = exchange.put(pack_release(votes, iter(partial(file.read, FRAME_BYTES), b"")))
        exchange.keep_model(chosen)
        obsolete = obsolete | {chosen.id}
    note_rates(state, told, before=number)
    state.commit(state.progress.after(released=True), obsolete=obsolete)


def _turned(sites: tuple[SiteName, ...], by: int) -> tuple[SiteName, ...]:
    first = by % len(sites)
    return (*sites[first:], *sites[:first])


def _named(refs: Iterable[SecureSumRef]) -> tuple[Blob, ...]:
    """The blobs of sums without their content: what is small lies in the body."""
    blobs = (blob for ref in refs for blob in (ref.opening, ref.ciphertext) if blob is not None)
    return tuple(Blob(blob.id, blob.size) for blob in blobs)
