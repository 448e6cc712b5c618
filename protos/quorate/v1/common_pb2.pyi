from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorDetail(_message.Message):
    __slots__ = ("code", "what", "expected", "got", "action")
    CODE_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    GOT_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    code: str
    what: str
    expected: str
    got: str
    action: str
    def __init__(self, code: _Optional[str] = ..., what: _Optional[str] = ..., expected: _Optional[str] = ..., got: _Optional[str] = ..., action: _Optional[str] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("id", "size", "inline")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    size: int
    inline: bytes
    def __init__(self, id: _Optional[bytes] = ..., size: _Optional[int] = ..., inline: _Optional[bytes] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("index", "data", "sha256")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    index: int
    data: bytes
    sha256: bytes
    def __init__(self, index: _Optional[int] = ..., data: _Optional[bytes] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("name", "signing_key", "sealing_key", "sealing_proof")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIGNING_KEY_FIELD_NUMBER: _ClassVar[int]
    SEALING_KEY_FIELD_NUMBER: _ClassVar[int]
    SEALING_PROOF_FIELD_NUMBER: _ClassVar[int]
    name: str
    signing_key: bytes
    sealing_key: bytes
    sealing_proof: bytes
    def __init__(self, name: _Optional[str] = ..., signing_key: _Optional[bytes] = ..., sealing_key: _Optional[bytes] = ..., sealing_proof: _Optional[bytes] = ...) -> None: ...

class Readiness(_message.Message):
    __slots__ = ("code",)
    CODE_FIELD_NUMBER: _ClassVar[int]
    code: str
    def __init__(self, code: _Optional[str] = ...) -> None: ...
