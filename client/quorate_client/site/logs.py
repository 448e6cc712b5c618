"""How the daemon logs: one event, one line, to standard error and to a file in the site's folder.

The file is the site's own (mode 0600): beside events it holds the texts of failed tasks, which never leave the site.
"""

from __future__ import annotations

import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal

import structlog
from structlog.typing import Processor

from quorate.process.printable import printable

LogLevel = Literal["debug", "info", "warning", "error"]

_FILE_BYTES = 5 * 1024 * 1024
_FILES_KEPT = 3


def configure_logging(level: LogLevel, *, as_json: bool, folder: Path) -> None:
    """Set up structlog, and give the lines of libraries that use ``logging`` the same form."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    as_lines = structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)
    in_json = structlog.processors.JSONRenderer()
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_formatter(shared, in_json if as_json else as_lines))
    path = folder / "quorate-client.log"
    path.touch(mode=0o600)
    file = _RotatingFile(path, maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT, encoding="utf-8")
    file.setFormatter(_formatter(shared, in_json))
    logging.getLogger().handlers[:] = [stream, file]
    ours = logging.getLogger("quorate_client")
    # Libraries speak up from warnings on; what we log ourselves follows the configured level.
    logging.getLogger().setLevel(logging.WARNING)
    ours.setLevel(level.upper())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: ours,
        cache_logger_on_first_use=False,
    )
    os.umask(0o077)  # rotated files and whatever the daemon writes later are private too


class _RotatingFile(RotatingFileHandler):
    """Begins a new file behind the line that filled the last one.

    The stock handler asks the file system and renders each line once more, to begin it before.
    """

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802  # the name is theirs
        return self.stream is not None and self.stream.tell() >= self.maxBytes


def _formatter(shared: list[Processor], render: Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            render,
            lambda _, __, line: printable(str(line)),  # a peer's text, or a library's, must not steer who reads the log
        ],
    )
