"""The one error tree.

Every refusal that a person or a program can meet is a class here. Its ``code`` is stable for ever: metrics, audit
records and other programs key on it. The classes are grouped by who must act. A message says what happened, what was
expected, what came and what to do; it never holds patient data, keys or weights.

Foreign exceptions are translated at the doors (``raise ... from``); how an error travels over gRPC is in
``wire/refusal.py``.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

GrpcStatus = Literal[
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "DATA_LOSS",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "INTERNAL",
]

EXIT_OTHER = 1
EXIT_INPUT = 2
EXIT_REFUSED = 3
EXIT_UNREACHABLE = 4
EXIT_RUN_NOT_COMPLETED = 5


class QuorateError(Exception):
    """A refusal with a stable code.

    Args:
        what: What happened, one sentence, without a full stop.
        expected: What was expected, if that helps.
        got: What came instead. Never a patient's value, a key or a weight.
        action: What the reader should do now.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[GrpcStatus] = "INTERNAL"
    exit_code: ClassVar[int] = EXIT_OTHER
    """With which a command ends that meets it."""
    alleged: str = ""
    """The name of the site whose fault it is, as the one says that raises it. It may lie."""

    def __init__(self, what: str, *, expected: str = "", got: str = "", action: str = "") -> None:
        self.what = what
        self.expected = expected
        self.got = got
        self.action = action
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [_sentence(self.what)]
        if self.expected or self.got:
            comparison = [f"expected {self.expected}" if self.expected else "", f"got {self.got}" if self.got else ""]
            text = "; ".join(part for part in comparison if part)
            parts.append(_sentence(text[0].upper() + text[1:]))
        if self.action:
            parts.append(_sentence(self.action))
        return " ".join(parts)


def _sentence(text: str) -> str:
    """Ends where it ends: with a question mark, or with one full stop, also if it holds another message."""
    return text if text.endswith("?") else text.rstrip(".") + "."


# --- whoever wrote the input must act ---------------------------------------------------------------------------------


class InputError(QuorateError):
    """Something that a person wrote or passed in is wrong."""

    code = "bad_input"
    status: ClassVar[GrpcStatus] = "INVALID_ARGUMENT"
    exit_code = EXIT_INPUT


class ConfigError(InputError):
    """A configuration file or an address in it is wrong."""

    code = "bad_config"


class StudyError(InputError):
    """A study, or the file that describes one, is wrong."""

    code = "bad_study"


class SchemaError(InputError):
    """A schema file is wrong."""

    code = "bad_schema"


class DataError(InputError):
    """A data set does not fit its schema. Names rows and columns by number, never values."""

    code = "bad_data"


class NotFoundError(InputError):
    """There is nothing of that name."""

    code = "not_found"
    status = "NOT_FOUND"


class AlreadyExistsError(InputError):
    """There is already something of that name."""

    code = "already_exists"
    status = "ALREADY_EXISTS"


class WrongStateError(InputError):
    """It is not possible in the present state, for example to resume a run that is over."""

    code = "wrong_state"
    status = "FAILED_PRECONDITION"


class BackupError(InputError):
    """A backup cannot be read, is not whole, holds what no backup holds, or is of something else."""

    code = "bad_backup"


# --- identity: the operator or the site's administrator must act -----------------------------------------------------


class IdentityError(QuorateError):
    """The caller could not prove who it is."""

    code = "identity_refused"
    status: ClassVar[GrpcStatus] = "UNAUTHENTICATED"
    exit_code = EXIT_REFUSED


class WrongRoleError(IdentityError):
    """A certificate of one role was used for another role's call."""

    code = "wrong_role"
    status = "PERMISSION_DENIED"


class CertificateRevokedError(IdentityError):
    """The operator revoked the certificate."""

    code = "certificate_revoked"


class CertificateExpiredError(IdentityError):
    """The certificate's time is over; a site renews its own while its daemon runs."""

    code = "certificate_expired"


class InvitationSpentError(IdentityError):
    """The invitation was used before; each one works once."""

    code = "invitation_spent"


class InvitationExpiredError(IdentityError):
    """The invitation's time is over."""

    code = "invitation_expired"


class KeyMismatchError(IdentityError):
    """A key does not match what was pinned, or its proof of possession is wrong."""

    code = "key_mismatch"


class IdentityClonedError(IdentityError):
    """Two daemons use one identity."""

    code = "identity_cloned"
    status = "ABORTED"


class SupersededError(IdentityError):
    """A newer connection of the same site took over."""

    code = "session_superseded"
    status = "ABORTED"


class ServerIdentityError(IdentityError):
    """The server is not the one that the invitation pinned."""

    code = "server_identity"


# --- the site's administrator must act (or the operator must change the study) ---------------------------------------


class SiteRefusalError(QuorateError):
    """A site declines work. The operator sees the code and nothing else."""

    code = "site_refused"
    status = "FAILED_PRECONDITION"
    exit_code = EXIT_REFUSED


class StudyNotApprovedError(SiteRefusalError):
    """The site's administrator has not approved the study."""

    code = "study_not_approved"


class PolicyError(SiteRefusalError):
    """The site's policy does not allow the study."""

    code = "policy_refused"


class ProtectionRefusedError(PolicyError):
    """The site's policy does not allow the study's mode of protection."""

    code = "protection_refused"


class RosterTooSmallError(PolicyError):
    """The study has fewer sites, or a smaller quorum, than the site's policy demands."""

    code = "roster_too_small"


class OutsideHoursError(PolicyError):
    """The site's policy allows no work at this hour."""

    code = "outside_hours"


class TaskMismatchError(SiteRefusalError):
    """The task installed at the site is not the one that the study names."""

    code = "task_mismatch"


class TaskMissingError(SiteRefusalError):
    """The task is not installed."""

    code = "task_missing"


class DatasetMissingError(SiteRefusalError):
    """The data set is not registered at the site, or its file is gone."""

    code = "dataset_missing"


class SitePausedError(SiteRefusalError):
    """The site's administrator paused it."""

    code = "site_paused"


class SiteInterruptedError(SiteRefusalError):
    """The site could not finish this instruction: it crashed, its disk is full, or its records did not let it. Under
    secure aggregation the code says no more, for the reason may depend on them; the site's log has it."""

    code = "site_interrupted"


class TaskFailedError(SiteRefusalError):
    """The task raised. Its text stays in the site's log."""

    code = "task_failed"


class TaskCrashedError(SiteRefusalError):
    """The task's process died (a crash, a signal, out of memory)."""

    code = "task_crashed"


class TaskTimeoutError(SiteRefusalError):
    """The task did not end before the deadline."""

    code = "task_timeout"


class WorkWithdrawnError(SiteRefusalError):
    """The server withdrew the work before it was done, or the site is going down."""

    code = "work_withdrawn"


class UpdateNotFiniteError(SiteRefusalError):
    """Training produced NaN or infinity; nothing was sent."""

    code = "update_not_finite"


class BaseModelMismatchError(SiteRefusalError):
    """The site's model is not the one that the round is about."""

    code = "base_model_mismatch"


class RosterRefusedError(SiteRefusalError):
    """Who is said to take part in a secure sum is not who was agreed on, too few, or holds another model."""

    code = "roster_refused"


class StudyKeyRefusedError(SiteRefusalError):
    """The parts of the key that only sites have are not what the sites made for each other."""

    code = "study_key_refused"


class KeyPartRefusedError(StudyKeyRefusedError):
    """A site's part of the study key is signed by it and does not open at this one. Which site's, this one alleges."""

    code = "key_part_refused"


class VoteRefusedError(SiteRefusalError):
    """The server asks for a second opening of a secure sum, or for one over too few sites."""

    code = "vote_refused"


class VotesForgottenError(SiteRefusalError):
    """An older database was put back at the site. What it voted for in secure sums since is forgotten, so it has no
    part any more in runs that began before."""

    code = "votes_forgotten"


class SumRefusedError(SiteRefusalError):
    """A secure sum does not open: it was changed, or a share of its key is wrong. The model stays as it was."""

    code = "sum_refused"


class PrivacyRefusedError(PolicyError):
    """The study promises less privacy than the site's policy demands, or asks for what cannot be accounted."""

    code = "privacy_refused"


class SyntheticRefusedError(PolicyError):
    """The data set is not real or synthetic as the study wants it, or not good enough for the study or the site."""

    code = "synthetic_refused"


class PrivacyUnsupportedError(SiteRefusalError):
    """The model or the data do not allow the differential privacy that the study asks for."""

    code = "privacy_unsupported"


class StudyExpiredError(SiteRefusalError):
    """The study's time is over."""

    code = "study_expired"


class BudgetExhaustedError(SiteRefusalError):
    """The work would spend more of a data set's privacy budget than there is left."""

    code = "budget_exhausted"


class LedgerError(SiteRefusalError):
    """The site's privacy ledger cannot be read or written, or its chain is broken; nothing is spent without it."""

    code = "ledger_unusable"


class LedgerRolledBackError(LedgerError):
    """The site's privacy ledger is older than it was seen to be, or nobody saw it: spending would be forgotten."""

    code = "ledger_rolled_back"


# --- attestation: nothing is released to the machine; whoever runs it must act, or the site's administrator ---------


class AttestationError(SiteRefusalError):
    """A machine does not show what it is. One of these, whatever went wrong: the site withholds its update."""

    code = "not_attested"


class EvidenceKindError(AttestationError):
    """Evidence is of a kind that the site's policy does not allow, or not in the form of its kind."""

    code = "attestation_kind"


class EvidenceSignatureError(AttestationError):
    """A signature under evidence, or the chain of certificates up to the vendor's root, does not hold."""

    code = "attestation_signature"


class EvidenceExpiredError(AttestationError):
    """A certificate or a revocation list behind evidence is over, or does not hold yet."""

    code = "attestation_expired"


class CollateralError(AttestationError):
    """What the vendor says beside evidence is missing, of another machine, or older than the site's policy allows."""

    code = "attestation_collateral"


class TcbRefusedError(AttestationError):
    """The machine's firmware and microcode are older than the site's policy allows, or the machine is not one of
    those that it allows."""

    code = "attestation_tcb"


class DebugModeError(AttestationError):
    """The machine can be looked into, or moved to another one: debugging or migration is on."""

    code = "attestation_debug"


class MeasurementRefusedError(AttestationError):
    """The software that was measured is none that the site's policy names, or its day is over."""

    code = "attestation_measurement"


class AttestedConfigError(AttestationError):
    """The machine was started in another way than its software was agreed on: arguments, environment, host data."""

    code = "attestation_config"


class BindingMismatchError(AttestationError):
    """Evidence is bound to another nonce, key, server, study or run."""

    code = "attestation_binding"


class EvidenceStaleError(AttestationError):
    """Evidence is older than the site's policy allows."""

    code = "attestation_stale"


class AttestedRunMismatchError(AttestationError):
    """What came from an attested machine is of another run."""

    code = "attestation_wrong_run"


class SoftwareEvidenceError(AttestationError):
    """Evidence was made by software, which proves nothing about a machine, and the policy is no development's."""

    code = "software_evidence_forbidden"


class AttestedKeyUnknownError(AttestationError):
    """A key is none that the site's policy names, or none that the machine has."""

    code = "attestation_key_unknown"


class UnsealError(AttestationError):
    """What was sealed to an attested machine does not open there."""

    code = "attestation_unseal"


class SiteSignatureError(AttestationError):
    """What an attested machine opened is not signed by the site that it is said to be from."""

    code = "attestation_site_signature"


class ReplayError(AttestationError):
    """A nonce, or what was sealed under it, was used before."""

    code = "attestation_replay"


class AppraisalRecordError(SiteRefusalError):
    """A record of an appraisal was changed since the site signed it, or says other than replaying it finds."""

    code = "appraisal_record"


# --- versions, disks --------------------------------------------------------------------------------------------------


class VersionRefusedError(QuorateError):
    """A site's version is too far from the server's: neither of its series nor of the one before."""

    code = "version_refused"
    status = "FAILED_PRECONDITION"
    exit_code = EXIT_REFUSED


class DiskFullError(QuorateError):
    """There is not enough free space on a disk."""

    code = "disk_full"
    status = "RESOURCE_EXHAUSTED"


class StorageError(QuorateError):
    """A file, folder or database cannot be used: rights, a read-only file system, damage, a database that is down."""

    code = "storage_unusable"


# --- the transport: usually retried by the program itself -------------------------------------------------------------


class TransportError(QuorateError):
    """A call or a transfer failed for a reason that has no code of its own."""

    code = "transport"
    status: ClassVar[GrpcStatus] = "UNAVAILABLE"
    exit_code = EXIT_UNREACHABLE


class ServerUnreachableError(TransportError):
    """The server did not answer."""

    code = "server_unreachable"


class TooManyCallsError(TransportError):
    """One identity has as many calls open as it may have; a daemon tries again by itself."""

    code = "too_many_calls"
    status = "RESOURCE_EXHAUSTED"


class FrameError(TransportError):
    """A frame was truncated, corrupted, out of order or foreign."""

    code = "bad_frame"
    status = "DATA_LOSS"


class BlobMismatchError(FrameError):
    """The content that arrived is not the content that was named."""

    code = "blob_mismatch"


class BlobMissingError(TransportError):
    """The content is not, or no longer, there."""

    code = "blob_missing"
    status = "NOT_FOUND"


class MessageUnknownError(TransportError):
    """A reply or an upload for work that this site was not given, or that is over."""

    code = "message_unknown"
    status = "NOT_FOUND"


# --- rounds: the operator must act ------------------------------------------------------------------------------------


class RoundError(QuorateError):
    """A round failed for a reason that has no code of its own."""

    code = "round_failed"
    status = "FAILED_PRECONDITION"
    exit_code = EXIT_RUN_NOT_COMPLETED


class QuorumMissingError(RoundError):
    """Too few sites contributed; the run pauses."""

    code = "quorum_missing"
    codes: tuple[str, ...] = ()
    """Why sites were missing, where it was raised: one code for each of them."""


class ContributionError(RoundError):
    """A site's contribution does not have the form that the round agreed on."""

    code = "bad_contribution"


class ModelDisagreementError(RoundError):
    """The sites do not hold the same model."""

    code = "model_disagreement"


class RunWorkerError(RoundError):
    """The process that drives a run died or raised."""

    code = "run_worker_failed"


class AggregatorUnreachableError(RoundError):
    """The attested aggregator does not answer: the run pauses."""

    code = "aggregator_unreachable"


def is_code(text: str) -> bool:
    """Whether a text has the form of a code, of whatever version."""
    return re.fullmatch(r"[a-z0-9_]{1,64}", text) is not None


def error_classes() -> dict[str, type[QuorateError]]:
    """All concrete errors by code, for the wire and for the reference documentation."""

    def walk(cls: type[QuorateError]) -> list[type[QuorateError]]:
        return [cls, *(sub for child in cls.__subclasses__() for sub in walk(child))]

    return {cls.code: cls for cls in walk(QuorateError)}
