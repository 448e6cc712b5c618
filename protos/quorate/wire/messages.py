"""Values to protos and back. Together with the gRPC doors the only importer of generated code.

Reading is strict: bytes that do not parse, or parse into something impossible, raise ``FrameError`` and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from quorate.errors import FrameError
from quorate.identity import Member, RunId, SiteName, is_run_id
from quorate.privacy.ledger_head import SignedHead
from quorate.rounds.blobs import Blob, BlobId, Frame
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply
from quorate.rounds.run import AppraisalState, Progress, RoundResult, RunState, RunView, SiteAppraisal, SiteProgress
from quorate.study.readiness import Readiness
from quorate.v1 import common_pb2, operator_pb2, rounds_pb2
from quorate.wire.refusal import detail_of, error_of


def member_to_proto(member: Member) -> common_pb2.Member:
    return common_pb2.Member(
        name=member.name,
        signing_key=member.signing_key,
        sealing_key=member.sealing_key,
        sealing_proof=member.sealing_proof,
    )


def member_from_proto(proto: common_pb2.Member) -> Member:
    """Raises KeyMismatchError or InputError when the keys or the name are not valid."""
    return Member(SiteName(proto.name), proto.signing_key, proto.sealing_key, proto.sealing_proof)


def frame_to_proto(frame: Frame) -> common_pb2.Frame:
    return common_pb2.Frame(index=frame.index, data=frame.data, sha256=frame.sha256)


def frame_from_proto(proto: common_pb2.Frame) -> Frame:
    return Frame(proto.index, proto.data, proto.sha256)


def blob_to_proto(blob: Blob) -> common_pb2.Blob:
    return common_pb2.Blob(id=blob.id, size=blob.size, inline=blob.inline or b"")


def blob_from_proto(proto: common_pb2.Blob) -> Blob:
    inline = proto.inline if proto.inline or proto.size == 0 else None
    return Blob(BlobId(proto.id), proto.size, inline)


def _blobs(protos: Iterable[common_pb2.Blob]) -> tuple[Blob, ...]:
    return tuple(blob_from_proto(proto) for proto in protos)


def instruction_to_proto(value: Instruction) -> rounds_pb2.Instruction:
    return rounds_pb2.Instruction(
        message_id=value.message_id,
        run=value.run,
        round=value.round_number,
        phase=value.phase,
        attempt=value.attempt,
        study_digest=value.study_digest,
        deadline_s=value.deadline_s,
        body=value.body,
        blobs=[blob_to_proto(blob) for blob in value.blobs],
        signature=value.signature,
    )


def instruction_from_proto(proto: rounds_pb2.Instruction) -> Instruction:
    try:
        phase = Phase(proto.phase)
    except ValueError as error:
        raise FrameError("The server asks for a phase that this version does not know", got=proto.phase[:40]) from error
    if not is_run_id(proto.run) or not 0 <= proto.deadline_s < math.inf:
        raise FrameError("An instruction names no possible run, or no possible deadline")
    return Instruction(
        message_id=MessageId(proto.message_id),
        run=RunId(proto.run),
        round_number=proto.round,
        phase=phase,
        attempt=proto.attempt,
        study_digest=proto.study_digest,
        deadline_s=proto.deadline_s,
        body=proto.body,
        blobs=_blobs(proto.blobs),
        signature=proto.signature,
    )


def reply_to_proto(value: Reply) -> rounds_pb2.Reply:
    return rounds_pb2.Reply(
        message_id=value.message_id,
        code=value.code,
        body=value.body,
        blobs=[blob_to_proto(blob) for blob in value.blobs],
        working_s=value.working_s,
        alleged=value.alleged,
    )


def reply_from_proto(proto: rounds_pb2.Reply) -> Reply:
    blobs, alleged = _blobs(proto.blobs), proto.alleged
    return Reply(MessageId(proto.message_id), proto.code, proto.body, blobs, proto.working_s, alleged)


def readiness_to_proto(value: Readiness) -> common_pb2.Readiness:
    return common_pb2.Readiness(code=value.code)


def readiness_from_proto(proto: common_pb2.Readiness) -> Readiness:
    return Readiness(proto.code)


def head_to_proto(head: SignedHead) -> rounds_pb2.LedgerHead:
    return rounds_pb2.LedgerHead(number=head.number, hash=head.hash, signature=head.signature)


def head_from_proto(proto: rounds_pb2.LedgerHead) -> SignedHead:
    return SignedHead(proto.number, proto.hash, proto.signature)


def instruction_to_bytes(value: Instruction) -> bytes:
    return instruction_to_proto(value).SerializeToString(deterministic=True)


def instruction_from_bytes(data: bytes) -> Instruction:
    try:
        return instruction_from_proto(rounds_pb2.Instruction.FromString(data))
    except DecodeError as error:
        raise FrameError("An instruction could not be read") from error


def reply_to_bytes(value: Reply) -> bytes:
    return reply_to_proto(value).SerializeToString(deterministic=True)


def reply_from_bytes(data: bytes) -> Reply:
    try:
        return reply_from_proto(rounds_pb2.Reply.FromString(data))
    except DecodeError as error:
        raise FrameError("A reply could not be read") from error


def run_to_proto(view: RunView) -> operator_pb2.RunStatus:
    return operator_pb2.RunStatus(
        run=view.run,
        study=view.study,
        study_digest=view.study_digest,
        kind=view.kind,
        protection=view.protection,
        state=view.state,
        reason=detail_of(view.reason) if view.reason else None,
        round=view.round_number,
        rounds=view.rounds,
        phase=view.phase,
        sites=[operator_pb2.SiteProgress(site=s.site, state=s.state, code=s.code) for s in view.sites],
        started_unix_s=view.started_unix_s,
        changed_unix_s=view.changed_unix_s,
        results=[
            operator_pb2.RoundResult(
                round=result.round_number,
                contributed=result.contributed,
                metrics=result.metrics,
                phase_seconds=result.phase_seconds,
                bytes_up=result.bytes_up,
                bytes_down=result.bytes_down,
                missing=result.missing,
            )
            for result in view.results
        ],
        model_available=view.model_available,
        attested_by=view.attested_by,
        appraisals=[
            operator_pb2.SiteAppraisal(
                site=one.site,
                state=one.state,
                code=one.code,
                kind=one.kind,
                asked_unix_s=one.asked_unix_s,
                heard_unix_s=one.heard_unix_s,
            )
            for one in view.appraisals
        ],
    )


def run_from_proto(proto: operator_pb2.RunStatus) -> RunView:
    try:
        return _run_from_proto(proto)
    except ValueError as error:
        raise FrameError("The server speaks of a run in a way that this version does not know") from error


def _run_from_proto(proto: operator_pb2.RunStatus) -> RunView:
    if not is_run_id(proto.run):  # files are named by it
        raise ValueError
    return RunView(
        run=RunId(proto.run),
        study=proto.study,
        study_digest=proto.study_digest,
        kind=proto.kind,
        protection=proto.protection,
        state=RunState(proto.state),
        reason=error_of(proto.reason) if proto.HasField("reason") else None,
        round_number=proto.round,
        rounds=proto.rounds,
        phase=proto.phase,
        sites=tuple(SiteProgress(SiteName(s.site), Progress(s.state), s.code) for s in proto.sites),
        started_unix_s=proto.started_unix_s,
        changed_unix_s=proto.changed_unix_s,
        results=tuple(
            RoundResult(
                round_number=result.round,
                contributed=tuple(SiteName(name) for name in result.contributed),
                metrics=dict(result.metrics),
                phase_seconds=dict(result.phase_seconds),
                bytes_up=result.bytes_up,
                bytes_down=result.bytes_down,
                missing=dict(result.missing),
            )
            for result in proto.results
        ),
        model_available=proto.model_available,
        attested_by=tuple(proto.attested_by),
        appraisals=tuple(
            SiteAppraisal(
                SiteName(one.site),
                AppraisalState(one.state),
                one.code,
                one.kind,
                one.asked_unix_s,
                one.heard_unix_s,
            )
            for one in proto.appraisals
        ),
    )
