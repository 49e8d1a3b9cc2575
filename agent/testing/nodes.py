"""Nodes of the tailnet as processes, ours or foreign, that tests and benches tell what to do."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from agent.tailnet import derp_map
from agent.tailnet.derp_map import DerpMap
from agent.testing.traffic import ECHO, SINK, SOURCE

ANSWER_LIMIT: Final = 180.0
"""Seconds that a request may take, bulk included."""
STATE_LIMIT: Final = 30.0
STOP_LIMIT: Final = 10.0
MAX_LINE: Final = 1 << 24
SPEEDTEST: Final = 3
OURS: Final = (sys.executable, "-m", "agent.testing.node_program")


class NodeError(Exception):
    """The node could not do what it was asked for; the text is what it said."""


class Node:
    """One such process; an asynchronous context manager that leaves none behind.

    `program` is `OURS`, or the foreign peer's file and `node`. `state` is the last that it told of itself.
    """

    def __init__(self, program: Sequence[str | os.PathLike[str]], addresses: Sequence[bytes], *options: str) -> None:
        self.packed = tuple(addresses)
        self.addresses = [str(ipaddress.IPv6Address(address)) for address in addresses]
        self.state: dict[str, Any] = {"home": 0, "endpoints": []}
        self._command = [*program, "--addresses", ",".join(self.addresses), *options]
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._changed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> Node:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=MAX_LINE
        )
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._listening is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_LIMIT):
                await self._listening
                await self._process.wait()
        finally:
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening

    async def wait_state(self, *, endpoints: bool = False) -> dict[str, Any]:
        """Wait until the node has a home, and if asked for, endpoints."""
        async with asyncio.timeout(STATE_LIMIT):
            while not self.state["home"] or (endpoints and not self.state["endpoints"]):
                await self.next_state()
        return self.state

    async def next_state(self) -> dict[str, Any]:
        """Wait for the next thing that the node tells of itself."""
        await self._changed.wait()
        return self.state

    def as_peer(self, *, keep_alive: bool = False, endpoints: bool = True) -> dict[str, Any]:
        """What others must know of this node."""
        known = {name: self.state[name] for name in ("node", "disco", "home")}
        told = self.state["endpoints"] if endpoints else []
        return {**known, "addresses": self.addresses, "endpoints": told, "keep_alive": keep_alive}

    # ---- requests; each raises `NodeError` when the node says that it failed

    async def set_map(self, relays: DerpMap) -> None:
        await self.ask("map", derp_map=derp_map.to_json(relays))

    async def set_peers(self, *peers: dict[str, Any]) -> None:
        await self.ask("peers", peers=peers)

    async def set_direct(self, direct: bool) -> None:
        await self.ask("options", direct=direct)

    async def bulk(self, to: str, *, up: bool, size: int, streams: int = 1) -> float:
        """Seconds; `to` is the peer's address."""
        port = SINK if up else SOURCE
        answer = await self.ask("bulk", to=f"[{to}]:{port}", up=up, bytes=size, streams=streams)
        return float(answer["seconds"])

    async def echo(
        self, to: str, *, network: str = "tcp", port: int = ECHO, size: int = 1, count: int = 1, pause: float = 0.0
    ) -> list[float]:
        """Seconds of each round trip; `pause` seconds lie between them."""
        answer = await self.ask("echo", to=f"[{to}]:{port}", network=network, size=size, count=count, pause=pause)
        return list(map(float, answer["trips"]))

    async def speedtest(self, to: str, *, up: bool, seconds: float) -> int:
        """The bytes that Tailscale's speed test counts. Foreign nodes only."""
        answer = await self.ask("speedtest", to=f"[{to}]:{SPEEDTEST}", up=up, duration=seconds)
        return int(answer["bytes"])

    async def ping(self, to: str, kind: str = "disco") -> dict[str, Any]:
        """`seconds`, and for "disco" also `endpoint` or `region`; the other kind is "TSMP"."""
        return await self.ask("ping", to=to, kind=kind)

    async def reach(self, to: str, within: float = 10.0) -> float:
        """Seconds until the peer's network answers; asked again and again, as clients do (tailnet.md §1.3)."""
        began = time.monotonic()
        async with asyncio.timeout(within):
            while True:
                try:
                    async with asyncio.timeout(0.5):
                        await self.ping(to, "TSMP")
                except (TimeoutError, NodeError):
                    await asyncio.sleep(0.05)
                else:
                    return time.monotonic() - began

    async def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """One request as control.go lists them."""
        assert self._process is not None
        assert self._process.stdin is not None
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            self._process.stdin.write(json.dumps({"id": number, "do": do, **fields}).encode() + b"\n")
            async with asyncio.timeout(ANSWER_LIMIT):
                await self._process.stdin.drain()
                return await answer
        finally:
            self._answers.pop(number, None)

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            said = json.loads(line)
            if (state := said.get("state")) is not None:
                self.state = state
                self._changed.set()
                self._changed = asyncio.Event()
            elif (answer := self._answers.get(said["id"])) is not None and not answer.done():
                if error := said.get("error"):
                    answer.set_exception(NodeError(error))
                else:
                    answer.set_result(said)
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(NodeError(f"{' '.join(map(str, self._command))} ended"))


def foreign(program: Path) -> tuple[str, str]:
    """The foreign peer's `node` command."""
    return str(program), "node"
