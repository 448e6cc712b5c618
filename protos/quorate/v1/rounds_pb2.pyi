from quorate.v1 import attestation_pb2 as _attestation_pb2
from quorate.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SiteEvent(_message.Message):
    __slots__ = ("hello", "heartbeat", "reply", "goodbye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    hello: SiteHello
    heartbeat: Heartbeat
    reply: Reply
    goodbye: Goodbye
    def __init__(self, hello: _Optional[_Union[SiteHello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., reply: _Optional[_Union[Reply, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ...) -> None: ...

class SiteHello(_message.Message):
    __slots__ = ("session", "version")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    session: int
    version: str
    def __init__(self, session: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sequence", "paused", "sent_unix_s")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    SENT_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    paused: bool
    sent_unix_s: float
    def __init__(self, sequence: _Optional[int] = ..., paused: _Optional[bool] = ..., sent_unix_s: _Optional[float] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ServerEvent(_message.Message):
    __slots__ = ("welcome", "instruction", "ack", "withdraw", "studies_changed", "heartbeat", "refused", "refused_reply")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_FIELD_NUMBER: _ClassVar[int]
    STUDIES_CHANGED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_REPLY_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    instruction: Instruction
    ack: ReplyAck
    withdraw: Withdraw
    studies_changed: StudiesChanged
    heartbeat: Heartbeat
    refused: _common_pb2.ErrorDetail
    refused_reply: RefusedReply
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., instruction: _Optional[_Union[Instruction, _Mapping]] = ..., ack: _Optional[_Union[ReplyAck, _Mapping]] = ..., withdraw: _Optional[_Union[Withdraw, _Mapping]] = ..., studies_changed: _Optional[_Union[StudiesChanged, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., refused: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ..., refused_reply: _Optional[_Union[RefusedReply, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("consortium", "heartbeat_s", "server_unix_s", "ledger_head", "earlier_ledger_heads")
    CONSORTIUM_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    SERVER_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    EARLIER_LEDGER_HEADS_FIELD_NUMBER: _ClassVar[int]
    consortium: str
    heartbeat_s: float
    server_unix_s: float
    ledger_head: LedgerHead
    earlier_ledger_heads: _containers.RepeatedCompositeFieldContainer[LedgerHead]
    def __init__(self, consortium: _Optional[str] = ..., heartbeat_s: _Optional[float] = ..., server_unix_s: _Optional[float] = ..., ledger_head: _Optional[_Union[LedgerHead, _Mapping]] = ..., earlier_ledger_heads: _Optional[_Iterable[_Union[LedgerHead, _Mapping]]] = ...) -> None: ...

class LedgerHead(_message.Message):
    __slots__ = ("number", "hash", "signature")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    number: int
    hash: bytes
    signature: bytes
    def __init__(self, number: _Optional[int] = ..., hash: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ReplyAck(_message.Message):
    __slots__ = ("message_ids",)
    MESSAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    message_ids: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, message_ids: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RefusedReply(_message.Message):
    __slots__ = ("message_id", "reason")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    message_id: bytes
    reason: _common_pb2.ErrorDetail
    def __init__(self, message_id: _Optional[bytes] = ..., reason: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ...) -> None: ...

class Withdraw(_message.Message):
    __slots__ = ("message_id",)
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    message_id: bytes
    def __init__(self, message_id: _Optional[bytes] = ...) -> None: ...

class StudiesChanged(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Instruction(_message.Message):
    __slots__ = ("message_id", "run", "round", "phase", "attempt", "study_digest", "deadline_s", "body", "blobs", "signature")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STUDY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    message_id: bytes
    run: str
    round: int
    phase: str
    attempt: int
    study_digest: bytes
    deadline_s: float
    body: bytes
    blobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.Blob]
    signature: bytes
    def __init__(self, message_id: _Optional[bytes] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., phase: _Optional[str] = ..., attempt: _Optional[int] = ..., study_digest: _Optional[bytes] = ..., deadline_s: _Optional[float] = ..., body: _Optional[bytes] = ..., blobs: _Optional[_Iterable[_Union[_common_pb2.Blob, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("message_id", "code", "body", "blobs", "working_s", "ledger_head", "alleged")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    WORKING_S_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    ALLEGED_FIELD_NUMBER: _ClassVar[int]
    message_id: bytes
    code: str
    body: bytes
    blobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.Blob]
    working_s: float
    ledger_head: LedgerHead
    alleged: str
    def __init__(self, message_id: _Optional[bytes] = ..., code: _Optional[str] = ..., body: _Optional[bytes] = ..., blobs: _Optional[_Iterable[_Union[_common_pb2.Blob, _Mapping]]] = ..., working_s: _Optional[float] = ..., ledger_head: _Optional[_Union[LedgerHead, _Mapping]] = ..., alleged: _Optional[str] = ...) -> None: ...

class OpenUploadRequest(_message.Message):
    __slots__ = ("message_id", "blob")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    message_id: bytes
    blob: _common_pb2.Blob
    def __init__(self, message_id: _Optional[bytes] = ..., blob: _Optional[_Union[_common_pb2.Blob, _Mapping]] = ...) -> None: ...

class OpenUploadReply(_message.Message):
    __slots__ = ("next_frame", "complete")
    NEXT_FRAME_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    next_frame: int
    complete: bool
    def __init__(self, next_frame: _Optional[int] = ..., complete: _Optional[bool] = ...) -> None: ...

class UploadFrame(_message.Message):
    __slots__ = ("blob_id", "frame")
    BLOB_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    blob_id: bytes
    frame: _common_pb2.Frame
    def __init__(self, blob_id: _Optional[bytes] = ..., frame: _Optional[_Union[_common_pb2.Frame, _Mapping]] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("complete",)
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    complete: bool
    def __init__(self, complete: _Optional[bool] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("blob_id", "first_frame")
    BLOB_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_FRAME_FIELD_NUMBER: _ClassVar[int]
    blob_id: bytes
    first_frame: int
    def __init__(self, blob_id: _Optional[bytes] = ..., first_frame: _Optional[int] = ...) -> None: ...

class SiteStudiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SiteStudiesReply(_message.Message):
    __slots__ = ("studies",)
    STUDIES_FIELD_NUMBER: _ClassVar[int]
    studies: _containers.RepeatedCompositeFieldContainer[SiteStudy]
    def __init__(self, studies: _Optional[_Iterable[_Union[SiteStudy, _Mapping]]] = ...) -> None: ...

class SiteStudy(_message.Message):
    __slots__ = ("digest", "canonical", "members", "approvals")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CANONICAL_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    APPROVALS_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    canonical: bytes
    members: _containers.RepeatedCompositeFieldContainer[_common_pb2.Member]
    approvals: _containers.RepeatedCompositeFieldContainer[StudyApproval]
    def __init__(self, digest: _Optional[bytes] = ..., canonical: _Optional[bytes] = ..., members: _Optional[_Iterable[_Union[_common_pb2.Member, _Mapping]]] = ..., approvals: _Optional[_Iterable[_Union[StudyApproval, _Mapping]]] = ...) -> None: ...

class StudyApproval(_message.Message):
    __slots__ = ("site", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class AnswerStudyRequest(_message.Message):
    __slots__ = ("digest", "answer", "signature")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    answer: str
    signature: bytes
    def __init__(self, digest: _Optional[bytes] = ..., answer: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class AnswerStudyReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportReadinessRequest(_message.Message):
    __slots__ = ("digest", "readiness")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    READINESS_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    readiness: _common_pb2.Readiness
    def __init__(self, digest: _Optional[bytes] = ..., readiness: _Optional[_Union[_common_pb2.Readiness, _Mapping]] = ...) -> None: ...

class ReportReadinessReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
