"""What the schemes have in common in which the sites hold a key that the server has not: that key, votes, checkpoints.

What the server sees of a site may not depend on its records. Only states that a quorum agreed on reach them, and from
the first one that is read, whatever goes wrong has one code and whatever is done leaves at one of few moments.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from quorate.errors import BaseModelMismatchError, StudyKeyRefusedError, VoteRefusedError
from quorate.identity import RunId, SiteName
from quorate.process.cancellation import offload
from quorate.process.randomness import SystemRandomness
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction
from quorate.rounds.spool import Spool
from quorate.secagg.participant import Ballot, Member
from quorate.secagg.release import ReleaseTerms, released, seal_release
from quorate.secagg.study_key import join_parts, make_parts, open_stream, seal_stream, stream_bytes
from quorate.secagg.terms import Vote, checkpointed, is_signed
from quorate.study.study import Study
from quorate.wire.sum_messages import SumAnswer, SumWork
from quorate_client.rounds.model.plain_files import open_plain
from quorate_client.rounds.model.state import ModelState, content_of, state_bytes, theta_digest
from quorate_client.rounds.sums.one_code import on_records, one_code
from quorate_client.rounds.sums.pooled import PooledRates
from quorate_client.rounds.sums.query import query_of
from quorate_client.rounds.sums.scheme import Answered, FirstModel
from quorate_client.rounds.sums.site_keys import SiteSecrets, roster_of, rules_of
from quorate_client.rounds.sums.votes import Question
from quorate_client.site.agreement import Agreement


class KeyedScheme(ABC):
    """The sums of one run at this site, as far as they do not depend on who adds."""

    def __init__(
        self, run: RunId, study: Study, secrets: SiteSecrets, spool: Spool, clock: Callable[[], float]
    ) -> None:
        self._run = run
        self._study = study
        self._digest = study.digest()
        self._secrets = secrets
        self._spool = spool
        self._clock = clock
        self._rates = PooledRates(study)
        self._joined: Member | None = None
        self._query = b""

    @abstractmethod
    def most_parameters(self, sum_bytes: int) -> int:
        """Of a model whose summed updates are of this size."""

    @property
    def _member(self) -> Member:
        """This site in what it entered last."""
        if self._joined is None:
            raise VoteRefusedError("This site has no part in this run yet")
        return self._joined

    # --- the exchanges ---

    def told_s(self, working_s: float) -> float:
        """Nothing: it grows with the number of records."""
        del working_s
        return 0.0

    def _make_parts(self, agreement: Agreement) -> SumAnswer:
        signing, _ = self._secrets.keys()
        sealing_keys = self._secrets.sealing_keys(agreement.digest)
        memory = self._secrets.votes.memory
        parts = make_parts(
            agreement.digest, self._run, agreement.site, sealing_keys, signing.sign, SystemRandomness(), memory
        )
        return SumAnswer(parts=parts)

    def _lock(self, number: int, state: ModelState | None) -> Callable[[Ballot], None]:
        """Writes a vote on the sum of this number down, which starts from this state."""
        member = self._member
        belief = state.digest if state is not None else b""
        question = Question(self._run, number, self._query, belief, member.roster, member.rules.colluders)

        def lock(ballot: Ballot) -> None:
            self._secrets.votes.lock(ballot, question)

        return lock

    # --- an upload ---

    @asynccontextmanager
    async def on_records(self, instruction: Instruction, state: ModelState | None) -> AsyncIterator[None]:
        theta = b"" if state is None else await offload(state.size, theta_digest, state)
        self._query = query_of(self._study.task, theta)
        async with on_records(instruction, self._study, self._run, self._secrets.votes, self._clock):
            yield

    def one_code(self) -> AbstractAsyncContextManager[None]:
        return one_code()

    def note_counted(self, records: int) -> None:
        self._secrets.votes.note_counted(self._run, records)

    def counted(self, records: int) -> int:
        """Records that it got since it was counted do not raise its weight; who no longer knows with how many it was
        weighs as little as anybody may."""
        return min(records, self._secrets.votes.counted(self._run) or 1)

    def _opened(self) -> tuple[tuple[SiteName, ...], ...]:
        """The survivors for which this site voted on the same input, where all of them are in this study."""
        sets = (tuple(name for name, _ in members) for members in self._secrets.votes.survivors(self._query))
        return tuple(names for names in sets if set(names) <= set(self._study.site_names))

    # --- the way to a model ---

    def name_of(self, model: bytes) -> bytes:
        return self._member.study_key.model(model)

    def require_believed(self, round_number: int, model: bytes) -> None:
        self._secrets.votes.require_believed(self._run, round_number, model)

    def learn(self, number: int, counts: tuple[int, ...]) -> None:
        self._rates.learn(number, counts)

    # --- checkpoints and the release ---

    async def check_checkpoint(self, way: SumWork, checkpoint: Blob, updates: Blob, first: FirstModel) -> None:
        """The votes on the sum that starts from it say its size, too."""
        del first
        member, sealer = self._member, way.checkpoint_sealer
        values = self.most_parameters(updates.size)
        signed = checkpointed(self._digest, self._run, way.checkpoint_round, checkpoint.id)
        if (
            checkpoint.size > stream_bytes(state_bytes(self._study, values)[-1])
            or sealer is None
            or sealer.site not in member.roster
            or not is_signed(member.roster[sealer.site], sealer.signature, signed)
        ):
            raise BaseModelMismatchError(
                "The checkpoint that the server sent is too large, or no site of the study signed it"
            )

    def checkpoint_content(self, way: SumWork, content: BinaryIO, size: int) -> Iterable[bytes]:
        del size
        return open_stream(content, self._member.study_key, _checkpoint_purpose(way.checkpoint_round))

    async def checkpoint(self, instruction: Instruction, state: ModelState) -> Answered:
        """Sealed for the study's sites: those who join can see in the sum after it that a quorum arrived there."""
        del instruction
        member, number = self._member, state.round_number
        content = seal_stream(content_of(state), member.study_key, _checkpoint_purpose(number))
        sealed = await asyncio.to_thread(self._spool.put, content)
        signature = member.signing_key.sign(checkpointed(self._digest, self._run, number, sealed.id))
        return SumAnswer(vote=Vote(member.site, signature)), (sealed,)

    async def release(self, model: Path) -> Answered:
        """Sealed to the operator's key in the study, and signed."""
        answer = SumAnswer(metrics=self._rates.told())
        if not self._study.is_release_sealed:
            return answer, ()
        member, terms = self._member, ReleaseTerms.of(self._study, self._run)
        sealed = await asyncio.to_thread(_sealed, model, member, terms, self._spool)
        vote = Vote(member.site, member.signing_key.sign(released(terms, sealed.id)))
        return SumAnswer(vote=vote, metrics=answer.metrics), (sealed,)

    # --- what they share ---

    def _join(self, agreement: Agreement, work: SumWork) -> Member:
        """This site in this study. The study key is joined once and pinned: another one is not accepted later."""
        key = self._secrets.study_key(self._run)
        if key is None:
            if not work.parts:
                raise StudyKeyRefusedError("The server did not pass on the parts of the study key")
            _, sealing = self._secrets.keys()
            roster, rules = roster_of(self._study), rules_of(self._study)
            memory = self._secrets.votes.memory
            key = join_parts(work.parts, agreement.digest, self._run, agreement.site, sealing, roster, rules, memory)
            self._secrets.keep_study_key(self._run, key)
        return self._secrets.member(self._study, agreement.site, key)


def _checkpoint_purpose(round_number: int) -> bytes:
    """What a state is sealed for."""
    return b"checkpoint" + round_number.to_bytes(8, "big")


def _sealed(model: Path, member: Member, terms: ReleaseTerms, spool: Spool) -> Blob:
    with open_plain(model) as file:
        return spool.put(seal_release(file, member.study_key, terms))
