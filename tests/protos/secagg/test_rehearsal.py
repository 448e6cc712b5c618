"""The rehearsal passes here, and fails where what it looks at is broken."""

from __future__ import annotations

import numpy as np
import pytest

from quorate.secagg import ring, seal
from quorate.secagg.packing import Packing
from quorate.secagg.rehearsal import rehearse


def test_a_rehearsal_passes() -> None:
    rehearse()


def unencrypted(messages: ring.Integers, *_: object) -> ring.Polynomials:
    return ring.to_ntt(messages)


def test_an_encryption_that_does_not_encrypt_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "encrypt", unencrypted)
    with pytest.raises(seal.SelfTestError):
        rehearse()


def test_a_sum_that_anybody_can_read_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Packing, "round_noise", lambda self, opened: np.asarray(opened) >> self.delta_bits)
    with pytest.raises(seal.SelfTestError):
        rehearse()
