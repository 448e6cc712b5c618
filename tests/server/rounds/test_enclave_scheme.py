"""What leaves an attested machine, of uploads that come in again after it was started again. Whole runs with real sites
are in ``tests/client/rounds/test_enclave_scheme.py``."""

from __future__ import annotations

import io
from functools import partial
from typing import Any, cast

import numpy as np
import pytest

from quorate.aggregation.plain import weight_of
from quorate.errors import ContributionError
from quorate.identity import SiteName
from quorate.process.chunked_aead import open_chunks
from quorate.rounds.blobs import Blob
from quorate.study.rules import Rules
from quorate.study.study import Study
from quorate.wire.sum_messages import SumAnswer
from quorate_server.rounds.progress import StudyProgress
from quorate_server.rounds.schemes.enclave import EnclaveScheme, EnclaveSum
from quorate_server.rounds.sum_figures import Stopwatch
from quorate_server.rounds.sums.state import RunState
from tests.server.study_kit import NAMES, RUN, a_study, a_tally

DIMENSION = 500
AVERAGE = {"delta": 1e-5, "average": {"clip": 1.0, "noise_multiplier": 1.0}}
UPDATES = {name: np.full(DIMENSION, place, "<i4") for place, name in enumerate(NAMES)}


def enclave_study(**changes: Any) -> Study:
    policy = {"environment": "development", "software": {"keys": ["ab" * 32]}}
    return a_study(
        **{
            "protection": {"mode": "enclave"},
            "attestation": {"required": True, "policy": policy},
            "release": {"model": "sites"},
            "rounds": {"quorum": 3, "weights": "equal"},
        }
        | changes
    )


def a_machine(study: Study) -> tuple[EnclaveScheme, EnclaveSum]:
    """In the first round."""
    progress = StudyProgress(dimension=DIMENSION, summed=1)
    state = RunState(RUN, study, 3, cast(Any, None), cast(Any, None), progress, Stopwatch(lambda: 0.0))
    scheme = EnclaveScheme(state, Rules(len(NAMES), 1))
    return scheme, scheme.begin(1)


def said(site: SiteName, study: Study, **changes: Any) -> SumAnswer:
    tally = a_tally(10) if study.evaluates(0) else ()
    fields: dict[str, Any] = {
        "plain_counts": (weight_of(1, len(NAMES)), 10, 5, 0, *tally),
        "has_update": True,
        "model": b"m" * 32,
        "study_key": b"s" * 32,
        "salt": site.encode().ljust(32, b"."),
    }
    return SumAnswer(**fields | changes)


def leaves(study: Study, survivors: tuple[SiteName, ...] = NAMES, **changes: Any) -> bytes:
    """What a machine puts on the server's disk, of these uploads."""
    scheme, opened = a_machine(study)
    adder = scheme.adder(1)
    for site in survivors:
        content = UPDATES[site].tobytes()
        opened.accept(site, said(site, study, **changes), (Blob.of(content),))
        adder.fold(partial(io.BytesIO, content))
    return b"".join(opened.leaving(survivors, adder.blocks()))


@pytest.mark.parametrize("privacy", [{}, {"privacy": AVERAGE}], ids=["exact", "noise on the average"])
def test_of_the_same_uploads_the_very_same_bytes_leave_noise_included(privacy: dict[str, Any]) -> None:
    """Noise that was drawn anew whenever the machine is started would average out."""
    study = enclave_study(**privacy)
    assert leaves(study) == leaves(study)
    salted, fewer = leaves(study, salt=b"t" * 32), leaves(study, NAMES[:3])
    assert len({leaves(study), salted, fewer}) == 3


def test_noise_is_on_the_average_and_another_one_for_other_salts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate_server.rounds.schemes.enclave.seal_chunks", lambda content, key: content)
    study = enclave_study(privacy=AVERAGE)
    exact = sum(UPDATES.values())
    noise = [np.frombuffer(leaves(study, salt=bytes([n]) * 32), "<i4") - exact for n in (1, 2)]
    assert all(np.std(each) > 1000 for each in noise)
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.2


def test_nothing_leaves_in_the_clear_and_who_lacks_a_salt_opens_nothing() -> None:
    study = enclave_study()
    sealed = leaves(study)
    assert np.full(4, sum(range(4)), "<i4").tobytes() not in sealed
    with pytest.raises(Exception, match="not what was sealed"):
        b"".join(open_chunks([sealed], bytes(32)))


def test_sites_of_another_study_key_are_not_of_the_same_form() -> None:
    study = enclave_study()
    _, opened = a_machine(study)
    blobs = {site: (Blob.of(UPDATES[site].tobytes()),) for site in NAMES}
    forms = {site: opened.accept(site, said(site, study), blobs[site]).form for site in NAMES[:2]}
    other = opened.accept(NAMES[2], said(NAMES[2], study, study_key=b"w" * 32), blobs[NAMES[2]]).form
    assert len({*forms.values()}) == 1
    assert other not in forms.values()


@pytest.mark.parametrize(
    "change", [{"salt": b""}, {"study_key": b""}, {"model": b""}, {"opened": (NAMES[:3],) * 3}], ids=str
)
def test_an_upload_that_lacks_what_a_sum_needs_is_refused(change: dict[str, Any]) -> None:
    study = enclave_study()
    _, opened = a_machine(study)
    with pytest.raises(ContributionError):
        opened.accept(NAMES[0], said(NAMES[0], study, **change), (Blob.of(UPDATES[NAMES[0]].tobytes()),))
