"""A server that is written by hand, so that a test can have it say what no server of ours would; the sites that it
asks are real engines with keys, votes and models on disk."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.aggregation import ring, words
from quorate.aggregation.packing import Packing
from quorate.errors import QuorateError
from quorate.identity import RunId, SiteName
from quorate.process.randomness import SystemRandomness
from quorate.rounds.blobs import Blob
from quorate.rounds.instruction import Instruction, Phase, Reply, message_id
from quorate.rounds.spool import Spool
from quorate.secagg.opening import Opening
from quorate.secagg.participant import Member, Participant
from quorate.secagg.study_key import SealedPart, seal_stream
from quorate.secagg.terms import Hello, Layout, Reveal, Terms, Vote, checkpointed, sum_digest
from quorate.study.study import Protection, Rounds, Study
from quorate.wire.sum_messages import (
    SumAnswer,
    SumRef,
    SumWork,
    opening_to_bytes,
    shares_from_bytes,
    shares_to_bytes,
    sum_answer_from_bytes,
    sum_work_to_bytes,
    words_from_bytes,
    words_to_bytes,
)
from quorate_client.rounds.engine import Engine
from quorate_client.rounds.model.state import read_state
from quorate_client.rounds.sums.pooled import Pooled
from quorate_client.rounds.sums.site_keys import SiteSecrets
from quorate_client.rounds.sums.votes import VoteLog
from quorate_client.site.agreement import Agreement, Dataset
from quorate_client.site.keys import SiteKeys, make_or_load_keys
from tests.client import engine_kit
from tests.client.databases import made_state
from tests.client.in_process import InProcessWorkers

RUN = RunId("run-1")
NAMES = tuple(SiteName(name) for name in ("east", "north", "south", "west"))
EAST, NORTH, SOUTH, WEST = NAMES
VICTIM = NORTH


class Site:
    """A site's engine with what it keeps on disk. ``restart`` is what a crash leaves."""

    def __init__(self, name: SiteName, folder: Path, keys: SiteKeys, study: Study, sealing: Mapping[SiteName, bytes]):
        self.name, self.folder, self.keys = name, folder, keys
        rng = np.random.default_rng(sum(name.encode()))
        x = rng.normal(1.0, size=(40 + NAMES.index(name), 3))
        np.savez(folder / "records.npz", x=x, y=(x.sum(axis=1) > 3).astype(np.int64))
        dataset = Dataset("records", "tabular", folder / "records.npz", {}, 0.2, len(x))
        self.agreement = Agreement(study, study.digest(), name, dataset, {})
        self.spool = Spool(folder / "spool")
        self.state = made_state(folder / "state.sqlite")
        self._secrets = SiteSecrets(
            keys.for_secure_sums, lambda _: sealing, VoteLog(self.state), folder / "keys" / "studies"
        )
        self.restart()

    def restart(self) -> None:
        self.engine = Engine(InProcessWorkers(), self.spool, self.folder, time.monotonic, secrets=self._secrets)

    def kept(self) -> tuple[dict[str, bytes], list[Any]]:
        """Its models and its study key, and its votes."""
        files = [*self.folder.glob("runs/*/*"), *self.folder.glob("keys/studies/*")]
        database: sqlite3.Connection = self.state.database
        votes = [*database.execute("SELECT * FROM ballots"), *database.execute("SELECT * FROM beliefs")]
        return {path.name: path.read_bytes() for path in files}, votes

    def uploads(self) -> list[Any]:
        """Each time it was about to read records for a sum, and whether that failed."""
        return self.state.database.execute("SELECT round, attempt, failed FROM uploads").fetchall()

    @property
    def member(self) -> Member:
        """What a colluder has of its own site, the study key included."""
        key = self._secrets.study_key(RUN)
        assert key is not None
        return self._secrets.member(self.agreement.study, self.name, key)


@dataclass
class Uploads:
    """One sum at the server, up to the vote."""

    terms: Terms
    hellos: tuple[Hello, ...]
    polynomials: int = 1
    ciphertexts: dict[SiteName, Blob] = field(default_factory=dict)
    counts: dict[SiteName, bytes] = field(default_factory=dict)
    boxes: dict[SiteName, dict[SiteName, bytes]] = field(default_factory=dict)
    models: dict[SiteName, bytes] = field(default_factory=dict)
    told: dict[SiteName, SumAnswer] = field(default_factory=dict)


@dataclass
class Sum:
    """The sum over some survivors, as the server would have it voted for."""

    uploads: Uploads
    survivors: tuple[SiteName, ...]
    ciphertext: Blob | None
    counts: bytes

    @property
    def digest(self) -> bytes:
        return sum_digest(self.ciphertext.id if self.ciphertext else b"", self.counts)

    def boxes_for(self, site: SiteName) -> bytes:
        return shares_to_bytes({s: self.uploads.boxes[s][site] for s in self.survivors if s != site})


class HandServer:
    """Carries and adds as the server does, step by step."""

    def __init__(self, folder: Path) -> None:
        keys = {}
        for name in NAMES:
            (folder / name / "keys").mkdir(parents=True)
            keys[name] = make_or_load_keys(folder / name / "keys")
        members = {name: key.member(name) for name, key in keys.items()}
        plain = engine_kit.make_study()
        named = [{"name": name, "signing_key": members[name].signing_key.hex()} for name in NAMES]
        secret = {"rounds": Rounds(count=3, quorum=3), "protection": Protection(colluders=1), "sites": named}
        self.study = Study.model_validate(plain.model_dump() | secret)
        self.sealing = {name: member.sealing_key for name, member in members.items()}
        self.sites = {name: Site(name, folder / name, keys[name], self.study, self.sealing) for name in NAMES}
        self.spool = Spool(folder / "server")
        self.packing = Packing(self.study.protection.value_bound, len(NAMES))
        self.parts: dict[SiteName, tuple[SealedPart, ...]] = {}
        self.sums: tuple[SumRef, ...] = ()
        self.dimension = 0
        self.states: dict[int, bytes] = {0: b""}
        """Digests of the states from which sums start, as a colluder knows them."""
        self.following: dict[SiteName, Hello] = {}
        self.colluders: dict[SiteName, Colluder] = {}
        """Sites that answer in sums as a test has them answer."""

    # --- asking ---

    async def ask(
        self, site: SiteName, phase: Phase, number: int, work: SumWork, attempt: int = 0, **changes: Any
    ) -> tuple[SumAnswer, list[Blob]]:
        if site in self.colluders and phase is not Phase.KEYS:
            return self.colluders[site].answer(self, phase, number, attempt, work)
        reply = await self.reply(site, phase, number, work, attempt, **changes)
        content = self.sites[site].spool.content
        return sum_answer_from_bytes(reply.body), [self.spool.put([content(blob)]) for blob in reply.blobs]

    async def reply(
        self, site: SiteName, phase: Phase, number: int, work: SumWork, attempt: int = 0, **changes: Any
    ) -> Reply:
        asked = self.sites[site]
        instruction = Instruction(
            message_id(RUN, number, phase, attempt, site),
            RUN,
            number,
            phase,
            attempt,
            self.study.digest(),
            60.0,
            sum_work_to_bytes(work),
        )
        return await asked.engine.perform(replace(instruction, **changes), asked.agreement, self._fetch(asked))

    def _fetch(self, site: Site) -> Callable[[Blob], Any]:
        async def fetch(blob: Blob) -> None:
            writer = site.spool.writer(blob)
            for frame in self.spool.read(blob):
                writer.take(frame)
            writer.finish()

        return fetch

    def way(self, site: SiteName) -> SumWork:
        """What leads to the newest model."""
        return SumWork(parts=self.parts[site], sums=self.sums)

    def state(self, site: SiteName, number: int) -> Path:
        """The file of a site's state after a round."""
        (path,) = self.sites[site].folder.glob(f"runs/*/model-{number}-*.state")
        return path

    def pooled(self, site: Site) -> Pooled:
        """What a site's newest state holds beside the model."""
        states = [state for path in site.folder.glob("runs/*/model-*.state") if (state := read_state(path))]
        newest = max(states, key=lambda state: state.round_number)
        return Pooled.from_bytes(newest.origin.beside, sorted(self.study.site_names))

    def boxes_in(self, blob: Blob) -> dict[SiteName, bytes]:
        return shares_from_bytes(self.spool.content(blob))

    async def checkpoint(self, site: SiteName, number: int, attempt: int = 0) -> SumWork:
        """The checkpoint that a site seals in a sum, as a server passes it on."""
        answer, (sealed,) = await self.ask(site, Phase.CHECKPOINT, number, SumWork(), attempt)
        return SumWork(checkpoint=sealed, checkpoint_round=number - 2, checkpoint_sealer=answer.vote)

    def forged(self, site: SiteName, content: bytes, number: int) -> SumWork:
        """A checkpoint of any content, sealed and signed by a colluder."""
        member = self.sites[site].member
        purpose = b"checkpoint" + number.to_bytes(8, "big")
        sealed = self.spool.put([b"".join(seal_stream([content], member.study_key, purpose))])
        signature = member.signing_key.sign(checkpointed(self.study.digest(), RUN, number, sealed.id))
        return SumWork(checkpoint=sealed, checkpoint_round=number, checkpoint_sealer=Vote(site, signature))

    # --- the steps of an honest server ---

    async def exchange_keys(self) -> None:
        made = {site: (await self.ask(site, Phase.KEYS, 0, SumWork()))[0].parts for site in NAMES}
        self.parts = {site: tuple(made[sender][site] for sender in NAMES) for site in NAMES}

    async def greet(self, number: int, attempt: int = 0, sites: Sequence[SiteName] = NAMES) -> tuple[Hello, ...]:
        answers = [(await self.ask(site, Phase.HELLO, number, self.way(site), attempt))[0] for site in sites]
        return tuple(answer.hello for answer in answers if answer.hello is not None)

    async def collect(self, number: int, hellos: tuple[Hello, ...], attempt: int = 0) -> Uploads:
        polynomials = self.packing.polynomials(self.dimension) if 1 <= number <= 3 else 0
        uploads = Uploads(Terms(self.study.digest(), RUN, number, attempt), hellos, polynomials)
        for hello in hellos:
            answer, blobs = await self.upload(hello.site, number, hellos, attempt)
            uploads.counts[hello.site] = answer.counts
            uploads.models[hello.site] = answer.model
            uploads.told[hello.site] = answer
            uploads.boxes[hello.site] = shares_from_bytes(self.spool.content(blobs[-1]))
            if polynomials:
                uploads.ciphertexts[hello.site] = blobs[0]
            self.dimension = self.dimension or answer.dimension
        return uploads

    async def upload(
        self, site: SiteName, number: int, hellos: tuple[Hello, ...], attempt: int = 0
    ) -> tuple[SumAnswer, list[Blob]]:
        return await self.ask(site, Phase.UPLOAD, number, replace(self.way(site), hellos=hellos), attempt)

    async def arrive(self, site: SiteName, number: int, work: SumWork, attempt: int = 0) -> SumAnswer:
        """All say hello, and this site is asked to upload from the model to which ``work`` leads."""
        hellos = await self.greet(number, attempt)
        return (await self.ask(site, Phase.UPLOAD, number, replace(work, hellos=hellos), attempt))[0]

    def add(self, uploads: Uploads, survivors: Sequence[SiteName] = NAMES) -> Sum:
        total = np.zeros((uploads.polynomials, ring.DEGREE), np.uint64)
        counts = np.zeros_like(words_from_bytes(uploads.counts[survivors[0]]))
        for site in survivors:
            ring.add(counts, words_from_bytes(uploads.counts[site]))
            if uploads.polynomials:
                ring.add(total, words.unpack(self.spool.content(uploads.ciphertexts[site])))
        blob = self.spool.put([words.pack(total)]) if uploads.polynomials else None
        return Sum(uploads, tuple(survivors), blob, words_to_bytes(counts))

    async def vote(self, site: SiteName, summed: Sum) -> Vote:
        terms = summed.uploads.terms
        shares = Blob.of(summed.boxes_for(site))
        work = SumWork(survivors=summed.survivors, digest=summed.digest, shares=shares)
        answer, _ = await self.ask(site, Phase.VOTE, terms.round_number, work, terms.attempt)
        assert answer.vote is not None
        return answer.vote

    async def reveal(self, site: SiteName, summed: Sum, votes: tuple[Vote, ...]) -> Reveal:
        terms = summed.uploads.terms
        work = SumWork(votes=votes)
        answer, _ = await self.ask(site, Phase.REVEAL, terms.round_number, work, terms.attempt)
        assert answer.reveal is not None
        if answer.hello is not None:
            self.following[site] = answer.hello
        return answer.reveal

    async def open(self, summed: Sum) -> SumRef:
        """All survivors vote and reveal; what comes of it is not yet passed on."""
        votes = tuple([await self.vote(site, summed) for site in summed.survivors])
        reveals = tuple([await self.reveal(site, summed, votes) for site in summed.survivors])
        return self.reference(summed, votes, reveals)

    def reference(self, summed: Sum, votes: tuple[Vote, ...], reveals: tuple[Reveal, ...]) -> SumRef:
        terms, uploads = summed.uploads.terms, summed.uploads
        name = summed.ciphertext.id if summed.ciphertext else b""
        model = uploads.models[summed.survivors[0]]
        opening = Opening(uploads.hellos, model, summed.survivors, summed.counts, name, votes, reveals)
        stored = self.spool.put([opening_to_bytes(opening)])
        return SumRef(terms.round_number, terms.attempt, summed.ciphertext, stored)

    async def run_sum(self, number: int) -> None:
        uploads = await self.collect(number, await self.greet(number))
        self.sums = (*self.sums, await self.open(self.add(uploads)))

    async def run_to(self, number: int) -> None:
        """All sums up to this one."""
        for following in range(len(self.sums), number + 1):
            await self.run_sum(following)

    @contextmanager
    def refused(self, code: str, site: SiteName = VICTIM) -> Iterator[None]:
        """What is asked inside is refused with this code, and changes nothing at the site."""
        before = self.sites[site].kept()
        with pytest.raises(QuorateError) as caught:
            yield
        assert caught.value.code == code, caught.value
        assert self.sites[site].kept() == before

    async def require_sound(self) -> None:
        """With the truth the run goes on: all arrive at one model, and the site takes part."""
        uploads = await self.collect(len(self.sums), await self.greet(len(self.sums), attempt=9), attempt=9)
        assert set(uploads.models) == set(NAMES)
        assert len(set(uploads.models.values())) == 1


class Colluder:
    """A site that works with the server: it follows the protocol with the counts and the update that it likes.

    Args:
        site: Whose keys it has.
        counts: What it says, by number of the sum.
        update: Its update's coordinates, all the same, in steps of the sum's integers.
    """

    def __init__(self, site: Site, counts: Mapping[int, Sequence[int]], update: int = 0) -> None:
        self.site, self.counts, self.update = site, counts, update

    def answer(
        self, server: HandServer, phase: Phase, number: int, attempt: int, work: SumWork
    ) -> tuple[SumAnswer, list[Blob]]:
        match phase:
            case Phase.HELLO:
                terms = Terms(server.study.digest(), RUN, number, attempt)
                self._participant = Participant(terms, self.site.member, SystemRandomness())
                return SumAnswer(hello=self._participant.hello()), []
            case Phase.UPLOAD:
                return self._upload(server, number, work)
            case Phase.VOTE:
                assert work.shares is not None
                boxes = shares_from_bytes(work.shares.inline or b"")
                vote = self._participant.vote(work.survivors, work.digest, boxes, lambda ballot: None)
                return SumAnswer(vote=vote), []
            case Phase.REVEAL:
                return SumAnswer(reveal=self._participant.reveal(work.votes)), []
            case _:
                raise AssertionError(phase)

    def _upload(self, server: HandServer, number: int, work: SumWork) -> tuple[SumAnswer, list[Blob]]:
        blobs, trains = [], 1 <= number <= 3
        polynomials = server.packing.polynomials(server.dimension) if trains else 0
        layout = Layout(polynomials, len(self.counts[number]))
        self._participant.begin_upload(work.hellos, server.states[number], layout)
        if trains:
            lanes = server.packing.join(np.full(server.dimension, self.update, np.int64))
            blobs.append(server.spool.put([words.pack(self._participant.encrypt(0, lanes, server.packing.delta_bits))]))
        masked, boxes = self._participant.finish_upload(self.counts[number])
        blobs.append(server.spool.put([shares_to_bytes(boxes)]))
        answer = SumAnswer(counts=words_to_bytes(masked), has_update=trains, model=self._participant.model)
        return answer, blobs


@pytest.fixture(name="fresh")
async def fresh_fixture(installed: Path, tmp_path: Path) -> AsyncIterator[HandServer]:
    """A run whose sites have a study key, and nothing was summed."""
    made = HandServer(tmp_path)
    await made.exchange_keys()
    yield made
    for site in made.sites.values():
        await site.engine.close()
        site.state.close()


@pytest.fixture(name="server")
async def server_fixture(fresh: HandServer) -> HandServer:
    """A run whose statistics and first round are summed and opened."""
    await fresh.run_to(1)
    return fresh
