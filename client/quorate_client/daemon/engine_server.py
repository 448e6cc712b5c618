"""What a site's engine process does: one question after the other, from a site file and an instruction to a reply."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import structlog

from quorate.errors import (
    BlobMismatchError,
    BlobMissingError,
    FrameError,
    KeyMismatchError,
    ProtectionRefusedError,
    QuorateError,
    SitePausedError,
    StudyError,
    StudyNotApprovedError,
    SyntheticRefusedError,
    TaskFailedError,
    WorkWithdrawnError,
)
from quorate.process.cancellation import cancel
from quorate.process.frames import read_frame
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, Reply
from quorate.rounds.spool import Spool
from quorate.wire.messages import instruction_from_bytes, reply_to_bytes
from quorate_client.approval.answers import Answer, Answers
from quorate_client.approval.datasets import Datasets
from quorate_client.approval.policy import Policy, require_valid
from quorate_client.approval.policy_file import check_policy_now, has_policy
from quorate_client.approval.usable import look_at, require_usable
from quorate_client.daemon.daemon import make_engine
from quorate_client.daemon.instructions import within
from quorate_client.daemon.upkeep import DAY_S
from quorate_client.flower.engine_client import COUNT_BYTES, MAX_PART_BYTES, SOCKET_NAME, count_in, packed, whole
from quorate_client.flower.site_file import NodeSite
from quorate_client.ledger.ledger import open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.ledger.upgrading import upgrade_site
from quorate_client.rounds.engine import Engine
from quorate_client.site.agreement import Dataset
from quorate_client.site.config import Config, read_config
from quorate_client.site.database import SiteDatabase, make_state, open_state, site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import SiteKeys, make_or_load_keys
from quorate_client.site.logs import configure_logging

log = structlog.get_logger()

IDLE_S = 600.0
"""Beyond the longest time between two messages of one run."""
LOOK_EVERY_S = 1.0


def serve(folder: SiteFolder, listener: socket.socket) -> None:
    """Answer until the folder is gone, no message can come any more, or SIGTERM."""
    config = read_config(folder.config)
    configure_logging(config.log_level, as_json=config.log_json, folder=folder.log)
    with closing(EngineServer(folder, config, time.monotonic)) as engine_server:
        asyncio.run(_serve(folder, listener, engine_server))


async def _serve(folder: SiteFolder, listener: socket.socket, engine_server: EngineServer) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    path = folder.keys / SOCKET_NAME
    listening = await asyncio.start_unix_server(engine_server.receive, sock=listener)
    log.info("engine started", folder=str(folder.root))
    while path.exists() and not engine_server.is_over and not stopped.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), LOOK_EVERY_S)
    listening.close()
    path.unlink(missing_ok=True)
    await engine_server.stop()
    log.info("engine stopped", folder=str(folder.root))


class EngineServer:
    """Holds the engine. Its parts are opened by the first question, so that what is wrong with them is its answer.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, folder: SiteFolder, config: Config, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._config = config
        self._clock = clock
        self._parts = ExitStack()
        self._engine: Engine | None = None
        self._state: SiteDatabase | None = None
        self._spool = Spool(folder.spool)
        self._keys = make_or_load_keys(folder.keys)
        if not folder.ledger.exists():  # the two come and go together
            make_state(folder.database)
        self._turn = asyncio.Lock()
        self._open = 0
        self._works: set[asyncio.Task[list[bytes]]] = set()
        self._over_s = clock() + IDLE_S

    @property
    def is_over(self) -> bool:
        """Whether nobody is here and no message of a run can come any more."""
        return not self._open and self._clock() >= self._over_s

    def close(self) -> None:
        self._parts.close()

    async def stop(self) -> None:
        """Stop all work and end the workers."""
        await cancel(self._works)
        if self._engine is not None:
            await self._engine.close()

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: a question and its answer. Who hangs up does not want it any more: its work is stopped."""
        self._open += 1
        try:
            count = count_in(await read_frame(reader, COUNT_BYTES))
            question = [whole(await read_frame(reader, MAX_PART_BYTES)) for _ in range(count)]
            work = asyncio.create_task(self.answer(question))
            self._works.add(work)
            work.add_done_callback(self._works.discard)
            gone = asyncio.create_task(reader.read(1))
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await cancel({work})
                log.warning("nobody waits for the work any more")
                return
            gone.cancel()
            writer.writelines(packed(work.result()))
            await writer.drain()
        except (ConnectionError, FrameError):
            log.warning("a question was none, or its answer was not taken")
        finally:
            self._open -= 1
            writer.close()

    async def answer(self, question: list[bytes]) -> list[bytes]:
        """The reply to an instruction, and its bulk data by name.

        Args:
            question: The path of the site file, the instruction, and bulk data that it names: name and content in turn.
        """
        path, serialized, *given = question
        instruction = instruction_from_bytes(serialized)
        try:
            # The deadline counts from the receipt, waiting for others included.
            async with within(instruction.deadline_s, instruction.phase), self._turn:
                reply, sent = await self._perform(instruction, Path(path.decode()), _in_pairs(given))
        except QuorateError as error:
            reason = error.__cause__ if isinstance(error.__cause__, QuorateError) else error
            log.warning("instruction refused", run=instruction.run, code=error.code, reason=str(reason))
            reply, sent = Reply.refusing(instruction.message_id, error), {}
        except asyncio.CancelledError:
            reply, sent = Reply(instruction.message_id, WorkWithdrawnError.code), {}
        except Exception:  # whatever happens here becomes a code
            log.exception("instruction failed", run=instruction.run, phase=instruction.phase)
            reply, sent = Reply(instruction.message_id, TaskFailedError.code), {}
        return [reply_to_bytes(reply), *(part for pair in sent.items() for part in pair)]

    async def _perform(
        self, instruction: Instruction, file: Path, given: Mapping[bytes, bytes]
    ) -> tuple[Reply, Mapping[bytes, bytes]]:
        site = NodeSite.read(file)
        study = site.agreement.study
        self._over_s = max(self._over_s, self._clock() + study.rounds.deadline_s + IDLE_S)
        if self._engine is None:
            upgrade_site(self._folder)  # the starter of this process took the folder's lock
        self._admit(site, instruction)
        engine = await self._opened(site)

        async def fetch(blob: Blob) -> None:
            content = given.get(blob.id)
            if content is None:
                raise BlobMissingError("The message lacks bulk data that it names")
            arrived = self._spool.put([content])
            if arrived.id != blob.id:
                self._spool.remove(arrived.id)
                raise BlobMismatchError("Bulk data in the message does not match its name")

        try:
            async with within(study.rounds.deadline_s, instruction.phase):
                reply = await engine.perform(instruction, site.agreement, fetch)
            if self._state is not None:
                self._state.flush()  # there is no journal here that takes a vote to disk before it leaves
            log.info("work done", run=instruction.run, round=instruction.round_number, phase=instruction.phase)
            return reply, {blob.id: self._spool.content(blob) for blob in reply.blobs if blob.inline is None}
        finally:
            self._over_s = max(self._over_s, self._clock() + study.rounds.deadline_s + IDLE_S)
            self._spool.keep_only(set())

    def _admit(self, site: NodeSite, instruction: Instruction) -> None:
        """Whether this folder may work for this file.

        Raises:
            StudyError: the file is of another folder. KeyMismatchError: the study names another key for this site, or
                the file does not give its members' keys. PolicyError, SyntheticRefusedError, StudyExpiredError.
        """
        if site.folder.resolve() != self._folder.root.resolve():
            raise StudyError("The site file is of another site's folder than the engine that it was brought to")
        study, dataset, now = site.agreement.study, site.agreement.dataset, datetime.now().astimezone()
        policy = Policy()
        if has_policy(self._folder):
            policy = check_policy_now(self._folder, study, now)
            policy.check_phase(instruction.phase, now)
        else:  # whoever wrote the site file agreed to the study in it
            require_valid(study, now)
        if dataset is not None:
            registered = self._registered(dataset)
            require_usable(dataset, study, policy, look_at(dataset, registered.get))
        if study.attestation is not None:
            raise ProtectionRefusedError(
                f"The study {study.name} demands an attested machine, and over Flower's own link none is appraised",
                expected="a site that `quorate-client run` connects to the consortium's server",
            )
        if study.protection.mode != "none":
            _require_keys(site, self._keys)

    def _registered(self, dataset: Dataset) -> Mapping[str, Dataset]:
        """What this folder knows beside the site file, which may be all that there is of a real data set.

        Of a synthetic one it is not: whoever wrote the file could call real records made, held-out ones among them,
        and no account would show that they were trained on.

        Raises:
            SyntheticRefusedError: it is synthetic and not one that was made here.
        """
        if dataset.origin is None:
            return {}
        with site_state(self._folder.database) as state:
            known = {each.name: each for each in Datasets(state, time.time).all()}
        made = known.get(dataset.name)
        if made is None or replace(made, training=dataset.training).identity != dataset.identity:
            raise SyntheticRefusedError(
                f"The site file names a synthetic data set {dataset.name} that was not made in this folder",
                expected="one that `quorate-client synthetic list` shows, as it is there",
                got="none of that name" if made is None else "another one of that name",
                action="Make it with `quorate-client synthetic make`, and write the site file anew",
            )
        return known

    async def _opened(self, site: NodeSite) -> Engine:
        if self._engine is None:
            with ExitStack() as parts:
                state = parts.enter_context(closing(open_state(self._folder.database)))
                ledger = open_ledger(
                    self._folder.ledger, self._folder.database, self._keys.signing, shipped_accountants()
                )
                parts.enter_context(closing(ledger))
                engine = make_engine(self._folder, self._config, self._spool, state, ledger)
                for run in self._folder.idle_runs(time.time() - self._config.keep_days * DAY_S):
                    await engine.forget(run)
                self._state, self._engine, self._parts = state, engine, parts.pop_all()
        if self._state is not None:
            self._heed(site, self._state)
        return self._engine

    def _heed(self, site: NodeSite, state: SiteDatabase) -> None:
        """The site file is the approval: write it down with its members' keys, once; later ones change nothing.

        The folder may be a daemon's at other times: what its administrator said there goes before any file.

        Raises:
            SitePausedError, StudyNotApprovedError
        """
        if state.paused:
            raise SitePausedError("The administrator paused this site")
        agreement, answers = site.agreement, Answers(state, time.time)
        answer = answers.find(agreement.digest)
        if answer is not None and answer.answer != "approved":
            raise StudyNotApprovedError(f"The administrator rejected the study {agreement.study.name} in this folder")
        if site.members and answer is None:
            signature = self._keys.sign_answer("approved", agreement.digest)
            dataset = agreement.dataset.name if agreement.dataset else None
            answers.record(
                Answer(agreement.study, agreement.digest, "approved", signature, dataset, members=site.members)
            )


def _require_keys(site: NodeSite, keys: SiteKeys) -> None:
    roster = {member.name: bytes.fromhex(member.signing_key) for member in site.agreement.study.sites}
    name = site.agreement.site
    if roster.get(name) != keys.member(name).signing_key:
        raise KeyMismatchError(
            f"The study names another signing key for {name} than the one in this site's folder",
            action="Write the study and the site files anew, with the keys of these folders",
        )
    if {str(member.name): member.signing_key for member in site.members} != roster:
        raise KeyMismatchError(
            "The site file does not give the keys of the study's sites",
            action="Write the site file anew, with each site's public keys",
        )


def _in_pairs(parts: list[bytes]) -> dict[bytes, bytes]:
    if len(parts) % 2:
        raise FrameError("Bulk data has no name")
    return dict(zip(parts[::2], parts[1::2], strict=True))
