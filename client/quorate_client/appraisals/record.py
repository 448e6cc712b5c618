"""One appraisal on record: the evidence, all that it was held against, and what came of it.

A record needs nothing beside itself: it holds the study, the site's own policy and the parts of the binding, so whoever
gets it can appraise the evidence again, offline, at the time that it names. The site signs it with the key that the
study names, so a change shows. That one is missing does not show: a site that wants to hide something can.

It is an evidence file with more in it: ``quorate-client attest explain`` reads it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AwareDatetime, ConfigDict, Field, ValidationError

from quorate.attestation.appraisal import Appraisal
from quorate.attestation.binding import Expected, binding
from quorate.attestation.evidence import Evidence
from quorate.attestation.evidence_file import MAX_FILE_BYTES, Base64, EvidenceFile, evidence_fields, problems_of
from quorate.attestation.policy import AttestationPolicy, Hex32, Hex64
from quorate.attestation.sealing import EnclaveIdentity
from quorate.errors import AppraisalRecordError, AttestationError, QuorateError
from quorate.identity import RunId, SiteName, has_signed
from quorate.study.study import MAX_CANONICAL_BYTES, Study
from quorate_client.approval.attested import appraise_for
from quorate_client.approval.policy import AttestedPolicy, Policy

MAX_RECORD_BYTES = MAX_FILE_BYTES + 2 * MAX_CANONICAL_BYTES
_CONTEXT = b"quorate/appraisal-record/v1\x00"
_CHANGED = "The site that signed it did not write this, or it was damaged: compare it with a copy from a backup"


class _Content(EvidenceFile):
    model_config = ConfigDict(frozen=True, extra="forbid")

    appraised_at: AwareDatetime
    code: str = Field(max_length=64, pattern="^[a-z0-9_]*$")
    site: str
    run: str
    nonce: Hex32
    door_key: Base64
    sealing_key: Hex32
    signing_key: Hex32
    study: str
    software_allowed: bool
    own_policy: AttestationPolicy | None


class _File(_Content):
    signature: Hex64


@dataclass(frozen=True, slots=True)
class AppraisalRecord:
    """What was asked of the machine that adds a run's sums, what it showed, and what came of it.

    Args:
        door_key: The key that the server showed (SubjectPublicKeyInfo, DER).
        software_allowed: ``attestation.software`` of the site's policy at that time.
        own_policy: The site's own, where it had one. The study's is in the study.
        code: Why the machine was refused; empty if it was trusted.
    """

    site: SiteName
    run: RunId
    study: Study
    nonce: bytes
    door_key: bytes
    identity: EnclaveIdentity
    evidence: Evidence
    asked_at: datetime
    appraised_at: datetime
    software_allowed: bool
    own_policy: AttestationPolicy | None
    code: str

    @property
    def expected(self) -> Expected:
        bound = binding(
            nonce=self.nonce,
            public_key=self.identity.public_key,
            tls_spki=self.door_key,
            study=self.study.canonical(),
            run=self.run,
        )
        return Expected(bound, self.asked_at)

    @property
    def sameness(self) -> Hashable:
        """Appraisals in which this is alike say the same but for their time."""
        own = self.own_policy.digest() if self.own_policy is not None else None
        held_against = self.study.digest(), self.software_allowed, own
        return self.code, self.evidence.kind, self.identity, self.door_key, held_against

    def replay(self) -> Replay:
        """Appraise the evidence again, at the time of the record."""
        policy = Policy(attestation=AttestedPolicy(software=self.software_allowed))
        try:
            found = appraise_for(self.study, self.evidence, self.expected, self.appraised_at, policy, self.own_policy)
        except AttestationError as error:
            return Replay(self, None, error)
        return Replay(self, found, None)

    def signed(self, key: Ed25519PrivateKey) -> bytes:
        """The record as a file, signed by the site."""
        content = self._content()
        return json.dumps(content | {"signature": key.sign(_signed_part(content)).hex()}, indent=2).encode() + b"\n"

    def _content(self) -> dict[str, Any]:
        own = self.own_policy
        return evidence_fields(self.evidence, self.expected) | {
            "appraised_at": self.appraised_at.isoformat(),
            "code": self.code,
            "site": self.site,
            "run": self.run,
            "nonce": self.nonce.hex(),
            "door_key": base64.b64encode(self.door_key).decode(),
            "sealing_key": self.identity.sealing.hex(),
            "signing_key": self.identity.signing.hex(),
            "study": self.study.canonical().decode(),
            "software_allowed": self.software_allowed,
            "own_policy": own.model_dump(mode="json", exclude_none=True) if own is not None else None,
        }


@dataclass(frozen=True, slots=True)
class Replay:
    """A record, and what is found when its evidence is appraised again: one of the last two."""

    record: AppraisalRecord
    appraisal: Appraisal | None
    refusal: AttestationError | None

    @property
    def code(self) -> str:
        return self.refusal.code if self.refusal is not None else ""

    def require_agreement(self) -> None:
        """Raises AppraisalRecordError: the record says other than what is found."""
        if self.code != self.record.code:
            raise AppraisalRecordError(
                "The record says other than what its evidence gives",
                expected=f"{self.code or 'trusted'}, as it is found now",
                got=f"{self.record.code or 'trusted'}, as it was written down",
                action="If the versions of Quorate differ, replay it with the one that wrote it",
            )


def read_record(content: bytes) -> AppraisalRecord:
    """A record as a site wrote it.

    Raises:
        AppraisalRecordError: it is none, or was changed since it was signed.
    """
    raw, record = _parsed(content)
    signature = raw.pop("signature")
    key = next((site.signing_key for site in record.study.sites if site.name == record.site), None)
    if key is None:
        raise AppraisalRecordError(f"The record is of {record.site}, which is no site of its study", action=_CHANGED)
    if not has_signed(bytes.fromhex(key), bytes.fromhex(signature), _signed_part(raw)):
        raise AppraisalRecordError(f"The record does not carry the signature of {record.site}", action=_CHANGED)
    if raw["binding"] != record.expected.binding.hex():
        raise AppraisalRecordError("The record's binding is not that of its parts", action=_CHANGED)
    return record


def _parsed(content: bytes) -> tuple[dict[str, Any], AppraisalRecord]:
    """Raises AppraisalRecordError."""
    if len(content) > MAX_RECORD_BYTES:
        raise AppraisalRecordError("The record is too large", expected=f"at most {MAX_RECORD_BYTES} bytes")
    try:
        read = _File.model_validate_json(content)
        raw: dict[str, Any] = json.loads(content)
        return raw, AppraisalRecord(
            site=SiteName(read.site),
            run=RunId(read.run),
            study=Study.from_canonical(read.study.encode()),
            nonce=bytes.fromhex(read.nonce),
            door_key=read.door_key,
            identity=EnclaveIdentity(bytes.fromhex(read.sealing_key), bytes.fromhex(read.signing_key)),
            evidence=read.piece,
            asked_at=read.asked_at,
            appraised_at=read.appraised_at,
            software_allowed=read.software_allowed,
            own_policy=read.own_policy,
            code=read.code,
        )
    except ValidationError as error:
        raise AppraisalRecordError(
            "This is no record of an appraisal", got=problems_of(error), action="See which file it is"
        ) from error
    except QuorateError as error:
        raise AppraisalRecordError("This is no record of an appraisal", got=str(error), action=_CHANGED) from error


def _signed_part(content: dict[str, Any]) -> bytes:
    return _CONTEXT + hashlib.sha256(rfc8785.dumps(content)).digest()
