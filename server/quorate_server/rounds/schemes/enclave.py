"""In an attested machine: it opens single updates and adds them, and asks the sites whose sum they let it release.

Each sum is two exchanges: upload and vote. What opens it is sealed to the sites under the study key, which they tell in
what they seal to the machine; what the server's disk holds, it cannot read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from quorate.errors import ContributionError, ModelDisagreementError
from quorate.identity import SiteName
from quorate.process.chunked_aead import sealed_bytes
from quorate.rounds.blobs import FRAME_BYTES, Blob
from quorate.rounds.instruction import Phase, Reply
from quorate.secagg import aggregator as secagg
from quorate.secagg.aggregator import Members, chosen_survivors
from quorate.secagg.enclave import DIGEST, identity_of, opening_purpose
from quorate.secagg.release import ReleaseTerms, pack_release
from quorate.secagg.study_key import KEY_BYTES, SealedPart, StudyKey, seal_stream
from quorate.secagg.survivor_sets import MAX_SETS
from quorate.secagg.terms import DIGEST_BYTES, Hello, Layout, Terms, Vote, ballot
from quorate.study.rules import Rules
from quorate.wire.sum_messages import (
    PlainOpening,
    SumAnswer,
    SumWork,
    plain_opening_to_bytes,
    sum_work_to_bytes,
)
from quorate_server.rounds.phases import PhaseTally
from quorate_server.rounds.robust import SealedAdder, adder_of
from quorate_server.rounds.schemes.plain import PlainSum
from quorate_server.rounds.schemes.study_keys import collect_keys, read_keys
from quorate_server.rounds.sums.scheme import Closed, Signed, Upload
from quorate_server.rounds.sums.state import RunState


class EnclaveScheme:
    """The sums of one run in an attested machine."""

    begins_anew = True

    def __init__(self, state: RunState, rules: Rules) -> None:
        study = state.study
        roster = {SiteName(site.name): bytes.fromhex(site.signing_key) for site in study.sites}
        self._state = state
        self.members = Members(study.digest(), state.run, roster, rules, state.quorum)
        self._parts: dict[SiteName, tuple[SealedPart, ...]] = {}
        self._adder: SealedAdder | None = None

    @property
    def attempt(self) -> int:
        return self._state.progress.attempt

    def prepare(self) -> None:
        """The study key, once in a run. The sites make it for each other, and tell it later."""
        if self._state.progress.keys is None:
            collect_keys(self._state, self.members)
        self._parts = read_keys(self._state)

    def update_bytes(self, number: int) -> int:
        return sealed_bytes(4 * self._dimension(number)) if self._dimension(number) else 0

    def beside_bytes(self, number: int) -> int:
        del number
        return 0

    def adder(self, number: int) -> SealedAdder:
        self._adder = adder_of(self._state.study, self._dimension(number))
        return self._adder

    @property
    def content_key(self) -> bytes:
        """Under which the last sum lies at the server."""
        return self._adder.key if self._adder is not None else b""

    def parts(self, site: SiteName) -> tuple[SealedPart, ...]:
        return () if site in self._state.holders else self._parts[site]

    def begin(self, number: int) -> EnclaveSum:
        return EnclaveSum(self, self._state, number, self._dimension(number))

    def checked_checkpoint(self, site: SiteName, answer: SumAnswer, blobs: Sequence[Blob], model_round: int) -> Signed:
        return secagg.checked_checkpoint(site, blobs, answer.vote, model_round, self.members)

    def checked_release(self, site: SiteName, answer: SumAnswer, blobs: Sequence[Blob]) -> Signed | None:
        study = self._state.study
        if not study.is_release_sealed:
            return None
        return secagg.checked_release(site, blobs, answer.vote, ReleaseTerms.of(study, self._state.run), self.members)

    def released(self, sent: Mapping[SiteName, Signed]) -> Blob:
        """Sealed to the operator; each site's signature goes with it."""
        votes = [vote for _, (_, vote) in sorted(sent.items()) if vote is not None]
        with self._state.exchange.open(sent[min(sent)][0]) as file:
            return self._state.exchange.put(pack_release(votes, iter(partial(file.read, FRAME_BYTES), b"")))

    def _dimension(self, number: int) -> int:
        return self._state.progress.dimension if self._state.trains(number) else 0


class EnclaveSum:
    """One sum that the machine reads, and nobody else before the sites voted for it."""

    hellos: tuple[Hello, ...] = ()
    greeted: tuple[PhaseTally, ...] = ()

    def __init__(self, scheme: EnclaveScheme, state: RunState, number: int, dimension: int) -> None:
        self._scheme, self._state, self._number, self._dimension = scheme, state, number, dimension
        self._plain = PlainSum(state, number, 4 * dimension)
        self._said: dict[SiteName, SumAnswer] = {}
        self.invited = frozenset(state.study.site_names)
        self.quorum = state.quorum

    def accept(self, site: SiteName, answer: SumAnswer, blobs: tuple[Blob, ...]) -> Upload:
        """What a site brings, if it has the form of this sum.

        Raises:
            ContributionError: another form, or a weight or a count out of range.
        """
        if len(answer.study_key) != KEY_BYTES or len(answer.opened) > MAX_SETS:
            raise ContributionError("A site does not say under which key it is answered, or for whom it voted")
        if len(answer.model) != DIGEST_BYTES:
            raise ContributionError("A site does not say which model it goes on from")
        is_named = self._number > 0  # without protection the first sum starts from no model
        said = replace(answer, study_key=b"", opened=(), metrics={}, model=answer.model if is_named else b"")
        upload = self._plain.accept(site, said, blobs)
        self._said[site] = answer
        return replace(upload, model=answer.model)

    def choose(self, agreeing: frozenset[SiteName]) -> frozenset[SiteName]:
        """The largest set for which enough of them may vote."""
        return chosen_survivors({site: self._said[site].opened for site in agreeing}, self._scheme.members)

    def close(self, survivors: tuple[SiteName, ...], updates: Blob | None) -> Closed:
        """Once enough of the survivors voted for them."""
        members = self._scheme.members
        terms = Terms(members.study, members.run, self._number, self._scheme.attempt)
        model = self._said[survivors[0]].model
        counts = self._plain.summed(survivors)
        identity = identity_of(terms, members.rules, Layout(self._dimension, len(counts)), model)
        tally, votes = self._vote(identity, survivors)
        name, key = (updates.id, self._scheme.content_key) if updates is not None else (b"", b"")
        opening = plain_opening_to_bytes(PlainOpening(survivors, counts, name, model, votes, key))
        sealed = b"".join(seal_stream([opening], self._study_key(survivors), opening_purpose(terms)))
        return Closed(sealed, (tally,))

    def _vote(self, identity: bytes, survivors: tuple[SiteName, ...]) -> tuple[PhaseTally, tuple[Vote, ...]]:
        members, given = self._scheme.members, dict[SiteName, Vote]()
        signed = ballot(identity, survivors, DIGEST)

        def take(site: SiteName, answer: SumAnswer, _: Reply) -> None:
            if answer.vote is None or not members.is_by(site, answer.vote, signed):
                raise ContributionError("A site's vote is not for this sum")
            given[site] = answer.vote

        body = sum_work_to_bytes(SumWork(survivors=survivors, digest=DIGEST))
        tally = self._state.phases.open(
            Phase.VOTE,
            self._number,
            lambda _: (body, ()),
            self._state.parsed(take),
            invited=frozenset(survivors),
            quorum=members.rules.votes,
            attempt=self._scheme.attempt,
        )
        return tally, tuple(given[site] for site in sorted(given))

    def _study_key(self, survivors: tuple[SiteName, ...]) -> StudyKey:
        """What most of them say it is: a site that says another cannot keep the others from the sum."""
        ((secret, count),) = Counter(self._said[site].study_key for site in survivors).most_common(1)
        if count < self._scheme.members.rules.votes:
            raise ModelDisagreementError(
                "The sites do not hold the same study key",
                expected=f"at least {self._scheme.members.rules.votes} sites that agree",
                action="Stop the run and start another",
            )
        return StudyKey(secret)
