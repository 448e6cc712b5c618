"""What a site demands of evidence, kind by kind. A kind without a section is refused; so is all where a list is empty.

There is no "any": which software may run is named by its measurements. Debugging and migration are off always and have
no key here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Literal, Self, TypeVar

import rfc8785
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, model_validator

from quorate.attestation.evidence import Kind

_CONTEXT = b"quorate/attestation-policy/v1\x00"
_ZERO_32, _ZERO_48 = "00" * 32, "00" * 48
Hex32 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Hex48 = Annotated[str, Field(pattern="^[0-9a-f]{96}$")]
Hex64 = Annotated[str, Field(pattern="^[0-9a-f]{128}$")]
Svn = Annotated[int, Field(ge=0, le=255)]
TcbStatus = Literal["UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"]
Product = Literal["Milan", "Genoa", "Turin"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Allowed(_Section):
    """One version of the software that may run in the machine."""

    name: str = Field(min_length=1, max_length=100, description="what people call this version")
    until: date | None = Field(
        default=None, description="last day (UTC) on which it may run; of several versions all but one need it"
    )

    @property
    def registers(self) -> dict[str, str]:
        """What has to be measured, by register."""
        return self.model_dump(exclude={"name", "until"})

    def is_open(self, now: datetime) -> bool:
        return self.until is None or now.astimezone(UTC).date() <= self.until


Versions = TypeVar("Versions", bound=Sequence[Allowed])


def _one_may_stay(allow: Versions) -> Versions:
    staying = [version.name for version in allow if version.until is None]
    if len(staying) > 1:
        raise ValueError(f"{' and '.join(staying)} are allowed for ever; the older of them needs a last day: until")
    return allow


_ONE_MAY_STAY = AfterValidator(_one_may_stay)


class TdxVersion(Allowed):
    """Registers of a trust domain (Intel TDX module 1.5 ABI, TDINFO_STRUCT)."""

    mrtd: Hex48 = Field(description="initial memory: the firmware; hex")
    rtmr0: Hex48 = Field(description="the firmware's configuration; hex")
    rtmr1: Hex48 = Field(description="boot loader and kernel; hex")
    rtmr2: Hex48 = Field(description="kernel command line and initial file system; hex")
    rtmr3: Hex48 = Field(default=_ZERO_48, description="what the software measures itself; hex")
    mrconfigid: Hex48 = Field(default=_ZERO_48, description="configuration that the host gives; hex")
    mrowner: Hex48 = Field(default=_ZERO_48, description="owner that the host names; hex")
    mrownerconfig: Hex48 = Field(default=_ZERO_48, description="configuration that the owner gives; hex")


class SnpVersion(Allowed):
    """What is measured of a guest (AMD 56860, table 23)."""

    measurement: Hex48 = Field(description="launch digest: firmware, kernel, initial file system, command line; hex")
    host_data: Hex32 = Field(default=_ZERO_32, description="what the host gave at launch; hex")


class ConfidentialSpaceVersion(Allowed):
    """The container that Confidential Space started."""

    image_digest: str = Field(pattern="^sha256:[0-9a-f]{64}$", description="digest of the container's image")


class NitroVersion(Allowed):
    """Registers of an enclave (AWS, *Cryptographic attestation*, table of PCRs)."""

    pcr0: Hex48 = Field(description="the image file; hex")
    pcr1: Hex48 = Field(description="kernel and initial file system; hex")
    pcr2: Hex48 = Field(description="the application; hex")


class TdxPolicy(_Section):
    """Quotes of Intel TDX, with collateral of Intel."""

    allow: Annotated[tuple[TdxVersion, ...], _ONE_MAY_STAY] = Field(max_length=8, description="software that may run")
    tcb_statuses: Annotated[frozenset[TcbStatus], PlainSerializer(sorted, return_type=list[str])] = Field(
        default=frozenset({"UpToDate"}), description="what Intel may say of the machine's firmware and microcode"
    )
    least_evaluation_data_number: int = Field(
        ge=1, description="least tcbEvaluationDataNumber of the collateral; raise it when Intel publishes a recovery"
    )
    dynamic_platform: bool = Field(
        default=True, description="allow machines to which a processor may be added, as all with two sockets are"
    )
    cached_keys: bool = Field(
        default=True, description="allow machines whose keys Intel keeps, as all with two sockets are"
    )
    smt: bool = Field(default=True, description="allow two threads on a core")


class LeastTcb(_Section):
    """Least versions of the parts of a SEV-SNP machine, by product: Genoa or Turin. One that is not named is refused.
    Milan can be named: its reports have been forged by software alone.
    """

    fmc: Svn = Field(default=0, description="of Turin's FMC; earlier processors have none")
    bootloader: Svn = Field(description="of the secure processor's boot loader")
    tee: Svn = Field(description="of the secure processor's operating system")
    snp: Svn = Field(description="of the SNP firmware")
    microcode: Svn = Field(description="of the microcode")


class SnpPolicy(_Section):
    """Reports of AMD SEV-SNP, with the VCEK certificate of the chip."""

    allow: Annotated[tuple[SnpVersion, ...], _ONE_MAY_STAY] = Field(max_length=8, description="software that may run")
    least_tcb: dict[Product, LeastTcb] = Field(
        description="least versions by product, Genoa or Turin; one that is not named is refused"
    )
    chips: tuple[Hex64, ...] | None = Field(
        default=None, max_length=1000, description="chips that may be used, by id in hex; absent: not looked at"
    )


class ConfidentialSpacePolicy(_Section):
    """Tokens of Google's Confidential Space on Intel TDX. Google verifies the hardware, and is believed."""

    allow: Annotated[tuple[ConfidentialSpaceVersion, ...], _ONE_MAY_STAY] = Field(
        max_length=8, description="software that may run"
    )
    audience: str = Field(
        default="quorate", min_length=1, max_length=512, description="for whom the token has to be made"
    )
    projects: tuple[str, ...] | None = Field(
        default=None, max_length=100, description="Google Cloud projects, by id; absent: not looked at"
    )
    service_accounts: tuple[str, ...] | None = Field(
        default=None, max_length=100, description="service accounts that may run it; absent: not looked at"
    )


class NitroPolicy(_Section):
    """Documents of AWS Nitro Enclaves. Amazon makes the hardware and runs it, and is believed."""

    allow: Annotated[tuple[NitroVersion, ...], _ONE_MAY_STAY] = Field(max_length=8, description="software that may run")


class SoftwarePolicy(_Section):
    """Evidence of a program without any machine behind it. For development."""

    keys: tuple[Hex32, ...] = Field(max_length=8, description="Ed25519 public keys that may make it; hex")


@dataclass(frozen=True, slots=True)
class Version:
    """One thing that a policy allows, for people: software by its name and its last day, or a key of a program."""

    kind: Kind
    name: str
    until: date | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}" + (f", until {self.until} (UTC)" if self.until is not None else "")


class AttestationPolicy(_Section):
    """What this site demands of an attested machine."""

    environment: Literal["production", "development"] = Field(
        default="production", description="evidence made by software counts in development only, and only for its keys"
    )
    oldest_evidence_s: float = Field(
        default=300.0, gt=0, le=86_400, allow_inf_nan=False, description="greatest age of evidence, in seconds"
    )
    tdx: TdxPolicy | None = None
    sev_snp: SnpPolicy | None = None
    confidential_space: ConfidentialSpacePolicy | None = None
    nitro: NitroPolicy | None = None
    software: SoftwarePolicy | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.software is not None and self.environment != "development":
            raise ValueError('[software] needs environment = "development": such evidence proves nothing')
        return self

    def digest(self) -> bytes:
        """SHA-256 over all of it, defaults included: what an audit names the policy by."""
        return hashlib.sha256(_CONTEXT + rfc8785.dumps(self.model_dump(mode="json", exclude_none=True))).digest()

    def versions(self) -> Iterator[Version]:
        """Everything that it allows, kind by kind."""
        for kind in self.kinds:
            allow: tuple[Allowed, ...] = getattr(getattr(self, kind.section), "allow", ())
            yield from (Version(kind, one.name, one.until) for one in allow)
        for key in self.software.keys if self.software is not None else ():
            yield Version(Kind.SOFTWARE, f"key {key}")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Which kinds have a section."""
        return tuple(kind for kind in Kind if getattr(self, kind.section) is not None)


def matching(allow: Sequence[Allowed], measured: Mapping[str, str], now: datetime) -> Allowed | None:
    """The first version whose registers are all as measured and whose last day is not over."""
    return next(
        (
            version
            for version in allow
            if version.is_open(now) and all(measured.get(name) == value for name, value in version.registers.items())
        ),
        None,
    )
