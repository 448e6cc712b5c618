from quorate.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KeyPart(_message.Message):
    __slots__ = ("sender", "box", "signature")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    sender: str
    box: bytes
    signature: bytes
    def __init__(self, sender: _Optional[str] = ..., box: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SecureHello(_message.Message):
    __slots__ = ("site", "round_key", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    ROUND_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    round_key: bytes
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., round_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SecureVote(_message.Message):
    __slots__ = ("site", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SecureReveal(_message.Message):
    __slots__ = ("site", "sealed", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    sealed: bytes
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., sealed: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("hellos", "survivors", "counts", "ciphertext", "votes", "reveals", "model", "following")
    HELLOS_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    REVEALS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FOLLOWING_FIELD_NUMBER: _ClassVar[int]
    hellos: _containers.RepeatedCompositeFieldContainer[SecureHello]
    survivors: _containers.RepeatedScalarFieldContainer[str]
    counts: bytes
    ciphertext: bytes
    votes: _containers.RepeatedCompositeFieldContainer[SecureVote]
    reveals: _containers.RepeatedCompositeFieldContainer[SecureReveal]
    model: bytes
    following: _containers.RepeatedCompositeFieldContainer[SecureHello]
    def __init__(self, hellos: _Optional[_Iterable[_Union[SecureHello, _Mapping]]] = ..., survivors: _Optional[_Iterable[str]] = ..., counts: _Optional[bytes] = ..., ciphertext: _Optional[bytes] = ..., votes: _Optional[_Iterable[_Union[SecureVote, _Mapping]]] = ..., reveals: _Optional[_Iterable[_Union[SecureReveal, _Mapping]]] = ..., model: _Optional[bytes] = ..., following: _Optional[_Iterable[_Union[SecureHello, _Mapping]]] = ...) -> None: ...

class PlainOpening(_message.Message):
    __slots__ = ("survivors", "counts", "updates", "model", "votes", "key", "sealed_counts")
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SEALED_COUNTS_FIELD_NUMBER: _ClassVar[int]
    survivors: _containers.RepeatedScalarFieldContainer[str]
    counts: _containers.RepeatedScalarFieldContainer[int]
    updates: bytes
    model: bytes
    votes: _containers.RepeatedCompositeFieldContainer[SecureVote]
    key: bytes
    sealed_counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, survivors: _Optional[_Iterable[str]] = ..., counts: _Optional[_Iterable[int]] = ..., updates: _Optional[bytes] = ..., model: _Optional[bytes] = ..., votes: _Optional[_Iterable[_Union[SecureVote, _Mapping]]] = ..., key: _Optional[bytes] = ..., sealed_counts: _Optional[_Iterable[int]] = ...) -> None: ...

class SumRef(_message.Message):
    __slots__ = ("round", "attempt", "updates", "opening")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    OPENING_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    updates: _common_pb2.Blob
    opening: _common_pb2.Blob
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., updates: _Optional[_Union[_common_pb2.Blob, _Mapping]] = ..., opening: _Optional[_Union[_common_pb2.Blob, _Mapping]] = ...) -> None: ...

class SealedShares(_message.Message):
    __slots__ = ("boxes",)
    class BoxesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    BOXES_FIELD_NUMBER: _ClassVar[int]
    boxes: _containers.ScalarMap[str, bytes]
    def __init__(self, boxes: _Optional[_Mapping[str, bytes]] = ...) -> None: ...

class SumWork(_message.Message):
    __slots__ = ("parts", "sums", "hellos", "survivors", "digest", "shares", "votes", "checkpoint", "checkpoint_round", "checkpoint_sealer")
    PARTS_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    HELLOS_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_ROUND_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_SEALER_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[KeyPart]
    sums: _containers.RepeatedCompositeFieldContainer[SumRef]
    hellos: _containers.RepeatedCompositeFieldContainer[SecureHello]
    survivors: _containers.RepeatedScalarFieldContainer[str]
    digest: bytes
    shares: _common_pb2.Blob
    votes: _containers.RepeatedCompositeFieldContainer[SecureVote]
    checkpoint: _common_pb2.Blob
    checkpoint_round: int
    checkpoint_sealer: SecureVote
    def __init__(self, parts: _Optional[_Iterable[_Union[KeyPart, _Mapping]]] = ..., sums: _Optional[_Iterable[_Union[SumRef, _Mapping]]] = ..., hellos: _Optional[_Iterable[_Union[SecureHello, _Mapping]]] = ..., survivors: _Optional[_Iterable[str]] = ..., digest: _Optional[bytes] = ..., shares: _Optional[_Union[_common_pb2.Blob, _Mapping]] = ..., votes: _Optional[_Iterable[_Union[SecureVote, _Mapping]]] = ..., checkpoint: _Optional[_Union[_common_pb2.Blob, _Mapping]] = ..., checkpoint_round: _Optional[int] = ..., checkpoint_sealer: _Optional[_Union[SecureVote, _Mapping]] = ...) -> None: ...

class SumAnswer(_message.Message):
    __slots__ = ("parts", "hello", "counts", "dimension", "vote", "reveal", "metrics", "has_update", "model", "opened", "plain_counts", "study_key", "salt", "sealed_counts")
    class PartsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: KeyPart
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[KeyPart, _Mapping]] = ...) -> None: ...
    PARTS_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    REVEAL_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    HAS_UPDATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    PLAIN_COUNTS_FIELD_NUMBER: _ClassVar[int]
    STUDY_KEY_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    SEALED_COUNTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.MessageMap[str, KeyPart]
    hello: SecureHello
    counts: bytes
    dimension: int
    vote: SecureVote
    reveal: SecureReveal
    metrics: _containers.RepeatedCompositeFieldContainer[PooledMetrics]
    has_update: bool
    model: bytes
    opened: _containers.RepeatedCompositeFieldContainer[Survivors]
    plain_counts: _containers.RepeatedScalarFieldContainer[int]
    study_key: bytes
    salt: bytes
    sealed_counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, parts: _Optional[_Mapping[str, KeyPart]] = ..., hello: _Optional[_Union[SecureHello, _Mapping]] = ..., counts: _Optional[bytes] = ..., dimension: _Optional[int] = ..., vote: _Optional[_Union[SecureVote, _Mapping]] = ..., reveal: _Optional[_Union[SecureReveal, _Mapping]] = ..., metrics: _Optional[_Iterable[_Union[PooledMetrics, _Mapping]]] = ..., has_update: _Optional[bool] = ..., model: _Optional[bytes] = ..., opened: _Optional[_Iterable[_Union[Survivors, _Mapping]]] = ..., plain_counts: _Optional[_Iterable[int]] = ..., study_key: _Optional[bytes] = ..., salt: _Optional[bytes] = ..., sealed_counts: _Optional[_Iterable[int]] = ...) -> None: ...

class Survivors(_message.Message):
    __slots__ = ("sites",)
    SITES_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sites: _Optional[_Iterable[str]] = ...) -> None: ...

class PooledMetrics(_message.Message):
    __slots__ = ("round", "values")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    round: int
    values: _containers.ScalarMap[str, float]
    def __init__(self, round: _Optional[int] = ..., values: _Optional[_Mapping[str, float]] = ...) -> None: ...
