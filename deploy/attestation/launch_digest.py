"""The launch digest of a SEV-SNP guest, computed before there is one, with sev-snp-measure (extra ``measure``)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quorate.errors import InputError


@dataclass(frozen=True)
class Guest:
    """All that is measured when QEMU starts a guest. Other hosts prepare it in ways on which tools disagree.

    Args:
        firmware: OVMF as the host loads it. With a kernel it has to be one that measures kernels (AmdSev).
        kernel: What the host is given as kernel; a unified kernel image has all in it. None: the firmware boots a disk,
            and the digest says nothing about what is on it.
        features: SEV features of the guest: 1 is SNP alone; hosts whose kernel swaps debug registers set 0x21.
    """

    firmware: Path
    kernel: Path | None
    initrd: Path | None
    command_line: str
    processors: int
    processor: str
    features: int = 0x1


def launch_digest(guest: Guest) -> str:
    """48 bytes in hex.

    Raises:
        InputError: a file is missing or is no such firmware, or sev-snp-measure is not installed.
    """
    try:
        from sevsnpmeasure.guest import calc_launch_digest
        from sevsnpmeasure.sev_mode import SevMode
        from sevsnpmeasure.vcpu_types import CPU_SIGS
    except ImportError as error:
        raise InputError("sev-snp-measure is not installed", action="pip install 'quorate[measure]'") from error
    if guest.processor not in CPU_SIGS:
        raise InputError("The guest's processor is unknown", expected=", ".join(CPU_SIGS), got=guest.processor[:40])
    if guest.kernel is None and (guest.initrd is not None or guest.command_line):
        raise InputError("An initial file system or a command line is measured with a kernel only", expected="--kernel")
    try:
        digest = calc_launch_digest(
            SevMode.SEV_SNP,
            guest.processors,
            CPU_SIGS[guest.processor],
            str(guest.firmware),
            str(guest.kernel or ""),
            str(guest.initrd or ""),
            guest.command_line,
            guest.features,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError("The launch digest cannot be computed", got=str(error)[:200]) from error
    return bytes(digest).hex()
