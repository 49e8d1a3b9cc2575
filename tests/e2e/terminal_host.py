"""An agent's terminal service in a process that is to be killed: `terminal_host DIRECTORY TERMINAL IDLE COMMANDS`.

It makes one terminal, prints the process id of its shell, has that run the commands, and goes on.
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
    client.stream.say(encode_request(f"x=kept; echo started as $$; {sys.argv[4]}\r"))
    sys.stdout.write(f"{await client.number('started as ')}\n")
    sys.stdout.flush()
    await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(main())
