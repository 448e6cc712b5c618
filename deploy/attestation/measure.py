"""Reference values: what a study's policy has to name so that sites trust an aggregator that you built.

    python -m deploy.attestation.measure --name VERSION [--image IMAGE] [--firmware OVMF --kernel UKI ...] [--sign KEY]
    python -m deploy.attestation.measure --verify FILE --by PUBLICKEY

`make measurements MEASURE="..."` does it. Prints a piece of TOML for a study. Others build the same from the same
source and compare, or believe a signature. The values were computed; they have NOT BEEN SEEN ON HARDWARE.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from deploy.attestation.image_digest import digest_of
from deploy.attestation.launch_digest import Guest, launch_digest
from quorate.attestation.policy import ConfidentialSpaceVersion, SnpVersion
from quorate.errors import InputError, QuorateError

_CONTEXT = b"quorate/measurements/v1\x00"
_SIGNATURE = "# signature "
_TDX = """\
# TDX: no registers are computed here. They are read from evidence of a machine that you have checked (a site that
# refuses it tells them in its log), and hold for that firmware and type of machine:
#   mrtd    the firmware; its vendor may publish it
#   rtmr0   the firmware's settings and the tables that the host gives: another machine type is another value
#   rtmr1   boot loader and kernel, as the firmware's events have them
#   rtmr2   command line and initial file system, as the boot stub's events have them
#   rtmr3, mrconfigid, mrowner, mrownerconfig   zeros, which are the policy's defaults: nothing here sets them
"""


def main(arguments: Sequence[str]) -> None:
    """Raises QuorateError."""
    given = _parser().parse_args(arguments)
    if given.verify is not None:
        require_signed(given.verify.read_text(encoding="utf-8"), given.by)
        print(f"{given.verify} is signed by {given.by}")
        return
    text = piece(given.name, given.until, given.image, _guest(given))
    print(text if given.sign is None else signed(text, _key(given.sign)), end="")


def piece(name: str, until: date | None, image: str | None, guest: Guest | None) -> str:
    """The TOML. Raises InputError."""
    if image is None and guest is None:
        raise InputError("There is nothing to measure", expected="--image, or --firmware, or both")
    lines = [f"# What {name!r} measures. Computed, not seen on hardware.", ""]
    if image is not None:
        space = ConfidentialSpaceVersion(name=name, until=until, image_digest=digest_of(image))
        lines += ["[[attestation.policy.confidential_space.allow]]", *_keys(space)]
    if guest is not None:
        snp = SnpVersion(name=name, until=until, measurement=launch_digest(guest))
        lines += ["# Beside it the study names the least versions of firmware: attestation.policy.sev_snp.least_tcb."]
        lines += ["[[attestation.policy.sev_snp.allow]]", *_keys(snp)]
    return "\n".join(lines) + "\n" + _TDX


def _keys(version: ConfidentialSpaceVersion | SnpVersion) -> Iterator[str]:
    yield f'name = "{version.name}"'
    if version.until is not None:
        yield f"until = {version.until}"
    for name, value in version.registers.items():
        yield f'{name} = "{value}"'
    yield ""


def signed(text: str, key: Ed25519PrivateKey) -> str:
    """The same with a last line that signs all before it."""
    return f"{text}{_SIGNATURE}{key.public_key().public_bytes_raw().hex()} {key.sign(_CONTEXT + text.encode()).hex()}\n"


def require_signed(text: str, by: str) -> None:
    """Raises InputError: the last line is no signature of this key under all before it."""
    body, mark, line = text.rpartition(_SIGNATURE)
    try:
        key, signature = line.split()
        if not mark or key != by:
            raise ValueError("another key, or none")
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(
            bytes.fromhex(signature), _CONTEXT + body.encode()
        )
    except (ValueError, InvalidSignature) as error:
        raise InputError("These measurements are not signed as they are", expected=f"by {by}") from error


def _key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} holds no key", expected="an Ed25519 private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} holds another key", expected="an Ed25519 private key in PEM")
    return key


def _guest(given: argparse.Namespace) -> Guest | None:
    if given.firmware is None:
        return None
    return Guest(
        given.firmware,
        given.kernel,
        given.initrd,
        given.command_line,
        given.processors,
        given.processor,
        given.features,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="measure.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--name", default="quorate-aggregator", help="what people call this version")
    parser.add_argument("--until", type=date.fromisoformat, help="its last day, YYYY-MM-DD")
    parser.add_argument("--image", help="Confidential Space: an OCI archive or layout, or an engine's image")
    parser.add_argument("--firmware", type=Path, help="SEV-SNP: OVMF as the host loads it")
    parser.add_argument("--kernel", type=Path, help="SEV-SNP: kernel, or a unified kernel image")
    parser.add_argument("--initrd", type=Path, help="SEV-SNP: initial file system, if it is not in the kernel")
    parser.add_argument("--command-line", default="", help="SEV-SNP: the kernel's, if it is not in the kernel")
    parser.add_argument("--processors", type=int, default=4, help="SEV-SNP: how many the guest has")
    parser.add_argument("--processor", default="EPYC-Genoa", help="SEV-SNP: their type, as QEMU names it")
    parser.add_argument("--features", type=lambda text: int(text, 0), default=0x1, help="SEV-SNP: 0x1 or 0x21")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="an Ed25519 private key in PEM")
    parser.add_argument("--verify", type=Path, metavar="FILE", help="measurements that somebody signed")
    parser.add_argument("--by", default="", metavar="PUBLICKEY", help="with --verify: whose it has to be; hex")
    return parser


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except QuorateError as problem:
        sys.exit(f"measure.py: {problem}")
