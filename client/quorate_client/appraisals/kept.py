"""The records of a site's appraisals on disk: ``attestation/RUN/TIME-CODE.json``, for its daemon's user alone.

A machine is appraised again every few minutes, so of a row of appraisals that say the same the first and the last are
kept. Whatever happens, a run has at most ``MAX_RECORDS``: the oldest refusals go first, for nothing was released to
those machines; then the oldest, but never the run's first.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

from quorate.identity import RunId
from quorate.process.private_files import write_private
from quorate_client.appraisals.record import MAX_RECORD_BYTES, AppraisalRecord, read_record

MAX_RECORDS = 200
TRUSTED = "trusted"
_ENDS_TRUSTED = f"-{TRUSTED}.json"


@dataclass(slots=True)
class KeptAppraisals:
    """Writes them. Of one run one thread at a time; forgets from any.

    Args:
        folder: ``attestation/`` of the site.
    """

    folder: Path
    max_records: int = MAX_RECORDS
    _rows: dict[RunId, tuple[Hashable, Path | None]] = field(default_factory=dict)
    """By run: what the newest appraisal says, and the record of it if that is not the first that says so."""

    def keep(self, record: AppraisalRecord, signed: bytes) -> Path:
        """Raises OSError: it is not on disk."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        folder = self.folder / record.run
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{record.appraised_at:%Y%m%dT%H%M%S.%fZ}-{record.code or TRUSTED}.json"
        write_private(path, signed)
        said, repetition = self._rows.get(record.run, (None, None))
        is_repeated = said == record.sameness
        self._rows[record.run] = record.sameness, path if is_repeated else None
        if is_repeated and repetition is not None and repetition != path:
            repetition.unlink(missing_ok=True)
        self._thin(folder, path)
        return path

    def forget_older_than(self, unix_s: float) -> None:
        """Raises OSError."""
        for path in paths_in(self.folder):
            if path.stat().st_mtime < unix_s:
                path.unlink()
        for run in self.folder.glob("*/"):
            if not any(run.iterdir()):
                run.rmdir()
                self._rows.pop(RunId(run.name), None)

    def _thin(self, folder: Path, newest: Path) -> None:
        older = sorted(folder.glob("*.json"))[1:]
        rest = [path for path in older if path != newest]
        refused_first = sorted(rest, key=lambda path: (path.name.endswith(_ENDS_TRUSTED), path.name))
        for path in refused_first[: max(0, len(rest) + 2 - self.max_records)]:
            path.unlink()


def paths_in(folder: Path, run: str = "*") -> list[Path]:
    """The files of a site's records, by run, the oldest first."""
    return sorted(folder.glob(f"{run}/*.json"))


def read_kept(path: Path) -> AppraisalRecord:
    """Raises AppraisalRecordError. OSError."""
    with path.open("rb") as file:
        return read_record(file.read(MAX_RECORD_BYTES + 1))
