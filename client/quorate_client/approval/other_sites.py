"""Enough sites stand behind a study before this one works for it: their signatures, fetched once and kept.

The server passes them on and cannot make them: each is checked against the key that the approved study names.
"""

from __future__ import annotations

from dataclasses import dataclass

from quorate.errors import StudyNotApprovedError
from quorate.identity import SiteName
from quorate.study.approval import Approval, valid_approvals
from quorate.v1 import rounds_pb2
from quorate_client.approval.answers import Answers
from quorate_client.connection.channel import translated
from quorate_client.connection.current import CurrentConnection
from quorate_client.site.agreement import Agreement

CALL_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class OtherSitesApprovals:
    """The approvals of other sites, as far as this site has seen them."""

    answers: Answers
    current: CurrentConnection

    async def require(self, agreement: Agreement) -> bool:
        """Refuse a study that too few sites have approved, this one included; the server is asked where too few are
        known here.

        Returns:
            Whether enough were known, and nobody had to be asked.

        Raises:
            StudyNotApprovedError: they are still too few. ServerUnreachableError and other QuorateErrors: the server
                could not be asked.
        """
        study, digest = agreement.study, agreement.digest
        sites = {agreement.site, *(approval.site for approval in self.answers.approvals(digest))}
        if len(sites) >= study.needed_approvals:
            return True
        found = valid_approvals(study, await self._fetch(digest))
        self.answers.record_approvals(digest, found.values())
        sites.update(found)
        if len(sites) < study.needed_approvals:
            missing = ", ".join(sorted(set(study.site_names) - sites))
            raise StudyNotApprovedError(
                f"Too few sites have approved the study {study.name} for any to work for it",
                expected=f"{study.needed_approvals} of {len(study.sites)} sites",
                got=f"{len(sites)}; missing: {missing}",
                action="Have the administrators of the missing sites approve it, then let the operator resume the run",
            )
        return False

    async def _fetch(self, digest: bytes) -> list[Approval]:
        connection = await self.current.connected()
        with translated(connection.address):
            reply = await connection.stub.ListStudies(rounds_pb2.SiteStudiesRequest(), timeout=CALL_TIMEOUT_S)
        return [
            Approval(SiteName(each.site), each.signature)
            for offered in reply.studies
            if offered.digest == digest
            for each in offered.approvals
        ]
