"""Where a site keeps what is its own: one folder, private to the daemon's user.

``config.toml`` and ``policy.toml`` are the administrator's; ``keys/`` holds the identity, ``state.sqlite`` what was
agreed and done, ``ledger.sqlite`` what its data sets spent of their privacy, ``synthetic/`` the records that were made
here, ``attestation/`` what attested machines showed of themselves, ``spool/`` bulk bytes in flight, ``work/`` what the
tasks leave, ``log/`` the daemon's log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quorate.identity import RunId
from quorate.process.folder_lock import held, is_held

RELEASED_MODEL = "model.npz"


@dataclass(frozen=True, slots=True)
class SiteFolder:
    """The paths of one site's state."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def policy(self) -> Path:
        return self.root / "policy.toml"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def study_keys(self) -> Path:
        return self.keys / "studies"

    @property
    def database(self) -> Path:
        return self.root / "state.sqlite"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def records(self) -> Path:
        return self.root / "records"

    @property
    def synthetic(self) -> Path:
        return self.root / "synthetic"

    @property
    def attestation(self) -> Path:
        return self.root / "attestation"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def lock(self) -> Path:
        return self.root / "daemon.lock"

    def released_models(self) -> dict[str, Path]:
        """The final models of runs in which this site took part, by run."""
        return {path.parent.name: path for path in (self.work / "runs").glob(f"*/{RELEASED_MODEL}")}

    def idle_runs(self, since_unix_s: float) -> list[RunId]:
        """Runs for which nothing was written here since then, and that left more than a final model."""
        found = []
        for run in (self.work / "runs").glob("*"):
            left = [path for path in run.iterdir() if path.name != RELEASED_MODEL]
            if left and max(path.stat().st_mtime for path in left) < since_unix_s:
                found.append(RunId(run.name))
        return found

    def create(self) -> None:
        """Make the folder and those in it, readable by this user only."""
        for folder in (self.root, self.keys, self.spool, self.work, self.log):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def held_by_this_daemon(self) -> Iterator[None]:
        """Keep a second daemon out of the same folder; the system frees the lock when the process dies.

        Raises:
            WrongStateError: another daemon runs on this folder.
        """
        with held(
            self.lock,
            what=f"A daemon already runs on {self.root}",
            action="Stop it first, or pass another folder with --state",
        ):
            yield

    def daemon_runs(self) -> bool:
        """Whether a daemon holds the folder at this moment."""
        return is_held(self.lock)
