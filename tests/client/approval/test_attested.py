"""Whose word counts at a site: the study's policy and the site's own have both to be met."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.attestation.binding import Expected, binding
from quorate.attestation.kinds.software import software_evidence
from quorate.attestation.policy import AttestationPolicy, NitroPolicy, SoftwarePolicy
from quorate.errors import AttestationError, ConfigError, ProtectionRefusedError
from quorate_client.approval.attested import appraise_for
from quorate_client.approval.policy import AttestedPolicy, Policy
from quorate_client.approval.policy_file import own_attestation_policy
from quorate_client.site.database import make_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import make_or_load_keys
from tests.attested_machine import ATTESTER, NOW, attested_study, demanding, public
from tests.server.study_kit import a_study

STUDY = attested_study()
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x09" * 32)
BOUND = binding(nonce=bytes(32), public_key=b"k", tls_spki=b"d", study=STUDY.canonical(), run="r")
EXPECTED = Expected(BOUND, NOW)
EVIDENCE = software_evidence(ATTESTER, BOUND, bytes(32), NOW)
ALLOWS = Policy(attestation=AttestedPolicy(software=True))


def own(*keys: Ed25519PrivateKey, **changes: Any) -> AttestationPolicy:
    software = SoftwarePolicy(keys=tuple(public(key) for key in keys))
    return AttestationPolicy(**({"environment": "development", "software": software} | changes))


def test_evidence_that_meets_both_policies_counts() -> None:
    assert appraise_for(STUDY, EVIDENCE, EXPECTED, NOW, ALLOWS, None).refusal is None
    assert appraise_for(STUDY, EVIDENCE, EXPECTED, NOW, ALLOWS, own(ATTESTER, OTHER)).refusal is None


@pytest.mark.parametrize(
    ("mine", "code"),
    [
        (own(OTHER), "attestation_key_unknown"),
        (AttestationPolicy(nitro=NitroPolicy(allow=())), "software_evidence_forbidden"),
        (AttestationPolicy(environment="development"), "attestation_kind"),
        (own(ATTESTER, oldest_evidence_s=1.0), "attestation_stale"),
    ],
    ids=["another key", "production", "no such kind", "younger"],
)
def test_the_site_s_own_policy_may_demand_more(mine: AttestationPolicy, code: str) -> None:
    later = NOW + timedelta(seconds=10)
    with pytest.raises(AttestationError) as refused:
        appraise_for(STUDY, EVIDENCE, EXPECTED, later, ALLOWS, mine)
    assert refused.value.code == code


def test_the_site_s_own_policy_cannot_demand_less() -> None:
    study = attested_study(attestation=demanding(OTHER))
    with pytest.raises(AttestationError) as refused:
        appraise_for(study, EVIDENCE, EXPECTED, NOW, ALLOWS, own(ATTESTER))
    assert refused.value.code == "attestation_key_unknown"


def test_evidence_made_by_software_counts_only_where_the_site_says_so() -> None:
    with pytest.raises(AttestationError) as refused:
        appraise_for(STUDY, EVIDENCE, EXPECTED, NOW, Policy(), own(ATTESTER))
    assert refused.value.code == "software_evidence_forbidden"


def test_a_study_that_names_no_machine_trusts_none() -> None:
    with pytest.raises(AttestationError):
        appraise_for(a_study(), EVIDENCE, EXPECTED, NOW, ALLOWS, own(ATTESTER))


# --- studies ---


def test_a_site_may_demand_an_attested_machine_beside_secure_aggregation() -> None:
    policy = Policy(attestation=AttestedPolicy(required=True, software=True))
    policy.check(STUDY)
    with pytest.raises(ProtectionRefusedError) as refused:
        policy.check(STUDY.model_copy(update={"attestation": None}))
    assert refused.value.expected == "attestation.required = true"


def test_a_study_that_counts_evidence_of_software_is_refused_unless_the_site_allows_it() -> None:
    ALLOWS.check(STUDY)
    with pytest.raises(ProtectionRefusedError) as refused:
        Policy().check(STUDY)
    assert refused.value.expected == "attestation.software = false"
    production = {"required": True, "policy": {"nitro": {"allow": []}}}
    Policy().check(attested_study(attestation=production))


# --- the file ---


@pytest.fixture
def folder(tmp_path: Any) -> SiteFolder:
    folder = SiteFolder(tmp_path / "site")
    folder.create()
    make_state(folder.database)
    make_or_load_keys(folder.keys)
    return folder


NAMING = Policy(attestation=AttestedPolicy(file="attestation.toml"))


def test_the_site_s_own_policy_is_read_where_policy_toml_names_one(folder: SiteFolder) -> None:
    (folder.root / "attestation.toml").write_text(
        f'environment = "development"\nsoftware.keys = ["{public(ATTESTER)}"]\n'
    )
    assert own_attestation_policy(folder, NAMING) == own(ATTESTER)
    assert own_attestation_policy(folder, Policy()) is None


@pytest.mark.parametrize("text", [None, "= broken", "keys = 3", 'environment = "hope"'])
def test_a_policy_of_its_own_that_is_gone_or_broken_lets_nothing_through(folder: SiteFolder, text: str | None) -> None:
    if text is not None:
        (folder.root / "attestation.toml").write_text(text)
    with pytest.raises(ConfigError):
        own_attestation_policy(folder, NAMING)


def test_a_policy_of_its_own_that_anybody_may_write_is_refused(folder: SiteFolder) -> None:
    path = folder.root / "attestation.toml"
    path.write_text("")
    path.chmod(0o666)
    with pytest.raises(ConfigError):
        own_attestation_policy(folder, NAMING)
