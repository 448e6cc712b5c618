"""Google's Confidential Space: a PKI token, which says what Google's verifier found out about a virtual machine.

Google verifies the hardware's evidence and signs the token: this kind protects against whoever rents the machine, not
against Google. The certificates are in the token, up to the pinned root; no address in it is ever followed.

Sources: Google Cloud, *Confidential Space: token claims* and *Integrate with the PKI token*; RFC 7515, section 4.1.6.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws, jwt
from joserfc.errors import BadSignatureError, ClaimError, MissingClaimError
from joserfc.jwk import RSAKey

from quorate.attestation.appraisal import Check, Claims
from quorate.attestation.evidence import Evidence, require_size
from quorate.attestation.kinds.chain import MAX_CERTIFICATES, load_certificate, require_chain
from quorate.attestation.policy import ConfidentialSpacePolicy
from quorate.attestation.roots import Roots
from quorate.errors import (
    AttestedConfigError,
    BindingMismatchError,
    DebugModeError,
    EvidenceExpiredError,
    EvidenceKindError,
    EvidenceSignatureError,
    TcbRefusedError,
)

MAX_TOKEN_BYTES = 32 * 1024
_ISSUER = "https://confidentialcomputing.googleapis.com"
_HEADER = {"alg", "typ", "x5c", "kid"}
"""No jku and no x5u, whose addresses somebody might follow; no crit."""
_TIMES = {"exp", "nbf", "iat"}
_Json = dict[str, Any]


class _Registry(jws.JWSRegistry):
    """The library's bounds are too small for three certificates in a header; the token's own bound holds."""

    max_header_length = MAX_TOKEN_BYTES
    max_payload_length = MAX_TOKEN_BYTES


def claims(evidence: Evidence, section: ConfidentialSpacePolicy, now: datetime, roots: Roots) -> Claims:
    """What the token says.

    Raises:
        EvidenceKindError, EvidenceSignatureError, EvidenceExpiredError.
    """
    require_size(evidence.raw, 1, MAX_TOKEN_BYTES, "The Confidential Space token")
    require_size(evidence.endorsements, 0, 0, "What comes with a Confidential Space token")
    token = evidence.raw.decode("ascii").strip()
    leaf, *between = _certificates(token)
    require_chain(leaf, between, roots.google, now)
    said = _signed(token, leaf)
    _require_valid(said, now)
    submods = _section(said, "submods")
    container = _section(submods, "container")
    return Claims(
        hardware=f"a virtual machine at Google ({said.get('hwmodel')}), which Google's verifier looked at",
        carried=said["eat_nonce"] if isinstance(said.get("eat_nonce"), str) else "",
        measured={"image_digest": str(container.get("image_digest"))},
        tcb=_tcb_in_words(said),
        made_at=datetime.fromtimestamp(said["iat"], UTC),
        checks=(
            Check("the token and its certificates are signed up to Google's root", True, EvidenceSignatureError),
            *_closed_machine(said, _section(submods, "confidential_space")),
            *_as_agreed(said, container, _section(submods, "gce"), section),
        ),
    )


def _certificates(token: str) -> list[x509.Certificate]:
    """The chain in the token's header, leaf first; the root at its end is left out in favour of the pinned one."""
    header = json.loads(_unpadded(token.split(".")[0]))
    if not isinstance(header, dict) or header.get("alg") != "RS256" or not set(header) <= _HEADER:
        raise EvidenceKindError(
            "The header of the Confidential Space token is another one",
            expected=f"RS256, and none but {', '.join(sorted(_HEADER))}",
        )
    chain = header.get("x5c")
    if not isinstance(chain, list) or not 2 <= len(chain) <= MAX_CERTIFICATES:
        raise EvidenceKindError("The Confidential Space token carries no certificates", expected="x5c: the PKI token")
    return [
        load_certificate(base64.b64decode(each, validate=True), "A certificate of the token") for each in chain[:-1]
    ]


def _signed(token: str, leaf: x509.Certificate) -> _Json:
    key = leaf.public_key()
    if not isinstance(key, RSAPublicKey):
        raise EvidenceSignatureError("The key of the Confidential Space token is none of RSA")
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        return jwt.decode(token, RSAKey.import_key(pem), algorithms=["RS256"], registry=_Registry()).claims
    except BadSignatureError as error:
        raise EvidenceSignatureError("The signature under the Confidential Space token does not hold") from error


def _require_valid(said: _Json, now: datetime) -> None:
    registry = jwt.JWTClaimsRegistry(
        now=int(now.timestamp()),
        iss={"essential": True, "value": _ISSUER},
        exp={"essential": True},
        nbf={"essential": True},
        iat={"essential": True},
    )
    try:
        registry.validate(said)
    except ClaimError as error:
        if error.claim in _TIMES and not isinstance(error, MissingClaimError):
            raise EvidenceExpiredError("The Confidential Space token does not hold at this time") from error
        raise EvidenceKindError("The Confidential Space token is none of Google's", got=str(error)[:200]) from error


def _closed_machine(said: _Json, space: _Json) -> Iterator[Check]:
    yield _equal("debugging is off since the start", said.get("dbgstat"), "disabled-since-boot", DebugModeError)
    yield _equal("the machine is one of Intel TDX", said.get("hwmodel"), "GCP_INTEL_TDX", EvidenceKindError)
    yield _equal("only signed software was started", said.get("secboot"), True, AttestedConfigError)
    yield _equal("the system is Confidential Space", said.get("swname"), "CONFIDENTIAL_SPACE", AttestedConfigError)
    attributes = space.get("support_attributes")
    yield Check(
        "the system's image is a stable one",
        isinstance(attributes, list) and "STABLE" in attributes,
        TcbRefusedError,
        expected="STABLE",
        got=_shown(attributes),
    )
    yield _equal(
        "Google's word on the machine's firmware and microcode is that they are up to date",
        _section(said, "tdx").get("gcp_attester_tcb_status"),
        "UpToDate",
        TcbRefusedError,
    )


def _as_agreed(said: _Json, container: _Json, gce: _Json, section: ConfidentialSpacePolicy) -> Iterator[Check]:
    yield _equal("the token was made for this use", said.get("aud"), section.audience, BindingMismatchError)
    for key, what in (("cmd_override", "arguments"), ("env_override", "variables")):
        yield Check(
            f"the container was given no {what} beside its image's own",
            not container.get(key),
            AttestedConfigError,
            expected=f"no {key}",
            got=_shown(container.get(key)),
        )
    if section.projects is not None:
        project = gce.get("project_id")
        yield Check(
            "the policy names this project",
            project in section.projects,
            AttestedConfigError,
            expected=" or ".join(section.projects) or "none: the policy names no project",
            got=_shown(project),
        )
    if section.service_accounts is not None:
        accounts = said.get("google_service_accounts")
        yield Check(
            "the policy names the service accounts that run it",
            isinstance(accounts, list) and bool(accounts) and set(accounts) <= set(section.service_accounts),
            AttestedConfigError,
            expected=" or ".join(section.service_accounts) or "none: the policy names no service account",
            got=_shown(accounts),
        )


def _equal(name: str, got: object, wanted: object, refusal: type[Any]) -> Check:
    return Check(name, got == wanted and type(got) is type(wanted), refusal, expected=_shown(wanted), got=_shown(got))


def _shown(value: object) -> str:
    """Names of variables may be told, their values need not be."""
    if isinstance(value, dict | list):
        return ", ".join(sorted(map(str, value)))[:200]
    return "nothing" if value is None else str(value)[:200]


def _section(outer: _Json, name: str) -> _Json:
    inner = outer.get(name, {})
    return inner if isinstance(inner, dict) else {}


def _tcb_in_words(said: _Json) -> str:
    tdx = _section(said, "tdx")
    return (
        f"{_shown(tdx.get('gcp_attester_tcb_status'))} (level of {_shown(tdx.get('gcp_attester_tcb_date'))[:10]}), "
        f"Confidential Space {_shown(said.get('swversion'))}"
    )


def _unpadded(part: str) -> bytes:
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise EvidenceKindError("This is no token") from error
