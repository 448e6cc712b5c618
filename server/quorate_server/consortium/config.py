"""The server's configuration: one TOML file, ``server.toml`` in its state folder, read into one frozen value."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from quorate.errors import ConfigError, StudyError
from quorate.process.folder_lock import held
from quorate.process.private_files import write_new
from quorate.process.storage_errors import os_refusal
from quorate.study.study import Name, Study

CONFIG_NAME = "server.toml"
DATABASE_NAME = "server.sqlite"
LOCK_NAME = "server.lock"


def split_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; an IPv6 host stands in brackets.

    Raises:
        ValueError: it is not of that form.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be HOST:PORT with a port up to 65535")
    unfit = not host.isascii() or any(character.isspace() or character == "/" for character in host)
    if unfit or (":" in host and not bracketed):
        raise ValueError("must be HOST:PORT in ASCII, an IPv6 host in brackets, without a scheme")
    return host.strip("[]"), int(port)


def _check_address(text: str) -> str:
    if split_address(text)[1] == 0:
        raise ValueError("must name the port to connect to, not 0")
    return text


def _check_address_or_nothing(text: str) -> str:
    return _check_address(text) if text else text


def _check_listen(text: str) -> str:
    split_address(text)
    return text


def _check_listen_or_nothing(text: str) -> str:
    return _check_listen(text) if text else text


Address = Annotated[str, AfterValidator(_check_address)]
Listen = Annotated[str, AfterValidator(_check_listen)]
AddressOrNothing = Annotated[str, AfterValidator(_check_address_or_nothing)]
ListenOrNothing = Annotated[str, AfterValidator(_check_listen_or_nothing)]
AppReference = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class _Settings(BaseModel):
    """The keys of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    consortium: Name = Field(description="the consortium's name, part of every identity; fixed at the start")
    address: Address = Field(description="host and port as sites and operators reach them; goes into invitations")
    listen: Listen = Field(default="0.0.0.0:8443", description="host and port to listen at for sites and operators")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in the state folder")
    database_url_file: str = Field(default="", description="a file that holds the URL, in place of `database_url`")
    metrics_listen: ListenOrNothing = Field(default="127.0.0.1:9464", description="empty: no metrics endpoint")
    heartbeat_s: Seconds = Field(
        default=2.0, description="how often server and sites tell each other that they are there"
    )
    silent_after_s: Seconds = Field(default=6.0, description="a site that says nothing for so long counts as gone")
    upload_slots: int = Field(default=16, ge=1, le=1024, description="uploads at a time; others wait")
    most_runs: int = Field(
        default=32, ge=1, le=1024, description="runs at a time; each has a process of some hundred megabytes"
    )
    certificate_days: int = Field(
        default=30, ge=1, le=397, description="validity of certificates; sites renew their own"
    )
    invitation_days: int = Field(default=7, ge=1, le=90, description="how long an invitation can be redeemed")
    guest_apps: tuple[AppReference, ...] = Field(
        default=(), description="stock Flower ServerApps that a study may name; they run with the server's rights"
    )
    aggregator: AddressOrNothing = Field(
        default="",
        description="host and port of quorate-aggregator, the attested process that adds in studies with "
        "[attestation]; empty: such studies cannot be started here",
    )
    log_format: Literal["text", "json"] = Field(default="text", description="json: one object a line, for collectors")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least that is logged")


class ServerConfig(_Settings):
    """The settings together with the folder that they were read from. Valid once built."""

    state_dir: Path

    @classmethod
    def read(cls, state_dir: Path) -> Self:
        """Read ``server.toml``.

        Raises:
            ConfigError: naming the file, each wrong key and what was expected. StorageError: it is not this user's to
                read.
        """
        path = state_dir / CONFIG_NAME
        try:
            settings = _Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except PermissionError as error:
            raise os_refusal(error) from error
        except OSError as error:
            raise ConfigError(
                f"Cannot read the server's configuration {path}",
                got=error.strerror or "",
                action="Create a server with `quorate-server init`, or name its folder with --state",
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            action = "Correct it there and start the server again"
            raise ConfigError(
                f"The server's configuration {path} is not TOML", got=str(error), action=action
            ) from error
        except ValidationError as error:
            raise _config_error(path, error) from error
        if settings.silent_after_s <= settings.heartbeat_s:
            raise ConfigError(
                f"In {path}, silent_after_s must leave time for a heartbeat",
                expected=f"more than heartbeat_s, {settings.heartbeat_s}",
                got=f"{settings.silent_after_s}",
            )
        if settings.database_url_file:
            settings = settings.model_copy(update={"database_url": _url_in_file(path, settings)})
        return cls(state_dir=state_dir.resolve(), **settings.model_dump())

    @classmethod
    def create(cls, state_dir: Path, *, consortium: str, address: str, listen: str) -> Self:
        """Write the file of a new server and read it. Nothing is written when a value is wrong.

        Raises:
            AlreadyExistsError: there is one. ConfigError: naming each wrong value.
        """
        path = state_dir / CONFIG_NAME
        settings = {"consortium": consortium, "address": address, "listen": listen}
        try:
            _Settings.model_validate(settings)
        except ValidationError as error:
            raise _config_error(path, error) from error
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
        write_new(path, "".join(lines).encode())
        return cls.read(state_dir)

    def require_guest_allowed(self, study: Study) -> None:
        """A guest app runs at the server, so the administrator of this machine decides.

        Raises:
            StudyError: the study's app is not among ``guest_apps``.
        """
        if study.guest is not None and study.guest.server_app not in self.guest_apps:
            raise StudyError(
                f"This server does not run the Flower app {study.guest.server_app}",
                expected=f"one of {', '.join(self.guest_apps) or '(none is allowed)'}",
                action="Have the server's administrator install it and add it to `guest_apps` in server.toml",
            )

    def require_aggregator(self, study: Study) -> None:
        """Raises StudyError: the study's sums are to be added by an attested machine, and this server knows none."""
        if study.attestation is not None and not self.aggregator:
            raise StudyError(
                f"The study {study.name} demands an attested aggregator, and this server has none",
                expected="its address in `aggregator` in server.toml",
                action="Start quorate-aggregator in a trusted execution environment, set its address, and restart",
            )

    @property
    def engine_url(self) -> str:
        return self.database_url or f"sqlite:///{self.state_dir / DATABASE_NAME}"

    @property
    def public_host(self) -> str:
        """The host under which sites and operators know the server."""
        return split_address(self.address)[0]

    @property
    def ca_dir(self) -> Path:
        return self.state_dir / "ca"

    @property
    def spool_dir(self) -> Path:
        return self.state_dir / "spool"

    @property
    def runs_dir(self) -> Path:
        return self.state_dir / "runs"


@contextmanager
def held_by_server(config: ServerConfig) -> Iterator[None]:
    """Keep a second server, an upgrade and a restore out of the folder meanwhile.

    Raises:
        WrongStateError: a server runs on it.
    """
    with held(
        config.state_dir / LOCK_NAME,
        what=f"A server already runs on {config.state_dir}",
        action="Stop it first, or name another folder with --state",
    ):
        yield


def _url_in_file(path: Path, settings: _Settings) -> str:
    """The database's URL holds a password, so it may lie in a file that a service manager puts there."""
    if settings.database_url:
        raise ConfigError(f"{path} has both database_url and database_url_file", action="Leave one of them out")
    try:
        url = Path(settings.database_url_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Cannot read {settings.database_url_file}, which database_url_file in {path} names",
            got=getattr(error, "strerror", None) or "not text",
            action="Put the database's URL there, readable for the server's user",
        ) from error
    if not url:
        raise ConfigError(f"{settings.database_url_file} is empty", expected="a SQLAlchemy URL on one line")
    return url


def _config_error(path: Path, error: ValidationError) -> ConfigError:
    problems = []
    for problem in error.errors(include_url=False, include_context=False):
        key = ".".join(str(part) for part in problem["loc"])
        match problem["type"]:
            case "extra_forbidden":
                problems.append(f"{key}: not a key of this file")
            case "missing":
                problems.append(f"{key}: missing")
            case _:
                problems.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}")
    return ConfigError(
        f"The server's configuration {path} has {len(problems)} problem{'s' if len(problems) > 1 else ''}",
        expected=f"the keys {', '.join(_Settings.model_fields)}",
        got="; ".join(problems),
        action="Correct these keys and start the server again",
    )
