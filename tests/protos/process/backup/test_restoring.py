"""A restored state takes the place of what is there, and nothing of that is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorate.errors import AlreadyExistsError, StorageError
from quorate.process.backup.restoring import UNPACKED, put_in_place, unpacking

KEPT = ("daemon.lock",)


def folder(path: Path, *names: str, content: str = "old") -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)
    return path


def content(path: Path) -> dict[str, str]:
    return {str(each.relative_to(path)): each.read_text() for each in path.rglob("*") if each.is_file()}


def test_an_empty_folder_takes_it(tmp_path: Path) -> None:
    state = folder(tmp_path / "state", "daemon.lock")
    with unpacking(state) as unpacked:
        folder(unpacked, "keys/a", "state", content="new")
        put_in_place(state, unpacked, key="keys", stays=KEPT, replace=False, now=0.0)
    assert content(state) == {"daemon.lock": "old", "keys/a": "new", "state": "new"}


def test_a_folder_with_something_in_it_is_not_touched_unless_told(tmp_path: Path) -> None:
    state = folder(tmp_path / "state", "keys/a")
    with unpacking(state) as unpacked, pytest.raises(AlreadyExistsError, match="--replace"):
        folder(unpacked, "keys/a", content="new")
        put_in_place(state, unpacked, key="keys", stays=KEPT, replace=False, now=0.0)
    assert content(state) == {"keys/a": "old"}


def test_what_was_there_is_set_aside_and_not_deleted(tmp_path: Path) -> None:
    state = folder(tmp_path / "state", "keys/a", "work/model", "daemon.lock")
    for moment in (0.0, 1.0):
        with unpacking(state) as unpacked:
            folder(unpacked, "keys/a", content=f"new {moment}")
            aside = put_in_place(state, unpacked, key="keys", stays=KEPT, replace=True, now=moment)
        assert aside.name == f"replaced-19700101T00000{moment:.0f}Z"
    assert content(state) == {
        "daemon.lock": "old",
        "keys/a": "new 1.0",
        "replaced-19700101T000000Z/keys/a": "old",
        "replaced-19700101T000000Z/work/model": "old",
        "replaced-19700101T000001Z/keys/a": "new 0.0",
    }


def test_the_entry_without_which_nothing_starts_goes_first_and_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any number of moves, either all is old, or all is new, or nothing starts."""
    for moves in range(8):
        state = folder(tmp_path / str(moves) / "state", "a", "key", "z")
        left = moves

        def rename(path: Path, target: Path, real: object = Path.rename) -> Path:
            nonlocal left
            if not left:
                raise OSError(28, "full")
            left -= 1
            return real(path, target)  # type: ignore[operator,no-any-return]

        with unpacking(state) as unpacked, monkeypatch.context() as patched:
            folder(unpacked, "a", "key", "z", content="new")
            patched.setattr(Path, "rename", rename)
            if moves < 6:
                with pytest.raises(StorageError):
                    put_in_place(state, unpacked, key="key", stays=(), replace=True, now=0.0)
            else:
                put_in_place(state, unpacked, key="key", stays=(), replace=True, now=0.0)
        there = {name: (state / name).read_text() for name in ("a", "key", "z") if (state / name).exists()}
        assert "key" not in there or set(there.values()) in ({"old"}, {"new"})
        assert "key" not in there or len(there) == 3


def test_what_a_killed_restore_left_is_taken_away_by_the_next(tmp_path: Path) -> None:
    state = folder(tmp_path / "state", f"{UNPACKED}/keys/a", content="half")
    with unpacking(state) as unpacked:
        folder(unpacked, "keys/b", content="new")
        put_in_place(state, unpacked, key="keys", stays=(), replace=False, now=0.0)
    assert content(state) == {"keys/b": "new"}
