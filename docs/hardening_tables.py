"""What reviewers of a hospital ask for in figures, read from the units, the configurations and the code."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import quorate_server
from quorate_client.site.config import Config
from quorate_server.consortium.ca import AUTHORITY_DAYS, OPERATOR_DAYS, SERVER_DAYS
from quorate_server.consortium.config import ServerConfig

ROOT = Path(quorate_server.__file__).parents[2]  # the checkout whose code this describes
UNITS = ROOT / "deploy" / "systemd"
DAEMONS = ("quorate-server.service", "quorate-client.service")
_NOT_HARDENING = re.compile(
    r"Description|Documentation|Wants|After|Environment|EnvironmentFile|ExecStart|WantedBy|Type"
)

Row = tuple[str, ...]


def ports() -> Iterator[Row]:
    """Every port that is listened at, and every connection that is opened."""
    server, site = ServerConfig.model_fields, Config.model_fields
    yield "server", "listens", f"`{server['listen'].default}`", "sites and operators, mutual TLS", "`listen`"
    yield "server", "listens", f"`{server['metrics_listen'].default}`", "monitoring, plain HTTP", "`metrics_listen`"
    yield "server", "calls", "none", "PostgreSQL, only if it is set", "`database_url`"
    yield "site", "listens", f"`{site['metrics_listen'].default}`", "monitoring, plain HTTP", "`metrics_listen`"
    yield "site", "calls", "the server's `address`", "the server, mutual TLS; through `proxy` if it is set", "`address`"
    yield "operator", "calls", "the server's `address`", "the server, mutual TLS", "the credential's `profile.json`"


def lifetimes() -> Iterator[Row]:
    """How long each certificate is valid."""
    settings = ServerConfig.model_fields
    yield "authority", f"{AUTHORITY_DAYS} days", "cannot be renewed: the consortium is founded anew"
    yield "server", f"{SERVER_DAYS} days", "by itself"
    yield (
        "site",
        f"{settings['certificate_days'].default} days (`certificate_days`)",
        "by itself, a third before the end",
    )
    yield "operator", f"{OPERATOR_DAYS} days", "`quorate-server operator add`"
    yield "invitation", f"{settings['invitation_days'].default} days (`invitation_days`), once", "never"


def folders() -> Iterator[Row]:
    """What is made on a machine, with whose it is."""
    for line in (UNITS / "quorate.tmpfiles").read_text(encoding="utf-8").splitlines():
        if line.startswith("d "):
            _, path, mode, user, group, _ = line.split()
            yield f"`{path}`", mode, f"`{user}:{group}`"


def restrictions() -> Iterator[Row]:
    """Each line of the daemons' units that confines, side by side."""
    sides = [dict(_lines(UNITS / name)) for name in DAEMONS]
    for key in sorted(set().union(*sides)):
        yield f"`{key}`", *(f"`{side[key]}`" if key in side else "–" for side in sides)


def packages() -> Iterator[Row]:
    """What each program needs directly; the bundle's list of materials has all that follows from it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base, extras = project["dependencies"], project["optional-dependencies"]
    for role, more in (("operator", []), *((role, extras[role]) for role in ("server", "site", "aggregator"))):
        names = sorted(re.split(r"[\[<>=~ ]", text)[0] for text in base + more)
        yield role, str(len(names)), ", ".join(names)


def _lines(unit: Path) -> Iterator[tuple[str, str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#") and not _NOT_HARDENING.fullmatch(key):
            found.setdefault(key, []).append(value or "(none)")
    return ((key, "; ".join(values)) for key, values in found.items())
