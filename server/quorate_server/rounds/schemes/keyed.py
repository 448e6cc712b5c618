"""What the schemes have in common in which the sites hold a key that the server has not: parts, states, release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from quorate.identity import SiteName
from quorate.rounds.blobs import FRAME_BYTES, Blob
from quorate.secagg import aggregator as secagg
from quorate.secagg.aggregator import Members
from quorate.secagg.release import ReleaseTerms, pack_release
from quorate.secagg.study_key import SealedPart
from quorate.study.rules import Rules
from quorate.wire.sum_messages import SumAnswer
from quorate_server.rounds.schemes.study_keys import collect_keys, read_keys
from quorate_server.rounds.sums.scheme import Signed
from quorate_server.rounds.sums.state import RunState


class KeyedScheme:
    """The sums of one run, as far as they do not depend on who adds."""

    begins_anew = True

    def __init__(self, state: RunState, rules: Rules) -> None:
        study = state.study
        roster = {SiteName(site.name): bytes.fromhex(site.signing_key) for site in study.sites}
        self._state = state
        self.members = Members(study.digest(), state.run, roster, rules, state.quorum)
        self._parts: dict[SiteName, tuple[SealedPart, ...]] = {}

    @property
    def attempt(self) -> int:
        return self._state.progress.attempt

    def prepare(self) -> None:
        """The study key, once in a run. The sites make it for each other."""
        if self._state.progress.keys is None:
            collect_keys(self._state, self.members)
        self._parts = read_keys(self._state)

    def parts(self, site: SiteName) -> tuple[SealedPart, ...]:
        return () if site in self._state.holders else self._parts[site]

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
