"""The section ``[attestation]`` of a study: updates go to an attested machine only. Absent leaves it to the sites."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from quorate.attestation.appraisal import remarks_about
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

    @property
    def remarks(self) -> tuple[str, ...]:
        """What has to stand wherever the section is shown."""
        return remarks_about(self.policy.kinds)

    def told(self) -> dict[str, Any]:
        """For programs."""
        return {
            "kinds": list(self.policy.kinds),
            "environment": self.policy.environment,
            "versions": [
                {"kind": one.kind, "name": one.name, "until": one.until.isoformat() if one.until else None}
                for one in self.policy.versions()
            ],
            "policy_digest": self.policy.digest().hex(),
            "remarks": list(self.remarks),
        }
