"""The logs room alone: how fast lines get from a script's pipe into requests."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from agent.api.methods import RpcMethod
from agent.api.proto import agent_pb2 as pb
from agent.api.versions import CURRENT, ApiVersion
from agent.clock import SystemClock
from agent.logs import LogService

LINES = 300_000


class _Sink:
    """A server that answers at once; it only adds up."""

    def __init__(self) -> None:
        self.bytes = 0
        self.requests = 0

    @property
    def version(self) -> ApiVersion:
        return CURRENT

    async def call(self, method: RpcMethod[Any, Any], request: Any, *, timeout: float | None = None) -> Any:
        raise NotImplementedError(method.name)

    async def call_encoded(self, method: RpcMethod[Any, Any], request: bytes, *, timeout: float | None = None) -> Any:
        self.requests += 1
        self.bytes += len(request)
        return pb.BatchCreateLogsResponse()


async def measure() -> dict[str, float]:
    """Lines per second and CPU microseconds per line, disk and sync included; the script is `seq`."""
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        service = LogService(state / "state", SystemClock())
        service.open()
        sink = _Sink()
        sending = asyncio.create_task(service.send(sink))
        log = os.open(state / "script.log", os.O_RDWR | os.O_CREAT, 0o600)
        reader, writer = os.pipe()
        started, cpu = time.perf_counter(), time.process_time()
        script = await asyncio.create_subprocess_exec(
            "seq", "-f", "line number %.0f of the output", str(LINES), stdout=writer
        )
        os.close(writer)
        capture = service.start(uuid4(), uuid4(), log, reader, None)
        await script.wait()
        await capture.wait_eof()
        await capture.finish()
        captured = time.perf_counter() - started
        await service.drained()
        elapsed, used = time.perf_counter() - started, time.process_time() - cpu
        assert service.counters.sent_lines == LINES, service.counters
        sending.cancel()
        await service.aclose()
        return {
            "captured lines/s": LINES / captured,
            "sent lines/s": LINES / elapsed,
            "CPU µs/line": used / LINES * 1e6,
            "requests": sink.requests,
        }


if __name__ == "__main__":
    for name, value in asyncio.run(measure()).items():
        print(f"{name:20} {value:12,.1f}")
