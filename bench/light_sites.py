"""Many sites in one process, without tasks: real connections and real uploads, canned content.

``python -m bench.light_sites STATE COUNT DIMENSION ADDRESS ROUNDS`` makes COUNT members with the authority of the
server in STATE, prints ``ready``, connects them all on a line from standard input, and answers the instructions of a
study of ROUNDS rounds until standard input ends.
Each further line that it prints is a JSON event.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from quorate import __version__
from quorate.aggregation.plain import WEIGHT_ONE
from quorate.errors import QuorateError
from quorate.identity import Member, SiteName, sealing_proof
from quorate.rounds.blobs import INLINE_BYTES, Blob, blob_id
from quorate.rounds.instruction import Instruction, Phase, Reply
from quorate.rounds.spool import Spool
from quorate.tally import BINS, ClassificationTally
from quorate.v1 import rounds_pb2
from quorate.wire.messages import instruction_from_proto, reply_to_proto
from quorate.wire.sum_messages import SumAnswer, sum_answer_to_bytes
from quorate_client.connection.channel import open_channel, rounds_stub
from quorate_client.connection.transfers import upload
from quorate_client.site.keys import Credentials
from quorate_server.cli.founding import open_registry
from quorate_server.consortium.ca import Authority
from quorate_server.consortium.config import ServerConfig

RECORDS = 100
HISTOGRAM = (50, *(0,) * (BINS - 1))
TALLY = ClassificationTally(2, 1, (25, 25, 25, 25), HISTOGRAM + HISTOGRAM)


@dataclass(frozen=True)
class LightSite:
    """A member that this process plays."""

    name: SiteName
    signing_key: bytes
    credentials: Credentials


def enrol(state: Path, count: int) -> list[LightSite]:
    """Members with certificates, written straight into the server's registry: enrolling is not what is measured."""
    config = ServerConfig.read(state)
    authority = Authority.load(config.ca_dir, config.consortium)
    sites = []
    with open_registry(config) as registry:
        for number in range(count):
            name = SiteName(f"light-{number:03}")
            key = ec.generate_private_key(ec.SECP256R1())
            request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
            now = time.time()
            bootstrap = authority.issue_bootstrap(name, now, 3600)
            registry.invite(name, bootstrap.issued, now + 3600, keep_keys=False)
            issued = authority.issue_site(name, request.public_bytes(serialization.Encoding.PEM), now, 1)
            signing, sealing = Ed25519PrivateKey.generate(), X25519PrivateKey.generate().public_key().public_bytes_raw()
            member = Member(name, signing.public_key().public_bytes_raw(), sealing, sealing_proof(signing, sealing))
            registry.redeem(bootstrap.issued.serial, member, os.urandom(32), issued)
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            sites.append(LightSite(name, member.signing_key, Credentials(authority.ca_pem, issued.pem, pem)))
    return sites


class Player:
    """Plays one site on one connection."""

    def __init__(self, site: LightSite, update: Blob, address: str, spool: Spool, dimension: int, rounds: int) -> None:
        self._site = site
        self._address = address
        self._spool = spool
        self._update = update
        self._dimension = dimension
        self._rounds = rounds
        self._channel = open_channel(site.credentials, address, None)
        self._outgoing: asyncio.Queue[rounds_pb2.SiteEvent | None] = asyncio.Queue()
        self._busy: set[asyncio.Task[None]] = set()
        self.welcomed = asyncio.Event()

    async def play(self) -> None:
        self._outgoing.put_nowait(rounds_pb2.SiteEvent(hello=rounds_pb2.SiteHello(session=1, version=__version__)))
        beats = asyncio.create_task(self._beat())
        try:
            async for event in rounds_stub(self._channel).Connect(self._events()):
                match event.WhichOneof("event"):
                    case "welcome":
                        self.welcomed.set()
                    case "instruction":
                        task = asyncio.create_task(self._answer(instruction_from_proto(event.instruction)))
                        self._busy.add(task)
                        task.add_done_callback(self._busy.discard)
        finally:
            beats.cancel()

    async def _events(self) -> AsyncIterator[rounds_pb2.SiteEvent]:
        while (event := await self._outgoing.get()) is not None:
            yield event

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(2.0)
            self._outgoing.put_nowait(rounds_pb2.SiteEvent(heartbeat=rounds_pb2.Heartbeat(sent_unix_s=time.time())))

    async def _answer(self, instruction: Instruction) -> None:
        answer, blobs = self._content(instruction)
        try:
            for blob in blobs:
                if blob.inline is None:
                    stub = rounds_stub(self._channel)
                    await upload(stub, self._address, self._spool, instruction.message_id, blob, lambda _: None)
        except QuorateError as error:
            print(json.dumps({"event": "upload failed", "code": error.code}), flush=True)
            return
        reply = Reply(instruction.message_id, "", sum_answer_to_bytes(answer), blobs)
        self._outgoing.put_nowait(rounds_pb2.SiteEvent(reply=reply_to_proto(reply)))

    def _content(self, instruction: Instruction) -> tuple[SumAnswer, tuple[Blob, ...]]:
        digest, number = b"m" * 32, instruction.round_number
        if instruction.phase is not Phase.UPLOAD:
            return SumAnswer(model=digest), ()
        if number == 0:
            return SumAnswer(plain_counts=(RECORDS,), dimension=self._dimension), ()
        tally = TALLY.encode() if number > 1 else ()
        if number > self._rounds:
            return SumAnswer(plain_counts=(0, 0, 0, 0, *tally), model=digest), ()
        counts = (WEIGHT_ONE // 1000, RECORDS, 1, 0, *tally)
        return SumAnswer(plain_counts=counts, has_update=True, model=digest), (self._update,)


def _update(spool: Spool, number: int, block: bytes, size: int) -> Blob:
    """An update of the right length, different for every site."""
    own = number.to_bytes(4, "little") + block[4:]
    if size <= INLINE_BYTES:
        return Blob(blob_id(own[:size]), size, own[:size])
    return spool.put(own[: min(len(own), size - start)] for start in range(0, size, len(own)))


async def main() -> None:
    state, count, dimension = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    address = sys.argv[4]
    sites = enrol(state, count)
    spool = Spool(state / "light-spool")
    size = dimension * 4
    block = os.urandom(min(size, 1 << 20))
    updates = [_update(spool, number, block, size) for number in range(count)]
    print("ready", json.dumps({site.name: site.signing_key.hex() for site in sites}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    started = time.monotonic()
    players = [Player(*pair, address, spool, dimension, int(sys.argv[5])) for pair in zip(sites, updates, strict=True)]
    playing: list[asyncio.Task[Any]] = [asyncio.create_task(player.play()) for player in players]
    welcomed = asyncio.gather(*(player.welcomed.wait() for player in players))
    await asyncio.wait([welcomed, *playing], return_when=asyncio.FIRST_COMPLETED)
    for task in playing:
        if task.done():
            task.result()
    print(json.dumps({"event": "connected", "seconds": time.monotonic() - started}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in playing:
        task.cancel()
    await asyncio.gather(*playing, return_exceptions=True)


if __name__ == "__main__":
    grpc.aio.init_grpc_aio()
    asyncio.run(main())
