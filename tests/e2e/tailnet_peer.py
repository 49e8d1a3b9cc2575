"""The foreign peer of the tailnet for tests: how it is built, and how it takes part in our server's coordination.

The peer (tests/peers/tailnet) speaks nothing of the coordination itself; a `Bridge` passes on what it tells of itself
and what the server tells of others.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from yarl import URL

from agent.api import methods
from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import address_text, read_node, write_disco, write_key
from agent.clock import SystemClock
from agent.control import ControlHttp, ControlPlane
from agent.identity import FixedToken
from agent.rpc import Duplex, RpcClient
from agent.tailnet.client import ServerSession
from agent.tailnet.coordination import CoordinationEndedError, follow_derp_map
from agent.testing.nodes import Node

PEER = Path(__file__).parents[1] / "peers" / "tailnet"
CLOCK = SystemClock()

Update = pb.CoordinateResponse.PeerUpdate


def build() -> Path:
    """The peer's program. Skips where there is no Go, and fails there in CI."""
    go = shutil.which("go")
    if go is None:
        if os.environ.get("CI") == "true":
            pytest.fail("the foreign peer of the tailnet needs Go: .ci/run must install it")
        pytest.skip("the foreign peer of the tailnet needs Go (the `go` tool)")
    built = subprocess.run(
        [go, "build", "-o", "bin/tailnet-peer", "."], cwd=PEER, capture_output=True, text=True, timeout=600
    )
    assert built.returncode == 0, f"the peer needs Go 1.23 or newer and its modules: {built.stderr}"
    return PEER / "bin" / "tailnet-peer"


class Bridge:
    """Coordinates one foreign node over one connection to our server, until it is cancelled."""

    def __init__(self, node: Node, server: URL, *, tunnel: UUID | None = None) -> None:
        self.node = node
        self.updates: list[Update] = []
        self._server = server
        self._tunnel = tunnel
        """The agent whose client the node is; None: it is an agent itself."""
        self._peers: dict[bytes, dict[str, Any]] = {}
        self._map = asyncio.Queue[Any]()

    async def run(self, client: RpcClient) -> None:
        relays = asyncio.create_task(follow_derp_map(client, self._map.put_nowait))
        try:
            await self.node.set_map((await self._map.get()).rewritten(self._server))
            async with await client.duplex(methods.COORDINATE.path) as call:
                if self._tunnel is not None:
                    tunnel = pb.CoordinateRequest.Tunnel(id=self._tunnel.bytes)
                    await call.send(pb.CoordinateRequest(add_tunnel=tunnel).SerializeToString())
                telling = asyncio.create_task(self._tell(call))
                try:
                    while (message := await call.receive()) is not None:
                        await self._take(pb.CoordinateResponse.FromString(message), call)
                finally:
                    telling.cancel()
        finally:
            relays.cancel()
            await asyncio.gather(relays, return_exceptions=True)
        raise CoordinationEndedError("the server ended the coordination")

    async def _tell(self, call: Duplex) -> None:
        state = await self.node.wait_state()
        while True:
            addresses = [address_text(packed) for packed in self.node.packed]
            node = pb.Node(
                id=1,
                key=write_key(bytes.fromhex(state["node"])),
                disco=write_disco(bytes.fromhex(state["disco"])),
                preferred_derp=state["home"],
                derp_latency=state.get("latencies", {}),
                addresses=addresses,
                allowed_ips=addresses,
                endpoints=state["endpoints"],
            )
            node.as_of.GetCurrentTime()
            request = pb.CoordinateRequest(update_self=pb.CoordinateRequest.UpdateSelf(node=node))
            await call.send(request.SerializeToString())
            state = await self.node.next_state()

    async def _take(self, response: pb.CoordinateResponse, call: Duplex) -> None:
        assert not response.error, response.error
        ready = []
        for update in response.peer_updates:
            self.updates.append(update)
            if update.kind == Update.NODE:
                known = read_node(update.node)
                self._peers[update.id] = {
                    "node": known.key.hex(),
                    "disco": known.disco.hex(),
                    "addresses": [str(prefix.network_address) for prefix in known.addresses],
                    "home": known.home,
                    "endpoints": known.endpoints,
                    "keep_alive": self._tunnel is not None,
                }
                ready.append(pb.CoordinateRequest.ReadyForHandshake(id=update.id))
            elif update.kind == Update.DISCONNECTED:
                self._peers.pop(update.id, None)
        # A client begins the handshake as soon as it knows the agent, and has to wait until the agent knows it, too.
        if self._tunnel is None or any(update.kind == Update.READY_FOR_HANDSHAKE for update in self.updates):
            await self.node.set_peers(*self._peers.values())
        if self._tunnel is None and ready:
            await call.send(pb.CoordinateRequest(ready_for_handshake=ready).SerializeToString())


@asynccontextmanager
async def foreign_client(node: Node, url: str, token: str, agent: UUID) -> AsyncIterator[Bridge]:
    """While this lasts, the node is a client of that agent."""
    session = ServerSession(URL(url), token, CLOCK)
    try:
        async with _bridged(Bridge(node, URL(url), tunnel=agent), await session.dial(agent, "")) as bridge:
            yield bridge
    finally:
        await session.aclose()


@asynccontextmanager
async def foreign_agent(node: Node, url: str, token: str) -> AsyncIterator[Bridge]:
    """While this lasts, the node is the agent to which the token belongs."""
    http = ControlHttp(URL(url), (), CLOCK)
    try:
        api = await ControlPlane(http, FixedToken(token), CLOCK).connect()
        async with _bridged(Bridge(node, URL(url)), api.client) as bridge:
            yield bridge
    finally:
        await http.aclose()


@asynccontextmanager
async def _bridged(bridge: Bridge, client: RpcClient) -> AsyncIterator[Bridge]:
    running = asyncio.create_task(bridge.run(client))
    try:
        yield bridge
    finally:
        running.cancel()
        await client.aclose()
        (outcome,) = await asyncio.gather(running, return_exceptions=True)
        if not isinstance(outcome, asyncio.CancelledError | CoordinationEndedError):
            assert isinstance(outcome, BaseException)
            raise outcome
