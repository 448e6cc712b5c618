"""A record of an appraisal can be replayed by anybody, and shows what was done to it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.attestation.evidence_file import read_evidence_file
from quorate.errors import AppraisalRecordError
from quorate_client.appraisals.record import MAX_RECORD_BYTES, read_record

from .kit import NOW, SITE_KEY, STRICT, appraisal, attested_study

OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"\x09" * 32)


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(appraisal().signed(SITE_KEY)) | changes).encode()


def test_a_record_is_read_as_it_was_written_and_replayed_at_its_time() -> None:
    for record in (appraisal(), appraisal(own_policy=STRICT, code="attestation_key_unknown")):
        read = read_record(record.signed(SITE_KEY))
        assert read == record
        assert read.replay().code == record.code
        read.replay().require_agreement()


def test_a_record_is_an_evidence_file_too() -> None:
    record = appraisal()
    assert read_evidence_file(record.signed(SITE_KEY)) == (record.evidence, record.expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"code": "attestation_tcb"},
        {"appraised_at": (NOW + timedelta(seconds=2)).isoformat()},
        {"asked_at": (NOW - timedelta(seconds=1)).isoformat()},
        {"nonce": "04" * 32},
        {"sealing_key": "04" * 32},
        {"door_key": "AAAA"},
        {"run": "malignancy-ffffff"},
        {"binding": "00" * 64},
        {"software_allowed": False},
        {"own_policy": STRICT.model_dump(mode="json", exclude_none=True)},
        {"evidence": "AAAA"},
        {"endorsements": "AAAA"},
        {"study": attested_study(purpose="Something else").canonical().decode()},
        {"site": "south"},
    ],
)
def test_whatever_is_changed_in_a_record_shows(changes: dict[str, Any]) -> None:
    with pytest.raises(AppraisalRecordError, match="signature"):
        read_record(changed(**changes))


def test_a_record_of_another_study_cannot_name_a_key_of_its_own() -> None:
    keys = [{"name": name, "signing_key": f"{number:064x}"} for number, name in enumerate(("a", "b", "c"), 1)]
    with pytest.raises(AppraisalRecordError, match="no site of its study"):
        read_record(changed(study=attested_study(sites=keys).canonical().decode()))


def test_a_record_that_another_site_signed_is_refused() -> None:
    with pytest.raises(AppraisalRecordError, match="signature of north"):
        read_record(appraisal().signed(OTHER_KEY))


def test_a_signed_record_whose_binding_is_not_of_its_parts_is_refused() -> None:
    from quorate_client.appraisals.record import _signed_part

    content = json.loads(changed(binding="00" * 64))
    del content["signature"]
    content["signature"] = SITE_KEY.sign(_signed_part(content)).hex()
    with pytest.raises(AppraisalRecordError, match="binding"):
        read_record(json.dumps(content).encode())


def test_a_record_that_says_other_than_its_evidence_is_told() -> None:
    """The site itself, which holds the key, cannot call a machine trusted that it refused, nor one refused."""
    for record, found in (
        (appraisal(own_policy=STRICT), "attestation_key_unknown"),
        (appraisal(code="attestation_debug"), "trusted"),
        (replace(appraisal(), appraised_at=NOW + timedelta(hours=1)), "attestation_stale"),
        (replace(appraisal(), software_allowed=False), "software_evidence_forbidden"),
    ):
        with pytest.raises(AppraisalRecordError, match=f"Expected {found}, as it is found now"):
            read_record(record.signed(SITE_KEY)).replay().require_agreement()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b"x" * (MAX_RECORD_BYTES + 1), changed(more=1)])
def test_what_is_no_record_is_refused(content: bytes) -> None:
    with pytest.raises(AppraisalRecordError):
        read_record(content)
