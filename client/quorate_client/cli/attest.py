"""Commands about evidence of attested machines: what it says, and whether it is enough."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from quorate.attestation.appraisal import TESTED, Appraisal, Check
from quorate.attestation.appraise import examine
from quorate.attestation.binding import Expected
from quorate.attestation.evidence import Evidence, Kind
from quorate.attestation.evidence_file import MAX_FILE_BYTES, read_evidence_file
from quorate.attestation.policy import (
    Allowed,
    AttestationPolicy,
    ConfidentialSpacePolicy,
    LeastTcb,
    NitroPolicy,
    SnpPolicy,
    TdxPolicy,
)
from quorate.errors import ConfigError, InputError
from quorate_client.cli import attest_records
from quorate_client.cli.output import JsonOption, cell, moment, out, say, show_json, table
from quorate_client.site.config import parse_toml

app = typer.Typer(help="What attested machines show of themselves, and whether it is enough.", no_args_is_help=True)
policy_app = typer.Typer(help="What this site demands of attested machines.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")
app.command("list")(attest_records.records)
app.command()(attest_records.replay)

_ALL_VERSIONS = LeastTcb(bootloader=0, tee=0, snp=0, microcode=0)
NAMES_NO_SOFTWARE = AttestationPolicy(
    tdx=TdxPolicy(
        allow=(),
        tcb_statuses=frozenset(
            {"UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"}
        ),
        least_evaluation_data_number=1,
    ),
    sev_snp=SnpPolicy(allow=(), least_tcb=dict.fromkeys(("Milan", "Genoa", "Turin"), _ALL_VERSIONS)),
    confidential_space=ConfidentialSpacePolicy(allow=()),
    nitro=NitroPolicy(allow=()),
)
"""To look at evidence with: as wide as a policy can be, and refuses all the same."""

FileArgument = Annotated[
    Path,
    typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="An evidence file, or with --kind raw bytes."),
]
KindOption = Annotated[
    Kind | None, typer.Option("--kind", help="FILE is what a machine made itself, of this kind.", show_default=False)
]
CollateralOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="What the vendor signed beside it, for --kind tdx and sev-snp.",
    ),
]
BindingOption = Annotated[
    str | None, typer.Option(metavar="HEX", help="What it has to be bound to, 128 hex digits, for --kind.")
]
AtOption = Annotated[
    datetime | None,
    typer.Option(
        metavar="TIME",
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"],
        help="At which time (UTC) to look at it; now, if it is not given.",
        show_default=False,
    ),
]
PolicyOption = Annotated[
    Path, typer.Option("--policy", metavar="FILE", exists=True, dir_okay=False, help="The attestation policy, TOML.")
]
PolicyOrNoneOption = Annotated[
    Path | None,
    typer.Option("--policy", metavar="FILE", exists=True, dir_okay=False, help="Hold it against this policy, too."),
]


@app.command()
def verify(
    file: FileArgument,
    policy: PolicyOption,
    kind: KindOption = None,
    collateral: CollateralOption = None,
    binding: BindingOption = None,
    at: AtOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold evidence against a policy. Exits with 3 if it is refused, and says with which code."""
    now = _moment(at)
    evidence, expected = _read(file, kind, collateral, binding, now)
    if expected is None:
        raise InputError(
            "What the evidence has to be bound to is not known",
            expected="--binding",
            action="`quorate-client attest explain` shows evidence without a question",
        )
    found = examine(evidence, expected, read_attestation_policy(policy), now)
    if as_json:
        show_json(_as_json(found))
    elif found.claims is not None and found.refusal is None:
        _say_software(found)
        say(
            f"Accepted: {found.claims.hardware}, running {found.version or 'what the policy names by its key'}.",
            "green",
        )
        say(f"It {found.remark}." if found.kind is not Kind.SOFTWARE else found.remark)
        say(TESTED)
    if found.refusal is not None:
        raise found.refusal


@app.command()
def explain(
    file: FileArgument,
    policy: PolicyOrNoneOption = None,
    kind: KindOption = None,
    collateral: CollateralOption = None,
    binding: BindingOption = None,
    at: AtOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show evidence in words: which hardware, which software, how old, and each check with its result."""
    now = _moment(at)
    evidence, expected = _read(file, kind, collateral, binding, now)
    used = read_attestation_policy(policy) if policy is not None else NAMES_NO_SOFTWARE
    found = examine(evidence, expected, used, now)
    if as_json:
        show_json(_as_json(found))
        return
    _say_software(found)
    _print(found)
    if policy is None:
        say("No policy was given, so no software is allowed: name one with --policy.", "yellow")
    say(f"Evidence of this kind {found.remark}." if found.kind is not Kind.SOFTWARE else "", "bold")
    say(TESTED)


@policy_app.command("check")
def check_policy(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The policy, TOML.")],
    at: AtOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an attestation policy allows, and what in it lets nothing through. Exits with 2 if it is wrong."""
    policy, now = read_attestation_policy(file), _moment(at)
    if as_json:
        show_json({"digest": policy.digest().hex(), "policy": policy.model_dump(mode="json", exclude_none=True)})
        return
    rows = table("kind", "software", "until", "")
    for kind in policy.kinds:
        for version in _allowed(policy, kind):
            verdict = cell("allowed", "green") if version.is_open(now) else cell("its day is over", "bold red")
            rows.add_row(cell(kind), cell(version.name), cell(str(version.until or "-")), verdict)
    for key in policy.software.keys if policy.software is not None else ():
        rows.add_row(
            cell(Kind.SOFTWARE, "bold red"), cell(f"key {key}"), cell("-"), cell("development only", "bold red")
        )
    out().print(rows)
    if policy.environment == "development":
        say("This policy is for development: evidence made by software counts.", "bold red")
    for warning in _nothing_through(policy, now):
        say(warning, "yellow")
    say(f"Evidence may be {policy.oldest_evidence_s:g} s old. The policy's digest is {policy.digest().hex()}.")


def read_attestation_policy(path: Path) -> AttestationPolicy:
    """Raises ConfigError: naming the file, each wrong key and what was expected."""
    try:
        return parse_toml(path.read_text(encoding="utf-8"), path, AttestationPolicy)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text", expected="TOML in UTF-8") from error


def _nothing_through(policy: AttestationPolicy, now: datetime) -> list[str]:
    if not policy.kinds:
        return ["It has no section of any kind: all evidence is refused."]
    closed = [
        f"[{kind.section}] allows no software at this time: all its evidence is refused."
        for kind in policy.kinds
        if kind is not Kind.SOFTWARE and not any(version.is_open(now) for version in _allowed(policy, kind))
    ]
    if policy.software is not None and not policy.software.keys:
        closed.append("[software] names no key: all its evidence is refused.")
    if policy.sev_snp is not None and "Milan" in policy.sev_snp.least_tcb:
        closed.append("It allows Milan, whose reports have been forged by software alone.")
    return closed


def _allowed(policy: AttestationPolicy, kind: Kind) -> tuple[Allowed, ...]:
    return getattr(getattr(policy, kind.section), "allow", ())


def _moment(at: datetime | None) -> datetime:
    return at.replace(tzinfo=UTC) if at is not None else datetime.now(UTC)


def _read(
    file: Path, kind: Kind | None, collateral: Path | None, binding: str | None, now: datetime
) -> tuple[Evidence, Expected | None]:
    content = _bounded(file)
    if kind is None:
        if collateral is not None or binding is not None:
            raise InputError("--collateral and --binding go with --kind", action="An evidence file has them within")
        return read_evidence_file(content)
    evidence = Evidence(kind, content, _bounded(collateral) if collateral is not None else b"")
    if binding is None:
        return evidence, None
    try:
        return evidence, Expected(bytes.fromhex(binding), now)
    except ValueError as error:
        raise InputError("The binding is malformed", expected="128 hex digits", got=binding[:80]) from error


def _bounded(path: Path) -> bytes:
    with path.open("rb") as opened:
        content = opened.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"{path} is too large", expected=f"at most {MAX_FILE_BYTES} bytes")
    return content


def _say_software(found: Appraisal) -> None:
    if found.kind is Kind.SOFTWARE:
        say(found.remark, "bold red")


def _print(found: Appraisal) -> None:
    rows = table("", "", title=f"Evidence of the kind {found.kind}, looked at {moment(found.appraised_at.timestamp())}")
    if found.claims is not None:
        hardware = found.claims.hardware
        rows.add_row("hardware", cell(hardware, "bold red") if found.kind is Kind.SOFTWARE else cell(hardware))
        rows.add_row("firmware", cell(found.claims.tcb))
        rows.add_row("software", cell(found.version or "none that the policy names"))
        for name, value in found.claims.measured.items():
            rows.add_row(cell(f"  {name}"), cell(value))
        rows.add_row("made", cell(_age(found)))
    for check in found.checks:
        rows.add_row(cell("holds", "green") if check.holds else cell("REFUSED", "bold red"), _in_words(check))
    out().print(rows)
    if found.refusal is None:
        say("Accepted: everything holds.", "bold green")
    else:
        say(f"Refused with the code {found.code}.", "bold red")


def _in_words(check: Check) -> Text:
    if check.holds:
        return cell(check.name)
    more = ", ".join(
        f"{word} {value}" for word, value in (("expected", check.expected), ("got", check.got)) if value != ""
    )
    return cell(f"{check.name} [{check.refusal.code}]" + (f": {more}" if more else ""))


def _age(found: Appraisal) -> str:
    made_at = found.claims.made_at if found.claims is not None else None
    if made_at is None:
        return "after the question: this kind has no clock of its own"
    age_s = (found.appraised_at - made_at).total_seconds()
    return f"{moment(made_at.timestamp())}, {age_s:.0f} s before"


def _as_json(found: Appraisal) -> dict[str, Any]:
    claims = found.claims
    return {
        "kind": found.kind,
        "accepted": found.refusal is None,
        "code": found.code,
        "appraised_at": found.appraised_at.isoformat(),
        "hardware": claims.hardware if claims is not None else "",
        "measured": dict(claims.measured) if claims is not None else {},
        "tcb": claims.tcb if claims is not None else "",
        "made_at": claims.made_at.isoformat() if claims is not None and claims.made_at is not None else None,
        "version": found.version,
        "checks": [
            {
                "check": check.name,
                "holds": check.holds,
                "code": "" if check.holds else check.refusal.code,
                "expected": check.expected,
                "got": check.got,
            }
            for check in found.checks
        ],
        "policy_digest": found.policy_digest.hex(),
        "endorsements_digest": found.endorsements_digest.hex(),
        "remarks": [found.remark, TESTED],
    }
