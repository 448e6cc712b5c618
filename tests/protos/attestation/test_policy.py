"""What an attestation policy may say, and how a wrong one is refused."""

from __future__ import annotations

import tomllib

import pytest
from pydantic import ValidationError

from quorate.attestation.evidence import Kind
from quorate.attestation.policy import AttestationPolicy

ZERO = "00" * 48
NITRO = f'[[nitro.allow]]\nname = "{{}}"\npcr0 = "{ZERO}"\npcr1 = "{ZERO}"\npcr2 = "{ZERO}"\n'


def read(text: str) -> AttestationPolicy:
    return AttestationPolicy.model_validate(tomllib.loads(text))


def test_an_empty_policy_allows_no_kind() -> None:
    assert read("").kinds == ()
    assert read("").oldest_evidence_s == 300
    assert read("").environment == "production"


def test_all_kinds_can_be_named() -> None:
    policy = read(
        'environment = "development"\n'
        "[tdx]\nallow = []\nleast_evaluation_data_number = 17\n"
        "[sev_snp]\nallow = []\n[sev_snp.least_tcb.Genoa]\nbootloader = 1\ntee = 0\nsnp = 20\nmicrocode = 80\n"
        "[confidential_space]\nallow = []\n[nitro]\nallow = []\n[software]\nkeys = []\n"
    )
    assert policy.kinds == tuple(Kind)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("debug = true", "Extra inputs are not permitted"),
        ("[nitro]\nallow = []\ndebug = true", "Extra inputs are not permitted"),
        ("[nitro]", "Field required"),
        ('[nitro]\nallow = "any"', "valid tuple"),
        ("[tdx]\nallow = []", "Field required"),
        ("[tdx]\nallow = []\nleast_evaluation_data_number = 0", "greater than or equal to 1"),
        ('[tdx]\nallow = []\nleast_evaluation_data_number = 17\ntcb_statuses = ["OutOfDate"]', "Input should be"),
        ('[tdx]\nallow = []\nleast_evaluation_data_number = 17\ntcb_statuses = ["Revoked"]', "Input should be"),
        ("[sev_snp]\nallow = []", "Field required"),
        ("[sev_snp]\nallow = []\n[sev_snp.least_tcb.Rome]\nbootloader = 1", "Input should be"),
        ("[sev_snp]\nallow = []\n[sev_snp.least_tcb.Genoa]\nbootloader = 1", "Field required"),
        ('[sev_snp]\nallow = []\nleast_tcb = {}\nchips = ["AB"]', "String should match"),
        ('[[nitro.allow]]\nname = "one"\npcr0 = "00"\npcr1 = "00"\npcr2 = "00"', "String should match"),
        (f'[[nitro.allow]]\nname = "one"\npcr0 = "{ZERO}"\npcr1 = "{ZERO}"', "Field required"),
        ('[confidential_space]\n[[confidential_space.allow]]\nname = "one"\nimage_digest = "latest"', "match"),
        (NITRO.format("one") + NITRO.format("two"), "one and two are allowed for ever"),
        ("oldest_evidence_s = 0", "greater than 0"),
        ("oldest_evidence_s = inf", "finite"),
        ('environment = "test"', "Input should be"),
        ("[software]\nkeys = []", 'needs environment = "development"'),
        ('environment = "development"\n[software]\nkeys = ["11"]', "String should match"),
    ],
)
def test_a_wrong_policy_is_refused_and_says_why(text: str, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        read(text)


def test_two_versions_may_stand_side_by_side_if_one_has_a_last_day() -> None:
    policy = read(NITRO.format("one") + "until = 2026-12-31\n" + NITRO.format("two"))
    assert policy.nitro is not None
    assert [version.name for version in policy.nitro.allow] == ["one", "two"]


def test_the_digest_is_of_what_a_policy_says_and_not_of_how_it_is_written() -> None:
    text = '[tdx]\nallow = []\nleast_evaluation_data_number = 17\ntcb_statuses = ["UpToDate", "SWHardeningNeeded"]\n'
    other = text.replace('"UpToDate", "SWHardeningNeeded"', '"SWHardeningNeeded", "UpToDate"')
    assert read(text).digest() == read("oldest_evidence_s = 300.0\n" + other).digest()
    assert read(text).digest() != read("oldest_evidence_s = 301\n" + text).digest()
    assert read(text).digest() != read(text.replace("17", "18")).digest()
    assert read("").digest().hex()[:32] == "88c94521552a1337496b7e85af640796"
