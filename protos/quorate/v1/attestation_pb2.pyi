from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Evidence(_message.Message):
    __slots__ = ("kind", "raw", "endorsements")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    ENDORSEMENTS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    raw: bytes
    endorsements: bytes
    def __init__(self, kind: _Optional[str] = ..., raw: _Optional[bytes] = ..., endorsements: _Optional[bytes] = ...) -> None: ...

class SealedReply(_message.Message):
    __slots__ = ("reply", "secret")
    REPLY_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    reply: bytes
    secret: bytes
    def __init__(self, reply: _Optional[bytes] = ..., secret: _Optional[bytes] = ...) -> None: ...

class AttestRequest(_message.Message):
    __slots__ = ("run", "nonce")
    RUN_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    run: str
    nonce: bytes
    def __init__(self, run: _Optional[str] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class AttestReply(_message.Message):
    __slots__ = ("evidence", "sealing_key", "signing_key")
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    SEALING_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNING_KEY_FIELD_NUMBER: _ClassVar[int]
    evidence: Evidence
    sealing_key: bytes
    signing_key: bytes
    def __init__(self, evidence: _Optional[_Union[Evidence, _Mapping]] = ..., sealing_key: _Optional[bytes] = ..., signing_key: _Optional[bytes] = ...) -> None: ...
