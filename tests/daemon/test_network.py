"""The agent's node: made by the first manifest, changed by later ones, and gone after a goodbye."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from structlog.testing import capture_logs
from yarl import URL

from agent.api import methods
from agent.api.manifest import Manifest, from_proto
from agent.api.proto import agent_pb2
from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import agent_addresses
from agent.api.versions import CURRENT
from agent.daemon.connection import InShutdown, OnFailure, Routine, serve
from agent.daemon.network import Network
from agent.daemon.traffic import Traffic
from agent.rpc import RpcAgentApi, RpcClient, RpcServer, ServerStream, Streaming
from agent.tailnet.coordination import GOODBYE_LIMIT
from agent.tailnet.engine import EngineCounters
from agent.tailnet.flows import Flows
from agent.tailnet.streams import TailnetStream
from agent.testing import ManualClock, memory_pair, settle
from agent.testing.control_plane import AGENT_ID, FakeControlPlane, simple_manifest

OTHER = UUID("8a3c5d1e-0b7f-4c2a-9d6e-1f2e3d4c5b6a")
REGION = pb.DERPMap.Region(
    region_id=999,
    embedded_relay=True,
    nodes=[pb.DERPMap.Region.Node(name="999b", region_id=999, host_name="inside.example", derp_port=1)],
)


def manifest(agent: UUID = AGENT_ID, *, websockets: bool = False, regions: int = 1) -> Manifest:
    """Without direct paths, so that no socket is opened, and with relays that are never tried."""
    message = simple_manifest(agent_id=agent)
    message.disable_direct_connections = True
    message.derp_force_websockets = websockets
    for number in range(999, 999 + regions):
        region = pb.DERPMap.Region()
        region.CopyFrom(REGION)
        region.region_id = number
        region.nodes[0].stun_only = True
        message.derp_map.regions[number].CopyFrom(region)
    return from_proto(message)[0]


@pytest.fixture
async def network(clock: ManualClock) -> AsyncIterator[Network]:
    made = Network(URL("https://agents.example:8443"), clock)
    yield made
    await made.aclose()


class Plane:
    """A control plane that coordinates, as far as a goodbye needs it."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.requests: list[pb.CoordinateRequest] = []
        self.calls = 0

    async def coordinate(self, call: ServerStream) -> None:
        self.calls += 1
        while (message := await call.receive()) is not None:
            request = pb.CoordinateRequest.FromString(message)
            self.requests.append(request)
            if request.HasField("disconnect"):
                return

    async def derp_maps(self, call: ServerStream) -> None:
        await asyncio.Event().wait()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[RpcAgentApi]:
        left, right = memory_pair()
        client = RpcClient(left, self.clock)
        handlers = {
            methods.COORDINATE.path: Streaming(self.coordinate),
            methods.STREAM_DERP_MAPS.path: Streaming(self.derp_maps),
        }
        serving = asyncio.create_task(RpcServer(right, handlers, self.clock).serve())
        await client.start()
        try:
            yield RpcAgentApi(client, CURRENT)
        finally:
            await client.aclose()
            await asyncio.gather(serving, return_exceptions=True)


def routines(network: Network, manifest: Manifest) -> list[Routine]:
    """As the composition root declares them."""
    return [
        Routine("network", lambda _: network.update(manifest)),
        Routine(
            "coordination",
            network.coordinate,
            on_failure=OnFailure.RECONNECT,
            in_shutdown=InShutdown.STAY,
            after="network",
        ),
        Routine("derp map", network.follow_derp_map, on_failure=OnFailure.RECONNECT, after="network"),
    ]


async def until_node(network: Network) -> None:
    async with asyncio.timeout(10):  # of real time: the node is imported in a thread
        while network.tailnet is None:
            await asyncio.sleep(0)


@pytest.mark.spec("daemon", 20)
async def test_the_first_manifest_makes_the_node_and_later_ones_change_it(network: Network) -> None:
    assert network.tailnet is None
    await network.update(manifest())
    node = network.tailnet
    assert node is not None
    assert node.engine.addresses == agent_addresses(AGENT_ID)
    keys = node.node_key, node.disco_key
    await network.update(manifest(websockets=True, regions=2))
    assert network.tailnet is node
    assert keys == (node.node_key, node.disco_key)
    assert set(node._map.regions) == {999, 1000}
    assert node.relays._options.force_websockets


@pytest.mark.spec("daemon", 3)
async def test_embedded_relays_are_where_the_agent_finds_the_server(clock: ManualClock) -> None:
    network = Network(URL("https://agents.example:8443"), clock, headers=[("X-Proxy", "yes")])
    message = simple_manifest()
    message.disable_direct_connections = True
    message.derp_map.regions[999].CopyFrom(REGION)
    try:
        await network.update(from_proto(message)[0])
        assert network.tailnet is not None
        relay = network.tailnet._map.regions[999].nodes[0]
        assert (relay.host_name, relay.port, relay.force_http) == ("agents.example", 8443, False)
        assert network.tailnet.relays._options.headers == (("X-Proxy", "yes"),)
    finally:
        await network.aclose()


async def test_services_are_there_from_the_first_moment_and_may_come_later(network: Network) -> None:
    async def service(stream: TailnetStream) -> None:
        """Never called here."""

    network.serve(2, service)
    await network.update(manifest())
    network.serve(4, service)
    assert network.tailnet is not None
    assert network.tailnet._listeners == {2: service, 4: service}


async def test_without_udp_there_are_relays(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "no such family")

    monkeypatch.setattr("agent.tailnet.tailnet.UdpSocket", no_socket)
    message = simple_manifest()
    with capture_logs() as logs:
        await network.update(from_proto(message)[0])
    assert network.tailnet is not None
    assert network.tailnet.engine.paths.direct
    assert [entry["event"] for entry in logs] == ["the node is up"]


async def test_another_agent_is_another_node_with_the_same_services(network: Network) -> None:
    async def service(stream: TailnetStream) -> None:
        """Never called here."""

    network.serve(2, service)
    await network.update(manifest())
    first = network.tailnet
    await network.update(manifest(OTHER))
    second = network.tailnet
    assert first is not None
    assert second is not None
    assert second is not first
    assert second.engine.addresses == agent_addresses(OTHER)
    assert second.node_key != first.node_key
    assert second._listeners == {2: service}
    await settle()
    assert first._closed


async def test_a_server_without_a_network_is_a_feature_absent(network: Network, clock: ManualClock) -> None:
    plane = FakeControlPlane(clock)
    api = await plane.connect()
    with capture_logs() as logs:
        task = asyncio.create_task(serve(api, routines(network, manifest()), asyncio.Event(), clock))
        await until_node(network)
        await clock.advance(60)
        assert not task.done()
        await network.leave()
        await network.left()  # at once: there is nobody to say goodbye to
        await plane.aclose()
        await task
    absent = [entry["routine"] for entry in logs if entry["event"] == "feature absent"]
    assert sorted(absent) == ["coordination", "derp map"]


@pytest.mark.spec("tailnet", 14)
async def test_the_goodbye_is_said_and_waited_for(network: Network, clock: ManualClock) -> None:
    plane = Plane(clock)
    stopping = asyncio.Event()
    async with plane.connected() as api:
        task = asyncio.create_task(serve(api, routines(network, manifest()), stopping, clock))
        await until_node(network)
        await settle()
        assert plane.calls == 1
        stopping.set()
        await network.leave()
        await network.left()
        assert [request.HasField("disconnect") for request in plane.requests] == [True]
        assert not task.done()  # the connection is still needed for the last states
        await network.update(manifest(OTHER))  # no new network any more
        assert network.tailnet is not None
        assert network.tailnet.engine.addresses == agent_addresses(AGENT_ID)
    await task


async def test_a_goodbye_that_the_connection_did_not_survive_is_said_on_the_next_one(
    network: Network, clock: ManualClock
) -> None:
    plane = Plane(clock)
    stopping = asyncio.Event()
    async with plane.connected() as api:
        task = asyncio.create_task(serve(api, routines(network, manifest()), stopping, clock))
        await until_node(network)
        await settle()
    await task
    stopping.set()
    await network.leave()
    leaving = asyncio.create_task(network.left())
    await settle()
    assert not leaving.done()
    async with plane.connected() as api:
        # What brings manifests has stopped; the goodbye does not wait for it.
        task = asyncio.create_task(serve(api, routines(network, manifest()), stopping, clock))
        await leaving
        assert [request.HasField("disconnect") for request in plane.requests] == [True]
    await task


async def test_without_a_control_plane_leaving_has_an_end(network: Network, clock: ManualClock) -> None:
    plane = Plane(clock)
    async with plane.connected() as api:
        task = asyncio.create_task(serve(api, routines(network, manifest()), asyncio.Event(), clock))
        await until_node(network)
        await settle()
    await task
    await network.leave()
    leaving = asyncio.create_task(network.left())
    await clock.advance(GOODBYE_LIMIT)
    assert leaving.done()


async def test_who_was_never_announced_need_not_say_goodbye(network: Network) -> None:
    await network.leave()
    await network.left()
    await network.update(manifest())
    assert network.tailnet is None


async def test_a_close_while_the_goodbye_is_waited_for(network: Network, clock: ManualClock) -> None:
    plane = Plane(clock)
    async with plane.connected() as api:
        task = asyncio.create_task(serve(api, routines(network, manifest()), asyncio.Event(), clock))
        await until_node(network)
        await settle()
    await task
    await network.leave()
    await network.aclose()
    assert network.tailnet is None
    await network.aclose()


# ---- statistics


@dataclass
class FakeEngine:
    counters: EngineCounters = field(default_factory=EngineCounters)
    flows: Flows = field(default_factory=Flows)


@dataclass
class FakeNode:
    measured: list[float] = field(default_factory=list)
    engine: FakeEngine = field(default_factory=FakeEngine)

    async def latencies(self, timeout: float) -> list[float]:
        return self.measured


@pytest.mark.spec("daemon", 41)
async def test_without_a_node_nothing_was_carried() -> None:
    assert await Traffic(lambda: None).collect() == agent_pb2.Stats(connection_median_latency_ms=-0.001)


@pytest.mark.spec("daemon", 41)
async def test_reports_are_of_one_period_each_also_when_the_node_is_another() -> None:
    node: FakeNode = FakeNode()
    traffic = Traffic(lambda: node)  # type: ignore[arg-type,return-value]
    node.engine.counters = EngineCounters(rx_packets=3, rx_bytes=300, tx_packets=2, tx_bytes=20)
    node.engine.flows.sent([bytes((0x60, 0, 0, 0, 0, 0, 17, 64)) + bytes(range(36))])
    node.measured = [0.030, 0.001, 0.002]
    stats = await traffic.collect()
    assert (stats.rx_packets, stats.rx_bytes, stats.tx_packets, stats.tx_bytes) == (3, 300, 2, 20)
    assert (dict(stats.connections_by_proto), stats.connection_count) == ({"UDP": 1}, 1)
    assert stats.connection_median_latency_ms == pytest.approx(2)
    node.engine.counters.rx_packets = 5
    node.measured = []
    assert await traffic.collect() == agent_pb2.Stats(rx_packets=2, connection_median_latency_ms=-0.001)
    node = FakeNode()
    node.engine.counters.rx_packets = 4
    assert (await traffic.collect()).rx_packets == 4
