"""How the commands speak: tables for people, JSON for programs, one message for a failure."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from quorate.errors import QuorateError
from quorate.process.terminal import Terminal, say_json
from quorate.process.terminal import say as say

StateOption = Annotated[
    Path,
    # readable: who may not read it is told whose it is, when it is read.
    typer.Option("--state", envvar="QUORATE_STATE", metavar="DIR", help="The site's folder.", readable=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DEFAULT_STATE = Path("quorate-site")


def out() -> Terminal:
    return Terminal()


def err() -> Terminal:
    return Terminal(stderr=True)


def show_json(value: Any) -> None:
    say_json(value, sort_keys=True)


def show_error(error: QuorateError, *, as_json: bool) -> None:
    """One message on standard error: what happened, what was expected, what came, what to do."""
    if as_json:
        fields = {key: getattr(error, key) for key in ("code", "what", "expected", "got", "action")}
        say_json({"error": fields}, indent=None, to_stderr=True)
        return
    err().print(Text(f"Error [{error.code}]: ", "bold red") + Text(str(error), "red"), soft_wrap=True)


def warn(text: str) -> None:
    err().print(Panel(Text(text, "bold yellow"), title="warning", border_style="yellow"))


def table(*columns: str, title: str | None = None) -> Table:
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def cell(text: str, style: str = "") -> Text:
    return Text(text, style)


def moment(unix_s: float) -> str:
    """A time in words, UTC."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
