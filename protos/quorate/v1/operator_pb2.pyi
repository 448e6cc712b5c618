from quorate.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InviteSiteRequest(_message.Message):
    __slots__ = ("name", "valid_s", "keep_keys")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALID_S_FIELD_NUMBER: _ClassVar[int]
    KEEP_KEYS_FIELD_NUMBER: _ClassVar[int]
    name: str
    valid_s: int
    keep_keys: bool
    def __init__(self, name: _Optional[str] = ..., valid_s: _Optional[int] = ..., keep_keys: _Optional[bool] = ...) -> None: ...

class Invitation(_message.Message):
    __slots__ = ("consortium", "address", "site", "ca_pem", "certificate_pem", "key_pem", "expires_unix_s")
    CONSORTIUM_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    CA_PEM_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    KEY_PEM_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    consortium: str
    address: str
    site: str
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes
    expires_unix_s: int
    def __init__(self, consortium: _Optional[str] = ..., address: _Optional[str] = ..., site: _Optional[str] = ..., ca_pem: _Optional[bytes] = ..., certificate_pem: _Optional[bytes] = ..., key_pem: _Optional[bytes] = ..., expires_unix_s: _Optional[int] = ...) -> None: ...

class ListSitesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSitesReply(_message.Message):
    __slots__ = ("sites",)
    SITES_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[SiteStatus]
    def __init__(self, sites: _Optional[_Iterable[_Union[SiteStatus, _Mapping]]] = ...) -> None: ...

class RevokeSiteRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class SiteStatus(_message.Message):
    __slots__ = ("name", "state", "member", "certificate_expires_unix_s", "last_seen_unix_s", "version", "invitation_expires_unix_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INVITATION_EXPIRES_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    member: _common_pb2.Member
    certificate_expires_unix_s: int
    last_seen_unix_s: float
    version: str
    invitation_expires_unix_s: int
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., member: _Optional[_Union[_common_pb2.Member, _Mapping]] = ..., certificate_expires_unix_s: _Optional[int] = ..., last_seen_unix_s: _Optional[float] = ..., version: _Optional[str] = ..., invitation_expires_unix_s: _Optional[int] = ...) -> None: ...

class PublishStudyRequest(_message.Message):
    __slots__ = ("canonical",)
    CANONICAL_FIELD_NUMBER: _ClassVar[int]
    canonical: bytes
    def __init__(self, canonical: _Optional[bytes] = ...) -> None: ...

class ListStudiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListStudiesReply(_message.Message):
    __slots__ = ("studies",)
    STUDIES_FIELD_NUMBER: _ClassVar[int]
    studies: _containers.RepeatedCompositeFieldContainer[StudyStatus]
    def __init__(self, studies: _Optional[_Iterable[_Union[StudyStatus, _Mapping]]] = ...) -> None: ...

class GetStudyRequest(_message.Message):
    __slots__ = ("study",)
    STUDY_FIELD_NUMBER: _ClassVar[int]
    study: str
    def __init__(self, study: _Optional[str] = ...) -> None: ...

class StudyStatus(_message.Message):
    __slots__ = ("digest", "canonical", "published_unix_s", "answers")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CANONICAL_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    canonical: bytes
    published_unix_s: float
    answers: _containers.RepeatedCompositeFieldContainer[StudyAnswer]
    def __init__(self, digest: _Optional[bytes] = ..., canonical: _Optional[bytes] = ..., published_unix_s: _Optional[float] = ..., answers: _Optional[_Iterable[_Union[StudyAnswer, _Mapping]]] = ...) -> None: ...

class StudyAnswer(_message.Message):
    __slots__ = ("site", "answer", "signature", "at_unix_s")
    SITE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    site: str
    answer: str
    signature: bytes
    at_unix_s: float
    def __init__(self, site: _Optional[str] = ..., answer: _Optional[str] = ..., signature: _Optional[bytes] = ..., at_unix_s: _Optional[float] = ...) -> None: ...

class StudyPlan(_message.Message):
    __slots__ = ("study", "sites")
    STUDY_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    study: StudyStatus
    sites: _containers.RepeatedCompositeFieldContainer[SiteReadiness]
    def __init__(self, study: _Optional[_Union[StudyStatus, _Mapping]] = ..., sites: _Optional[_Iterable[_Union[SiteReadiness, _Mapping]]] = ...) -> None: ...

class SiteReadiness(_message.Message):
    __slots__ = ("site", "readiness", "at_unix_s")
    SITE_FIELD_NUMBER: _ClassVar[int]
    READINESS_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    site: str
    readiness: _common_pb2.Readiness
    at_unix_s: float
    def __init__(self, site: _Optional[str] = ..., readiness: _Optional[_Union[_common_pb2.Readiness, _Mapping]] = ..., at_unix_s: _Optional[float] = ...) -> None: ...

class StartRunRequest(_message.Message):
    __slots__ = ("study",)
    STUDY_FIELD_NUMBER: _ClassVar[int]
    study: str
    def __init__(self, study: _Optional[str] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsReply(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunStatus]
    def __init__(self, runs: _Optional[_Iterable[_Union[RunStatus, _Mapping]]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run", "after_round")
    RUN_FIELD_NUMBER: _ClassVar[int]
    AFTER_ROUND_FIELD_NUMBER: _ClassVar[int]
    run: str
    after_round: int
    def __init__(self, run: _Optional[str] = ..., after_round: _Optional[int] = ...) -> None: ...

class GetReportRequest(_message.Message):
    __slots__ = ("run", "format")
    RUN_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    run: str
    format: str
    def __init__(self, run: _Optional[str] = ..., format: _Optional[str] = ...) -> None: ...

class RunStatus(_message.Message):
    __slots__ = ("run", "study", "study_digest", "state", "reason", "round", "rounds", "phase", "sites", "started_unix_s", "changed_unix_s", "results", "protection", "model_available", "kind", "more_results", "attested_by", "appraisals")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    STUDY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    CHANGED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    PROTECTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MORE_RESULTS_FIELD_NUMBER: _ClassVar[int]
    ATTESTED_BY_FIELD_NUMBER: _ClassVar[int]
    APPRAISALS_FIELD_NUMBER: _ClassVar[int]
    run: str
    study: str
    study_digest: bytes
    state: str
    reason: _common_pb2.ErrorDetail
    round: int
    rounds: int
    phase: str
    sites: _containers.RepeatedCompositeFieldContainer[SiteProgress]
    started_unix_s: float
    changed_unix_s: float
    results: _containers.RepeatedCompositeFieldContainer[RoundResult]
    protection: str
    model_available: bool
    kind: str
    more_results: bool
    attested_by: _containers.RepeatedScalarFieldContainer[str]
    appraisals: _containers.RepeatedCompositeFieldContainer[SiteAppraisal]
    def __init__(self, run: _Optional[str] = ..., study: _Optional[str] = ..., study_digest: _Optional[bytes] = ..., state: _Optional[str] = ..., reason: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., phase: _Optional[str] = ..., sites: _Optional[_Iterable[_Union[SiteProgress, _Mapping]]] = ..., started_unix_s: _Optional[float] = ..., changed_unix_s: _Optional[float] = ..., results: _Optional[_Iterable[_Union[RoundResult, _Mapping]]] = ..., protection: _Optional[str] = ..., model_available: _Optional[bool] = ..., kind: _Optional[str] = ..., more_results: _Optional[bool] = ..., attested_by: _Optional[_Iterable[str]] = ..., appraisals: _Optional[_Iterable[_Union[SiteAppraisal, _Mapping]]] = ...) -> None: ...

class SiteAppraisal(_message.Message):
    __slots__ = ("site", "state", "code", "kind", "asked_unix_s", "heard_unix_s")
    SITE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ASKED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    HEARD_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    site: str
    state: str
    code: str
    kind: str
    asked_unix_s: float
    heard_unix_s: float
    def __init__(self, site: _Optional[str] = ..., state: _Optional[str] = ..., code: _Optional[str] = ..., kind: _Optional[str] = ..., asked_unix_s: _Optional[float] = ..., heard_unix_s: _Optional[float] = ...) -> None: ...

class SiteProgress(_message.Message):
    __slots__ = ("site", "state", "code")
    SITE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    site: str
    state: str
    code: str
    def __init__(self, site: _Optional[str] = ..., state: _Optional[str] = ..., code: _Optional[str] = ...) -> None: ...

class RoundResult(_message.Message):
    __slots__ = ("round", "contributed", "metrics", "phase_seconds", "bytes_up", "bytes_down", "missing")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class PhaseSecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class MissingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTED_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    PHASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    round: int
    contributed: _containers.RepeatedScalarFieldContainer[str]
    metrics: _containers.ScalarMap[str, float]
    phase_seconds: _containers.ScalarMap[str, float]
    bytes_up: int
    bytes_down: int
    missing: _containers.ScalarMap[str, str]
    def __init__(self, round: _Optional[int] = ..., contributed: _Optional[_Iterable[str]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., phase_seconds: _Optional[_Mapping[str, float]] = ..., bytes_up: _Optional[int] = ..., bytes_down: _Optional[int] = ..., missing: _Optional[_Mapping[str, str]] = ...) -> None: ...
