"""Commands about the appraisals that this site has on record: which there are, and whether they can be repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from quorate.attestation.appraisal import PROTECTS, SOFTWARE, TESTED
from quorate.attestation.evidence import Kind
from quorate.errors import AppraisalRecordError, NotFoundError
from quorate_client.appraisals.kept import TRUSTED, paths_in, read_kept
from quorate_client.appraisals.record import AppraisalRecord
from quorate_client.cli.output import DEFAULT_STATE, JsonOption, StateOption, cell, moment, out, say, show_json, table
from quorate_client.site.folder import SiteFolder

WhichArgument = Annotated[
    str | None,
    typer.Argument(metavar="[RUN|FILE]", help="A run, by its id or the beginning of it, or one record; all if absent."),
]


@dataclass(frozen=True, slots=True)
class _Line:
    """One file: what stands in it, and what is wrong with it."""

    path: Path
    record: AppraisalRecord | None
    version: str = ""
    problem: AppraisalRecordError | None = None

    @property
    def result(self) -> Text:
        if self.record is None:
            return cell("cannot be read", "bold red")
        if self.record.code:
            return cell(f"refused [{self.record.code}]", "red")
        return cell(f"{TRUSTED}: {self.version}" if self.version else TRUSTED, "green")

    @property
    def kind(self) -> Text:
        if self.record is None:
            return cell("")
        kind = self.record.evidence.kind
        return cell(kind, "bold red" if kind is Kind.SOFTWARE else "")


def records(which: WhichArgument = None, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """List the appraisals that are on record at this site, the oldest first."""
    found = [_read(path) for path in _paths(state, which)]
    if as_json:
        show_json([_as_json(line) for line in found])
        return
    _print(found, replayed=False)


def replay(which: WhichArgument = None, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Appraise again, offline and each at its time, what is on record. Exits with 3 if a record was changed, or says
    other than what is found."""
    paths = _paths(state, which)
    if not paths:
        raise NotFoundError(
            "There is no such record of an appraisal here",
            got=which or "no record at all",
            action="`quorate-client attest list` shows what there is; config.toml says how long it is kept (keep_days)",
        )
    found = [_replayed(path) for path in paths]
    wrong = [line for line in found if line.problem is not None]
    if as_json:
        show_json([_as_json(line) for line in found])
    else:
        _print(found, replayed=True)
        if not wrong:
            say(f"{_counted(found)}: each as it was written down.", "green")
    if wrong:
        raise AppraisalRecordError(
            f"{len(wrong)} of {len(found)} records do not stand",
            action="Compare them with a backup, and ask who could write to this folder",
        )


def _paths(state: Path, which: str | None) -> list[Path]:
    if which is not None and Path(which).is_file():
        return [Path(which)]
    every = paths_in(SiteFolder(state).attestation)
    return [path for path in every if path.parent.name.startswith(which or "")]


def _read(path: Path) -> _Line:
    try:
        return _Line(path, read_kept(path))
    except AppraisalRecordError as error:
        return _Line(path, None, problem=error)


def _replayed(path: Path) -> _Line:
    line = _read(path)
    if line.record is None:
        return line
    found = line.record.replay()
    version = found.appraisal.version if found.appraisal is not None else ""
    try:
        found.require_agreement()
    except AppraisalRecordError as error:
        return _Line(path, line.record, version, error)
    return _Line(path, line.record, version)


def _print(lines: Iterable[_Line], *, replayed: bool) -> None:
    lines = list(lines)
    rows = table("when", "run", "evidence", "result", "replayed" if replayed else "")
    for line in lines:
        record = line.record
        when = moment(record.appraised_at.timestamp()) if record is not None else line.path.name
        run = record.run if record is not None else line.path.parent.name
        verdict = cell("as recorded" if replayed else "", "green")
        if line.problem is not None:
            verdict = cell("CHANGED" if record is None else "DIFFERS", "bold red")
        rows.add_row(cell(when), cell(run), line.kind, line.result, verdict)
    out().print(rows)
    for line in lines:
        if line.problem is not None:
            say(f"{line.path}: {line.problem}", "red")
    trusted = {line.record.evidence.kind for line in lines if line.record is not None and not line.record.code}
    if Kind.SOFTWARE in trusted:
        say(SOFTWARE, "bold red")
    if trusted - {Kind.SOFTWARE}:
        say(f"Attestation {PROTECTS}.")
    say(TESTED)


def _counted(lines: Iterable[_Line]) -> str:
    counts = Counter("refused" if line.record and line.record.code else TRUSTED for line in lines)
    return ", ".join(f"{counts[word]} {word}" for word in (TRUSTED, "refused") if counts[word])


def _as_json(line: _Line) -> dict[str, Any]:
    told: dict[str, Any] = {
        "file": str(line.path),
        "stands": line.problem is None,
        "problem": str(line.problem) if line.problem is not None else None,
    }
    record = line.record
    if record is None:
        return told
    own = record.own_policy
    attestation = record.study.attestation
    return told | {
        "site": record.site,
        "run": record.run,
        "study": record.study.name,
        "study_digest": record.study.digest().hex(),
        "asked_at": record.asked_at.isoformat(),
        "appraised_at": record.appraised_at.isoformat(),
        "kind": record.evidence.kind,
        "trusted": not record.code,
        "code": record.code,
        "version": line.version,
        "policy_digest": attestation.policy.digest().hex() if attestation is not None else None,
        "own_policy_digest": own.digest().hex() if own is not None else None,
        "endorsements_digest": record.evidence.endorsements_digest.hex(),
        "remarks": [SOFTWARE if record.evidence.kind is Kind.SOFTWARE else PROTECTS, TESTED],
    }
