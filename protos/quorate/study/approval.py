"""A site's answer to a study, and when enough sites stand behind one: what is signed, and how it is checked.

A study is signed whole: its digest covers the task, every argument, protection, privacy, roster, purpose and expiry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from quorate.identity import SiteName, has_signed
from quorate.study.study import Study

AnswerWord = Literal["approved", "rejected"]

_CONTEXT = b"quorate/answer/v1\x00"


@dataclass(frozen=True, slots=True)
class Approval:
    """A site's signature under a study."""

    site: SiteName
    signature: bytes


def signed_answer(answer: str, digest: bytes) -> bytes:
    """The bytes that a site signs (Ed25519) to answer the study with this digest."""
    return _CONTEXT + answer.encode() + b"\x00" + digest


def is_signed_answer(key: bytes, signature: bytes, answer: str, digest: bytes) -> bool:
    """Whether the owner of ``key`` gave this answer."""
    return has_signed(key, signature, signed_answer(answer, digest))


def valid_approvals(study: Study, approvals: Iterable[Approval]) -> dict[SiteName, Approval]:
    """Those that sites of the study signed with the keys that the study names; one for each site."""
    digest, keys = study.digest(), {SiteName(site.name): bytes.fromhex(site.signing_key) for site in study.sites}
    return {
        approval.site: approval
        for approval in approvals
        if approval.site in keys and is_signed_answer(keys[approval.site], approval.signature, "approved", digest)
    }
