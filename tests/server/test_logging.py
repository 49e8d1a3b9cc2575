"""What the server's log says of a database that fails, told by a process of its own: logging is set up once in each."""

from __future__ import annotations

import asyncio
import sys

PROGRAM = """
import logging, structlog
from sqlalchemy.exc import IntegrityError, OperationalError
from agent.server.logging import configure_logging

configure_logging("info")
for log in (logging.getLogger("agent.rpc"), structlog.get_logger("agent.server.http")):
    for kind in (OperationalError, IntegrityError):
        try:
            raise kind("SELECT 1", None, ValueError("database is full"))
        except Exception:
            log.exception("it failed")
"""


async def test_an_outage_is_one_line_and_a_mistake_has_its_trace() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    lines = errors.decode().splitlines()
    said = [index for index, line in enumerate(lines) if "it failed" in line]
    assert len(said) == 4
    for outage, mistake in ((said[0], said[1]), (said[2], said[3])):
        assert mistake == outage + 1
        assert "database is full" in lines[outage]
        assert lines[mistake + 1].startswith("Traceback")
