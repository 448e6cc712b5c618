from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

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
