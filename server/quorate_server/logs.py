"""How the server logs: one event, one line, to standard error."""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import Processor

from quorate.process.printable import printable


def configure_logging(
    log_format: Literal["text", "json"],
    level: Literal["debug", "info", "warning", "error"],
    stream: TextIO = sys.stderr,
) -> None:
    """Set up structlog, and give the lines of libraries that use ``logging`` the same form.

    ``text`` is ``key=value``, for people and for grep; a traceback stays in its line, with escaped line ends.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                render,
                lambda _, __, line: printable(str(line)),  # a peer's text must not steer who reads the log
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak up from warnings on; what we log ourselves follows the configured level.
    root.setLevel(logging.WARNING)
    logging.getLogger("quorate_server").setLevel(level.upper())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: logging.getLogger("quorate_server"),
        cache_logger_on_first_use=False,
    )
