"""Evidence of Intel TDX and AMD SEV-SNP, asked of the kernel through configfs. NOT RUN ON HARDWARE.

For Linux 6.7 and newer. Each question makes an entry of its own, so that nobody else's can come between.

Sources: Linux, Documentation/ABI/testing/configfs-tsm; drivers/virt/coco/tsm.c, tdx-guest.c, sev-guest.c.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from quorate.attestation.evidence import Evidence, Kind
from quorate.errors import AttestationError, ConfigError
from quorate_server.aggregator.attesters.endorsements import read_endorsements, vcek_in_table

_KINDS = {"tdx_guest": Kind.TDX, "sev_guest": Kind.SEV_SNP}
_MAX_FILE_BYTES = 32 * 1024  # TSM_OUTBLOB_MAX


class Reports(Protocol):
    """The kernel's reports: entries, each with its files. All raise OSError."""

    def make(self, entry: str) -> None: ...
    def write(self, entry: str, file: str, content: bytes) -> None: ...
    def read(self, entry: str, file: str) -> bytes: ...
    def remove(self, entry: str) -> None: ...


class ReportFolder:
    """A folder of configfs. The files in an entry are the kernel's: they come and go with it."""

    def __init__(self, root: Path = Path("/sys/kernel/config/tsm/report")) -> None:
        self._root = root

    def make(self, entry: str) -> None:
        (self._root / entry).mkdir()

    def write(self, entry: str, file: str, content: bytes) -> None:
        # Unbuffered, in one piece, and never a new file. The kernel takes the content when the file is closed.
        handle = os.open(self._root / entry / file, os.O_WRONLY)
        try:
            os.write(handle, content)
        finally:
            os.close(handle)

    def read(self, entry: str, file: str) -> bytes:
        with (self._root / entry / file).open("rb") as opened:
            return opened.read(_MAX_FILE_BYTES)

    def remove(self, entry: str) -> None:
        (self._root / entry).rmdir()


class TsmAttester:
    """This machine, a trust domain or a SEV-SNP guest.

    Args:
        endorsements: The file with what the vendor signed. SEV-SNP can do without where the host keeps a certificate
            table.
    """

    def __init__(self, endorsements: Path | None, reports: Reports | None = None) -> None:
        """Raises ConfigError: this machine is none of these, or the collateral is missing."""
        self._reports = reports or ReportFolder()
        self._endorsements = endorsements
        self.kind = self._kind_of_machine()
        if self.kind is Kind.TDX and endorsements is None:
            raise ConfigError(
                "A quote of TDX says nothing without the collateral of Intel",
                expected="--endorsements FILE, with the collateral as JSON, which somebody keeps fresh",
            )

    def attest(self, binding: bytes) -> Evidence:
        try:
            raw, beside = self._report(binding)
        except OSError as error:
            raise AttestationError("The kernel makes no report", got=error.strerror or str(error)) from error
        if self._endorsements is not None:
            beside = read_endorsements(self._endorsements)
        elif self.kind is Kind.SEV_SNP:
            beside = vcek_in_table(beside)
        return Evidence(self.kind, raw, beside)

    def _report(self, binding: bytes) -> tuple[bytes, bytes]:
        """A report, and the certificate table beside it, of one and the same question."""
        with self._entry() as entry:
            before = self._number(entry)
            self._reports.write(entry, "inblob", binding)
            raw = self._reports.read(entry, "outblob")
            beside = self._reports.read(entry, "auxblob") if self.kind is Kind.SEV_SNP else b""
            questions = self._number(entry) - before
        if questions != 1:
            raise AttestationError(
                "The kernel was asked something else meanwhile", expected="one question", got=f"{questions}"
            )
        return raw, beside

    def _number(self, entry: str) -> int:
        """How many questions were asked in this entry."""
        return int(self._reports.read(entry, "generation"))

    def _kind_of_machine(self) -> Kind:
        try:
            with self._entry() as entry:
                provider = self._reports.read(entry, "provider").decode("ascii", "replace").strip()
        except OSError as error:
            raise _no_such_machine(error) from error
        try:
            return _KINDS[provider]
        except KeyError as error:
            raise ConfigError(
                "The kernel makes reports of a kind that no site can appraise",
                expected=" or ".join(_KINDS),
                got=provider[:40],
            ) from error

    @contextmanager
    def _entry(self) -> Iterator[str]:
        entry = f"quorate-{secrets.token_hex(8)}"
        self._reports.make(entry)
        try:
            yield entry
        finally:
            self._reports.remove(entry)


def _no_such_machine(error: OSError) -> ConfigError:
    action = "Load the module tdx_guest or sev-guest, and mount configfs (Linux 6.7 or newer)"
    if error.errno in (errno.EACCES, errno.EPERM):
        action = "Only root, or CAP_DAC_OVERRIDE, may ask for reports"
    return ConfigError(
        "This machine makes no reports of TDX or SEV-SNP",
        expected="a trust domain or a SEV-SNP guest, whose kernel has /sys/kernel/config/tsm/report",
        got=error.strerror or str(error),
        action=action,
    )
