"""Appraises the machine that adds by the policies as they are now, and puts on record what came of it.

A machine whose appraisal cannot be put on record is not trusted: what left this site, and to whom, must not depend on
whether a disk had room. The server asks again. A refusal counts with or without its record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from quorate.attestation.appraisal import Appraisal
from quorate.attestation.binding import Expected
from quorate.attestation.evidence import Evidence
from quorate.attestation.policy import AttestationPolicy
from quorate.errors import QuorateError
from quorate.identity import SiteName
from quorate.process.storage_errors import storage_errors
from quorate.study.study import Study
from quorate_client.appraisals.kept import KeptAppraisals
from quorate_client.appraisals.record import AppraisalRecord
from quorate_client.approval.answers import Answers
from quorate_client.approval.attested import appraise_for
from quorate_client.approval.policy import Policy
from quorate_client.approval.policy_file import own_attestation_policy, read_policy
from quorate_client.connection.gate import Appraised
from quorate_client.daemon.metrics import ClientMetrics
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_keys

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Appraiser:
    """One site's; what the gate needs of it."""

    folder: SiteFolder
    site: SiteName
    answers: Answers
    kept: KeptAppraisals
    metrics: ClientMetrics
    wall: Callable[[], float]

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.wall(), UTC)

    def study(self, digest: bytes) -> Study | None:
        """Whatever this site answered to it."""
        return self.answers.study(digest)

    def appraise(self, study: Study, evidence: Evidence, expected: Expected, now: datetime) -> Appraisal:
        """Raises AttestationError: the machine is none that may be trusted. ConfigError: a policy cannot be read."""
        return appraise_for(study, evidence, expected, now, *self.rules())

    def rules(self) -> tuple[Policy, AttestationPolicy | None]:
        """What the site's files say now: its policy, and its own on machines. Raises ConfigError."""
        policy = read_policy(self.folder)
        return policy, own_attestation_policy(self.folder, policy)

    def note(self, appraised: Appraised) -> None:
        """Put an appraisal on record, and count it.

        Raises:
            QuorateError: a machine that is trusted could not be put on record.
        """
        try:
            with storage_errors():
                self._put_on_record(appraised)
        except QuorateError as error:
            if not appraised.code:
                raise
            log.error("a refusal could not be put on record", run=appraised.run, code=error.code, reason=str(error))
        self.metrics.appraised(appraised.code, self.wall())

    def _put_on_record(self, appraised: Appraised) -> None:
        record = self._record(appraised)
        # The policies were read a moment after they were used. What is kept gives when it is replayed what it says.
        record.replay().require_agreement()
        self.kept.keep(record, record.signed(load_keys(self.folder.keys).signing))

    def _record(self, appraised: Appraised) -> AppraisalRecord:
        policy, own = self.rules()
        return AppraisalRecord(
            site=self.site,
            run=appraised.run,
            study=appraised.study,
            nonce=appraised.nonce,
            door_key=appraised.door_key,
            identity=appraised.identity,
            evidence=appraised.evidence,
            asked_at=appraised.at,
            appraised_at=self.now(),
            software_allowed=policy.attestation.software,
            own_policy=own,
            code=appraised.code,
        )
