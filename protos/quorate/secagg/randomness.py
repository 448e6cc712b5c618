"""Where secret bytes come from: one-time keys, encryption noise and the shares of keys are drawn from here only.

The interface exists so that tests can repeat a draw; there is one implementation, and it has no seed.
"""

from __future__ import annotations

import os
import threading
from typing import NoReturn, Protocol, final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


class Randomness(Protocol):
    """A source of secret bytes."""

    def draw(self, count: int) -> bytes:
        """The next ``count`` bytes; none is ever given twice."""
        ...


@final
class SystemRandomness:
    """AES-256 in counter mode under a key from the operating system, one key for each instance.

    os.urandom alone would do, but costs ten times as much: a site draws 6 MB for each million parameters.

    Two users of one stream would encrypt different updates under one key, which gives the difference away. So an
    instance can be neither copied nor pickled, and it refuses to work in a process that was forked after its birth.
    """

    def __init__(self) -> None:
        # Counter and key are as old as the instance, so a fixed first counter repeats nothing.
        self._stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
        self._process = os.getpid()
        self._one_at_a_time = threading.Lock()

    def draw(self, count: int) -> bytes:
        """The next ``count`` bytes.

        Raises:
            RuntimeError: this process is a fork of the one that made the instance.
        """
        if os.getpid() != self._process:
            raise RuntimeError("a source of secret bytes was used after a fork")
        with self._one_at_a_time:
            return self._stream.update(bytes(count))

    def __reduce__(self) -> NoReturn:
        """Refuse copy, deepcopy and pickle, which all come here."""
        raise TypeError("a source of secret bytes can be neither copied nor pickled")
