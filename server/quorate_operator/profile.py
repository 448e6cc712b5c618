"""The operator's credential: a folder that the server's administrator handed over."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from cryptography import x509
from pydantic import BaseModel, ConfigDict, ValidationError

from quorate.errors import CertificateExpiredError, ConfigError
from quorate.study.study import Name

_RENEW = "Have the server's administrator issue a new one: `quorate-server operator add NAME`"


class _ProfileFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["quorate.profile/1"]
    consortium: Name
    address: str
    operator: Name


@dataclass(frozen=True, slots=True)
class Profile:
    """Which server to call, and as whom."""

    consortium: str
    address: str
    operator: str
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)

    @classmethod
    def load(cls, folder: Path, now: float) -> Self:
        """Read a credential folder.

        Raises:
            ConfigError: not whole, or others may read its key. CertificateExpiredError: raised here, because the
                server's handshake would only hang up.
        """
        try:
            settings = _ProfileFile.model_validate_json((folder / "profile.json").read_bytes())
            ca_pem = (folder / "ca.pem").read_bytes()
            certificate_pem = (folder / "operator.pem").read_bytes()
            key_pem = (folder / "operator.key").read_bytes()
            expires = x509.load_pem_x509_certificate(certificate_pem).not_valid_after_utc
        except (OSError, ValidationError, ValueError) as error:
            raise ConfigError(
                f"{folder} is not an operator's credential",
                expected="the files profile.json, ca.pem, operator.pem and operator.key, unchanged",
                got=f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else "",
                action=_RENEW,
            ) from error
        require_private(folder / "operator.key")
        if expires.timestamp() <= now:
            raise CertificateExpiredError(f"The credential in {folder} expired on {expires:%Y-%m-%d}", action=_RENEW)
        return cls(settings.consortium, settings.address, settings.operator, ca_pem, certificate_pem, key_pem)


def require_private(path: Path) -> None:
    """Raises ConfigError: others may read the file."""
    if path.stat().st_mode & 0o077:
        raise ConfigError(
            f"Others on this machine may read {path}", expected="mode 0600", action=f"Run `chmod 600 {path}`"
        )


def find_profile(named: Path | None, here: Path, home: Path) -> Path:
    """The credential folder to use: the one that was named, else the first that is there.

    Raises:
        ConfigError: there is none.
    """
    if named is not None:
        return named
    places = (here / "operator", home / ".config" / "quorate" / "operator")
    for place in places:
        if (place / "profile.json").is_file():
            return place
    raise ConfigError(
        "There is no operator's credential here",
        expected=f"one in {' or '.join(str(place) for place in places)}",
        action="Name its folder with --profile or QUORATE_PROFILE",
    )
