"""A node of the tailnet as a program that obeys lines of JSON: our twin of the foreign peer's `node` command.

`python -m agent.testing.node_program --addresses A,B [--relayed] [--websocket]`. Requests, answers and states are those
that tests/peers/tailnet/control.go lists; `agent.testing.nodes.NodeProgram` is the other end of either program.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import ipaddress
import json
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from agent.clock import SystemClock
from agent.protocol.ip import Endpoint, endpoint_text, mapped
from agent.tailnet import derp_map
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import NodeState, Tailnet, TailnetError
from agent.testing import traffic

MAX_LINE: Final = 1 << 20


class NodeProgram:
    """One node, and what it was asked for."""

    def __init__(self, addresses: list[bytes], *, direct: bool, websockets: bool) -> None:
        self.node = Tailnet(
            addresses, SystemClock(), options=DialOptions(force_websockets=websockets, environment={}), direct=direct
        )
        self._known: set[bytes] = set()
        traffic.serve(self.node)

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Obey until the input ends."""
        self.node.start()
        say(state=self._state(NodeState(0)))
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(self._tell())
            while line := await reader.readline():
                request = json.loads(line)
                if request["do"] in ("map", "peers", "options"):
                    await self._answer(request)  # in the order in which they came
                else:
                    group.create_task(self._answer(request))
            telling.cancel()
        await self.node.aclose()

    async def _tell(self) -> None:
        state = None
        while True:
            state = await self.node.node_changed(state)
            say(state=self._state(state))

    def _state(self, state: NodeState) -> dict[str, Any]:
        return {
            "node": self.node.node_key.hex(),
            "disco": self.node.disco_key.hex(),
            "home": state.home,
            "latencies": state.latencies,
            "endpoints": state.endpoints,
            "forced_websockets": state.forced_websockets,
        }

    async def _answer(self, request: dict[str, Any]) -> None:
        try:
            answer = await self._obey(request)
        except* (TailnetError, traffic.TrafficError, TimeoutError, OSError, ValueError) as errors:
            answer = {"error": "; ".join(map(str, errors.exceptions))}
        say(id=request["id"], **answer)

    async def _obey(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "map":
                self.node.update_derp_map(derp_map.from_json(request["derp_map"]))
            case "peers":
                self._set_peers(request["peers"])
            case "options":
                self.node.set_direct(request["direct"])
            case "bulk":
                seconds = await traffic.bulk(
                    self._dial(request["to"]), up=request["up"], size=request["bytes"], streams=request["streams"]
                )
                return {"seconds": seconds}
            case "echo":
                trips = await traffic.round_trips(
                    self._dial(request["to"]), size=request["size"], count=request["count"], pause=request["pause"]
                )
                return {"trips": trips}
            case "ping":
                return await self._ping(ipaddress.ip_address(request["to"]).packed, request["kind"])
            case unknown:
                raise ValueError(f"unknown request {unknown}")
        return {}

    def _set_peers(self, peers: list[dict[str, Any]]) -> None:
        keys = {bytes.fromhex(peer["node"]) for peer in peers}
        for gone in self._known - keys:
            self.node.remove_peer(gone)
        for peer in peers:
            self.node.set_peer(
                bytes.fromhex(peer["node"]),
                bytes.fromhex(peer["disco"]),
                [ipaddress.ip_address(text).packed for text in peer["addresses"]],
                peer["home"],
                [parse_endpoint(text) for text in peer["endpoints"]],
            )
        self._known = keys

    def _dial(self, to: str) -> traffic.Dial:
        address, port = parse_endpoint(to)

        async def dial() -> TailnetStream:
            return await self.node.dial_tcp(address, port, traffic.STALL)

        return dial

    async def _ping(self, address: bytes, kind: str) -> dict[str, Any]:
        if kind == "TSMP":
            return {"seconds": await self.node.reach(address, 5)}
        answered = await self.node.ping(address)
        if answered.endpoint is None:
            return {"seconds": answered.latency, "region": answered.region}
        return {"seconds": answered.latency, "endpoint": endpoint_text(answered.endpoint)}


def parse_endpoint(text: str) -> Endpoint:
    """`ip:port` or `[v6]:port`."""
    host, _, port = text.rpartition(":")
    return mapped(ipaddress.ip_address(host.strip("[]")).packed), int(port)


def say(**line: Any) -> None:
    """One line of standard output."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def main(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    addresses = [ipaddress.ip_address(text).packed for text in arguments.addresses.split(",")]
    await NodeProgram(addresses, direct=not arguments.relayed, websockets=arguments.websocket).run(reader)


def profiled(run: Callable[[], None], file: str) -> None:
    """Run under a profiler whose statistics go to a file; it counts processor time, not that of waiting."""
    profile = cProfile.Profile(time.process_time)
    try:
        profile.runcall(run)
    finally:
        profile.dump_stats(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--addresses", required=True)
    parser.add_argument("--relayed", action="store_true")
    parser.add_argument("--websocket", action="store_true")
    parser.add_argument("--profile", help="write what the profiler says to this file")
    given = parser.parse_args()

    def go() -> None:
        asyncio.run(main(given))

    profiled(go, given.profile) if given.profile else go()
