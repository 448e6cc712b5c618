"""What a server asks of a site in a round and what the site answers, as values.

An ``Instruction`` is addressed to one site and named by ``message_id``: a repetition is recognised on both sides, so
that work is done and counted at most once. The transport knows only envelopes (instruction, reply, blobs); what the
loop of a study puts into them is in ``wire/sum_messages.py``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType, Self

from quorate.attestation.sealing import signed_part
from quorate.errors import FrameError, QuorateError, is_code
from quorate.identity import RunId, SiteName, is_name
from quorate.rounds.blobs import Blob

MessageId = NewType("MessageId", bytes)

MESSAGE_ID_BYTES = 32
MAX_BODY_BYTES = 1024 * 1024
MAX_EXTRAS = 16_384
MOST_BLOBS = 16
"""That a reply refers to."""


class Phase(StrEnum):
    """The steps of a study, in order. Without protection there are ``UPLOAD``, ``CHECKPOINT`` and ``RELEASE`` only; a
    guest app has ``GUEST`` alone."""

    KEYS = "keys"
    HELLO = "hello"
    UPLOAD = "upload"
    VOTE = "vote"
    REVEAL = "reveal"
    CHECKPOINT = "checkpoint"
    RELEASE = "release"
    GUEST = "guest"

    @property
    def may_be_repeated(self) -> bool:
        """Whether a site that died in it may be asked again: nothing is trained, and what it needs for a second answer
        that differs from the first died with it."""
        return self in (Phase.KEYS, Phase.HELLO, Phase.VOTE, Phase.REVEAL)

    @property
    def has_one_code(self) -> bool:
        """Whether a deadline that was missed in it has the code of all that may go wrong on records: under secure
        aggregation the server hears of no reason that may depend on them."""
        return self in (Phase.UPLOAD, Phase.RELEASE)

    @property
    def has_uploads(self) -> bool:
        """Whether a reply has more than its body."""
        return self in (Phase.UPLOAD, Phase.CHECKPOINT, Phase.RELEASE, Phase.GUEST)


def message_id(
    run: RunId, round_number: int, phase: Phase, attempt: int, site: SiteName, salt: bytes = b""
) -> MessageId:
    """The name of an instruction: SHA-256 over everything that makes it a different piece of work."""
    digest = hashlib.sha256(b"quorate/message/v1\x00")
    for part in (run.encode(), phase.encode(), site.encode(), salt):
        digest.update(len(part).to_bytes(8, "big") + part)
    digest.update(round_number.to_bytes(8, "big") + attempt.to_bytes(8, "big"))
    return MessageId(digest.digest())


@dataclass(frozen=True, slots=True)
class Instruction:
    """Work for one site. ``deadline_s`` counts from its receipt: the clocks of sites are not compared.

    ``signature`` is of the attested machine that adds, in a study that demands one; over ``signed_part``.
    """

    message_id: MessageId
    run: RunId
    round_number: int
    phase: Phase
    attempt: int
    study_digest: bytes
    deadline_s: float
    body: bytes = b""
    blobs: tuple[Blob, ...] = ()
    signature: bytes = b""

    @property
    def signed_part(self) -> bytes:
        """All that a site heeds."""
        named = tuple((bytes(blob.id), blob.size) for blob in self.blobs)
        return signed_part(self.message_id, self.study_digest, self.deadline_s, self.body, named)

    def __post_init__(self) -> None:
        if len(self.message_id) != MESSAGE_ID_BYTES or len(self.study_digest) != 32 or len(self.body) > MAX_BODY_BYTES:
            raise FrameError("An instruction is malformed")


@dataclass(frozen=True, slots=True)
class Reply:
    """A site's answer. ``code`` is empty when the work was done; otherwise it is the refusal's code, without a text.

    ``alleged`` names the site whose fault the refusal is, as this one says: its word, and no more.
    """

    message_id: MessageId
    code: str = ""
    body: bytes = b""
    blobs: tuple[Blob, ...] = ()
    working_s: float = 0.0
    alleged: str = ""

    def __post_init__(self) -> None:
        if len(self.message_id) != MESSAGE_ID_BYTES or len(self.body) > MAX_BODY_BYTES or len(self.blobs) > MOST_BLOBS:
            raise FrameError("A reply is malformed")
        # A code is stored, shown on terminals and in reports, and may come from a hostile site.
        if self.code and not is_code(self.code):
            raise FrameError("The code of a reply is malformed", expected="lower-case letters, digits and underscores")
        if self.alleged and not (self.code and is_name(self.alleged)):
            raise FrameError("A reply accuses nobody who can be a site, or does so without a refusal")

    @classmethod
    def refusing(cls, message: MessageId, error: QuorateError) -> Self:
        """What leaves a site of the reason why it does not do its work."""
        return cls(message, error.code, alleged=error.alleged)
