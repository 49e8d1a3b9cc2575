"""A process with a `LogService` in it, to be killed. `python -m tests.logs.killable STATE LOG RUN STDOUT STDERR SENT`

It captures the two descriptors and "sends" by appending each request to the file SENT, as a server would store it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from agent.api.methods import RpcMethod
from agent.api.proto import agent_pb2 as pb
from agent.api.versions import CURRENT, ApiVersion
from agent.clock import SystemClock
from agent.logs import LogService

SOURCE = UUID(int=1)


class _File:
    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    @property
    def version(self) -> ApiVersion:
        return CURRENT

    async def call(self, method: RpcMethod[Any, Any], request: Any, *, timeout: float | None = None) -> Any:
        raise AssertionError(method.name)

    async def call_encoded(self, method: RpcMethod[Any, Any], request: bytes, *, timeout: float | None = None) -> Any:
        os.write(self._descriptor, len(request).to_bytes(4, "little") + request)
        return pb.BatchCreateLogsResponse()


async def main(state: str, log: str, run: str, stdout: str, stderr: str, sent: str) -> None:
    service = LogService(Path(state), SystemClock())
    service.open()
    sending = asyncio.create_task(service.send(_File(sent)))
    log_fd = os.open(log, os.O_RDWR | os.O_CREAT, 0o600)
    capture = service.start(UUID(run), SOURCE, log_fd, int(stdout), int(stderr))
    await capture.wait_eof()
    await capture.finish()
    await service.drained()
    sending.cancel()
    await service.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
