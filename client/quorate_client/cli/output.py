"""How the commands speak: tables for people, JSON for programs, one message for a failure."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from quorate.errors import QuorateError

StateOption = Annotated[Path, typer.Option("--state", envvar="QUORATE_STATE", metavar="DIR", help="The site's folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DEFAULT_STATE = Path("quorate-site")


def out() -> Console:
    """Made anew for each use, so that it writes to what standard output is at that moment."""
    return Console(highlight=False)


def err() -> Console:
    return Console(stderr=True, highlight=False)


def show_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, sort_keys=True))


def show_error(error: QuorateError, *, as_json: bool) -> None:
    """One message on standard error: what happened, what was expected, what came, what to do."""
    if as_json:
        fields = {key: getattr(error, key) for key in ("code", "what", "expected", "got", "action")}
        typer.echo(json.dumps({"error": fields}), file=sys.stderr)
        return
    err().print(Text(f"Error [{error.code}]: ", "bold red") + Text(printable(str(error)), "red"), soft_wrap=True)


def warn(text: str) -> None:
    err().print(Panel(Text(printable(text), "bold yellow"), title="warning", border_style="yellow"))


def say(text: str, style: str = "") -> None:
    """A line of text in which nothing is taken for markup."""
    out().print(Text(printable(text), style), soft_wrap=True)


def table(*columns: str, title: str | None = None) -> Table:
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def cell(text: str, style: str = "") -> Text:
    return Text(printable(text), style)


def printable(text: str) -> str:
    """Text from elsewhere without what would steer the terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)


def moment(unix_s: float) -> str:
    """A time in words, UTC."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
