"""What the server's administrator does on the server itself: found a consortium, give operators their credentials."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quorate.errors import AlreadyExistsError
from quorate.identity import parse_name
from quorate.process.private_files import write_new
from quorate_server.consortium.ca import Authority, Credential
from quorate_server.consortium.config import CONFIG_NAME, DATABASE_NAME, ServerConfig
from quorate_server.consortium.registry import Registry
from quorate_server.storage.database import open_database

FIRST_OPERATOR = "operator"
PROFILE_FORMAT = "quorate.profile/1"


def found(state_dir: Path, *, consortium: str, address: str, listen: str, now: float) -> Path:
    """Make a server's state folder: configuration, certificate authority, database, the first operator's credential.

    Returns:
        The folder of that credential, to be handed over.

    Raises:
        AlreadyExistsError: there is a server in the folder. ConfigError: naming each wrong value. DiskFullError,
            StorageError, OSError: the machine does not let it. Nothing is left of it then.
    """
    for name in (CONFIG_NAME, "ca", DATABASE_NAME, FIRST_OPERATOR):
        if (state_dir / name).exists():
            raise AlreadyExistsError(
                f"{state_dir} holds a server's {name} already",
                action="Choose an empty folder; an existing consortium is never replaced",
            )
    from quorate_server.storage.upgrade import make_database  # not needed by the other commands, and slow

    folder = state_dir / FIRST_OPERATOR
    try:
        config = ServerConfig.create(state_dir, consortium=consortium, address=address, listen=listen)
        make_database(config.engine_url)
        Authority.create(config.ca_dir, consortium, now)
        add_operator(config, FIRST_OPERATOR, folder, now)
    except BaseException:
        _take_away(state_dir)
        raise
    return folder


def _take_away(state_dir: Path) -> None:
    """What was made of a server that could not be founded: half of one, another attempt would not replace."""
    for name in (CONFIG_NAME, *(DATABASE_NAME + end for end in ("", "-journal", "-wal", "-shm"))):
        with suppress(OSError):  # it was never made, for a reason that is told
            (state_dir / name).unlink()
    for name in ("ca", FIRST_OPERATOR):
        shutil.rmtree(state_dir / name, ignore_errors=True)


def add_operator(config: ServerConfig, name: str, folder: Path, now: float) -> None:
    """Issue a credential to an operator and write it into a new folder.

    An operator may have several; ``Registry.revoke_operator`` ends all of them.

    Raises:
        AlreadyExistsError: the folder is not empty.
    """
    parse_name(name, "operator")
    if folder.exists() and any(folder.iterdir()):
        raise AlreadyExistsError(f"{folder} is not empty", action="Choose a new folder for the credential")
    authority = Authority.load(config.ca_dir, config.consortium)
    credential = authority.issue_operator(name, now)
    with open_registry(config) as registry:
        registry.record_certificate(credential.issued)
    _write_credential(folder, config, authority, credential)


@contextmanager
def open_registry(config: ServerConfig) -> Iterator[Registry]:
    """The registry of a server that may be running at the same time."""
    engine = open_database(config.engine_url)
    try:
        yield Registry(engine)
    finally:
        engine.dispose()


def _write_credential(folder: Path, config: ServerConfig, authority: Authority, credential: Credential) -> None:
    profile = {
        "format": PROFILE_FORMAT,
        "consortium": config.consortium,
        "address": config.address,
        "operator": credential.issued.subject.name,
    }
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "profile.json").write_text(json.dumps(profile, indent=2) + "\n", encoding="utf-8")
    (folder / "ca.pem").write_bytes(authority.ca_pem)
    (folder / "operator.pem").write_bytes(credential.issued.pem)
    write_new(folder / "operator.key", credential.key_pem)
