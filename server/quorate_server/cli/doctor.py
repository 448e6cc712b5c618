"""``quorate-server doctor``: what would keep this server from working, and what to do about it."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from quorate.errors import QuorateError
from quorate_server.cli.founding import open_registry
from quorate_server.consortium.ca import AUTHORITY_WARN_DAYS, DAY_S, FOUND_ANEW, SERVER_NAME, Authority
from quorate_server.consortium.config import ServerConfig, split_address
from quorate_server.storage.database import LAYOUT

_MIN_FREE_BYTES = 2 * 1024**3
_WARN_DAYS = 30
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    ok: bool
    detail: str
    action: str = ""


def examine(state_dir: Path, now: float) -> Iterator[Finding]:
    """Look at everything that can be looked at; what depends on something broken is left out."""
    try:
        config = ServerConfig.read(state_dir)
        yield Finding("configuration", True, str(state_dir))
        authority = Authority.load(config.ca_dir, config.consortium)
    except QuorateError as error:
        yield Finding("configuration and certificate authority", False, str(error))
        return
    yield _authority(authority, now)
    for check in (_database, _operators, _address, _listening, _disk):
        yield check(config, authority, now)


def _authority(authority: Authority, now: float) -> Finding:
    subject, days = "certificate authority", (authority.expires_unix_s - now) / DAY_S
    if now < authority.starts_unix_s:
        return Finding(subject, False, "by this machine's clock it is not valid yet", "Set the clock")
    if days <= 0:
        text = f"by this machine's clock it ended {-days:.1f} days ago, and nobody can connect"
        return Finding(subject, False, text, f"Check the clock; if it is right: {FOUND_ANEW}")
    if days < AUTHORITY_WARN_DAYS:
        return Finding(subject, False, f"{days:.0f} days left", f"Until then: {FOUND_ANEW}")
    return Finding(subject, True, f"{days:.0f} days left")


def _database(config: ServerConfig, authority: Authority, now: float) -> Finding:
    from quorate_server.storage.upgrade import pending_upgrade  # slow to load, and not needed by other commands

    try:
        todo = pending_upgrade(config.engine_url)
        if todo.steps:
            return Finding(
                "database",
                False,
                f"it is of layout {todo.found}, and this version's is {LAYOUT}: an upgrade is pending",
                "Start the server with this version, or run `quorate-server upgrade`",
            )
        with open_registry(config) as registry:
            sites = len(registry.sites())
    except QuorateError as error:
        return Finding("database", False, str(error))
    except SQLAlchemyError as error:
        return Finding(
            "database", False, type(error).__name__, "Check `database_url`, that the database runs, and the rights"
        )
    return Finding("database", True, f"{sites} sites, layout {LAYOUT}")


def _operators(config: ServerConfig, authority: Authority, now: float) -> Finding:
    try:
        with open_registry(config) as registry:
            operators = registry.operators()
    except (SQLAlchemyError, QuorateError):
        return Finding("operators", False, "unknown, without the database")
    valid = [record for record in operators if not record.revoked and record.expires_unix_s > now]
    if not valid:
        return Finding("operators", False, "no valid credential", "Issue one with `quorate-server operator add NAME`")
    days = (max(record.expires_unix_s for record in valid) - now) / DAY_S
    return Finding(
        "operators",
        days > _WARN_DAYS,
        f"{len(valid)} valid credentials, the longest for {days:.0f} days",
        "" if days > _WARN_DAYS else "Issue a new one with `quorate-server operator add NAME`",
    )


def _address(config: ServerConfig, authority: Authority, now: float) -> Finding:
    try:
        socket.getaddrinfo(*split_address(config.address))
    except OSError as error:
        return Finding(
            "public address",
            False,
            f"{config.address}: {error.strerror}",
            "Correct `address` in server.toml or the name server; new invitations carry this address",
        )
    return Finding("public address", True, config.address)


def _listening(config: ServerConfig, authority: Authority, now: float) -> Finding:
    """Whether the server answers, by a handshake of our own: gRPC shows a wrong certificate like a dead server."""
    host, port = split_address(config.listen)
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # read, not bound
    trust = ssl.create_default_context(cadata=authority.ca_pem.decode())
    try:
        with (
            socket.create_connection((local, port), _TIMEOUT_S) as plain,
            trust.wrap_socket(plain, server_hostname=SERVER_NAME),
        ):
            return Finding("door", True, f"the server answers at {config.listen}")
    except ConnectionRefusedError:
        return Finding("door", True, f"nothing answers at {config.listen}: the server is not running")
    except OSError as error:
        return Finding(
            "door",
            False,
            f"{config.listen}: {type(error).__name__}",
            "Something else listens there, or something on the way opens TLS: free the port or change `listen`",
        )


def _disk(config: ServerConfig, authority: Authority, now: float) -> Finding:
    free = shutil.disk_usage(config.state_dir).free
    return Finding(
        "disk",
        free > _MIN_FREE_BYTES,
        f"{free / 1024**3:.1f} GiB free for updates on their way",
        "" if free > _MIN_FREE_BYTES else "Free some space: a round needs the size of a model for each site",
    )
