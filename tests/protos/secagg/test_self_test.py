"""The rehearsal passes here, and fails where what it looks at is broken."""

from __future__ import annotations

import numpy as np
import pytest

from quorate.aggregation import ntt, ring, rlwe, seal_reference
from quorate.aggregation.packing import Packing
from quorate.secagg.self_test import rehearse


def test_a_rehearsal_passes() -> None:
    rehearse()


def unencrypted(messages: ring.Integers, *_: object) -> ring.Polynomials:
    return ntt.to_ntt(messages)


def test_an_encryption_that_does_not_encrypt_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlwe, "encrypt", unencrypted)
    with pytest.raises(seal_reference.SelfTestError):
        rehearse()


def test_a_sum_that_anybody_can_read_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Packing, "round_noise", lambda self, opened: np.asarray(opened) >> self.delta_bits)
    with pytest.raises(seal_reference.SelfTestError):
        rehearse()
