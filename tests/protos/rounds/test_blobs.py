"""Blobs: whatever happens to frames on their way, what arrives is the blob or a refusal that can be resumed from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.errors import BlobMismatchError, BlobMissingError, FrameError
from quorate.rounds.blobs import (
    FRAME_BYTES,
    INLINE_BYTES,
    MAX_BLOB_BYTES,
    Blob,
    BlobId,
    Frame,
    blob_id,
    cut,
    frame_count,
)
from quorate.rounds.spool import BlobWriter, Spool
from tests.patience import PATIENCE_S

SIZES = (0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES)


def content_of(size: int, salt: int = 0) -> bytes:
    return (bytes(range(251)) * (size // 251 + 2))[salt : salt + size]


def announced(content: bytes) -> Blob:
    return Blob(blob_id(content), len(content))


def frames_of(content: bytes) -> list[Frame]:
    return list(cut([content]))


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def arrive(spool: Spool, content: bytes) -> Blob:
    """All frames, as they should come."""
    blob = announced(content)
    writer = spool.writer(blob)
    for frame in frames_of(content):
        writer.take(frame)
    writer.finish()
    return blob


def names_in(spool: Spool) -> set[str]:
    return {path.name for path in spool.folder.iterdir()}


# --- names ---


def test_a_blob_s_name_never_changes() -> None:
    assert blob_id(b"").hex() == GOLDEN_EMPTY
    assert blob_id(b"quorate").hex() == GOLDEN_SHORT
    assert blob_id(content_of(2 * FRAME_BYTES + 5)).hex() == GOLDEN_LONG


def test_content_that_differs_only_in_its_size_has_another_name() -> None:
    names = {blob_id(bytes(size)) for size in SIZES}
    assert len(names) == len(SIZES)


@pytest.mark.parametrize("size", SIZES)
def test_cutting_does_not_depend_on_how_the_content_comes(size: int) -> None:
    content = content_of(size)
    pieces = [content[start : start + 100_003] for start in range(0, size, 100_003)]
    assert list(cut(pieces)) == frames_of(content)
    assert len(frames_of(content)) == frame_count(size)
    assert b"".join(frame.data for frame in frames_of(content)) == content


@pytest.mark.parametrize(
    ("name", "size", "inline"),
    [
        (b"short", 0, None),
        (bytes(32), -1, None),
        (bytes(32), MAX_BLOB_BYTES + 1, None),
        (blob_id(b"other"), 7, b"content"),
        (blob_id(b"content"), 8, b"content"),
        (blob_id(b"content"), 0, b"content"),
        (blob_id(bytes(INLINE_BYTES + 1)), INLINE_BYTES + 1, bytes(INLINE_BYTES + 1)),
    ],
    ids=[
        "short name",
        "negative",
        "too large",
        "other content",
        "longer than it is",
        "shorter than it is",
        "not small",
    ],
)
def test_a_reference_that_lies_is_refused(name: bytes, size: int, inline: bytes | None) -> None:
    with pytest.raises(FrameError):
        Blob(BlobId(name), size, inline)


# --- arriving ---


@pytest.mark.parametrize("size", SIZES)
def test_what_arrives_whole_is_what_was_sent(spool: Spool, size: int) -> None:
    content = content_of(size)
    blob = arrive(spool, content)
    assert spool.has(blob)
    assert spool.content(blob) == content
    assert list(spool.read(blob)) == frames_of(content)
    assert names_in(spool) == {blob.id.hex(), f"{blob.id.hex()}.frames"}


@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_has_the_name_of_its_content(spool: Spool, size: int) -> None:
    content = content_of(size)
    blob = spool.put([content[: size // 2], content[size // 2 :]])
    assert blob == announced(content)
    assert spool.content(blob) == content


def test_repeated_frames_are_passed_over(spool: Spool) -> None:
    content = content_of(2 * FRAME_BYTES + 5)
    writer = spool.writer(announced(content))
    for frame in frames_of(content):
        writer.take(frame)
        for earlier in frames_of(content)[: frame.index + 1]:
            writer.take(earlier)
    writer.finish()
    assert spool.content(announced(content)) == content


def altered(frames: list[Frame], kind: str) -> Frame:
    """What an attacker or a broken line makes of the second of three frames."""
    first, second, third = frames
    match kind:
        case "skipped":
            return third
        case "corrupted":
            return Frame(1, b"\xff" + second.data[1:], second.sha256)
        case "truncated":
            return Frame(1, second.data[:-1], second.sha256)
        case "extended":
            return Frame(1, second.data + b"\x00", second.sha256)
        case "wrong digest":
            return Frame(1, second.data, first.sha256)
        case "empty":
            return Frame(1, b"", b"")
        case _:
            raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["skipped", "corrupted", "truncated", "extended", "wrong digest", "empty"])
def test_a_frame_that_is_not_right_is_refused_and_the_transfer_goes_on_behind_it(spool: Spool, kind: str) -> None:
    content = content_of(2 * FRAME_BYTES + 5)
    frames = frames_of(content)
    writer = spool.writer(announced(content))
    writer.take(frames[0])
    with pytest.raises(FrameError):
        writer.take(altered(frames, kind))
    assert writer.next_frame == 1
    with pytest.raises(FrameError):
        writer.finish()
    assert not spool.has(announced(content))
    writer.close()

    again = spool.writer(announced(content))
    assert again.next_frame == 1
    for frame in frames[1:]:
        again.take(frame)
    again.finish()
    assert spool.content(announced(content)) == content


@pytest.mark.parametrize("size", [FRAME_BYTES, 2 * FRAME_BYTES, 5])
def test_a_frame_behind_the_last_one_is_refused(spool: Spool, size: int) -> None:
    content = content_of(size)
    writer = spool.writer(announced(content))
    for frame in frames_of(content):
        writer.take(frame)
    beyond = frames_of(content_of(FRAME_BYTES))[0]
    with pytest.raises(FrameError):
        writer.take(Frame(frame_count(size), beyond.data, beyond.sha256))
    writer.finish()
    assert spool.content(announced(content)) == content


def test_frames_of_another_blob_do_not_make_the_announced_one_and_a_fresh_upload_starts_at_zero(spool: Spool) -> None:
    content, other = content_of(FRAME_BYTES + 9), content_of(FRAME_BYTES + 9, salt=1)
    writer = spool.writer(announced(content))
    for frame in frames_of(other):
        writer.take(frame)
    with pytest.raises(BlobMismatchError):
        writer.finish()
    assert writer.next_frame == 0
    assert names_in(spool) == set()
    arrive(spool, content)
    assert spool.content(announced(content)) == content


def test_a_wrong_total_is_refused(spool: Spool) -> None:
    content = content_of(FRAME_BYTES)
    lie = Blob(blob_id(content), 2 * FRAME_BYTES)
    writer = spool.writer(lie)
    writer.take(frames_of(content)[0])
    writer.take(Frame(1, content, frames_of(content)[0].sha256))
    with pytest.raises(BlobMismatchError):
        writer.finish()
    assert not spool.has(lie)


def test_a_reference_with_another_size_does_not_find_the_blob(spool: Spool) -> None:
    blob = arrive(spool, content_of(100))
    lie = Blob(blob.id, 4)
    assert not spool.has(lie)
    with pytest.raises(BlobMissingError):
        list(spool.read(lie))


def test_a_transfer_that_was_killed_in_the_middle_of_a_frame_goes_on_at_that_frame(spool: Spool) -> None:
    content = content_of(3 * FRAME_BYTES)
    frames = frames_of(content)
    writer = spool.writer(announced(content))
    writer.take(frames[0])
    writer.take(frames[1])
    writer.close()
    part = spool.folder / f"{announced(content).id.hex()}.part"
    digests = spool.folder / f"{announced(content).id.hex()}.part.frames"
    with part.open("ab") as file:
        file.write(frames[2].data[:1000])
    with digests.open("ab") as file:
        file.write(frames[2].sha256[:7])

    again = spool.writer(announced(content))
    assert again.next_frame == 2
    again.take(frames[2])
    again.finish()
    assert spool.content(announced(content)) == content


def test_a_frame_that_rotted_on_disk_is_asked_for_again(spool: Spool) -> None:
    content = content_of(3 * FRAME_BYTES)
    writer = spool.writer(announced(content))
    for frame in frames_of(content)[:2]:
        writer.take(frame)
    writer.close()
    part = spool.folder / f"{announced(content).id.hex()}.part"
    with part.open("r+b") as file:
        file.write(b"\xff")
    again = spool.writer(announced(content))
    assert again.next_frame == 0
    for frame in frames_of(content):
        again.take(frame)
    again.finish()
    assert spool.content(announced(content)) == content


def test_a_kill_between_the_two_renames_of_finish_leaves_a_state_that_can_be_resumed(spool: Spool) -> None:
    content = content_of(2 * FRAME_BYTES)
    blob = announced(content)
    writer = spool.writer(blob)
    for frame in frames_of(content):
        writer.take(frame)
    writer.close()
    (spool.folder / f"{blob.id.hex()}.part.frames").rename(spool.folder / f"{blob.id.hex()}.frames")

    assert not spool.has(blob)
    arrive(spool, content)
    assert spool.content(blob) == content
    assert spool.path(blob.id).stat().st_size == len(content)


def test_two_senders_of_the_same_content_do_not_disturb_each_other(spool: Spool) -> None:
    content = content_of(2 * FRAME_BYTES)
    frames = frames_of(content)
    one, other = spool.writer(announced(content), "one"), spool.writer(announced(content), "other")
    one.take(frames[0])
    other.take(frames[0])
    one.take(frames[1])
    one.finish()
    other.take(frames[1])
    other.finish()
    assert spool.content(announced(content)) == content
    assert len(names_in(spool)) == 2


def test_a_blob_that_is_here_already_needs_no_frame(spool: Spool) -> None:
    content = content_of(2 * FRAME_BYTES)
    arrive(spool, content)
    writer = spool.writer(announced(content))
    assert writer.next_frame == 2
    writer.take(frames_of(content)[1])
    writer.finish()
    assert spool.content(announced(content)) == content


# --- keeping ---


def test_what_was_removed_is_gone_with_all_that_was_still_arriving(spool: Spool) -> None:
    gone, stays = arrive(spool, b"gone"), arrive(spool, b"stays")
    half = content_of(2 * FRAME_BYTES)
    writer = spool.writer(announced(half), "site")
    writer.take(frames_of(half)[0])
    writer.close()
    spool.remove(gone.id)
    spool.remove(announced(half).id)
    assert names_in(spool) == {stays.id.hex(), f"{stays.id.hex()}.frames"}
    with pytest.raises(BlobMissingError):
        spool.content(gone)


def test_tidying_keeps_what_is_wanted_and_what_still_arrives(spool: Spool) -> None:
    wanted, unwanted = arrive(spool, b"wanted"), arrive(spool, b"unwanted")
    fresh, stale = content_of(2 * FRAME_BYTES), content_of(2 * FRAME_BYTES, salt=1)
    for content, modified in ((fresh, 2_000.0), (stale, 1_000.0)):
        writer = spool.writer(announced(content), "site")
        writer.take(frames_of(content)[0])
        writer.close()
        for path in spool.folder.glob(f"{announced(content).id.hex()}.*"):
            os.utime(path, (modified, modified))
    (spool.folder / "new-0123").write_bytes(b"what a killed process left")

    spool.keep_only({wanted.id}, incomplete_since_unix_s=1_500.0)
    assert spool.has(wanted)
    assert not spool.has(unwanted)
    assert spool.writer(announced(fresh), "site").next_frame == 1
    assert spool.writer(announced(stale), "site").next_frame == 0
    assert not (spool.folder / "new-0123").exists()


def test_what_could_not_be_put_leaves_nothing(spool: Spool) -> None:
    def broken() -> object:
        yield b"some"
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="broke"):
        spool.put(broken())  # type: ignore[arg-type]
    assert names_in(spool) == set()


# --- a full disk ---

_FULL_DISK = """
import sys
from pathlib import Path
from quorate.rounds.blobs import Blob, blob_id, cut, FRAME_BYTES
from quorate.rounds.spool import Spool
from quorate.errors import DiskFullError

folder = Path(sys.argv[1])
filler = folder / "filler"
content = bytes(range(256)) * (5 * FRAME_BYTES // 256)
blob = Blob(blob_id(content), len(content))
frames = list(cut([content]))
spool = Spool(folder / "spool")
filler.write_bytes(bytes(FRAME_BYTES // 2))  # so that the disk is full in the middle of a frame
writer = spool.writer(blob)
taken = 0
try:
    for frame in frames:
        writer.take(frame)
        taken += 1
except DiskFullError as error:
    assert error.action, "says what to do"
else:
    raise SystemExit("the disk was not full")
assert 0 < taken < 5 and writer.next_frame == taken
try:
    spool.put([content])
except DiskFullError:
    pass
else:
    raise SystemExit("put found room")
assert not list(spool.folder.glob("new-*"))
writer.close()
filler.unlink()
if sys.argv[2] == "new writer":
    writer = spool.writer(blob)
assert writer.next_frame == taken, (writer.next_frame, taken)
for frame in frames[taken:]:
    writer.take(frame)
writer.finish()
assert spool.content(blob) == content
print("resumed", taken)
"""


@pytest.mark.parametrize("then", ["same writer", "new writer"])
def test_a_disk_that_fills_up_in_the_middle_of_a_frame_leaves_a_state_that_can_be_resumed(
    tmp_path: Path, then: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size_kib = 6 * FRAME_BYTES // 1024 + 64 - 256
    script = f'mount -t tmpfs -o size={size_kib}k none "$1" && exec "$2" -c "$3" "$1" "$4"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    probe = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", str(disk)],
        capture_output=True,
        check=False,
    )
    if probe.returncode != 0:
        pytest.skip(f"no tmpfs in a user namespace here: {probe.stderr.decode().strip()}")
    done = subprocess.run(
        [*command, str(disk), sys.executable, _FULL_DISK, then],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("resumed")


# --- anything at all ---

CONTENT = content_of(2 * FRAME_BYTES + 77)
GOOD = frames_of(CONTENT)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """A frame as it was sent, or with anything about it changed."""
    good = draw(st.sampled_from(GOOD))
    index = draw(st.sampled_from([good.index, 0, 1, 2, 3, 2**32 - 1]))
    data = draw(st.sampled_from([good.data, good.data[:-1], good.data + b"x", b"", GOOD[0].data, GOOD[2].data]))
    digest = draw(st.sampled_from([good.sha256, GOOD[0].sha256, b"", bytes(32)]))
    return Frame(index, data, digest)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(frames() | st.sampled_from(["reopen", "finish"]) | st.sampled_from(GOOD), max_size=12),
    st.sampled_from([len(CONTENT), FRAME_BYTES, 0, 2 * FRAME_BYTES]),
)
def test_whatever_comes_is_the_blob_or_a_frame_error(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Frame | str], size: int
) -> None:
    spool = Spool(tmp_path_factory.mktemp("spool"))
    blob = Blob(blob_id(CONTENT), size)
    writer = spool.writer(blob)
    for step in steps:
        try:
            match step:
                case "reopen":
                    writer.close()
                    reached = writer.next_frame
                    writer = spool.writer(blob)
                    # Only a short last frame has to be sent once more.
                    assert reached - 1 <= writer.next_frame <= reached
                case "finish":
                    writer.finish()
                case Frame():
                    writer.take(step)
        except FrameError:
            pass
        if spool.has(blob):
            assert spool.content(blob) == CONTENT
    writer.close()
    assert_resumable(spool)


def assert_resumable(spool: Spool) -> None:
    blob = announced(CONTENT)
    writer: BlobWriter = spool.writer(blob)
    for frame in GOOD:
        writer.take(frame)
    writer.finish()
    assert spool.content(blob) == CONTENT


GOLDEN_EMPTY = "aedae0d6958fe82a5466ce45fcd068c8f628609aadaad1f45f0408630bc3f3ad"
GOLDEN_SHORT = "ce2571986979a1bbc0716059f9d2da2bb1adefb9f4eab05ed1df1a5cb7bcb398"
GOLDEN_LONG = "328d04694049e92fff3063282ae945f3301dc57e08636679f23d38c6d9214edd"
