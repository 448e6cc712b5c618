"""How long everything is that passes between the sites of a secure sum.

All of it is known by rule: from the study's sites, and from what a sum adds. So nothing of another length is stored or
passed on by the server, nor fetched or read by a site. One signed part of the study key of nearly a megabyte made the
messages to all others too long to be sent, and the run could not go on; shares that were announced with 400 MB made a
site's daemon hold twice as much.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from quorate.aggregation.ring import DEGREE
from quorate.aggregation.words import packed_bytes
from quorate.errors import FrameError
from quorate.identity import SiteName
from quorate.process.chunked_aead import TAG_BYTES
from quorate.rounds.instruction import MAX_EXTRAS
from quorate.secagg.linear_mac import TAGS
from quorate.secagg.share_boxes import BOX_OVERHEAD_BYTES, message_bytes
from quorate.secagg.study_key import KEY_BYTES
from quorate.secagg.terms import DIGEST_BYTES, SIGNATURE_BYTES

ROUND_KEY_BYTES: Final = 32
KEY_PART_BYTES: Final = BOX_OVERHEAD_BYTES + KEY_BYTES
MAX_MASKED: Final = MAX_EXTRAS + TAGS
"""Masked words beside a sum's ciphertext: as many integers as a study may add, and the tags."""
MAX_NAME_BYTES: Final = 63
_FRAMING_BYTES = 8
"""Most that protobuf puts around one field: its number, and its length."""


def share_words(polynomials: int, masked: int) -> int:
    """Words of a share: of the ciphertext's key, if there is one, and of the masks."""
    return (DEGREE if polynomials else 0) + masked


def reveal_bytes(words: int) -> int:
    """A share of the key's sum, sealed."""
    return packed_bytes(words) + TAG_BYTES


def shares_bytes(names: Iterable[SiteName], words: int) -> int:
    """``SealedShares`` with a dealt share for each of these sites, or from each of them: a map from name to box."""
    box = _field_bytes(message_bytes(words))
    return sum(_field_bytes(_field_bytes(len(name.encode())) + box) for name in names)


def most_opening_bytes(sites: int) -> int:
    """What opens a sum among so many sites, whatever was summed."""
    name = MAX_NAME_BYTES + _FRAMING_BYTES
    signed = name + SIGNATURE_BYTES + _FRAMING_BYTES
    hello = signed + ROUND_KEY_BYTES + 2 * _FRAMING_BYTES
    vote = signed + _FRAMING_BYTES
    reveal = signed + reveal_bytes(DEGREE + MAX_MASKED) + 2 * _FRAMING_BYTES
    once = packed_bytes(MAX_MASKED) + 2 * DIGEST_BYTES + 3 * _FRAMING_BYTES
    return sites * (2 * hello + name + vote + reveal) + once


def require_bytes(what: str, size: int, expected: int) -> None:
    """Raises FrameError: this is not as long as it has to be."""
    if size != expected:
        raise FrameError(f"{what} has the wrong length", expected=f"{expected} bytes", got=f"{size}")


def require_at_most(what: str, size: int, most: int) -> None:
    """Raises FrameError: this is longer than it can be."""
    if size > most:
        raise FrameError(f"{what} is too long", expected=f"at most {most} bytes", got=f"{size}")


def _field_bytes(content: int) -> int:
    """A field of protobuf with a number below 16 that holds so many bytes."""
    return 1 + max(1, -(-content.bit_length() // 7)) + content
