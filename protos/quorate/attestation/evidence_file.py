"""A piece of evidence with its question in one file: what a site keeps, and what people hand to an expert."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from quorate.attestation.binding import Expected
from quorate.attestation.evidence import MAX_ENDORSEMENTS_BYTES, MAX_RAW_BYTES, Evidence, Kind
from quorate.errors import InputError

MAX_FILE_BYTES = 2 * (MAX_RAW_BYTES + MAX_ENDORSEMENTS_BYTES)


def _strict(text: object) -> bytes:
    """Nothing that is no base64 is skipped."""
    if not isinstance(text, str):
        raise ValueError("no text")
    return base64.b64decode(text, validate=True)


_Base64 = Annotated[bytes, BeforeValidator(_strict)]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    evidence: _Base64
    endorsements: _Base64 = b""
    binding: str = Field(pattern="^[0-9a-f]{128}$")
    asked_at: AwareDatetime


def read_evidence_file(content: bytes) -> tuple[Evidence, Expected]:
    """Raises InputError: it is no such file. EvidenceKindError: it holds what no evidence is."""
    if len(content) > MAX_FILE_BYTES:
        raise InputError("The evidence file is too large", expected=f"at most {MAX_FILE_BYTES} bytes")
    try:
        read = _File.model_validate_json(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False)]
        raise InputError(
            "This is no evidence file",
            expected="JSON with kind, evidence and endorsements (base64), binding (hex) and asked_at",
            got="; ".join(problems)[:500],
            action="What a machine made itself is read with --kind, and --collateral for what came beside it",
        ) from error
    return Evidence(read.kind, read.evidence, read.endorsements), Expected(bytes.fromhex(read.binding), read.asked_at)


def write_evidence_file(evidence: Evidence, expected: Expected) -> bytes:
    """The file for a piece of evidence and what was asked."""
    fields: dict[str, Any] = {
        "kind": evidence.kind,
        "evidence": base64.b64encode(evidence.raw).decode(),
        "endorsements": base64.b64encode(evidence.endorsements).decode(),
        "binding": expected.binding.hex(),
        "asked_at": expected.asked_at.isoformat(),
    }
    return json.dumps(fields, indent=2).encode() + b"\n"
