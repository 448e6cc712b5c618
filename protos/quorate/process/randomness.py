"""Where secret bytes come from: one-time keys, encryption noise and the shares of keys are drawn from here only.

The interface exists so that tests can repeat a draw; there is one implementation, and it has no seed.
"""

from __future__ import annotations

import os
from typing import Protocol, final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


class Randomness(Protocol):
    """A source of secret bytes."""

    def draw(self, count: int) -> bytes:
        """The next ``count`` bytes; none is ever given twice."""
        ...


@final
class SystemRandomness:
    """AES-256 in counter mode under a key from the operating system, a new key for each draw.

    os.urandom alone would do, but costs several times as much: a site draws 6 MB for each million parameters.

    Nothing is kept from one draw to the next. A stream would go on alike in each copy of the process: in a fork, and in
    a virtual machine whose snapshot is resumed twice, whose two runs would then add the same noise to different
    updates, so that their difference has none.
    """

    def draw(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        # A key is used for one draw, so a fixed first counter repeats nothing.
        return Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor().update(bytes(count))
