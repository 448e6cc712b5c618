"""The site's engine: does one instruction and gives the reply. Transport, journal, policy, turns and deadlines are the
caller's (``daemon/instructions.py``, ``daemon/engine_server.py``): who cancels ``perform`` stops the work.

What leaves the site is made here: coded errors without text, exact counts, the words of an update (``protect.py``), and
the model where the study says so. The task itself runs elsewhere (``workers/pool.py``).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from quorate.errors import FrameError, ProtectionRefusedError, StudyNotApprovedError
from quorate.identity import RunId, is_run_id
from quorate.rounds.instruction import Instruction, Reply
from quorate.rounds.spool import Spool
from quorate.study.study import Study
from quorate_client.rounds.guest_run import GuestRun
from quorate_client.rounds.model.fetch import Fetch
from quorate_client.rounds.training import Accounting, Trainer
from quorate_client.site.agreement import Agreement
from quorate_client.site.folder import RELEASED_MODEL
from quorate_client.workers.pool import TaskWorkers

if TYPE_CHECKING:
    from quorate_client.rounds.sums.run import SumRun
    from quorate_client.rounds.sums.scheme import Scheme
    from quorate_client.rounds.sums.site_keys import SiteSecrets

MAX_LIVE = 64
"""Runs that are held in memory: a server may make up any number of names."""


class Engine:
    """Performs instructions: of one run one after the other, of several runs at a time. Callers keep to that.

    Args:
        folder: ``folder/runs/RUN`` holds what a run needs at this site; nobody else writes there.
        clock: Monotonic seconds.
        randomness: Gives secret random bytes. The seed of local training comes from the site: who knows it (a server
            that could choose it, say) knows which records made an update.
        secrets: What secure aggregation needs of the site; without it studies under secure aggregation are refused.
        accounting: What differential privacy needs of the site; without it studies that promise it are refused.
    """

    def __init__(
        self,
        workers: TaskWorkers,
        spool: Spool,
        folder: Path,
        clock: Callable[[], float],
        randomness: Callable[[int], bytes] = os.urandom,
        secrets: SiteSecrets | None = None,
        accounting: Accounting | None = None,
    ) -> None:
        self._workers = workers
        self._spool = spool
        self._runs = folder.absolute() / "runs"  # workers have a working folder of their own
        self._clock = clock
        self._randomness = randomness
        self._secrets = secrets
        self._accounting = accounting
        self._live: dict[RunId, tuple[Agreement, SumRun | GuestRun]] = {}

    async def perform(self, instruction: Instruction, agreement: Agreement, fetch: Fetch) -> Reply:
        """Do the work and make the reply. Blobs of the reply that are not inline are in the spool afterwards.

        Being cancelled ends the task's process at once.

        Args:
            fetch: Brings a blob into the spool.

        Raises:
            SiteRefusalError: with the code that the server gets. Other QuorateErrors: the disk is full, a blob could
                not be fetched, or the instruction is malformed; their code does as well.
        """
        if instruction.study_digest != agreement.digest:
            raise StudyNotApprovedError("The work is of another study than the one that was approved")
        begun, run = self._live.get(instruction.run, (None, None))
        if begun is not None and begun.digest != agreement.digest:
            raise FrameError("The server gives one run's name to two studies")
        if begun is None or run is None or begun.dataset != agreement.dataset:  # a study may be approved with another
            run = await asyncio.to_thread(self._begin, instruction, agreement)
        self._live.pop(instruction.run, None)
        self._live[instruction.run] = agreement, run  # the last that was used
        while len(self._live) > MAX_LIVE:
            del self._live[next(iter(self._live))]  # what it needs is in its folder
        return await run.perform(instruction, agreement, fetch)

    async def forget(self, run: RunId) -> None:
        """Remove what the run left on the way; a final model stays. If the run goes on, it is built anew from what the
        server has. Nothing of the run may be in work."""
        folder = self._folder(run)
        self._live.pop(run, None)
        await asyncio.to_thread(_clear, folder)
        if self._secrets is not None:
            self._secrets.forget(run)

    async def close(self) -> None:
        """End the workers. Nothing may be in work."""
        await self._workers.close()

    def _begin(self, instruction: Instruction, agreement: Agreement) -> SumRun | GuestRun:
        run, study, folder = instruction.run, agreement.study, self._folder(instruction.run)
        if self._accounting is not None:
            self._accounting.begin(agreement, run)
        if study.kind == "guest":
            return GuestRun(folder, self._workers, self._spool, self._clock)
        from quorate_client.rounds.sums.run import SumRun  # imports numpy

        trainer = Trainer(study, self._randomness, self._accounting)
        return SumRun(run, folder, study, self._scheme(run, study), self._workers, self._spool, self._clock, trainer)

    def _scheme(self, run: RunId, study: Study) -> Scheme:
        """By the study that was approved, and by nothing that the server says."""
        if study.protection.mode == "none":
            from quorate_client.rounds.schemes.plain import PlainScheme  # imports numpy

            return PlainScheme(study, self._spool)
        if self._secrets is None:
            raise ProtectionRefusedError("This site cannot protect updates here: it has no keys for it")
        if study.protection.mode == "enclave":
            from quorate_client.rounds.schemes.enclave import EnclaveScheme  # imports numpy

            return EnclaveScheme(run, study, self._secrets, self._spool, self._clock)
        from quorate_client.rounds.schemes.secagg import SecaggScheme  # imports numpy

        require_rehearsal()
        return SecaggScheme(run, study, self._secrets, self._spool, self._clock)

    def _folder(self, run: RunId) -> Path:
        if not is_run_id(run):
            raise FrameError("The server names a run in a way that cannot be a folder's name")
        return self._runs / run


@cache
def require_rehearsal() -> None:
    """Once in a process, before anything of a secure sum.

    Raises:
        ProtectionRefusedError: what this machine would send is not encrypted as it should be.
    """
    from quorate.aggregation.seal_reference import SelfTestError
    from quorate.secagg.self_test import rehearse

    try:
        rehearse()
    except SelfTestError as error:
        raise ProtectionRefusedError(
            "Secure aggregation does not work on this machine, so nothing is sent",
            got=str(error),
            action="Install the versions of numpy and tenseal that constraints.txt names",
        ) from error


def _clear(folder: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != RELEASED_MODEL:
            path.unlink()
    with suppress(OSError):  # not empty: the final model is there; or there was nothing
        folder.rmdir()
