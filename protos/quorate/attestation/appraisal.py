"""What was found out about a piece of evidence: checks with their results, and what the machine is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from quorate.attestation.evidence import Kind
from quorate.errors import AttestationError, ReplayError, SiteSignatureError, UnsealError, error_classes

PROTECTS = "protects against the operator's software and staff, not against somebody with a probe on the memory bus"
TESTED = "Verification is tested on genuine evidence; producing evidence has not been run on hardware."
SOFTWARE = "SOFTWARE EVIDENCE: for development. It proves nothing about any machine and protects against nobody."

_OF_THE_MACHINE = (UnsealError, SiteSignatureError, ReplayError)
REFUSALS = frozenset(
    code
    for code, kind in error_classes().items()
    if issubclass(kind, AttestationError) and not issubclass(kind, _OF_THE_MACHINE)
)
"""Codes by which a site says that it refused what a machine showed; others are a machine's about what a site sent."""


def remarks_about(kinds: Collection[str]) -> tuple[str, ...]:
    """What has to stand wherever it is told that machines with evidence of these kinds are trusted."""
    of_software = (SOFTWARE,) if Kind.SOFTWARE in kinds else ()
    of_hardware = (f"An attested machine {PROTECTS}.",) if set(kinds) - {Kind.SOFTWARE} else ()
    return *of_software, *of_hardware, TESTED


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to hold, and whether it does. ``name`` is a claim: "the chain ends in AMD's root"."""

    name: str
    holds: bool
    refusal: type[AttestationError]
    expected: str = ""
    got: str = ""
    action: str = ""

    def error(self) -> AttestationError:
        """The refusal where it does not hold."""
        return self.refusal(
            f"It does not hold that {self.name}", expected=self.expected, got=self.got, action=self.action
        )


@dataclass(frozen=True, slots=True)
class Claims:
    """What evidence says, once the signatures under it hold. Made by the verifiers of the kinds alone.

    Args:
        hardware: What the machine is, in words.
        carried: What stands where the binding belongs; in hex, or as a Confidential Space token has it.
        measured: Registers by name, in hex.
        tcb: The versions of firmware and microcode, in words.
        made_at: When evidence says it was made; None where a kind has no clock (TDX, SEV-SNP).
        checks: What was checked of it already, by the kind's own rules.
    """

    hardware: str
    carried: str
    measured: Mapping[str, str]
    tcb: str
    made_at: datetime | None
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Appraisal:
    """The result. ``refusal`` is None for evidence in which everything holds.

    There are no ``claims`` where signatures do not hold: nothing is told that nobody vouches for. ``version`` is what
    the policy calls the software; empty if it does not name it.
    """

    kind: Kind
    appraised_at: datetime
    policy_digest: bytes
    endorsements_digest: bytes
    checks: tuple[Check, ...]
    refusal: AttestationError | None
    claims: Claims | None = None
    version: str = ""

    @property
    def code(self) -> str:
        """Why it was refused; empty if it was not."""
        return self.refusal.code if self.refusal is not None else ""

    @property
    def remark(self) -> str:
        """What has to stand beside every appraisal."""
        return SOFTWARE if self.kind is Kind.SOFTWARE else PROTECTS
