"""In an attested machine: it opens single updates and adds them, and asks the sites whose sum they let it release.

Each sum is two exchanges: upload and vote. What opens it is sealed to the sites under the study key, which they tell in
what they seal to the machine; what the server's disk holds, it cannot read. Sites of another study key are in no sum
with the others. Nothing is drawn here but what hides the opening (``secagg/enclave.py`` says why).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from quorate.aggregation.plain import WORD_BYTES, weight_of
from quorate.aggregation.weights import least_weight
from quorate.errors import ContributionError
from quorate.identity import SiteName
from quorate.privacy.noise import SeededRandomness
from quorate.process.chunked_aead import seal_chunks, sealed_bytes
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Phase, Reply
from quorate.secagg.aggregator import chosen_survivors
from quorate.secagg.enclave import SALT_BYTES, Added, SumSecret, identity_of, opening_purpose, voted_digest
from quorate.secagg.study_key import KEY_BYTES, StudyKey, seal_stream
from quorate.secagg.survivor_sets import MAX_SETS
from quorate.secagg.terms import DIGEST_BYTES, Hello, Layout, Terms, Vote, ballot, bound
from quorate.study.rules import Rules
from quorate.wire.sum_messages import (
    PlainOpening,
    SumAnswer,
    SumWork,
    plain_opening_to_bytes,
    sum_work_to_bytes,
)
from quorate_server.rounds.aggregate import noised
from quorate_server.rounds.phases import PhaseTally
from quorate_server.rounds.robust import RobustAdder
from quorate_server.rounds.schemes.keyed import KeyedScheme
from quorate_server.rounds.schemes.plain import PlainSum
from quorate_server.rounds.sums.scheme import Closed, Upload
from quorate_server.rounds.sums.state import RunState


class EnclaveScheme(KeyedScheme):
    """The sums of one run in an attested machine. The sites tell it the study key later."""

    def __init__(self, state: RunState, rules: Rules) -> None:
        super().__init__(state, rules)
        self._adder: RobustAdder | None = None

    def update_bytes(self, number: int) -> int:
        dimension = self._dimension(number)
        return sealed_bytes(WORD_BYTES * dimension) if dimension else 0

    def beside_bytes(self, number: int) -> int:
        del number
        return 0

    def adder(self, number: int) -> RobustAdder:
        self._adder = RobustAdder(self._dimension(number), self._state.study)
        return self._adder

    @property
    def contents(self) -> tuple[bytes, ...]:
        """The digests of the updates that were taken in last."""
        return self._adder.contents if self._adder is not None else ()

    def begin(self, number: int) -> EnclaveSum:
        return EnclaveSum(self, self._state, number, self._dimension(number))

    def _dimension(self, number: int) -> int:
        return self._state.progress.dimension if self._state.trains(number) else 0


class EnclaveSum:
    """One sum that the machine reads, and nobody else before the sites voted for it."""

    hellos: tuple[Hello, ...] = ()
    greeted: tuple[PhaseTally, ...] = ()

    def __init__(self, scheme: EnclaveScheme, state: RunState, number: int, dimension: int) -> None:
        self._scheme, self._state, self._number, self._dimension = scheme, state, number, dimension
        self._plain = PlainSum(state, number, WORD_BYTES * dimension)
        self._said: dict[SiteName, SumAnswer] = {}
        self.invited = frozenset(state.study.site_names)
        self.quorum = state.quorum

    def accept(self, site: SiteName, answer: SumAnswer, blobs: tuple[Blob, ...]) -> Upload:
        """What a site brings, if it has the form of this sum.

        Raises:
            ContributionError: another form, or a weight or a count out of range.
        """
        if (len(answer.study_key), len(answer.salt)) != (KEY_BYTES, SALT_BYTES) or len(answer.opened) > MAX_SETS:
            raise ContributionError("A site does not say under which key it is answered, or for whom it voted")
        if len(answer.model) != DIGEST_BYTES:
            raise ContributionError("A site does not say which model it goes on from")
        is_named = self._number > 0  # without protection the first sum starts from no model
        said = replace(answer, study_key=b"", salt=b"", opened=(), metrics={}, model=answer.model if is_named else b"")
        upload = self._plain.accept(site, said, blobs)
        if upload.update is not None:
            self._check_weight(answer.plain_counts[0])
        self._said[site] = answer
        # The same model under another key would keep the others from this site's sum, and nobody could name it.
        same = hashlib.sha256(bound(b"attested form", answer.study_key, answer.model)).digest()
        return replace(upload, model=same)

    def _check_weight(self, weight: int) -> None:
        """Raises ContributionError: the sites would refuse a sum with this weight, and could not say whose it is."""
        sites = len(self._state.study.sites)
        equal = weight_of(1, sites) if self._state.study.rounds.weights == "equal" else None
        if weight < least_weight(sites) or equal not in (None, weight):
            raise ContributionError("The weight of an update is not what its site may count for")

    def choose(self, agreeing: frozenset[SiteName]) -> frozenset[SiteName]:
        """The largest set for which enough of them may vote."""
        return chosen_survivors({site: self._said[site].opened for site in agreeing}, self._scheme.members)

    def leaving(self, survivors: tuple[SiteName, ...], blocks: Iterator[bytes]) -> Iterator[bytes]:
        """With noise where the study asks for it, under a key that is told once the sum may be read."""
        secret = self._secret(survivors, self._scheme.contents)
        return seal_chunks(noised(blocks, self._state.study, SeededRandomness(secret.noise)), secret.key)

    def close(self, survivors: tuple[SiteName, ...], updates: Blob | None) -> Closed:
        """Once enough of the survivors voted for this sum over them."""
        members = self._scheme.members
        said = self._said[survivors[0]]  # one model and one study key: they are of one form
        counts = self._plain.summed(survivors)
        identity = identity_of(self._terms, members.rules, Layout(self._dimension, len(counts)), said.model)
        name, contents = (updates.id, self._scheme.contents) if updates is not None else (b"", ())
        key = self._secret(survivors, contents).key
        tally, votes = self._vote(identity, survivors, voted_digest(name, counts, key))
        opening = plain_opening_to_bytes(PlainOpening(survivors, counts, name, said.model, votes, key))
        sealed = b"".join(seal_stream([opening], StudyKey(said.study_key), opening_purpose(self._terms)))
        return Closed(sealed, (tally,))

    @property
    def _terms(self) -> Terms:
        members = self._scheme.members
        return Terms(members.study, members.run, self._number, self._scheme.attempt)

    def _secret(self, survivors: tuple[SiteName, ...], contents: tuple[bytes, ...]) -> SumSecret:
        added = {site: Added(self._said[site].salt, self._said[site].plain_counts) for site in survivors}
        return SumSecret.of(self._terms, added, contents)

    def _vote(
        self, identity: bytes, survivors: tuple[SiteName, ...], digest: bytes
    ) -> tuple[PhaseTally, tuple[Vote, ...]]:
        members, given = self._scheme.members, dict[SiteName, Vote]()
        signed = ballot(identity, survivors, digest)

        def take(site: SiteName, answer: SumAnswer, _: Reply) -> None:
            if answer.vote is None or not members.is_by(site, answer.vote, signed):
                raise ContributionError("A site's vote is not for this sum")
            given[site] = answer.vote

        body = sum_work_to_bytes(SumWork(survivors=survivors, digest=digest))
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
