"""The server's spool over the connection: nothing that comes from it is believed."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from quorate.errors import BlobMismatchError, BlobMissingError, DiskFullError, RunWorkerError
from quorate.rounds.blobs import MAX_BLOB_BYTES, Blob, BlobId, blob_id
from quorate.wire.refusal import error_to_text
from quorate_server.aggregator import remote_store
from quorate_server.aggregator.remote_store import PIECE_BYTES, RemoteStore
from quorate_server.rounds.pipe import Note, Verb, reference

Answer = Callable[[Note], "Note | None"]


class Server:
    """Keeps what it is given and answers at once; a test may change each answer."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.put = b""
        self.change: Answer = lambda note: note
        self.store = RemoteStore(self._hear)

    def _hear(self, note: Note) -> None:
        answer = self._answer(note)
        changed = self.change(answer) if answer is not None else None
        if changed is not None:
            assert self.store.heed(changed)

    def _answer(self, note: Note) -> Note | None:
        match note.verb:
            case Verb.PUT:
                self.put += note.payload
                return None
            case Verb.STORE:
                blob = self.keep(self.put)
                self.put = b""
                return Note(Verb.STORED, reference(blob))
            case Verb.READ:
                start, length = int.from_bytes(note.payload[32:40], "big"), int.from_bytes(note.payload[40:], "big")
                return Note(Verb.PIECE, self.stored[note.payload[:32]][start : start + length])
            case _:
                return Note(Verb.ROOM, (7).to_bytes(8, "big"))

    def keep(self, content: bytes) -> Blob:
        blob = Blob(blob_id(content), len(content))
        self.stored[blob.id] = content
        return blob


@pytest.fixture
def server() -> Server:
    return Server()


def failing(error: Exception) -> Answer:
    return lambda _: Note(Verb.FAILED, error_to_text(error).encode())  # type: ignore[arg-type]


def test_what_is_put_is_stored_under_its_name_and_comes_back(server: Server) -> None:
    content = os.urandom(PIECE_BYTES + 10)
    blob = server.store.put([content[:7], content[7:]])
    assert blob == Blob(blob_id(content), len(content))
    with server.store.open(blob) as file:
        assert file.read() == content
    assert server.store.read_at(blob, PIECE_BYTES - 1, 100) == content[PIECE_BYTES - 1 :]
    assert server.store.free_bytes() == 7


def test_nothing_is_a_blob_too(server: Server) -> None:
    with server.store.open(server.store.put([])) as file:
        assert file.read() == b""


@pytest.mark.parametrize("other", [b"other", b"stores", b"store", b""], ids=["as long", "longer", "shorter", "nothing"])
def test_other_bytes_than_those_that_were_stored_are_refused(server: Server, other: bytes) -> None:
    blob = server.store.put([b"state"])
    server.stored[blob.id] = other
    with pytest.raises(BlobMismatchError):
        server.store.open(blob)


def test_a_server_that_stores_something_else_is_found_out(server: Server) -> None:
    server.change = lambda _: Note(Verb.STORED, reference(Blob(blob_id(b"other"), 5)))
    with pytest.raises(BlobMismatchError):
        server.store.put([b"state"])


@pytest.mark.parametrize("error", [BlobMissingError("Gone"), DiskFullError("Full")])
def test_what_fails_at_the_server_fails_here(server: Server, error: Exception) -> None:
    server.change = failing(error)
    with pytest.raises(type(error)):
        server.store.put([b"state"])


def test_a_server_that_answers_something_else_than_it_was_asked_is_no_server(server: Server) -> None:
    server.change = lambda _: Note(Verb.ROOM, bytes(8))
    with pytest.raises(RunWorkerError):
        server.store.put([b"state"])


def test_a_server_that_drops_what_it_was_asked_is_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_store, "ANSWER_S", 0.01)
    server.change = lambda _: None
    with pytest.raises(RunWorkerError):
        server.store.put([b"state"])


def test_no_more_is_taken_than_was_asked_for(server: Server) -> None:
    blob = server.store.put([b"state"])
    server.change = lambda _: Note(Verb.PIECE, b"state and more")
    assert server.store.read_at(blob, 0, 5) == b"state"


def test_a_size_that_the_server_makes_up_costs_no_memory(server: Server) -> None:
    blob = Blob(BlobId(bytes(32)), MAX_BLOB_BYTES)
    server.stored[blob.id] = b"little"
    assert server.store.read_at(blob, 0, 100) == b"little"
    with pytest.raises(BlobMismatchError):
        server.store.open(blob)


def test_what_is_no_answer_is_for_others(server: Server) -> None:
    assert not server.store.heed(Note(Verb.REPLY))
    assert not server.store.heed(Note(Verb.ATTEST))
