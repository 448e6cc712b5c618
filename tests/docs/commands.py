"""Runs the commands that a document shows, as its reader would type them.

A block is run when a comment stands above it: ``<!-- run: NAME -->``. NAME is a terminal; each name gets a shell of its
own that lives from its first block to the end, so what one block exports the next one sees. ``until TEXT`` marks a
block that stays (a daemon): the next one follows when TEXT was printed. ``after Ctrl-C`` ends it, before another block
in the same terminal.

A ``console`` block shows commands behind ``$ ``, continued behind ``> ``, and what they print: that is compared. Times,
keys, digests and decimals may differ; ``…`` stands for anything, in a line, or as a line of its own for any number of
lines. A ``bash`` block shows commands only. The first command that fails fails its document.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.patience import PATIENCE_S

_BLOCK = re.compile(
    r"^<!-- run: (?P<terminal>\w+)(?P<interrupts> after Ctrl-C)?(?: until (?P<until>.+?))? -->\n"
    r"```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
# What differs from one run to the next, and is shown in a document as it once was.
_VARIES = (
    (re.compile(r"\b[0-9a-f]{4}(-[0-9a-f]{4}){5}\b"), "FINGERPRINT"),
    (re.compile(r"\b([0-9a-f]{64}|[0-9a-f]{16}|[0-9a-f]{12})\b"), "DIGEST"),
    (re.compile(r"-[0-9a-f]{6}\b"), "-RUN"),
    (re.compile(r"\d{4}-\d\d-\d\d"), "DATE"),
    (re.compile(r"\d\d:\d\d(:\d\d)?"), "TIME"),
    (re.compile(r"\d+ seconds? ago"), "AGO"),
    (re.compile(r"[-+]?\d+(?:\.\d+)? s\b"), "SECONDS"),
    (re.compile(r"\d+\.\d+"), "DECIMAL"),
    (re.compile(r"[\d,]+ bytes"), "BYTES"),
)


class CommandError(AssertionError):
    """A document shows something that does not work like that."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block that is to be run. ``line`` is where it begins in its document."""

    line: int
    terminal: str
    interrupts: bool
    until: str | None
    language: str
    text: str

    def steps(self) -> Iterator[tuple[str, list[str] | None]]:
        """The commands in order, each with what it is said to print, or None where nothing is said."""
        if self.language != "console":
            yield self.text, None
            return
        command, printed = "", list[str]()
        for line in self.text.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command, printed
                command, printed = line[2:], []
            elif line.startswith("> ") and not printed:
                command += "\n" + line[2:]
            else:
                printed.append(line)
        yield command, printed


def blocks(text: str) -> list[Block]:
    """The blocks of a document that are to be run."""
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        found.append(
            Block(line, match["terminal"], bool(match["interrupts"]), match["until"], match["language"], match["text"])
        )
    return found


def fits(shown: list[str], printed: str) -> bool:
    """Whether what was printed is what a document shows, apart from spacing, from what varies and from ``…``."""
    pattern = ""
    for line in _tidied("\n".join(shown)):
        if line == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(re.escape(part) for part in line.split("…")) + r"\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _tidied(printed))) is not None


def _tidied(text: str) -> list[str]:
    for pattern, name in _VARIES:
        text = pattern.sub(name, text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


class Terminal:
    """A shell that is typed into."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._shell = subprocess.Popen(
            ["bash", "-eu", "-o", "pipefail"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._printed = ""
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def run(self, command: str, number: int) -> str:
        """Run a command to its end. Returns what the terminal showed meanwhile."""
        mark = f"[command {number} is done]"
        before = len(self._printed)
        self._type(f"{command}\nprintf '\\n%s\\n' '{mark}'\n")
        self._wait(f"\n{mark}\n", before)
        return self._printed[before:].partition(f"\n{mark}\n")[0]

    def begin(self, command: str, until: str) -> None:
        """Start a command that stays."""
        before = len(self._printed)
        self._type(f"{command}\n")
        self._wait(until, before)

    def interrupt(self) -> None:
        """Ctrl-C: end the command that stays, and see it gone."""
        started = psutil.Process(self._shell.pid).children()
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)
        if psutil.wait_procs(started, PATIENCE_S)[1]:
            raise CommandError("Ctrl-C does not end what runs in this terminal")

    def close(self) -> None:
        """End the shell and all that it started, politely first; by its own group and nothing else."""
        self._end(signal.SIGTERM)
        end_s = time.monotonic() + PATIENCE_S
        while self._lives() and time.monotonic() < end_s:
            time.sleep(0.05)
        self._end(signal.SIGKILL)
        self._shell.wait()
        self._reader.join()
        for stream in (self._shell.stdin, self._shell.stdout):
            if stream is not None:
                stream.close()

    def _end(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, number)

    def _lives(self) -> bool:
        """Whether something of the group runs. What has ended and is not yet reaped does not count."""
        for process in psutil.process_iter(["status"]):
            with suppress(ProcessLookupError):
                if os.getpgid(process.pid) == self._shell.pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                    return True
        return False

    def _type(self, text: str) -> None:
        assert self._shell.stdin is not None
        try:
            self._shell.stdin.write(text)
            self._shell.stdin.flush()
        except BrokenPipeError as error:
            raise CommandError(f"the shell has ended:\n{self._printed[-4000:]}") from error

    def _wait(self, text: str, start: int) -> None:
        with self._news:
            self._news.wait_for(lambda: text in self._printed[start:] or self._ended, PATIENCE_S)
        if text not in self._printed[start:]:
            raise CommandError(f"failed, or did not come to its end:\n{self._printed[start:][-4000:]}")

    def _read(self) -> None:
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            with self._news:
                self._printed += line
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


@contextmanager
def terminals(folder: Path, environment: Mapping[str, str]) -> Iterator[dict[str, Terminal]]:
    """Shells by name; all are closed at the end, the last one first."""
    opened: dict[str, Terminal] = {}
    try:
        yield opened
    finally:
        for terminal in reversed(opened.values()):
            terminal.close()


def run_document(path: Path, folder: Path, environment: Mapping[str, str], replaced: Mapping[str, str]) -> int:
    """Run all marked blocks of a document in ``folder``. Returns how many commands that were.

    Args:
        replaced: Text that cannot be as the document has it, such as a port that may be taken.

    Raises:
        CommandError: naming the line, and what the command printed.
    """
    text = path.read_text(encoding="utf-8")
    number = 0
    with terminals(folder, environment) as opened:
        for block in blocks(text):
            if block.terminal not in opened:
                opened[block.terminal] = Terminal(folder, environment)
            if block.interrupts:
                opened[block.terminal].interrupt()
            for command, shown in block.steps():
                number += 1
                place = f"{path.name}, block at line {block.line}: {command.strip().splitlines()[0]}"
                try:
                    _step(opened[block.terminal], block, command, shown, number, replaced)
                except CommandError as error:
                    raise CommandError(f"{place}\n{error}") from None
    return number


def _step(
    terminal: Terminal, block: Block, command: str, shown: list[str] | None, number: int, replaced: Mapping[str, str]
) -> None:
    for old, new in replaced.items():
        command = command.replace(old, new)
        shown = [line.replace(old, new) for line in shown] if shown is not None else None
    if block.until is not None:
        terminal.begin(command, block.until)
        return
    printed = terminal.run(command, number)
    if shown is not None and not fits(shown, printed):
        raise CommandError(f"prints something else than shown:\n{printed}")
