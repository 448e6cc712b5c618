"""The section ``[attestation]`` of a study: updates go to an attested machine only. Absent leaves it to the sites."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quorate.attestation.policy import AttestationPolicy
from quorate.study.section import Frozen


class Attestation(Frozen):
    """What adds the sites' updates has to prove which machine and which software it is, before anything leaves a site.

    The sites' approvals are signatures under the whole study, and so under this policy. A site may demand more in a
    policy of its own, never less.
    """

    required: Literal[True] = Field(description="the section makes it so; without attestation leave it out")
    policy: AttestationPolicy = Field(description="which machines and which software")

    @property
    def summary(self) -> str:
        """For people, in a line."""
        kinds = ", ".join(self.policy.kinds) or "no kind of evidence at all"
        return f"by an attested machine ({kinds})"
