"""Who makes evidence: one module for each way in which a machine can be asked for it.

``tsm`` and ``confidential_space`` are tested against stand-ins and have NOT BEEN RUN ON HARDWARE.
"""

from __future__ import annotations

from typing import Protocol

from quorate.attestation.evidence import Evidence


class Attester(Protocol):
    """A machine's own evidence."""

    def attest(self, binding: bytes) -> Evidence:
        """Evidence that carries these 64 bytes.

        Raises:
            AttestationError: the machine makes none.
        """
        ...
