"""Evidence on the wire. Reading is strict: what is wrong is an ``AttestationError``."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from quorate.attestation.evidence import Evidence, parse_kind
from quorate.attestation.sealing import KEY_BYTES, EnclaveIdentity
from quorate.errors import AttestationError, AttestedKeyUnknownError, QuorateError, UnsealError
from quorate.rounds.instruction import Reply
from quorate.v1 import attestation_pb2
from quorate.wire.messages import reply_from_bytes, reply_to_bytes


def evidence_to_proto(evidence: Evidence) -> attestation_pb2.Evidence:
    return attestation_pb2.Evidence(kind=evidence.kind, raw=evidence.raw, endorsements=evidence.endorsements)


def evidence_from_proto(message: attestation_pb2.Evidence) -> Evidence:
    """Raises EvidenceKindError: of no known kind, empty, or larger than any evidence is."""
    return Evidence(parse_kind(message.kind), message.raw, message.endorsements)


def answer_to_proto(evidence: Evidence, identity: EnclaveIdentity) -> attestation_pb2.AttestReply:
    return attestation_pb2.AttestReply(
        evidence=evidence_to_proto(evidence), sealing_key=identity.sealing, signing_key=identity.signing
    )


def answer_from_proto(message: attestation_pb2.AttestReply) -> tuple[Evidence, EnclaveIdentity]:
    """Raises EvidenceKindError. AttestedKeyUnknownError: a key has not the length of one."""
    if len(message.sealing_key) != KEY_BYTES or len(message.signing_key) != KEY_BYTES:
        raise AttestedKeyUnknownError("The attested machine's keys are none", expected=f"{KEY_BYTES} bytes each")
    return evidence_from_proto(message.evidence), EnclaveIdentity(message.sealing_key, message.signing_key)


def shown_kind(answer: bytes) -> str:
    """Which kind of evidence an ``AttestReply`` says that it holds; empty if none that is known."""
    try:
        return answer_from_proto(attestation_pb2.AttestReply.FromString(answer))[0].kind.value
    except (DecodeError, AttestationError):
        return ""


def sealed_to_bytes(reply: Reply, secret: bytes) -> bytes:
    """What a site seals: its reply, and the secret of the keys under which the bulk data is sealed."""
    return attestation_pb2.SealedReply(reply=reply_to_bytes(reply), secret=secret).SerializeToString(deterministic=True)


def sealed_from_bytes(content: bytes) -> tuple[Reply, bytes]:
    """Raises UnsealError."""
    try:
        message = attestation_pb2.SealedReply.FromString(content)
        reply = reply_from_bytes(message.reply)
    except (DecodeError, QuorateError) as error:
        raise UnsealError("What a site sealed to the attested machine is no reply") from error
    if len(message.secret) != KEY_BYTES:
        raise UnsealError("What a site sealed to the attested machine has no secret", expected=f"{KEY_BYTES} bytes")
    return reply, message.secret
