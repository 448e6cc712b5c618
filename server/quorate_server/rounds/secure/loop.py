"""The loop of a study under secure aggregation: it carries messages between the sites and adds what it cannot read.

First the sites make a key for each other. Then come sums, each of three exchanges (upload, vote, reveal): one of record
counts and statistics, one for each round (updates, and an evaluation of the model that they start from), and one that
evaluates the final model. With its reveal a site says hello for the next sum. Who did not is asked for a ``hello``
before the upload: all sites at the first sum and where one is begun anew, otherwise those who missed the reveal. What
opens a sum goes to the sites with the next upload. At the end the ``release``.

Only a sum that is closed is committed, with the hellos for the next one. Until then all is in the replies, which are
written down: a new process asks the same again, gets the same replies, and makes the same of them. What a site did not
answer when an exchange closed was withdrawn before the next one began, so it cannot come in later.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import structlog

from quorate.aggregation import ring, words
from quorate.aggregation.schemes import packing_of
from quorate.errors import (
    BlobMissingError,
    ContributionError,
    DiskFullError,
    FrameError,
    QuorateError,
    QuorumMissingError,
    SumRefusedError,
    VoteRefusedError,
)
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import FRAME_BYTES, INLINE_BYTES, Blob, BlobId
from quorate.rounds.instruction import Phase, Reply
from quorate.rounds.run import RoundResult
from quorate.secagg import share_boxes
from quorate.secagg.linear_mac import TAGS
from quorate.secagg.opening import Opening
from quorate.secagg.release import ReleaseTerms, pack_release, released
from quorate.secagg.sizes import reveal_bytes, share_words, shares_bytes
from quorate.secagg.study_key import SealedPart, is_from_sender
from quorate.secagg.survivor_sets import may_vote
from quorate.secagg.terms import (
    Hello,
    Layout,
    Reveal,
    Terms,
    Vote,
    ballot,
    checkpointed,
    is_signed,
    revealed,
    round_id,
    sum_digest,
)
from quorate.study.rules import Rules
from quorate.study.study import Study
from quorate.wire.secure_messages import (
    SecureAnswer,
    SecureSumRef,
    SecureWork,
    box_places,
    opening_from_bytes,
    opening_to_bytes,
    secure_answer_from_bytes,
    secure_work_from_bytes,
    secure_work_to_bytes,
    shares_from_bytes,
    shares_to_bytes,
    words_from_bytes,
    words_to_bytes,
)
from quorate_server.rounds.aggregate import SecureAdder
from quorate_server.rounds.phases import Exchange, Phases, PhaseTally, Status, Work, inlined, require_room, settled
from quorate_server.rounds.progress import StoredSecureSum, StudyProgress, result_from_json, result_to_json

log = structlog.get_logger()

MAX_ATTEMPTS = 2
"""At a sum, before the run pauses."""
USUAL_COUNTS = 1024
"""Words beside an update for which room is kept until a sum has shown how many they are: an evaluation of two classes
has half as many."""


@dataclass(frozen=True, slots=True)
class _Dealt:
    """The sealed shares of one dealer. They stay in the spool; ``places`` says where in the blob each recipient's is.

    All shares of a sum are sites² of them: 170 MB for 100 sites.
    """

    blob: Blob
    places: Mapping[SiteName, range]


class _Collected:
    """What has come of one sum's uploads."""

    def __init__(
        self,
        identity: bytes,
        model: bytes,
        ciphertext: Blob | None,
        counts: bytes,
        dealt: dict[SiteName, _Dealt],
    ) -> None:
        self.identity = identity
        self.model = model
        self.survivors = tuple(dealt)
        self.ciphertext = ciphertext
        self.counts = counts
        self.dealt = dealt

    @property
    def digest(self) -> bytes:
        return sum_digest(self.ciphertext.id if self.ciphertext else b"", self.counts)


class SecureLoop:
    """Runs one study to its end. Arguments and errors as for ``StudyLoop``."""

    def __init__(
        self,
        run: RunId,
        study: Study,
        exchange: Exchange,
        progress: StudyProgress,
        attempts: Mapping[tuple[int, str, SiteName], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_id = run
        self._study = study
        self._digest = study.digest()
        self._roster = {SiteName(site.name): bytes.fromhex(site.signing_key) for site in study.sites}
        self._rules = Rules(len(study.sites), study.protection.colluders)
        self._packing = packing_of(study)
        self._exchange = exchange
        self._phases = Phases(run, study, exchange, attempts, monotonic)
        self._progress = progress
        self._parts: dict[SiteName, tuple[SealedPart, ...]] = {}
        self._newest: tuple[Blob | None, Blob] | None = None
        self._holders: set[SiteName] = set()
        self._tries = 0
        self._counts = USUAL_COUNTS
        self._passing: set[BlobId] = set()
        """What an open sum left in the spool; nobody needs it once the sum is closed or given up."""

    def run(self) -> None:
        """All that is left to do, in order."""
        if self._progress.keys is None:
            self._collect_keys()
        self._read_keys()
        while self._progress.summed < self._study.rounds.count + 2:
            self._next_sum()
        if not self._progress.released:
            self._release()
        self._exchange.report(Status(self._progress.evaluated, ""))

    # --- the study key ---

    def _collect_keys(self) -> None:
        """Every site seals a part of the study key for every site; the server stores what it cannot open."""
        made: dict[SiteName, Mapping[SiteName, SealedPart]] = {}

        def take(site: SiteName, answer: SecureAnswer, _: Reply) -> None:
            if set(answer.parts) != set(self._roster) or {part.sender for part in answer.parts.values()} != {site}:
                raise ContributionError("A site did not make a part of the study key for every site")
            # Unsigned, it would keep every site from its key, and nobody could say whose fault it was.
            if not all(
                is_from_sender(part, self._digest, self._run_id, recipient, self._roster)
                for recipient, part in answer.parts.items()
            ):
                raise ContributionError("A site's part of the study key is not signed by it")
            made[site] = answer.parts

        done = self._phases.open(Phase.KEYS, 0, lambda _: (b"", ()), _parsed(take))
        boxes = {
            site: secure_work_to_bytes(SecureWork(parts=tuple(made[sender][site] for sender in sorted(made))))
            for site in self._roster
        }
        keys = self._exchange.put([shares_to_bytes(boxes)])
        self._commit(self._progress.after(keys=keys, prepared=True), obsolete=done.reply_blobs)

    def _read_keys(self) -> None:
        if self._progress.keys is None:
            raise ContributionError("There is no study key")
        with self._exchange.open(self._progress.keys) as file:
            boxes = shares_from_bytes(file.read())
        self._parts = {site: secure_work_from_bytes(box).parts for site, box in boxes.items()}

    # --- one sum ---

    def _next_sum(self) -> None:
        """One sum further, or one attempt: a sum that lost too many sites on the way, or that does not open, is begun
        anew with new keys, and trained anew. What was answered in an attempt is of no use in the next one."""
        number = self._progress.summed
        try:
            self._sum(number)
        except DiskFullError:
            raise
        except QuorateError as error:
            self._tries += 1
            before = self._progress
            progress = before.after(attempt=before.attempt + 1)
            # Once sites arrived there, they may have voted on a sum that starts from the last one.
            is_undecided = number > before.reached
            if (
                is_undecided
                and self._does_not_open(error)
                and before.secure_sums
                and before.secure_sums[-1].round_number == number - 1
            ):
                progress = _without_the_last(progress)
            self._commit(progress, obsolete=self._passing | (before.blobs() - progress.blobs()))
            self._passing, self._newest = set(), None
            if not isinstance(error, QuorumMissingError) or self._tries >= MAX_ATTEMPTS:
                raise
            log.warning("a secure sum is begun anew", run=self._run_id, round=progress.summed, reason=str(error))

    def _does_not_open(self, error: QuorateError) -> bool:
        """Whether the last sum kept sites from the next one, by the word of more than may lie.

        An exchange is given up as soon as its quorum is out of reach, so no more than that many refusals are heard.
        """
        refusals = error.codes.count(SumRefusedError.code) if isinstance(error, QuorumMissingError) else 0
        return refusals > min(self._rules.colluders, self._rules.sites - self._study.rounds.quorum)

    def _sum(self, number: int) -> None:
        terms = Terms(self._digest, self._run_id, number, self._progress.attempt)
        polynomials = self._polynomials(number)
        update_bytes = polynomials * words.POLYNOMIAL_BYTES
        require_room(self._exchange, update_bytes, len(self._roster), self._share_room(polynomials))
        hellos, greeted = self._greet(terms)
        collected, uploaded = self._collect(terms, hellos, polynomials)
        if number > self._progress.reached:  # the sites could open what was before, and may vote from there
            self._tries = 0
            self._commit(self._progress.after(reached=number))
        self._checkpoint_if_due(terms, collected.survivors)
        votes, voted = self._votes(terms, collected)
        reveals, following, done = self._reveals(terms, collected, votes)
        name = collected.ciphertext.id if collected.ciphertext else b""
        survivors, counts = collected.survivors, collected.counts
        opening = Opening(hellos, collected.model, survivors, counts, name, votes, reveals, following)
        content = opening_to_bytes(opening)
        stored = self._exchange.put([content])
        self._newest = (
            inlined(self._exchange, collected.ciphertext) if collected.ciphertext else None,
            Blob(stored.id, stored.size, content if stored.size <= INLINE_BYTES else None),
        )
        closed = StoredSecureSum(
            round_number=number, attempt=terms.attempt, ciphertext=collected.ciphertext, opening=stored
        )
        tallies = (*greeted, uploaded, voted, done)
        waiting = self._progress.waiting
        if polynomials:
            waiting = (*waiting, result_to_json(self._result(number, collected.survivors, tallies)))
            log.info("round summed", run=self._run_id, round=number, sites=len(collected.survivors))
        progress = self._progress.after(
            secure_sums=(*self._progress.secure_sums, closed),
            summed=number + 1,
            waiting=waiting,
            trained=min(number, self._study.rounds.count),
        )
        obsolete = self._passing.union(*(tally.reply_blobs for tally in tallies))
        self._commit(progress, obsolete=obsolete)
        self._passing = set()

    def _greet(self, terms: Terms) -> tuple[tuple[Hello, ...], tuple[PhaseTally, ...]]:
        """Who takes part: those who said hello with their last reveal, and those of the others who say it now."""
        came = self._said_before(terms)

        def take(site: SiteName, answer: SecureAnswer, _: Reply) -> None:
            came[site] = self._hello_of(site, answer, terms)

        tallies: tuple[PhaseTally, ...] = ()
        others = frozenset(self._roster) - set(came)
        if others:

            def work(site: SiteName) -> tuple[bytes, tuple[Blob, ...]]:
                parts = () if site in self._holders else self._parts[site]
                return secure_work_to_bytes(SecureWork(parts=parts)), ()

            done = self._phases.open(
                Phase.HELLO,
                terms.round_number,
                work,
                _parsed(take),
                invited=others,
                quorum=max(0, self._quorum - len(came)),
                attempt=terms.attempt,
            )
            tallies = (done,)
        return tuple(came[site] for site in sorted(came)), tallies

    def _said_before(self, terms: Terms) -> dict[SiteName, Hello]:
        """The hellos for this sum that came with the reveals of the last one.

        They are of the last sum's attempt: a sum that is begun anew, or of which the last one is, has none.
        """
        last = self._progress.secure_sums[-1:]
        if not last or (last[0].round_number + 1, last[0].attempt) != (terms.round_number, terms.attempt):
            return {}
        with self._exchange.open(last[0].opening) as file:
            return {hello.site: hello for hello in opening_from_bytes(file.read()).following}

    def _hello_of(self, site: SiteName, answer: SecureAnswer, terms: Terms) -> Hello:
        hello = answer.hello
        if hello is None or hello.site != site:
            raise ContributionError("A site did not say hello")
        if not is_signed(self._roster[site], hello.signature, hello.signed(terms)):
            raise ContributionError("A site's hello is not signed by it, or is for another sum")
        # Nobody could seal a share to a key that is none. KeyMismatchError: only this site is refused then.
        share_boxes.seal(np.zeros(0, np.uint64), hello.round_key, b"")
        return hello

    def _checkpoint_if_due(self, terms: Terms, survivors: tuple[SiteName, ...]) -> None:
        """One of those who uploaded seals the state before the one that all of them hold; older sums are not needed any
        more then.

        Whoever joins believes it for the votes on the sum that led from it to theirs, which is closed and was opened.
        """
        model_round = terms.round_number - 2
        if model_round - self._progress.checkpoint_round < self._study.rounds.checkpoint_every:
            return
        sealed: list[tuple[Blob, Vote]] = []

        def take(site: SiteName, answer: SecureAnswer, reply: Reply) -> None:
            if len(reply.blobs) != 1:
                raise ContributionError(f"{site} did not send one sealed state")
            vote, signed = answer.vote, checkpointed(self._digest, self._run_id, model_round, reply.blobs[0].id)
            if vote is None or vote.site != site or not is_signed(self._roster[site], vote.signature, signed):
                raise ContributionError(f"{site} did not sign the state that it sealed")
            sealed.append((settled(self._exchange, reply.blobs[0]), vote))

        work = secure_work_to_bytes(SecureWork())
        self._phases.ask_one(
            Phase.CHECKPOINT,
            terms.round_number,
            lambda _: (work, ()),
            _parsed(take),
            # Not always the same one: what a site sealed may be of no use, and shows only when somebody joins.
            candidates=_turned(survivors, terms.round_number),
            attempt=terms.attempt,
        )
        if not sealed:
            log.warning("no site could upload a checkpoint", run=self._run_id, round=model_round)
            return
        ((state, sealer),) = sealed
        progress = self._progress.after(
            checkpoint=state,
            checkpoint_round=model_round,
            checkpoint_sealer=(sealer.site, sealer.signature),
            secure_sums=tuple(s for s in self._progress.secure_sums if s.round_number > model_round),
        )
        # What the open sum still reads stays, whatever its content has in common with what is dropped.
        self._commit(progress, obsolete=self._progress.blobs() - progress.blobs() - self._passing)

    def _collect(self, terms: Terms, hellos: tuple[Hello, ...], polynomials: int) -> tuple[_Collected, PhaseTally]:
        """The uploads of those who said hello, added up: of the largest group that arrived at the same state."""
        greeted = frozenset(hello.site for hello in hellos)
        came: dict[SiteName, tuple[SecureAnswer, Blob | None, _Dealt]] = {}
        size = polynomials * words.POLYNOMIAL_BYTES

        def take(site: SiteName, answer: SecureAnswer, reply: Reply) -> None:
            self._passing |= {blob.id for blob in reply.blobs if blob.inline is None}
            masked = words_from_bytes(answer.counts)
            *ciphertexts, shares = reply.blobs if reply.blobs else (None,)
            if shares is None or answer.has_ciphertext != bool(size) or len(ciphertexts) != bool(size):
                raise ContributionError("A site did not send what this sum is made of")
            ciphertext = ciphertexts[0] if ciphertexts else None
            if ciphertext is not None and ciphertext.size != size:
                raise ContributionError(
                    "A site's ciphertext has the wrong length", expected=f"{size} bytes", got=f"{ciphertext.size}"
                )
            share = share_words(polynomials, len(masked))
            if shares.size != shares_bytes(greeted - {site}, share):
                raise ContributionError("A site's shares have the wrong length")
            with self._exchange.open(shares) as file:
                places = box_places(file.read())
            if set(places) != greeted - {site} or {len(place) for place in places.values()} != {
                share_boxes.message_bytes(share)
            }:
                raise ContributionError("A site did not deal a share to each of the others")
            came[site] = answer, ciphertext, _Dealt(shares, places)

        done = self._phases.open(
            Phase.UPLOAD,
            terms.round_number,
            self._work(hellos),
            _parsed(take),
            invited=greeted,
            # As many refusals are heard as if all sites were asked: they may say that the last sum does not open.
            quorum=self._quorum - (len(self._roster) - len(greeted)),
            attempt=terms.attempt,
        )
        self._require_quorum(len(came), done)
        forms = {site: (answer.model, len(answer.counts), answer.dimension) for site, (answer, *_) in came.items()}
        (model, _, dimension), agreeing = self._phases.agreement(forms, done)
        self._holders = agreeing
        told = [came[site][0].metrics for site in sorted(agreeing)]
        self._note_metrics(told, before=terms.round_number - 1)
        if terms.round_number == 0:
            if dimension < 1:
                raise ContributionError("The sites have no model to train")
            self._progress = self._progress.after(dimension=dimension)
        chosen = self._survivors(agreeing, {site: came[site][0].opened for site in agreeing})
        adder = SecureAdder(polynomials)
        total = np.zeros_like(words_from_bytes(came[min(agreeing)][0].counts))
        self._counts = max(self._counts, len(total))
        dealt: dict[SiteName, _Dealt] = {}
        for site in sorted(chosen):
            answer, ciphertext, shares = came[site]
            try:
                if ciphertext is not None:
                    with self._exchange.open(ciphertext) as file:
                        adder.fold(file)
            except (FrameError, BlobMissingError) as error:
                self._leave_out(site, error, done)
                continue
            ring.add(total, words_from_bytes(answer.counts))
            dealt[site] = shares
        self._require_quorum(len(dealt), done)
        blob = self._exchange.put(adder.blocks()) if polynomials else None
        if blob is not None:
            self._passing.add(blob.id)
        identity = round_id(hellos, terms, self._rules, Layout(polynomials, len(total) - TAGS), model)
        return _Collected(identity, model, blob, words_to_bytes(total), dealt), done

    def _survivors(
        self, agreeing: set[SiteName], opened: Mapping[SiteName, Iterable[tuple[SiteName, ...]]]
    ) -> set[SiteName]:
        """Whose uploads are added: the largest set for which enough of the sites in it may vote.

        A site votes for few sets of survivors of one input, in this run or an earlier one, and for none that differ by
        little; each says for which it voted. A lie costs the liar's own vote. Where no set has enough votes, none is
        asked for: one that cannot be opened would only bind those who give it.

        Raises:
            QuorumMissingError: there is no such set.
        """
        told = {site: {frozenset(names) for names in sets} for site, sets in opened.items()}
        every: set[frozenset[SiteName]] = {frozenset(agreeing)}.union(*told.values())
        sets: set[frozenset[SiteName]] = {each for each in every if each <= agreeing}

        def votes(chosen: frozenset[SiteName]) -> int:
            return sum(may_vote(chosen, told[site], self._rules.colluders) for site in chosen)

        usable = [each for each in sets if len(each) >= self._quorum and votes(each) >= self._rules.votes]
        if not usable:
            error = QuorumMissingError(
                "Too few of the sites that are there may vote for a sum over them",
                expected="the sites of an earlier sum of the same input, or many fewer or more",
                action="Have those sites connected, then `quorate run resume`",
            )
            error.codes = (VoteRefusedError.code,)
            raise error
        largest = max(usable, key=lambda each: (len(each), sorted(each)))
        return set(largest)

    def _votes(self, terms: Terms, collected: _Collected) -> tuple[tuple[Vote, ...], PhaseTally]:
        votes: dict[SiteName, Vote] = {}
        signed = ballot(collected.identity, collected.survivors, collected.digest)

        def take(site: SiteName, answer: SecureAnswer, _: Reply) -> None:
            vote = answer.vote
            if vote is None or vote.site != site or not is_signed(self._roster[site], vote.signature, signed):
                raise ContributionError("A site's vote is not for this sum")
            votes[site] = vote

        def work(site: SiteName) -> tuple[bytes, tuple[Blob, ...]]:
            dealt = ((dealer, shares) for dealer, shares in collected.dealt.items() if dealer != site)
            content = shares_to_bytes({dealer: self._box(shares, site) for dealer, shares in dealt})
            if len(content) <= INLINE_BYTES:
                blob = Blob.of(content)
            else:
                blob = self._exchange.put([content])
                self._passing.add(blob.id)
            asked = SecureWork(survivors=collected.survivors, digest=collected.digest, shares=blob)
            return secure_work_to_bytes(asked), () if blob.inline is not None else (blob,)

        done = self._phases.open(
            Phase.VOTE,
            terms.round_number,
            work,
            _parsed(take),
            invited=frozenset(collected.survivors),
            quorum=self._rules.votes,
            attempt=terms.attempt,
        )
        return tuple(votes[site] for site in sorted(votes)), done

    def _box(self, dealt: _Dealt, recipient: SiteName) -> bytes:
        place = dealt.places[recipient]
        with self._exchange.open(dealt.blob) as file:
            file.seek(place.start)
            return file.read(len(place))

    def _reveals(
        self, terms: Terms, collected: _Collected, votes: tuple[Vote, ...]
    ) -> tuple[tuple[Reveal, ...], tuple[Hello, ...], PhaseTally]:
        """The shares of the key's sum, and the hellos for the next sum that came with them."""
        reveals: dict[SiteName, Reveal] = {}
        following: dict[SiteName, Hello] = {}
        identity, number = collected.identity, terms.round_number + 1
        next_terms = replace(terms, round_number=number)
        masked = len(words_from_bytes(collected.counts))
        sealed_bytes = reveal_bytes(share_words(int(collected.ciphertext is not None), masked))

        def take(site: SiteName, answer: SecureAnswer, _: Reply) -> None:
            reveal = answer.reveal
            if (
                reveal is None
                or reveal.site != site
                or not is_signed(self._roster[site], reveal.signature, revealed(identity, site, reveal.sealed))
            ):
                raise ContributionError("A site's share of the key is not for this sum")
            if len(reveal.sealed) != sealed_bytes:
                raise ContributionError("A site's share of the key has the wrong length")
            if answer.hello is not None:
                following[site] = self._hello_of(site, answer, next_terms)
            reveals[site] = reveal

        body = secure_work_to_bytes(SecureWork(votes=votes))
        done = self._phases.open(
            Phase.REVEAL,
            terms.round_number,
            lambda _: (body, ()),
            _parsed(take),
            invited=frozenset(vote.site for vote in votes),
            quorum=self._rules.threshold,
            attempt=terms.attempt,
        )
        return tuple(reveals[s] for s in sorted(reveals)), tuple(following[s] for s in sorted(following)), done

    # --- the end ---

    def _release(self) -> None:
        """As in a study without protection: a quorum has to send the very same bytes. They are sealed to the operator,
        and each site's signature goes with them."""
        sent: dict[SiteName, Blob] = {}
        told: list[Mapping[int, Mapping[str, float]]] = []
        models: dict[SiteName, bytes] = {}
        votes: dict[SiteName, Vote] = {}
        terms = ReleaseTerms.of(self._study, self._run_id) if self._study.is_release_sealed else None

        def take(site: SiteName, answer: SecureAnswer, reply: Reply) -> None:
            if not answer.model:
                raise ContributionError("A site does not say which model it released")
            if terms is not None:
                if not reply.blobs:
                    raise ContributionError("A site sent no model though the study releases it")
                vote, signed = answer.vote, released(terms, reply.blobs[0].id)
                if vote is None or vote.site != site or not is_signed(self._roster[site], vote.signature, signed):
                    raise ContributionError("A site did not sign the model that it sent")
                sent[site], votes[site] = reply.blobs[0], vote
            models[site] = answer.model
            told.append(answer.metrics)

        number = self._study.rounds.count + 2
        done = self._phases.open(Phase.RELEASE, number - 1, self._work(), _parsed(take))
        _, agreeing = self._phases.agreement(models, done)
        obsolete = done.reply_blobs
        if terms is not None:
            _, agreeing = self._phases.agreement({site: sent[site].id for site in agreeing}, done)
            with self._exchange.open(sent[min(agreeing)]) as file:
                sealed = iter(partial(file.read, FRAME_BYTES), b"")
                chosen = self._exchange.put(pack_release([votes[site] for site in sorted(agreeing)], sealed))
            self._exchange.keep_model(chosen)
            obsolete = obsolete | {chosen.id}
        self._note_metrics(told, before=number)
        self._commit(self._progress.after(released=True), obsolete=obsolete)

    # --- what the steps share ---

    def _share_room(self, polynomials: int) -> int:
        """Bytes of a sum's sealed shares in the spool: as they were dealt, and again as each site gets them."""
        share = share_words(polynomials, self._counts)
        return 2 * len(self._roster) * shares_bytes(self._roster, share)

    @property
    def _quorum(self) -> int:
        return max(self._study.rounds.quorum, self._rules.floor)

    def _polynomials(self, number: int) -> int:
        trains = 1 <= number <= self._study.rounds.count
        return self._packing.polynomials(self._progress.dimension) if trains else 0

    def _work(self, hellos: tuple[Hello, ...] = ()) -> Work:
        """What leads to the newest model, and the parts of the study key for those who may not have it yet.

        Who held the last model needs the sum after it only; all the others get the whole way.
        """
        refs = [
            SecureSumRef(stored.round_number, stored.attempt, stored.ciphertext, stored.opening)
            for stored in self._progress.secure_sums
        ]
        if refs and self._newest is not None:
            last = refs[-1]
            refs[-1] = SecureSumRef(last.round_number, last.attempt, *self._newest)
        newest = tuple(refs[-1:])
        short = secure_work_to_bytes(SecureWork(sums=newest, hellos=hellos)), _named(newest)
        checkpoint, sealer = self._progress.checkpoint, self._progress.checkpoint_sealer
        whole = (*_named(refs), *([checkpoint] if checkpoint is not None else []))

        def work(site: SiteName) -> tuple[bytes, tuple[Blob, ...]]:
            if site in self._holders:
                return short
            asked = SecureWork(
                parts=self._parts[site],
                sums=tuple(refs),
                hellos=hellos,
                checkpoint=checkpoint,
                checkpoint_round=self._progress.checkpoint_round,
                checkpoint_sealer=Vote(SiteName(sealer[0]), sealer[1]) if sealer is not None else None,
            )
            return secure_work_to_bytes(asked), whole

        return work

    def _leave_out(self, site: SiteName, error: QuorateError, done: PhaseTally) -> None:
        """A reply that was taken turned out to be of no use."""
        log.warning("contribution refused", run=self._run_id, site=site, code=error.code, reason=str(error))
        self._exchange.refuse(done.asked[site].message_id, error.code)
        done.left_out[site] = error.code

    def _require_quorum(self, count: int, done: PhaseTally) -> None:
        """Of those who are left after some were left out."""
        if count < self._quorum:
            missing = ", ".join(f"{site} ({code})" for site, code in sorted(done.missing().items()))
            error = QuorumMissingError(
                f"Too few sites took part in the phase {done.standing.rule.phase!s}",
                expected=f"at least {self._quorum} of {len(done.standing.rule.invited)} sites",
                got=f"{count}; missing: {missing}",
                action="See what the missing sites' codes mean (docs/reference/errors.md), then `quorate run resume`",
            )
            error.codes = tuple(done.missing().values())
            raise error

    def _result(self, number: int, survivors: tuple[SiteName, ...], tallies: Iterable[PhaseTally]) -> RoundResult:
        missing: dict[str, str] = {}
        seconds: dict[str, float] = {}
        up = down = 0
        for tally in tallies:
            missing = {**tally.missing(), **missing}
            seconds[tally.standing.rule.phase.value] = tally.seconds
            up, down = up + tally.bytes_up, down + tally.bytes_down
        return RoundResult(
            round_number=number,
            contributed=survivors,
            metrics={},
            phase_seconds=seconds,
            bytes_up=up,
            bytes_down=down,
            missing={site: code for site, code in missing.items() if site not in survivors},
        )

    def _note_metrics(self, told: list[Mapping[int, Mapping[str, float]]], before: int) -> None:
        """What most sites tell of the last rounds; a round is done when its evaluation is known, or will not be."""
        agreed: dict[int, dict[str, float]] = {}
        for number in {number for metrics in told for number in metrics}:
            said = Counter(json.dumps(dict(metrics[number]), sort_keys=True) for metrics in told if number in metrics)
            most_said, sites = said.most_common(1)[0]
            if sites > self._rules.colluders:  # else it may be what liars made up where the others had nothing to tell
                agreed[number] = json.loads(most_said)
        waiting = []
        for stored in self._progress.waiting:
            result = result_from_json(stored)
            metrics = {**result.metrics, **agreed.get(result.round_number, {})}
            result = result_from_json(stored | {"metrics": metrics})
            if result.round_number < before:
                done = self._progress.after(evaluated=result.round_number)
                done = done.after(waiting=tuple(w for w in done.waiting if w is not stored))
                self._commit(done, result)
                log.info("round done", run=self._run_id, round=result.round_number, **metrics)
            else:
                waiting.append(result_to_json(result))
        self._progress = self._progress.after(waiting=tuple(waiting))

    def _commit(
        self, progress: StudyProgress, result: RoundResult | None = None, obsolete: Iterable[BlobId] = ()
    ) -> None:
        self._exchange.commit(progress, result, set(obsolete) - progress.blobs())
        self._progress = progress


def _turned(sites: tuple[SiteName, ...], by: int) -> tuple[SiteName, ...]:
    first = by % len(sites)
    return (*sites[first:], *sites[:first])


def _without_the_last(progress: StudyProgress) -> StudyProgress:
    """Before the last sum was closed: the sites cannot open it."""
    number = progress.summed - 1
    return progress.after(
        summed=number,
        secure_sums=progress.secure_sums[:-1],
        trained=max(0, number - 1),
        waiting=tuple(stored for stored in progress.waiting if stored["round_number"] != number),
    )


def _named(refs: Iterable[SecureSumRef]) -> tuple[Blob, ...]:
    """The blobs of sums without their content: what is small lies in the body."""
    blobs = (blob for ref in refs for blob in (ref.opening, ref.ciphertext) if blob is not None)
    return tuple(Blob(blob.id, blob.size) for blob in blobs)


def _parsed(use: Callable[[SiteName, SecureAnswer, Reply], None]) -> Callable[[SiteName, Reply], None]:
    """Reads a reply as an answer; FrameError refuses one that is none."""

    def take(site: SiteName, reply: Reply) -> None:
        use(site, secure_answer_from_bytes(reply.body), reply)

    return take
