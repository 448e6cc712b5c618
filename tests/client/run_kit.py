"""Real engines of several sites, and the server's own loop that asks them in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quorate.errors import QuorateError
from quorate.identity import SiteName
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import Instruction, MessageId, Reply
from quorate.rounds.spool import Spool
from quorate.study.study import Protection, Rounds, Study
from quorate_client.rounds.engine import Engine
from quorate_client.rounds.sums.site_keys import SiteSecrets
from quorate_client.rounds.sums.votes import VoteLog
from quorate_client.rounds.training import Accounting
from quorate_client.site.agreement import Agreement, Dataset
from quorate_client.site.database import SiteDatabase
from quorate_client.site.folder import RELEASED_MODEL
from tests.client.data_kit import an_index
from tests.client.databases import made_state
from tests.client.engine_kit import make_study, records_of
from tests.client.in_process import InProcessWorkers
from tests.server.sites_kit import Keys
from tests.server.study_kit import RUN, MemoryBlobs, MemoryExchange, Time

NAMES = tuple(SiteName(name) for name in ("east", "north", "south", "west"))
SEED_BYTES = b"\xa7\x13\x55\xc2\x99\x08\x71\xee"
"""What the sites draw the seeds of their training from."""


def never(_: Instruction) -> bool:
    return False


@dataclass
class EngineSite:
    """A site whose daemon is an engine with its database, spool and folders.

    ``is_away`` says which instructions it does not hear; ``before`` is called with each that it hears. ``errors`` are
    its refusals, by phase and round.
    """

    name: SiteName
    folder: Path
    agreement: Agreement
    keys: Keys
    sealing_keys: dict[SiteName, bytes]
    blobs: MemoryBlobs
    runner: asyncio.Runner
    has_keys: bool = True
    accounting: Accounting | None = None
    is_away: Callable[[Instruction], bool] = never
    before: Callable[[Instruction], None] = lambda _: None
    errors: dict[tuple[str, int], QuorateError] = field(default_factory=dict)
    fetched: list[BlobId] = field(default_factory=list)
    journal: dict[MessageId, Reply] = field(default_factory=dict)
    state: SiteDatabase = field(init=False)
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.spool = Spool(self.folder / "spool")
        self._start()

    @property
    def study_key_path(self) -> Path:
        return self.folder / "studies" / f"{RUN}.key"

    def _start(self) -> None:
        self.state = made_state(self.folder / "state.sqlite")
        secure = SiteSecrets(
            keys=lambda: (self.keys.signing, self.keys.sealing),
            sealing_keys=lambda _: self.sealing_keys,
            votes=VoteLog(self.state),
            study_keys=self.folder / "studies",
        )
        self.engine = Engine(
            InProcessWorkers(),
            self.spool,
            self.folder,
            time.monotonic,
            lambda count: SEED_BYTES[:count],
            secure if self.has_keys else None,
            self.accounting,
        )

    def restart(self) -> None:
        """The daemon is killed and started again: what is in memory is lost."""
        self.state.close()
        self._start()

    def answer(self, instruction: Instruction) -> Reply:
        if self.is_away(instruction):
            return Reply(instruction.message_id, "site_paused")
        self.before(instruction)
        if instruction.message_id not in self.journal:
            self.journal[instruction.message_id] = self._perform(instruction)
        return self.journal[instruction.message_id]

    def _perform(self, instruction: Instruction) -> Reply:
        try:
            reply = self.runner.run(self.engine.perform(instruction, self.agreement, self._fetch))
        except QuorateError as error:
            self.errors[instruction.phase.value, instruction.round_number] = error
            return Reply.refusing(instruction.message_id, error)
        for blob in reply.blobs:
            if blob.inline is None:
                self.blobs.content[blob.id] = self.spool.content(blob)
        return reply

    async def _fetch(self, blob: Blob) -> None:
        self.fetched.append(blob.id)
        assert self.spool.put([self.blobs.content[blob.id]]).id == blob.id

    def model_states(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "runs" / RUN).glob("model-*.state")}

    def released(self) -> dict[str, npt.NDArray[Any]]:
        with np.load(self.folder / "runs" / RUN / RELEASED_MODEL) as arrays:
            return dict(arrays)

    def weights(self) -> npt.NDArray[np.float64]:
        """All parameters of the released model."""
        arrays = self.released()
        return np.concatenate([arrays[name].ravel() for name in ("weights", "file")]).astype(np.float64)


def an_agreement(study: Study, folder: Path, site: SiteName, records: int) -> Agreement:
    """What the administrator of a site approved; its records are in a file of the site's name."""
    x, y = records_of(site, records)
    path = folder / f"{site}.npz"
    np.savez(path, x=x, y=y)
    index = an_index(folder / "records", len(x))
    return Agreement(study, study.digest(), site, Dataset("records", "tabular", path, {}, 0.2, len(x), index=index), {})


@contextmanager
def engines(
    folder: Path, names: Iterable[SiteName] = NAMES, records: int = 40, mode: str = "secagg", **changes: Any
) -> Iterator[MemoryExchange]:
    """The sites of a study, and the server that asks them: ``exchange.loop().run()`` is the run.

    Args:
        changes: Fields of the study.
    """
    keys = {name: Keys() for name in sorted(names)}
    fields = {"rounds": Rounds(count=3, quorum=3), "protection": Protection(mode=mode)} | changes
    unsigned = make_study(sites=tuple(keys), **fields)
    roster = [{"name": name, "signing_key": key.public.hex()} for name, key in keys.items()]
    study = Study.model_validate(unsigned.model_dump(mode="json") | {"sites": roster})
    blobs, sealing = MemoryBlobs(), {name: key.sealing.public_key().public_bytes_raw() for name, key in keys.items()}
    with asyncio.Runner() as runner, ExitStack() as stack:
        sites = {}
        for name, key in keys.items():
            (folder / name).mkdir(parents=True)
            agreement = an_agreement(study, folder / name, name, records)
            sites[name] = EngineSite(name, folder / name, agreement, key, sealing, blobs, runner)
            stack.callback(lambda site=sites[name]: site.state.close())
        yield MemoryExchange(study, Time(), sites, blobs)
