"""The server's own node, joined in memory with nodes that stand for agents, on a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import agent_addresses
from agent.server import network
from agent.server.coordinator import Coordinator
from agent.server.derp_map import RELAY_REGION, TOPIC, DerpMaps, DerpOptions
from agent.server.events import Events
from agent.server.network import AgentNetwork, AgentPath, AgentUnreachableError, PortRefusedError
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.derp_map import NO_STUN, DerpMap
from agent.tailnet.peers import LOST_AFTER, Peers, describe
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import NodeState, Tailnet
from agent.testing import ManualClock, settle

ECHO = 7
Update = pb.CoordinateResponse.PeerUpdate


class Node(Tailnet):
    """A node whose relay is a dictionary of nodes. It is at home as soon as it has a map."""

    def __init__(self, relay: dict[bytes, Node], addresses: Sequence[bytes], clock: ManualClock) -> None:
        super().__init__(addresses, clock, options=DialOptions(environment={}), direct=False)
        self.relay = relay
        self.derp_map = DerpMap()
        self._at_home = asyncio.Event()

    def start(self) -> None:
        self.relay[self.node_key] = self
        self._spawn(self.engine.keep_time(), "timers")

    async def aclose(self) -> None:
        await super().aclose()
        self.relay.pop(self.node_key, None)

    def update_derp_map(self, derp_map: DerpMap) -> None:
        self.derp_map = derp_map
        if derp_map.regions:
            self._at_home.set()

    @property
    def node(self) -> NodeState | None:
        return NodeState(RELAY_REGION) if self._at_home.is_set() else None

    async def node_changed(self, known: NodeState | None) -> NodeState:
        await (asyncio.Event() if known is not None else self._at_home).wait()
        return NodeState(RELAY_REGION)

    def send_relay(self, region: int, peer: bytes, datagrams: Sequence[bytes]) -> None:
        if (other := self.relay.get(peer)) is not None:
            packets = [(self.node_key, datagram) for datagram in datagrams]
            asyncio.get_running_loop().call_soon(other.engine.receive_relay, region, packets)


class Agent:
    """One process of an agent: it echoes on one port and refuses the others."""

    def __init__(self, world: World, ident: UUID, *, says_ready: bool = True) -> None:
        self._world, self.id, self._says_ready = world, ident, says_ready
        self.node = Node(world.relay, agent_addresses(ident), world.clock)
        self.node.listen_tcp(ECHO, self._echo)
        self.peers = Peers(self.node, world.clock)
        self.kinds: list[int] = []
        self.accepted = 0
        self.node.start()

    def connect(self) -> None:
        self.connection = self._world.coordinator.connect(self.id, self._wake)
        self.say(describe(self.node, self.id, NodeState(RELAY_REGION), self._world.clock))
        self._take()

    def say(self, node: pb.Node) -> None:
        request = pb.CoordinateRequest(update_self=pb.CoordinateRequest.UpdateSelf(node=node))
        self._world.coordinator.handle(self.connection, request)

    def leave(self) -> None:
        request = pb.CoordinateRequest(disconnect=pb.CoordinateRequest.Disconnect())
        self._world.coordinator.handle(self.connection, request)

    async def vanish(self) -> None:
        """As a killed process does: the coordinator hears of it later, if at all."""
        self._world.relay.pop(self.node.node_key, None)
        self.node.relay = {}
        await self.node.aclose()

    def _wake(self) -> None:
        asyncio.get_running_loop().call_soon(self._take)

    def _take(self) -> None:
        while (response := self.connection.take()) is not None:
            for update in response.peer_updates:
                self.kinds.append(update.kind)
                if update.kind == Update.NODE:
                    self.peers.set(update.id, update.node)
                    if self._says_ready:
                        ready = [pb.CoordinateRequest.ReadyForHandshake(id=update.id)]
                        self._world.coordinator.handle(self.connection, pb.CoordinateRequest(ready_for_handshake=ready))
                elif update.kind == Update.DISCONNECTED:
                    self.peers.remove(update.id)

    async def _echo(self, stream: TailnetStream) -> None:
        self.accepted += 1
        while data := await stream.read():
            await stream.write(data)


class World:
    def __init__(self, clock: ManualClock, **options: Any) -> None:
        self.clock = clock
        self.relay: dict[bytes, Node] = {}
        self.coordinator = Coordinator()
        self.events = Events()
        self.maps = DerpMaps("https://server.example", DerpOptions(stun_port=3478), self.events, clock)
        self.made: list[Node] = []
        self.network = AgentNetwork(
            self.coordinator,
            self.maps,
            self.events,
            clock,
            own_url="http://127.0.0.1:7080",
            make_node=self._make,
            **options,
        )
        self.agents: list[Agent] = []

    def _make(self, addresses: Sequence[bytes], clock: ManualClock, **_: Any) -> Node:
        self.made.append(Node(self.relay, addresses, clock))
        return self.made[-1]

    def agent(self, ident: UUID | None = None, **options: Any) -> Agent:
        made = Agent(self, ident or uuid4(), **options)
        self.agents.append(made)
        return made

    def connected(self, ident: UUID | None = None, **options: Any) -> Agent:
        made = self.agent(ident, **options)
        made.connect()
        return made

    async def soon(self, task: asyncio.Task[Any], seconds: float = 5.0) -> Any:
        """The task's result, which comes within so many seconds of the clock."""
        for _ in range(int(seconds / 0.05)):
            if task.done():
                break
            await self.clock.advance(0.05)
        assert task.done(), "it takes too long"
        return await task

    async def dial(self, ident: UUID, port: int = ECHO, timeout: float = 10) -> TailnetStream:
        task = asyncio.create_task(self.network.dial(ident, port, timeout))
        stream: TailnetStream = await self.soon(task, timeout + 1)
        return stream

    async def turn(self, stream: TailnetStream, text: bytes = b"hello") -> None:
        await stream.write(text)
        assert await self.soon(asyncio.create_task(stream.read())) == text


@asynccontextmanager
async def a_world(clock: ManualClock, **options: Any) -> AsyncIterator[World]:
    made = World(clock, **options)
    try:
        yield made
    finally:
        await made.network.aclose()
        for agent in made.agents:
            await agent.node.aclose()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def world(clock: ManualClock) -> AsyncIterator[World]:
    async with a_world(clock) as made:
        yield made


async def test_there_is_no_node_before_somebody_wants_an_agent(world: World, clock: ManualClock) -> None:
    agent = world.connected()
    await clock.advance(100)
    assert world.made == []
    assert agent.kinds == []
    assert world.network.path(agent.id) is None
    await world.network.aclose()
    assert len(world.coordinator) == 1


async def test_one_node_serves_all_agents(world: World) -> None:
    for agent in [world.connected() for _ in range(3)]:
        await world.turn(await world.dial(agent.id))
        await world.turn(await world.dial(agent.id))
        assert agent.accepted == 2
        assert len(agent.peers) == 1
    assert len(world.made) == 1


async def test_a_warm_dial_does_not_wait(world: World, clock: ManualClock) -> None:
    agent = world.connected()
    await world.dial(agent.id)
    before = clock.now()
    await world.dial(agent.id)
    assert clock.now() - before < 0.2


async def test_the_agent_may_come_while_somebody_waits_for_it(world: World, clock: ManualClock) -> None:
    agent = world.agent()
    dialling = asyncio.create_task(world.network.dial(agent.id, ECHO, 10))
    await clock.advance(8)
    assert not dialling.done()
    agent.connect()
    await world.turn(await world.soon(dialling, 1))


async def test_why_an_agent_is_not_reached(world: World) -> None:
    with pytest.raises(
        AgentUnreachableError, match=r"^dial workspace agent: the agent is not connected to this server \(waited 2 s\)$"
    ):
        await world.dial(uuid4(), timeout=2)
    agent = world.connected()
    await agent.vanish()
    with pytest.raises(
        AgentUnreachableError, match=r"^dial workspace agent: the agent does not answer \(waited 9 s\)$"
    ):
        await world.dial(agent.id, timeout=9)
    with pytest.raises(AgentUnreachableError, match=r"^ping workspace agent: "):
        await world.soon(asyncio.create_task(world.network.ping(agent.id, 2)), 3)


async def test_a_server_without_relay_says_so(world: World) -> None:
    agent = world.connected()
    world.maps._current = DerpMap()
    with pytest.raises(AgentUnreachableError, match="the server has no connection to a relay"):
        await world.dial(agent.id, timeout=2)


async def test_a_port_at_which_nobody_listens(world: World) -> None:
    agent = world.connected()
    with pytest.raises(PortRefusedError, match=r"^dial: port 9 of the workspace refuses connections$"):
        await world.dial(agent.id, 9)


async def test_an_agent_that_never_says_that_it_is_ready_costs_one_second_once(
    world: World, clock: ManualClock
) -> None:
    agent = world.connected(says_ready=False)
    await world.turn(await world.dial(agent.id))
    assert 1 <= clock.now() < 1.5
    before = clock.now()
    await world.dial(agent.id)
    assert clock.now() - before < 0.2


async def test_ping_and_path(world: World) -> None:
    agent = world.connected()
    answered: AgentPath = await world.soon(asyncio.create_task(world.network.ping(agent.id)))
    path = world.network.path(agent.id)
    assert answered == path == AgentPath("", "Embedded Relay", 0.0)
    assert not answered.direct
    assert world.network.path(uuid4()) is None


async def test_an_agent_that_nobody_uses_is_let_go(world: World, clock: ManualClock) -> None:
    agent, other = world.connected(), world.connected()
    stream = await world.dial(agent.id)
    kept = await world.dial(other.id)
    stream.close()
    await clock.advance(network.IDLE - 2 * network.IDLE_CHECK)
    assert Update.DISCONNECTED not in agent.kinds
    await clock.advance(4 * network.IDLE_CHECK)
    assert agent.kinds[-1] == Update.DISCONNECTED
    assert len(agent.peers) == 0
    assert world.network.path(agent.id) is None
    await world.turn(kept)
    assert Update.DISCONNECTED not in other.kinds
    await world.turn(await world.dial(agent.id))


async def test_an_agent_that_is_lost_for_long_is_forgotten_and_may_come_back(world: World, clock: ManualClock) -> None:
    agent = world.connected()
    with world.network.hold(agent.id):
        await world.dial(agent.id)
        await agent.vanish()
        world.coordinator.lose(agent.connection)
        await clock.advance(LOST_AFTER + 60)
        with pytest.raises(AgentUnreachableError, match="not connected to this server"):
            await world.dial(agent.id, timeout=2)
        world.connected(agent.id)
        await world.turn(await world.dial(agent.id))


async def test_who_holds_an_agent_keeps_its_tunnel(world: World, clock: ManualClock) -> None:
    agent = world.connected()
    with world.network.hold(agent.id):
        await clock.advance(2 * network.IDLE)
        assert Update.DISCONNECTED not in agent.kinds
        assert world.network.path(agent.id) is not None
    await clock.advance(network.IDLE + 2 * network.IDLE_CHECK)
    assert agent.kinds[-1] == Update.DISCONNECTED


@pytest.mark.parametrize("noticed", ["lost", "overwritten", "left"])
async def test_an_agent_that_restarts_is_another_peer(world: World, noticed: str) -> None:
    old = world.connected()
    stream = await world.dial(old.id)
    await old.vanish()
    match noticed:
        case "lost":
            world.coordinator.lose(old.connection)
        case "left":
            old.leave()
    new = world.connected(old.id)
    await world.turn(await world.dial(old.id))
    assert (old.accepted, new.accepted) == (1, 1)
    with pytest.raises(Exception, match="left the network"):
        await stream.read()


async def test_an_agent_that_restarts_in_the_middle_of_a_dial(world: World, clock: ManualClock) -> None:
    old = world.connected()
    await world.dial(old.id)
    del old.node._listeners[ECHO]
    old.node.incoming = lambda connection: None  # type: ignore[method-assign]  # the SYN is not answered
    dialling = asyncio.create_task(world.network.dial(old.id, ECHO, 10))
    await clock.advance(2)
    assert not dialling.done()
    await old.vanish()
    world.connected(old.id)
    await world.turn(await world.soon(dialling, 5))


async def test_streams_outlive_what_connects_the_server_s_node_with_the_coordinator(
    world: World, clock: ManualClock
) -> None:
    agent = world.connected()
    stream = await world.dial(agent.id)
    own = next(peer for peer in world.coordinator._peers if peer != agent.id)
    world.coordinator.lose(world.coordinator._peers[own], "a test")
    await world.turn(stream)
    await clock.advance(1)
    assert agent.kinds[-1] == Update.NODE  # it is told of the server's node again
    await world.turn(stream)
    await world.turn(await world.dial(agent.id))


async def test_nobody_takes_the_key_of_another_agent(world: World, clock: ManualClock) -> None:
    agent, thief = world.connected(), world.agent()
    stream = await world.dial(agent.id)
    thief.connect()
    node = describe(thief.node, thief.id, NodeState(RELAY_REGION), clock)
    node.key = describe(agent.node, agent.id, NodeState(RELAY_REGION), clock).key
    thief.say(node)
    with pytest.raises(AgentUnreachableError, match="not connected"):
        await world.dial(thief.id, timeout=2)
    await world.turn(stream)


@pytest.mark.parametrize("after", [0.0, 0.02, 0.3, 3.0])
async def test_a_dial_that_is_given_up_leaves_nothing(world: World, clock: ManualClock, after: float) -> None:
    agent = world.connected()
    dialling = asyncio.create_task(world.network.dial(agent.id if after < 1 else uuid4(), ECHO))
    if after:
        await clock.advance(after)
    else:
        await asyncio.sleep(0)
    if not dialling.done():
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        assert world.made[0].engine.connected_addresses() == set()
    assert world.network._dials == 0
    assert world.network._node is not None
    assert all(agent.holds == agent.dials == 0 for agent in world.network._node._agents.values())


async def test_bounds(world: World, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "MAX_DIALS", 3)
    monkeypatch.setattr(network, "MAX_AGENT_DIALS", 2)
    monkeypatch.setattr(network, "MAX_AGENTS", 3)
    there, missing, another = world.connected(), uuid4(), uuid4()
    waiting = [asyncio.create_task(world.network.dial(missing, ECHO, 5)) for _ in range(2)]
    await settle()
    with pytest.raises(AgentUnreachableError, match="too many connections are being made: try again"):
        await world.network.dial(missing, ECHO)
    await world.turn(await world.dial(there.id))
    waiting.append(asyncio.create_task(world.network.dial(another, ECHO, 5)))
    await settle()
    with pytest.raises(AgentUnreachableError, match="too many connections are being made: try again"):
        await world.network.dial(there.id, ECHO)
    await clock.advance(6)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, AgentUnreachableError) for outcome in outcomes)
    await world.turn(await world.dial(there.id))
    with pytest.raises(AgentUnreachableError, match="tunnels to 3 agents already"):
        await world.network.dial(uuid4(), ECHO)


async def test_a_server_that_stops(world: World, clock: ManualClock) -> None:
    agent = world.connected()
    stream = await world.dial(agent.id)
    waiting = [asyncio.create_task(world.network.dial(ident, ECHO)) for ident in (uuid4(), agent.id)]
    gone = world.connected()
    await gone.vanish()
    waiting.append(asyncio.create_task(world.network.dial(gone.id, ECHO)))
    waiting.append(asyncio.create_task(world.network.ping(gone.id)))  # type: ignore[arg-type]
    await settle()
    await world.network.aclose()
    await clock.advance(30)
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, TailnetStream | AgentUnreachableError)
    with pytest.raises(Exception, match="aborted"):
        await stream.read()
    assert agent.kinds[-1] == Update.DISCONNECTED
    with pytest.raises(AgentUnreachableError, match="the server stops"):
        await world.network.dial(agent.id, ECHO)
    await world.network.aclose()


async def test_the_embedded_relay_is_at_the_listening_socket(world: World) -> None:
    with world.network.hold(uuid4()):
        await settle()
        (relay,) = world.made[0].derp_map.regions[RELAY_REGION].relays
        assert (relay.host_name, relay.port, relay.force_http, relay.stun) == ("127.0.0.1", 7080, True, None)
        assert relay.stun_port == NO_STUN
        world.maps._current = world.maps.current.rewritten(URL("https://another.example"))
        world.maps._current = DerpMap(world.maps.current.regions, omit_default_regions=True)
        world.events.deliver(TOPIC)
        await settle()
        assert world.made[0].derp_map.omit_default_regions


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["dial", "connect", "lose", "leave", "vanish", "wait", "cut", "close"]), st.integers(0, 2)
        ),
        max_size=25,
    )
)
def test_whatever_happens_every_dial_ends_and_agents_that_are_there_are_reached(
    steps: list[tuple[str, int]],
) -> None:
    async def play() -> None:
        clock = ManualClock()
        async with a_world(clock, idle=120) as world:
            idents = [UUID(int=number + 1) for number in range(3)]
            current: dict[UUID, Agent] = {}
            dials: list[asyncio.Task[TailnetStream]] = []
            for step, number in steps:
                ident = idents[number]
                agent = current.get(ident)
                if step == "dial":
                    dials.append(asyncio.create_task(world.network.dial(ident, ECHO, 5)))
                elif step == "connect":
                    if agent is not None:
                        await agent.vanish()
                    current[ident] = world.connected(ident)
                elif step == "wait":
                    await clock.advance(number * 30 + 0.3)
                elif step == "close":
                    for dial in dials:
                        if dial.done() and dial.exception() is None:
                            dial.result().close()
                elif step == "cut":
                    for peer, connection in list(world.coordinator._peers.items()):
                        if peer not in idents:
                            world.coordinator.lose(connection)
                elif agent is not None:
                    if step == "lose":
                        world.coordinator.lose(agent.connection)
                    elif step == "leave":
                        agent.leave()
                    elif step == "vanish":
                        await agent.vanish()
                        del current[ident]
                await settle()
            await clock.advance(6)
            outcomes = await asyncio.gather(*dials, return_exceptions=True)
            assert all(isinstance(outcome, TailnetStream | AgentUnreachableError) for outcome in outcomes)
            for ident in idents:
                if ident in current:
                    await current[ident].vanish()
                current[ident] = world.connected(ident)
                await world.turn(await world.dial(ident))
            for stream in outcomes:
                if isinstance(stream, TailnetStream):
                    stream.abort()
            world.made[0].engine.reset_all()
            await clock.advance(400)
            for ident in idents:
                assert world.network.path(ident) is None
                assert len(current[ident].peers) == 0

    asyncio.run(play())
