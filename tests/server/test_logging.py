"""What has a trace in the server's log, told by a process of its own: logging is set up once in each."""

from __future__ import annotations

import asyncio
import sys

PROGRAM = """
import logging, structlog
from aiohttp.http_exceptions import BadStatusLine
from sqlalchemy.exc import IntegrityError, OperationalError
from agent.server.logging import configure_logging

configure_logging("info")
for log in (logging.getLogger("agent.rpc"), structlog.get_logger("agent.server.http")):
    for error in (
        OperationalError("SELECT 1", None, ValueError("database is full")),
        BadStatusLine("no HTTP"),
        IntegrityError("SELECT 1", None, ValueError("exists")),
    ):
        try:
            raise error
        except Exception:
            log.exception("it failed")
"""


async def test_only_what_may_be_our_mistake_has_its_trace() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    lines = errors.decode().splitlines()
    said = [index for index, line in enumerate(lines) if "it failed" in line]
    for outage, garbage, mistake in (said[:3], said[3:]):
        assert (garbage, mistake) == (outage + 1, outage + 2)
        assert "database is full" in lines[outage]
        assert "BadStatusLine" in lines[garbage]
        assert lines[mistake + 1].startswith("Traceback")
