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


def strict_base64(text: object) -> bytes:
    """Nothing that is no base64 is skipped."""
    if not isinstance(text, str):
        raise ValueError("no text")
    return base64.b64decode(text, validate=True)


Base64 = Annotated[bytes, BeforeValidator(strict_base64)]


class EvidenceFile(BaseModel):
    """What every such file has. More may stand beside it, as in a site's record of an appraisal: it is not read."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    evidence: Base64
    endorsements: Base64 = b""
    binding: str = Field(pattern="^[0-9a-f]{128}$")
    asked_at: AwareDatetime

    @property
    def piece(self) -> Evidence:
        """Raises EvidenceKindError: it holds what no evidence is."""
        return Evidence(self.kind, self.evidence, self.endorsements)


def read_evidence_file(content: bytes) -> tuple[Evidence, Expected]:
    """Raises InputError: it is no such file. EvidenceKindError: it holds what no evidence is."""
    if len(content) > MAX_FILE_BYTES:
        raise InputError("The evidence file is too large", expected=f"at most {MAX_FILE_BYTES} bytes")
    try:
        read = EvidenceFile.model_validate_json(content)
    except ValidationError as error:
        raise InputError(
            "This is no evidence file",
            expected="JSON with kind, evidence and endorsements (base64), binding (hex) and asked_at",
            got=problems_of(error),
            action="What a machine made itself is read with --kind, and --collateral for what came beside it",
        ) from error
    return read.piece, Expected(bytes.fromhex(read.binding), read.asked_at)


def write_evidence_file(evidence: Evidence, expected: Expected) -> bytes:
    """The file for a piece of evidence and what was asked."""
    return json.dumps(evidence_fields(evidence, expected), indent=2).encode() + b"\n"


def evidence_fields(evidence: Evidence, expected: Expected) -> dict[str, Any]:
    """What stands in it."""
    return {
        "kind": evidence.kind.value,
        "evidence": base64.b64encode(evidence.raw).decode(),
        "endorsements": base64.b64encode(evidence.endorsements).decode(),
        "binding": expected.binding.hex(),
        "asked_at": expected.asked_at.isoformat(),
    }


def problems_of(error: ValidationError) -> str:
    """What is wrong with a file, key by key, without what stands in it."""
    problems = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False))
    return "; ".join(problems)[:500]
