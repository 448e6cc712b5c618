"""What the daemon makes of an appraisal: it is on record, or the machine is not trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from prometheus_client import CollectorRegistry

from quorate.errors import AppraisalRecordError, StorageError
from quorate.process.private_files import write_private
from quorate_client.appraisals.kept import KeptAppraisals, paths_in, read_kept
from quorate_client.approval.answers import Answer, Answers
from quorate_client.connection.gate import Appraised
from quorate_client.daemon.appraiser import Appraiser
from quorate_client.daemon.metrics import ClientMetrics
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import make_or_load_keys

from ..appraisals.kit import RUN, SITE_KEY, STUDY, appraisal, attested_study
from ..databases import made_state

TOLD = appraisal()
DEVELOPMENT = "[attestation]\nsoftware = true\n"


class Desk:
    """An appraiser on a site's folder, and its figures."""

    def __init__(self, folder: SiteFolder, policy: str) -> None:
        folder.create()
        pem = SITE_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(folder.keys / "signing.pem", pem)
        make_or_load_keys(folder.keys)
        folder.policy.write_text(policy)
        self.registry = CollectorRegistry()
        self.folder = folder
        self.appraiser = Appraiser(
            folder,
            TOLD.site,
            Answers(made_state(folder.database), lambda: 0.0),
            KeptAppraisals(folder.attestation),
            ClientMetrics(self.registry),
            lambda: TOLD.appraised_at.timestamp(),
        )

    def note(self, code: str = "") -> None:
        self.appraiser.note(
            Appraised(
                RUN, STUDY, STUDY.digest(), TOLD.nonce, TOLD.door_key, TOLD.identity, TOLD.evidence, TOLD.asked_at, code
            )
        )

    @property
    def paths(self) -> list[Path]:
        return paths_in(self.folder.attestation)

    def counted(self, code: str = "trusted") -> float | None:
        return self.registry.get_sample_value("quorate_client_appraisals_total", {"code": code})


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(SiteFolder(tmp_path / "site"), DEVELOPMENT)


def test_an_appraisal_is_put_on_record_signed_and_counted(desk: Desk) -> None:
    desk.note()
    (path,) = desk.paths
    assert read_kept(path) == TOLD
    assert desk.counted() == 1
    last = desk.registry.get_sample_value("quorate_client_appraisal_last_trusted_timestamp_seconds")
    assert last == TOLD.appraised_at.timestamp()


def test_a_machine_whose_appraisal_cannot_be_put_on_record_is_not_trusted(desk: Desk) -> None:
    desk.folder.attestation.write_text("in the way")
    with pytest.raises(StorageError):
        desk.note()
    assert desk.counted() == 0


def test_a_refusal_counts_with_or_without_its_record(desk: Desk) -> None:
    desk.folder.policy.write_text("")
    desk.folder.attestation.write_text("in the way")
    desk.note("software_evidence_forbidden")
    assert desk.counted("software_evidence_forbidden") == 1


def test_an_appraisal_by_a_policy_that_is_gone_meanwhile_trusts_nobody(desk: Desk) -> None:
    desk.folder.policy.write_text("")
    with pytest.raises(AppraisalRecordError, match="software_evidence_forbidden"):
        desk.note()
    assert not desk.paths
    assert desk.counted() == 0


def test_evidence_is_held_against_the_studys_policy_and_the_sites_own(desk: Desk) -> None:
    (desk.folder.root / "own.toml").write_text('environment = "development"\n[software]\nkeys = []\n')
    desk.folder.policy.write_text(DEVELOPMENT + 'file = "own.toml"\n')
    desk.note("attestation_key_unknown")
    (path,) = desk.paths
    assert '"own_policy": {' in path.read_text()
    assert path.name.endswith("-attestation_key_unknown.json")


def test_a_study_is_known_by_its_digest_whatever_was_answered(desk: Desk) -> None:
    rejected = attested_study(name="rejected")
    desk.appraiser.answers.record(Answer(rejected, rejected.digest(), "rejected", b"\0" * 64))
    assert desk.appraiser.study(rejected.digest()) == rejected
    assert desk.appraiser.study(STUDY.digest()) is None
