"""Models that sites sealed to the operator: its key, and how they are opened.

The key is made by the operator's own command when it first publishes a study that needs it, and lies beside the
credential, so that no machine but the operator's ever has it. Who works on several machines copies it to all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from quorate.errors import AlreadyExistsError, ConfigError, KeyMismatchError
from quorate.identity import RunId, SiteName, fingerprint
from quorate.secagg.release import OpenedRelease, ReleaseKey, ReleaseTerms
from quorate.study.rules import Rules
from quorate.study.study import Study
from quorate_operator.files import private_file
from quorate_operator.profile import require_private

KEY_NAME = "release.key"


def load_key(folder: Path) -> ReleaseKey:
    """The key in a credential's folder.

    Raises:
        ConfigError: there is none, others may read it, or it is broken.
    """
    path = folder / KEY_NAME
    try:
        private_key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise _no_key(path) from error
    if not isinstance(private_key, X25519PrivateKey):
        raise _no_key(path)
    require_private(path)
    return ReleaseKey(private_key)


def make_key(folder: Path) -> bool:
    """Make the key if there is none. Returns whether it was made.

    Raises:
        InputError: the folder cannot be written.
    """
    made = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        with private_file(folder / KEY_NAME) as file:
            file.write(made.decode("ascii"))
            file.flush()
            os.fsync(file.fileno())  # a study that names a key which was lost releases its model to nobody
    except AlreadyExistsError:
        return False
    return True


def opened(packed: Iterable[bytes], study: Study, run: str, key: ReleaseKey) -> OpenedRelease:
    """A run's model, to be read as it arrives. What the server says of the study is checked first.

    Args:
        packed: What the server hands out, in pieces.
        study: As the server tells it.
        run: The whole id.

    Raises:
        KeyMismatchError: the study was made for another key, or not by the operator.
    """
    if study.release.operator_key != key.public_key.hex():
        raise KeyMismatchError(
            f"The model of {study.name} is sealed to another key than the one of this credential",
            expected=f"the key {study.release.operator_fingerprint or 'that the study does not name'}",
            got=fingerprint(key.public_key),
            action=f"Use the {KEY_NAME} of the machine from which the study was published",
        )
    if study.release.operator_mark != key.mark(study.unmarked()).hex():
        raise KeyMismatchError(
            f"The study {study.name} that the server shows was not published with this credential's key",
            expected=f"the mark that `quorate study publish` made with {KEY_NAME}",
            action="Distrust the server: it may have put other sites in the place of yours",
        )
    terms = ReleaseTerms.of(study, RunId(run))
    roster = {SiteName(site.name): bytes.fromhex(site.signing_key) for site in study.sites}
    return OpenedRelease(packed, key, terms, roster, Rules(len(study.sites), study.protection.colluders))


def _no_key(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is not there, or is not the key that opens models",
        expected="the file as `quorate study publish` made it",
        action="Copy it from the machine from which the study was published; nothing else opens its models",
    )
