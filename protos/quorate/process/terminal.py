"""The edge at which the three commands write: nothing else of ours writes to standard output or standard error.

Whatever is shown here is text: it passes ``printable``, and no markup, emoji code or link in it is obeyed. Line ends
and styles are the command's own.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from quorate.process.printable import printable

TRACEBACK = "QUORATE_TRACEBACK"
"""The variable with which somebody asks for tracebacks."""


class Terminal(Console):
    """Standard output, or with ``stderr`` standard error. Made anew for each use, so that it writes to what that is
    at the moment.

    Everything that rich lays out, to the last cell of a table, comes through ``tables``; so no page has to think of it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, highlight=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, str):
            renderable = printable(renderable)
        elif isinstance(renderable, Text):
            renderable = renderable.copy()
            renderable.plain = printable(renderable.plain)
        return super().render(renderable, options)


def say(text: str, style: str = "", *, to_stderr: bool = False) -> None:
    """One line."""
    Terminal(stderr=to_stderr).print(Text(text, style), soft_wrap=True)


def say_json(value: Any, *, indent: int | None = 2, sort_keys: bool = False, to_stderr: bool = False) -> None:
    """JSON for programs, in ASCII: it escapes all that is not printable."""
    stream = sys.stderr if to_stderr else sys.stdout
    stream.write(json.dumps(value, indent=indent, sort_keys=sort_keys) + "\n")
    stream.flush()


@contextmanager
def unexpected_ends_it() -> Iterator[None]:
    """An exception that nobody expected ends the command with one line; whoever asks for it gets the traceback, which
    may quote what a peer said."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # the outermost door
        if os.environ.get(TRACEBACK):
            for line in traceback.format_exc().splitlines():
                say(line, to_stderr=True)
        else:
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {os.path.basename(place.filename)}:{place.lineno}"  # noqa: PTH119  # text
            say(f"Error [internal]: {what}. A mistake of the program; {TRACEBACK}=1 shows all of it.", to_stderr=True)
        sys.exit(1)
