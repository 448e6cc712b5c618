"""``quorate-client run``: the daemon."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Annotated

import typer

from quorate_client.cli.output import DEFAULT_STATE, StateOption
from quorate_client.daemon.daemon import serve
from quorate_client.site.config import read_config
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_identity
from quorate_client.site.logs import configure_logging


class Level(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def run(
    state: StateOption = DEFAULT_STATE,
    log_json: Annotated[bool | None, typer.Option("--log-json/--log-text", help="Log in JSON lines.")] = None,
    log_level: Annotated[Level | None, typer.Option(help="Least level that is logged.")] = None,
) -> None:
    """Run the daemon in the foreground: stay connected and take part in approved studies."""
    folder = SiteFolder(state)
    config = read_config(folder.config)
    load_identity(folder.keys)
    folder.create()
    configure_logging(
        log_level.value if log_level is not None else config.log_level,
        as_json=config.log_json if log_json is None else log_json,
        folder=folder.log,
    )
    asyncio.run(serve(folder, config))
