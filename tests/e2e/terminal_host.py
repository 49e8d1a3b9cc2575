"""An agent's terminal service in a process that is to be killed: `terminal_host DIRECTORY TERMINAL IDLE`.

It makes one terminal with a shell that ignores hang-ups, prints the shell's process id, and goes on.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from uuid import UUID

from agent.clock import SystemClock
from agent.protocol.pty import Init, encode_request
from agent.terminal import Limits, TerminalService
from tests.e2e.terminal_client import Client, Context


async def main() -> None:
    directory, idle = Path(sys.argv[1]), float(sys.argv[3])
    service = TerminalService(Context(directory), SystemClock(), limits=Limits(idle=idle))
    await service.open(directory / "state")
    client = Client(service, Init(UUID(sys.argv[2]), 24, 80))
    client.stream.say(encode_request("x=kept; trap '' HUP; echo started as $$; sleep 1; seq 3; echo th''e-end\r"))
    sys.stdout.write(f"{await client.number('started as ')}\n")
    sys.stdout.flush()
    await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(main())
