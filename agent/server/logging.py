"""Where the server's log goes: standard error, a line for each event; standard output is for what people wait for."""

from __future__ import annotations

import logging
import sys

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from structlog.typing import EventDict, Processor

from agent.server.store import is_outage, reason


def configure_logging(level: str) -> None:
    """Also takes in what libraries say through the standard `logging`. `level` is one of its names, in lower case."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _shorten,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.getLogger("alembic").setLevel(max(number, logging.WARNING))
    logging.basicConfig(level=number, handlers=[handler], force=True)


def _shorten(_logger: object, _method: str, event: EventDict) -> EventDict:
    """What is not our mistake has no trace, which would say nothing and fill the disk: a database that is away fails
    every call of every agent, and anybody may send what is no HTTP."""
    given = event.get("exc_info")
    error = given[1] if isinstance(given, tuple) else sys.exc_info()[1] if given else None
    if error is not None and (is_outage(error) or isinstance(error, HttpProcessingError)):
        event["error"] = reason(error)
        del event["exc_info"]
    return event
