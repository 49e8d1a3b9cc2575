"""Many peers that are mostly idle: at one server with their real connections, and at one agent's node.

At the server, half of the peers are agents (RPC connection, coordination, relay), and each has a client (coordination,
relay) with a tunnel to it. They live in a few processes of their own. At the node, all have a session.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from uuid import UUID, uuid4

import aiohttp
import psutil

from agent.api import methods
from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import TAILSCALE_PREFIX, address, address_text, agent_addresses, write_disco, write_key
from agent.clock import SystemClock
from agent.protocol import ip, keys, stun
from agent.protocol.derp import Packets
from agent.protocol.ip import Datagram, Endpoint
from agent.protocol.tcp import Connection
from agent.protocol.wireguard import Device
from agent.protocol.wireguard.timers import KEEPALIVE_TIMEOUT
from agent.rpc import RpcClient, WebSocketTransport
from agent.tailnet.derp_client import DerpClient
from agent.tailnet.derp_dial import DialOptions, Tls
from agent.tailnet.derp_map import NO_STUN, Node, Region
from agent.tailnet.engine import Engine
from agent.tailnet.paths import ACTIVE, Answered
from agent.tailnet.streams import TailnetStream
from agent.testing.deployment import Deployment

PAIRS, ACTIVE_PAIRS = 500, 50
PROCESSES = 2
PERIOD = 0.1
"""Seconds between two datagrams of an active pair, each answered by one of the same size."""
SIZE = 1300
LOOK = 10.0
AT_ONCE = 20
REGION = 999
KIB = 1024
CLOCK = SystemClock()


async def measure() -> dict[str, float]:
    """Memory per peer and processor time, at the server and at a node."""
    return await _at_a_server() | await asyncio.to_thread(_in_process, _at_a_node)


# ---- at a server


async def _at_a_server() -> dict[str, float]:
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="workspace-agent-bench-"))
        running = await stack.enter_async_context(Deployment(Path(directory)))
        agents = []
        for number in range(PAIRS):
            created = await running.create_agent(json.dumps({"name": f"peer-{number}"}))
            agents.append((created.id, created.token_file.read_text().strip()))
        server = psutil.Process(running.server.pid)
        before = server.memory_full_info().pss
        began = time.perf_counter()
        fleets = []
        for number in range(PROCESSES):
            task = {"url": running.url, "token": running.token, "agents": agents[number::PROCESSES]}
            fleets.append(await stack.enter_async_context(_fleet(task)))
        for fleet in fleets:
            await _told(fleet)
        met = time.perf_counter() - began
        await asyncio.sleep(3)
        figures = {
            f"{2 * PAIRS} peers connect and meet, s": met,
            "server memory per peer, KiB PSS": (server.memory_full_info().pss - before) / KIB / (2 * PAIRS),
            f"server CPU % of a core, {2 * PAIRS} idle peers": await _share(server),
        }
        for fleet in fleets:
            await _tell(fleet, "go")
        await asyncio.sleep(1)
        figures[f"server CPU % of a core, {2 * ACTIVE_PAIRS} of them active"] = await _share(server)
        trips: list[float] = []
        for fleet in fleets:
            await _tell(fleet, "stop")
            trips += json.loads(await _told(fleet))
        figures["datagrams/s of the active ones"] = 2 * ACTIVE_PAIRS / PERIOD
        figures["their round trip p50 ms"] = statistics.median(trips) * 1e3
        figures["their round trip p99 ms"] = statistics.quantiles(trips, n=100)[98] * 1e3
        figures["server memory per peer after that, KiB PSS"] = (
            (server.memory_full_info().pss - before) / KIB / (2 * PAIRS)
        )
    return figures


async def _share(process: psutil.Process) -> float:
    used, began = sum(process.cpu_times()[:2]), time.perf_counter()
    await asyncio.sleep(LOOK)
    return (sum(process.cpu_times()[:2]) - used) / (time.perf_counter() - began) * 100


@asynccontextmanager
async def _fleet(task: Mapping[str, object]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "fleet", stdin=-1, stdout=-1, limit=1 << 24
    )
    try:
        await _tell(process, json.dumps(task))
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _tell(process: asyncio.subprocess.Process, line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")
    await process.stdin.drain()


async def _told(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError("a process with peers ended; what it said is above")
    return line


class _Peer:
    """One end: coordination and a relay connection, in a process with many others."""

    def __init__(self, fleet: _FleetProcess, ident: UUID, addresses: Sequence[bytes]) -> None:
        self.ident, self._fleet = ident, fleet
        private = keys.generate()
        self.key, self._addresses = keys.public_key(private), [address_text(each) for each in addresses]
        options = DialOptions(environment={})
        self.relay = DerpClient(fleet.region, private, self, CLOCK, home=True, tls=fleet.tls, options=options)
        self.partner = b""
        self.met, self.arrived = asyncio.Event(), asyncio.Event()
        self.echoes = True

    def derp_packets(self, region: int, packets: Packets) -> None:
        if self.echoes:
            for sender, datagram in packets:
                self.relay.send(sender, [datagram])
        self.arrived.set()

    def derp_peer_gone(self, region: int, key: bytes) -> None: ...
    def derp_changed(self, region: int) -> None: ...

    async def connect(self, path: str, token: str, tunnel: UUID | None) -> None:
        """A tunnel to another peer, which tells in turn who it is."""
        fleet = self._fleet
        fleet.run(self.relay.run())
        await self.relay.wait_connected()
        url, headers = f"{fleet.url}/api/v2/{path}", {"Coder-Session-Token": token}
        socket = await fleet.http.ws_connect(url, headers=headers, max_msg_size=0)
        client = RpcClient(WebSocketTransport(socket), CLOCK)
        await client.start()
        call = await client.duplex(methods.COORDINATE.path)
        request = pb.CoordinateRequest
        node = pb.Node(
            key=write_key(self.key),
            disco=write_disco(self.key),
            preferred_derp=REGION,
            addresses=self._addresses,
            allowed_ips=self._addresses,
        )
        await call.send(request(update_self=request.UpdateSelf(node=node)).SerializeToString())
        if tunnel is not None:
            await call.send(request(add_tunnel=request.Tunnel(id=tunnel.bytes)).SerializeToString())

        async def listen() -> None:
            while (message := await call.receive()) is not None:
                for update in pb.CoordinateResponse.FromString(message).peer_updates:
                    if update.node.key:
                        self.partner = update.node.key[2:]
                        self.met.set()

        fleet.run(listen())

    async def chat(self, trips: list[float]) -> None:
        """Until cancelled."""
        self.echoes = False
        await asyncio.sleep(random.uniform(0, PERIOD))
        while True:
            began = time.perf_counter()
            self.arrived.clear()
            self.relay.send(self.partner, [bytes(SIZE)])
            await self.arrived.wait()
            trips.append(time.perf_counter() - began)
            await asyncio.sleep(max(PERIOD - trips[-1], 0))


class _FleetProcess:
    """What the peers of one process share."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url, self.http, self.tls = url, http, Tls()
        port = int(url.rpartition(":")[2])
        relay = Node("999b", REGION, "127.0.0.1", derp_port=port, force_http=True, stun_port=NO_STUN)
        self.region = Region(REGION, nodes=(relay,))
        self._tasks: set[asyncio.Task[None]] = set()
        self._dialling = asyncio.Semaphore(AT_ONCE)

    def run(self, body: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(body)
        self._tasks.add(task)
        return task

    async def pair(self, agent: str, token: str, user: str) -> _Peer:
        """An agent and its client, who have heard of each other; the client."""
        async with self._dialling:
            host = _Peer(self, UUID(agent), agent_addresses(UUID(agent)))
            await host.connect("workspaceagents/me/rpc?role=agent&version=2.3", token, None)
            guest = _Peer(self, uuid4(), [address(TAILSCALE_PREFIX, uuid4())])
            await guest.connect(f"workspaceagents/{agent}/coordinate?version=2.0", user, UUID(agent))
            await asyncio.gather(host.met.wait(), guest.met.wait())
            return guest


async def _fleet_main() -> None:
    task = json.loads(await asyncio.to_thread(sys.stdin.readline))
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        fleet = _FleetProcess(task["url"], http)
        guests = await asyncio.gather(*(fleet.pair(agent, token, task["token"]) for agent, token in task["agents"]))
        print("met", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        trips: list[float] = []
        active = [fleet.run(guest.chat(trips)) for guest in guests[: ACTIVE_PAIRS // PROCESSES]]
        await asyncio.to_thread(sys.stdin.readline)
        for chat in active:
            chat.cancel()
        print(json.dumps(trips), flush=True)
        await asyncio.to_thread(sys.stdin.readline)


# ---- at a node


class _Shifted(SystemClock):
    """Time that the bench can push on."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


class _Lone:
    """A node whose network is a list."""

    def __init__(self) -> None:
        self.clock, self.sent = _Shifted(), list[bytes]()
        self.engine = Engine(
            node_private=keys.generate(),
            disco_private=keys.generate(),
            addresses=(TAILSCALE_PREFIX + bytes(10),),
            outside=self,
            inside=self,
            clock=self.clock,
        )

    def send_udp(self, endpoint: Endpoint, datagrams: Sequence[bytes]) -> None: ...

    def send_relay(self, region: int, peer: bytes, datagrams: Sequence[bytes]) -> None:
        self.sent += datagrams

    def incoming(self, connection: Connection) -> None: ...
    def connected(self, stream: TailnetStream) -> None: ...
    def udp(self, datagram: Datagram) -> None: ...
    def stun(self, response: stun.Response) -> None: ...
    def answered(self, answered: Answered) -> None: ...

    def meet(self, number: int) -> None:
        """A peer that begins a session, says one thing, and is heard of no more."""
        private, own = keys.generate(), TAILSCALE_PREFIX + number.to_bytes(10, "big")
        peer, engine = Device(private), self.engine
        engine.set_peer(peer.public_key, keys.public_key(private), [own], REGION, [])
        peer.add_peer(engine.device.public_key, [engine.addresses[0]])
        ping = ip.tsmp_ping(own, engine.addresses[0], bytes(8))
        now, wall = self.clock.now(), self.clock.wall()
        datagrams = [datagram for _, output in peer.send([ping], now, wall) for datagram in output]
        for _ in range(2):
            self.sent.clear()
            engine.receive_relay(REGION, [(peer.public_key, datagram) for datagram in datagrams])
            received = peer.receive(self.sent, now, wall)
            datagrams = [datagram for _, output in received.output for datagram in output]
        self.sent.clear()
        for _, output in peer.handle_timeout(now + KEEPALIVE_TIMEOUT, wall):
            engine.receive_relay(REGION, [(peer.public_key, datagram) for datagram in output])


async def _at_a_node() -> dict[str, float]:
    lone = _Lone()
    lone.meet(1)
    gc.collect()
    process, count = psutil.Process(), 2 * PAIRS
    before = process.memory_full_info().uss
    began = time.perf_counter()
    for number in range(2, count + 2):
        lone.meet(number)
    took = time.perf_counter() - began
    lone.sent.clear()
    gc.collect()
    figures = {
        "node: a peer made known and its handshake, both ends, ms": took / count * 1e3,
        "node: memory per peer with a session, KiB": (process.memory_full_info().uss - before) / KIB / count,
    }
    timers = asyncio.create_task(lone.engine.keep_time())
    figures[f"node: CPU % of a core, {count} peers that just spoke"] = await _own_share()
    figures["node: µs for the next deadline"] = _time(lone.engine.next_timeout, 10_000) * 1e6
    # Beyond the time for which paths are kept up and keepalives are sent; sessions are still there.
    lone.clock.ahead += 2 * ACTIVE
    await asyncio.sleep(1)
    figures[f"node: CPU % of a core, {count} idle peers"] = await _own_share()
    timers.cancel()
    await asyncio.gather(timers, return_exceptions=True)
    return figures


async def _own_share() -> float:
    return await _share(psutil.Process())


def _time(what: Callable[[], object], rounds: int) -> float:
    began = time.perf_counter()
    for _ in range(rounds):
        what()
    return (time.perf_counter() - began) / rounds


def _in_process(body: Callable[[], Coroutine[None, None, dict[str, float]]]) -> dict[str, float]:
    """In a process of its own, so that its memory is nothing else's."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_run_and_tell, args=(theirs, body))
    process.start()
    theirs.close()
    try:
        found: dict[str, float] = ours.recv()
        return found
    finally:
        process.join(10)


def _run_and_tell(pipe: Pipe, body: Callable[[], Coroutine[None, None, dict[str, float]]]) -> None:
    pipe.send(asyncio.run(body()))


if __name__ == "__main__":
    if sys.argv[1:] == ["fleet"]:
        asyncio.run(_fleet_main())
    else:
        for what, value in asyncio.run(measure()).items():
            print(f"{what:70} {value:10.2f}")
