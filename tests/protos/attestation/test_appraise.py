"""What decides for all kinds: the policy's sections, the binding, the age, the software that it names."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.attestation.appraisal import SOFTWARE
from quorate.attestation.appraise import appraise, examine, is_of_a_parser
from quorate.attestation.binding import Expected
from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.kinds.software import software_evidence
from quorate.attestation.policy import AttestationPolicy, NitroPolicy, NitroVersion, SoftwarePolicy
from quorate.errors import AttestationError, BindingMismatchError, InputError, error_classes

from .authorities import BINDING, EXPECTED, NOW, Amazon

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
DEVELOPMENT = AttestationPolicy(
    environment="development", software=SoftwarePolicy(keys=(KEY.public_key().public_bytes_raw().hex(),))
)
PRODUCTION = AttestationPolicy(nitro=NitroPolicy(allow=()))
GOOD = software_evidence(KEY, BINDING, b"\x05" * 32, NOW)


@pytest.fixture(scope="module")
def amazon() -> Amazon:
    return Amazon()


def version(name: str, first: str = "01", until: date | None = None) -> NitroVersion:
    return NitroVersion(name=name, pcr0=first * 48, pcr1="02" * 48, pcr2="03" * 48, until=until)


def test_what_holds_is_accepted_with_what_was_measured_and_what_it_was_held_against() -> None:
    found = appraise(GOOD, EXPECTED, DEVELOPMENT, NOW)
    assert found.claims is not None
    assert found.claims.measured == {"code": "05" * 32}
    assert found.policy_digest == DEVELOPMENT.digest()
    assert found.endorsements_digest == GOOD.endorsements_digest
    assert found.remark == SOFTWARE
    assert found.code == ""


def test_evidence_made_by_software_counts_in_development_only_whatever_else_the_policy_says() -> None:
    assert examine(GOOD, EXPECTED, PRODUCTION, NOW).code == "software_evidence_forbidden"
    assert examine(GOOD, EXPECTED, AttestationPolicy(environment="development"), NOW).code == "attestation_kind"
    # A value that was not read from a file could hold both.
    both = DEVELOPMENT.model_copy(update={"environment": "production"})
    assert examine(GOOD, EXPECTED, both, NOW).code == "software_evidence_forbidden"


@pytest.mark.parametrize("keys", [(), ("11" * 32,)])
def test_evidence_made_by_software_needs_a_key_that_the_policy_names(keys: tuple[str, ...]) -> None:
    policy = AttestationPolicy(environment="development", software=SoftwarePolicy(keys=keys))
    assert examine(GOOD, EXPECTED, policy, NOW).code == "attestation_key_unknown"


def test_every_byte_of_evidence_made_by_software_counts() -> None:
    for at in range(len(GOOD.raw)):
        raw = bytearray(GOOD.raw)
        raw[at] ^= 0x80
        found = examine(Evidence(Kind.SOFTWARE, bytes(raw)), EXPECTED, DEVELOPMENT, NOW)
        assert found.claims is None, at
        assert found.refusal is not None, at


@pytest.mark.parametrize(
    "evidence", [Evidence(Kind.SOFTWARE, GOOD.raw + b"\0"), Evidence(Kind.SOFTWARE, GOOD.raw, b"x")]
)
def test_nothing_may_be_behind_or_beside_evidence_made_by_software(evidence: Evidence) -> None:
    assert examine(evidence, EXPECTED, DEVELOPMENT, NOW).code == "attestation_kind"


def test_a_kind_without_a_section_is_refused_and_no_other_kind_is_tried(amazon: Amazon) -> None:
    found = examine(amazon.evidence(), EXPECTED, DEVELOPMENT, NOW, amazon.roots)
    assert found.code == "attestation_kind"
    as_software = Evidence(Kind.SOFTWARE, amazon.evidence().raw)
    assert examine(as_software, EXPECTED, DEVELOPMENT, NOW, amazon.roots).code == "attestation_kind"


@pytest.mark.parametrize("at", [0, 31, 63])
def test_evidence_that_is_bound_to_something_else_is_refused(amazon: Amazon, at: int) -> None:
    other = bytearray(BINDING)
    other[at] ^= 1
    for evidence, policy in (
        (GOOD, DEVELOPMENT),
        (amazon.evidence(), AttestationPolicy(nitro=NitroPolicy(allow=(version("one"),)))),
    ):
        found = examine(evidence, Expected(bytes(other), NOW), policy, NOW, amazon.roots)
        assert found.code == "attestation_binding"
    with pytest.raises(BindingMismatchError):
        appraise(GOOD, Expected(bytes(other), NOW), DEVELOPMENT, NOW)


def test_where_nobody_knows_what_was_asked_it_is_refused() -> None:
    assert examine(GOOD, None, DEVELOPMENT, NOW).code == "attestation_binding"


@pytest.mark.parametrize(
    ("asked_s", "made_s", "code"),
    [
        (0, 0, ""),
        (-300, -300, ""),
        (-301, 0, "attestation_stale"),
        (1, 0, "attestation_stale"),
        (0, -301, "attestation_stale"),
        (0, 60, ""),
        (0, 61, "attestation_stale"),
    ],
)
def test_evidence_is_as_old_as_its_question_and_its_own_clock_say(asked_s: int, made_s: int, code: str) -> None:
    made = software_evidence(KEY, BINDING, bytes(32), NOW + timedelta(seconds=made_s))
    asked = Expected(BINDING, NOW + timedelta(seconds=asked_s))
    assert examine(made, asked, DEVELOPMENT, NOW).code == code


def test_the_oldest_evidence_is_the_policys() -> None:
    policy = DEVELOPMENT.model_copy(update={"oldest_evidence_s": 10.0})
    assert examine(GOOD, EXPECTED, policy, NOW + timedelta(seconds=10)).code == ""
    assert examine(GOOD, EXPECTED, policy, NOW + timedelta(seconds=11)).code == "attestation_stale"


def test_a_policy_that_names_no_software_refuses_all(amazon: Amazon) -> None:
    found = examine(amazon.evidence(), EXPECTED, PRODUCTION, NOW, amazon.roots)
    assert found.code == "attestation_measurement"


@pytest.mark.parametrize(
    ("allow", "accepted"),
    [
        ((version("old", until=date(2026, 12, 1)), version("new", "09")), "old"),
        ((version("old", until=date(2026, 11, 30)), version("new", "09")), ""),
        ((version("old", "09", until=date(2026, 11, 30)), version("new")), "new"),
        ((version("old", "09"),), ""),
    ],
)
def test_during_an_upgrade_two_versions_may_run_until_the_older_ones_day_is_over(
    amazon: Amazon, allow: tuple[NitroVersion, ...], accepted: str
) -> None:
    policy = AttestationPolicy(nitro=NitroPolicy(allow=allow))
    found = examine(amazon.evidence(), EXPECTED, policy, NOW, amazon.roots)
    assert found.version == accepted
    assert found.code == ("" if accepted else "attestation_measurement")


def test_a_last_day_ends_at_midnight_utc_wherever_the_site_is() -> None:
    old = version("old", until=date(2026, 12, 1))
    midnight = datetime(2026, 12, 2, tzinfo=UTC)
    assert old.is_open(midnight - timedelta(seconds=1))
    assert not old.is_open(midnight.astimezone(timezone(-timedelta(hours=5))))  # where it is still the day before


def test_a_time_without_a_zone_is_refused() -> None:
    naive = NOW.replace(tzinfo=None)
    with pytest.raises(InputError, match="no zone"):
        examine(GOOD, EXPECTED, DEVELOPMENT, naive)
    with pytest.raises(InputError, match="no zone"):
        Expected(BINDING, naive)


def test_all_checks_are_shown_and_the_first_that_does_not_hold_names_the_refusal(amazon: Amazon) -> None:
    late = Expected(BINDING[::-1], NOW - timedelta(seconds=999))
    found = examine(amazon.evidence(), late, PRODUCTION, NOW, amazon.roots)
    codes = [check.refusal.code for check in found.checks if not check.holds]
    assert codes == ["attestation_measurement", "attestation_binding", "attestation_stale"]
    assert found.code == codes[0]


def test_a_library_that_panics_refuses_and_a_person_who_interrupts_interrupts() -> None:
    class PanicException(BaseException):
        """As pyo3 calls it."""

    assert is_of_a_parser(PanicException())
    assert is_of_a_parser(RecursionError())
    assert not is_of_a_parser(KeyboardInterrupt())
    assert not is_of_a_parser(SystemExit())


def test_the_codes_are_a_closed_set() -> None:
    codes = {code for code, cls in error_classes().items() if issubclass(cls, AttestationError)}
    assert codes == {
        "not_attested", "attestation_kind", "attestation_signature", "attestation_expired", "attestation_collateral",
        "attestation_tcb", "attestation_debug", "attestation_measurement", "attestation_config", "attestation_binding",
        "attestation_stale", "attestation_wrong_run", "software_evidence_forbidden", "attestation_key_unknown",
        "attestation_unseal", "attestation_site_signature", "attestation_replay",
    }  # fmt: skip


def test_where_a_kinds_library_is_not_installed_its_evidence_is_refused() -> None:
    probe = """
import sys
from datetime import UTC, datetime
from quorate.attestation.appraise import examine
from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.policy import AttestationPolicy, NitroPolicy
sys.modules["cbor2"] = None
policy = AttestationPolicy(nitro=NitroPolicy(allow=()))
print(examine(Evidence(Kind.NITRO, b"x"), None, policy, datetime.now(UTC)).refusal)
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "cannot be read as nitro. Got ModuleNotFoundError" in done.stdout


def test_a_kinds_libraries_are_loaded_when_evidence_of_it_is_verified_and_not_before() -> None:
    probe = (
        "import sys, quorate.attestation.appraise, quorate.wire.attestation_messages;"
        "print(*sorted({'dcap_qvl', 'joserfc', 'cbor2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
