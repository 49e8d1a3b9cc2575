"""Runs in a network namespace of its own: a node whose machine gets another address. Writes what the node tells others,
before and after, as JSON lines."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from types import MappingProxyType

from agent.api.tailnet import TAILSCALE_PREFIX
from agent.clock import SystemClock
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.derp_map import NO_STUN, DerpMap, Node, Region
from agent.tailnet.tailnet import Tailnet


async def main() -> None:
    # A relay that says nothing: one that refuses would have the node look around all the time.
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    nobody = Node("1a", region_id=1, host_name="127.0.0.1", derp_port=port, force_http=True, stun_port=NO_STUN)
    tailnet = Tailnet([TAILSCALE_PREFIX + os.urandom(10)], SystemClock(), options=DialOptions())
    tailnet.start()
    try:
        tailnet.update_derp_map(DerpMap(MappingProxyType({1: Region(1, "x", "X", nodes=(nobody,))})))
        before = await tailnet.node_changed(None)
        sys.stdout.write(json.dumps(before.endpoints) + "\n")
        for change in (("del", "192.0.2.1/24"), ("add", "198.51.100.7/24")):
            await asyncio.to_thread(subprocess.run, ["ip", "addr", change[0], change[1], "dev", "lo"], check=True)
        async with asyncio.timeout(2):
            after = await tailnet.node_changed(before)
        sys.stdout.write(json.dumps(after.endpoints) + "\n")
    finally:
        await tailnet.aclose()
        server.close()


if __name__ == "__main__":
    asyncio.run(main())
