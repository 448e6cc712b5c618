"""What several commands ask for in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

State = Annotated[
    Path,
    # readable: who may not read it is told whose it is, when it is read.
    typer.Option(
        "--state",
        envvar="QUORATE_SERVER_STATE",
        help="The server's state folder.",
        show_default=False,
        readable=False,
    ),
]
