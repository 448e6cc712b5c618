"""Where an attested machine adds: updates leave as integers that it reads, sealed to it by the gate, and sums come back
under the study key.

Each sum is two exchanges. In the upload a site tells the machine the study key and a salt, too; in the vote it says
which sum, and whose, it lets the machine release, once for ever (``secagg/enclave.py`` says why).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from quorate.aggregation.plain import WORD_BYTES
from quorate.aggregation.plain import PlainScheme as Words
from quorate.aggregation.schemes import plain_scheme_of
from quorate.aggregation.weights import require_weight
from quorate.errors import FrameError, QuorateError, SumRefusedError, VoteRefusedError
from quorate.identity import RunId
from quorate.process.cancellation import offload
from quorate.process.chunked_aead import content_bytes, sealed_bytes
from quorate.process.randomness import SystemRandomness
from quorate.process.sealed_file import SealedFile
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import MAX_BODY_BYTES, Instruction, Phase
from quorate.rounds.spool import Spool
from quorate.secagg.enclave import SALT_BYTES, are_acceptable, identity_of, is_voted, opening_purpose, voted_digest
from quorate.secagg.participant import Ballot, Member
from quorate.secagg.sizes import require_at_most
from quorate.secagg.study_key import open_stream
from quorate.secagg.terms import DIGEST_BYTES, Layout, Terms, Vote, ballot
from quorate.study.study import Study
from quorate.wire.sum_messages import PlainOpening, SumAnswer, SumRef, SumWork, plain_opening_from_bytes
from quorate_client.rounds.model.fetch import Fetch, fetched
from quorate_client.rounds.model.state import ModelState
from quorate_client.rounds.protect import Protected, protect
from quorate_client.rounds.schemes.keyed import KeyedScheme
from quorate_client.rounds.schemes.plain import PlainOpener
from quorate_client.rounds.sums.scheme import Answered, Average
from quorate_client.rounds.sums.site_keys import SiteSecrets
from quorate_client.site.agreement import Agreement


class EnclaveScheme(KeyedScheme):
    """The sums of one run that an attested machine makes, at this site."""

    def __init__(
        self, run: RunId, study: Study, secrets: SiteSecrets, spool: Spool, clock: Callable[[], float]
    ) -> None:
        super().__init__(run, study, secrets, spool, clock)
        self._words = plain_scheme_of(study)
        self._terms: Terms | None = None
        self._model = b""
        self._identity = b""

    # --- the exchanges ---

    def enter(self, instruction: Instruction, work: SumWork, agreement: Agreement) -> None:
        self._joined = self._join(agreement, work)
        if instruction.phase is Phase.UPLOAD:
            self._terms = Terms(self._digest, self._run, instruction.round_number, instruction.attempt)
            self._identity = b""

    async def exchange(
        self, instruction: Instruction, work: SumWork, agreement: Agreement, fetch: Fetch, state: ModelState | None
    ) -> SumAnswer:
        del fetch
        match instruction.phase:
            case Phase.KEYS:
                return self._make_parts(agreement)
            case Phase.VOTE:
                return SumAnswer(vote=self._vote(instruction, work, state))
            case _:
                raise FrameError("The attested machine asks for work that is not part of its sums")

    def _vote(self, instruction: Instruction, work: SumWork, state: ModelState | None) -> Vote:
        """For this sum over these survivors, or for none."""
        terms = Terms(self._digest, self._run, instruction.round_number, instruction.attempt)
        if not self._identity or terms != self._terms:
            raise VoteRefusedError("This site has no part in this sum (any more): it was started again")
        member = self._member
        if (
            not are_acceptable(work.survivors, member.roster, member.rules)
            or member.site not in work.survivors
            or len(work.digest) != DIGEST_BYTES
        ):
            raise VoteRefusedError(
                "The attested machine asks this site to let it release a sum that may not be",
                expected=f"at least {member.rules.floor} sites of the study, this one among them",
                got=f"{len(work.survivors)} sites",
            )
        wanted = Ballot(self._identity, work.survivors, work.digest)
        self._lock(instruction.round_number, state)(wanted)
        return Vote(member.site, member.signing_key.sign(ballot(self._identity, work.survivors, work.digest)))

    # --- an upload ---

    def begin_upload(self, work: SumWork, model: bytes, dimension: int, counts: int) -> None:
        del work
        if self._terms is None:
            raise VoteRefusedError("This site has no part in a sum")
        self._model = self.name_of(model)
        self._identity = identity_of(self._terms, self._member.rules, Layout(dimension, counts), self._model)

    def protect(self, update: Path, dimension: int, weight: int) -> Protected:
        return protect(update, dimension, weight, self._study, self._spool)

    async def finish_upload(self, counts: tuple[int, ...], updates: tuple[Blob, ...]) -> Answered:
        largest = (2**63 - 1) // len(self._study.sites)
        answer = SumAnswer(
            plain_counts=tuple(max(-largest, min(largest, count)) for count in counts),
            has_update=bool(updates),
            model=self._model,
            metrics=self._rates.told(),
            opened=self._opened(),
            study_key=self._member.study_key.secret,
            salt=SystemRandomness().draw(SALT_BYTES),
        )
        return answer, updates

    # --- the way to a model ---

    def most_parameters(self, sum_bytes: int) -> int:
        return content_bytes(sum_bytes) // WORD_BYTES

    def updates_bytes(self, dimension: int) -> int:
        return sealed_bytes(dimension * WORD_BYTES)

    async def open(self, ref: SumRef, dimension: int | None, fetch: Fetch) -> EnclaveOpener:
        member = self._member
        terms = Terms(self._digest, self._run, ref.round_number, ref.attempt)
        require_at_most("What opens a sum", ref.opening.size, MAX_BODY_BYTES)
        with await fetched(ref.opening, self._spool, fetch) as file:
            content = b"".join(open_stream(file, member.study_key, opening_purpose(terms)))
        try:
            opening = plain_opening_from_bytes(content)
        except FrameError as error:
            raise SumRefusedError("What opens a sum could not be read") from error
        if opening.updates != (ref.updates.id if ref.updates is not None else b""):
            raise SumRefusedError("The sum that the server sent is not the one that the attested machine made")
        if dimension is None:  # the votes say whether it is true
            dimension = self.most_parameters(ref.updates.size) if ref.updates is not None else 0
        size = ref.updates.size if ref.updates is not None else 0
        if size != (self.updates_bytes(dimension) if dimension else 0):
            raise SumRefusedError("The sum that the server sent has another size than the model")
        identity = identity_of(terms, member.rules, Layout(dimension, len(opening.counts)), opening.model)
        acceptable = are_acceptable(opening.survivors, member.roster, member.rules)
        digest = voted_digest(opening.updates, opening.counts, opening.key)
        votes = opening.votes, identity, opening.survivors, digest, member.roster, member.rules
        if not acceptable or not await offload(len(content), is_voted, *votes):
            raise SumRefusedError("The sites did not vote for the sum that the attested machine released")
        return EnclaveOpener(opening, self._words, dimension, member)


class EnclaveOpener(PlainOpener):
    """A sum that an attested machine released to the study's sites: words that its key opens."""

    def __init__(self, opening: PlainOpening, words: Words, dimension: int, member: Member) -> None:
        super().__init__(opening, words)
        self._dimension, self._member = dimension, member

    def averages(self, content: BinaryIO) -> Average:
        weight = self._opening.counts[0]
        require_weight(weight, len(self.survivors), self._member.rules)

        def read_at(start: int, length: int) -> bytes:
            content.seek(start)
            return content.read(length)

        opened = cast(BinaryIO, SealedFile(read_at, self._dimension * WORD_BYTES, self._opening.key))

        def average(count: int) -> npt.NDArray[np.float64]:
            try:
                words = np.frombuffer(opened.read(count * WORD_BYTES), "<u4")
                self._words.require_bounded(words, weight)
                return self._words.decode(words, weight)
            except SumRefusedError:
                raise
            except (QuorateError, ValueError) as error:
                raise SumRefusedError("A sum does not open, so the model stays as it was") from error

        return average
