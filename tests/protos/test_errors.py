"""The error tree: stable codes, one class each, messages that say what to do."""

from __future__ import annotations

import grpc
import pytest

from quorate import errors
from quorate.errors import QuorateError, error_classes

# Codes are for ever: metrics, audit records and other programs key on them. Add to this list, never change it.
KNOWN_CODES = {
    "internal", "bad_input", "bad_config", "bad_study", "bad_schema", "bad_data", "not_found", "already_exists",
    "wrong_state", "identity_refused", "wrong_role", "certificate_revoked", "certificate_expired", "invitation_spent",
    "invitation_expired", "key_mismatch", "identity_cloned", "session_superseded", "server_identity", "site_refused",
    "study_not_approved", "policy_refused", "protection_refused", "roster_too_small", "task_mismatch", "task_missing",
    "dataset_missing", "site_paused", "site_interrupted", "task_failed", "task_crashed", "task_timeout",
    "work_withdrawn", "update_not_finite", "base_model_mismatch", "disk_full", "transport", "server_unreachable",
    "bad_frame", "blob_mismatch", "blob_missing", "message_unknown", "round_failed", "quorum_missing",
    "bad_contribution", "model_disagreement", "run_worker_failed",
}  # fmt: skip


def all_classes() -> list[type[QuorateError]]:
    return [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, QuorateError)]


def test_no_code_was_ever_changed_or_taken_away() -> None:
    assert set(error_classes()) >= KNOWN_CODES


def test_every_class_has_its_own_code() -> None:
    assert len({cls.code for cls in all_classes()}) == len(all_classes())
    assert set(error_classes().values()) >= set(all_classes())


@pytest.mark.parametrize("cls", all_classes(), ids=lambda cls: str(cls.code))
def test_every_class_travels_with_a_grpc_status_that_exists_and_a_code_that_a_reply_can_hold(
    cls: type[QuorateError],
) -> None:
    assert grpc.StatusCode[cls.status] is not grpc.StatusCode.OK
    assert 0 < len(cls.code) <= 64
    assert cls.code == cls.code.lower()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (QuorateError("It broke"), "It broke."),
        (QuorateError("It broke."), "It broke."),
        (QuorateError("It broke", expected="a", got="b"), "It broke. Expected a; got b."),
        (QuorateError("It broke", got="b"), "It broke. Got b."),
        (QuorateError("It broke", expected="a", action="Mend it"), "It broke. Expected a. Mend it."),
        (QuorateError("Which one broke?", expected="a"), "Which one broke? Expected a."),
        (
            QuorateError("It broke", got=str(QuorateError("That broke", action="Mend it"))),
            "It broke. Got That broke. Mend it.",
        ),
    ],
)
def test_a_message_is_what_happened_what_was_expected_what_came_and_what_to_do(error: QuorateError, text: str) -> None:
    assert str(error) == text
