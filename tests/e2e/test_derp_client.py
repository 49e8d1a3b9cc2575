"""The relay's client against our relay, and against relays and proxies that misbehave (tailnet.md §5.1-5.5)."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.clock import Clock, SystemClock
from agent.protocol import derp, keys
from agent.protocol.derp import Packets, ServerSession
from agent.server.api.derp import Derp
from agent.server.http import Call
from agent.server.longlived import LongLived
from agent.server.relay import Relay
from agent.tailnet.derp_client import QUEUE, DerpClient
from agent.tailnet.derp_dial import DialError, DialOptions, Tls
from agent.tailnet.derp_map import Node, Region
from agent.testing import ManualClock, settle


class Owner:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.packets: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
        self.gone: list[bytes] = []
        self.changes = 0
        self.changed = asyncio.Event()

    def derp_packets(self, region: int, packets: Packets) -> None:
        for packet in packets:
            self.packets.put_nowait(packet)

    def derp_peer_gone(self, region: int, key: bytes) -> None:
        self.gone.append(key)

    def derp_changed(self, region: int) -> None:
        self.changes += 1
        self.changed.set()

    async def next_change(self) -> None:
        async with asyncio.timeout(5):
            await self.changed.wait()
        self.changed.clear()

    async def packet(self) -> tuple[bytes, bytes]:
        async with asyncio.timeout(5):
            return await self.packets.get()


class Served:
    """Our relay behind an aiohttp application; `refuse` makes it answer upgrades with a status."""

    def __init__(self) -> None:
        self.relay = Relay(SystemClock())
        self.requests: list[web.Request] = []
        self.refuse: tuple[int, str] | None = None
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.refuse is not None and request.headers["Upgrade"].lower() == "derp":
            return web.Response(status=self.refuse[0], text=self.refuse[1])
        part = Derp(self.relay, LongLived(), SystemClock())
        return await part.connect(Call(request, part.routes()[0], SystemClock(), None))

    def cut_off(self) -> None:
        for connection in tuple(self.relay._connections):
            connection.link.abort()

    @property
    def upgrades(self) -> list[str]:
        return [request.headers["Upgrade"].lower() for request in self.requests]


@asynccontextmanager
async def serving(served: Served, *, port: int = 0, context: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
    app = web.Application()
    app.router.add_get("/derp", served.handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, reuse_address=True).start()
    served.port = runner.addresses[0][1]
    try:
        yield served
    finally:
        served.cut_off()
        await runner.cleanup()


def plain(port: int, **changes: Any) -> Node:
    return Node("1a", 1, **{"host_name": "127.0.0.1", "derp_port": port, "force_http": True, **changes})


@asynccontextmanager
async def client(
    *nodes: Node, clock: Clock | None = None, home: bool = False, tls: Tls | None = None, **options: Any
) -> AsyncIterator[tuple[DerpClient, Owner, bytes]]:
    """A running client, its owner, and its public key."""
    private, owner = keys.generate(), Owner()
    made = DerpClient(
        Region(1, nodes=nodes),
        private,
        owner,
        clock or SystemClock(),
        home=home,
        tls=tls or Tls(),
        options=DialOptions(**{"environment": {}, **options}),
        uniform=lambda low, high: (low + high) / 2,
    )
    task = asyncio.create_task(made.run())
    try:
        yield made, owner, keys.public_key(private)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def connected(made: DerpClient) -> None:
    async with asyncio.timeout(5):
        await made.wait_connected()


@pytest.mark.spec("tailnet", 29, 33)
@pytest.mark.parametrize("websockets", [False, True])
async def test_two_clients_talk(websockets: bool) -> None:
    async with (
        serving(Served()) as served,
        client(plain(served.port), force_websockets=websockets, headers=(("X-Extra", "1"),)) as (one, owner, key),
        client(plain(served.port), home=True) as (two, other, other_key),
    ):
        await connected(one)
        await connected(two)
        assert one.over_websocket is websockets
        assert one.forced_websocket == ""
        sent = [bytes([n]) * (n * 5) for n in range(200)]
        assert one.send(other_key, sent) == 200
        assert [await other.packet() for _ in range(200)] == [(key, datagram) for datagram in sent]
        two.send(key, [bytes(65536)] * 3)
        assert [await owner.packet() for _ in range(3)] == [(other_key, bytes(65536))] * 3
        assert 0 < await one.ping() < 5
        assert [request.headers["Upgrade"].lower() for request in served.requests if "X-Extra" in request.headers] == [
            "websocket" if websockets else "derp"
        ]
        assert served.requests[-1].headers["Host"] == f"127.0.0.1:{served.port}"
        assert (one.counters.sent, owner.changes) == (200, 1)
    assert owner.gone in ([other_key], [])


async def test_a_peer_that_leaves() -> None:
    async with serving(Served()) as served, client(plain(served.port)) as (one, owner, key):
        await connected(one)
        async with client(plain(served.port)) as (two, _, other_key):
            await connected(two)
            two.send(key, [b"x"])
            await owner.packet()
        async with asyncio.timeout(5):
            while not owner.gone:
                await asyncio.sleep(0.01)
        assert owner.gone == [other_key]


@pytest.mark.spec("tailnet", 29)
async def test_a_proxy_that_refuses_the_upgrade() -> None:
    served = Served()
    served.refuse = (400, "Bad Request\nno upgrades here\n")
    async with serving(served), client(plain(served.port)) as (made, owner, _):
        await owner.next_change()
        assert made.forced_websocket == (
            "GET failed with status code 400 (a proxy could be disallowing the use of 'Upgrade: derp'): "
            "Bad Request\nno upgrades here\n"
        )
        await connected(made)
        assert served.upgrades == ["derp", "websocket"]
        served.cut_off()
        await until(lambda: len(served.requests) == 3)
        assert served.upgrades == ["derp", "websocket", "websocket"], "permanently"


@pytest.mark.spec("tailnet", 29)
async def test_a_relay_that_is_busy_is_asked_again() -> None:
    served = Served()
    served.refuse = (503, "busy")
    async with serving(served), client(plain(served.port)) as (made, owner, _):
        for _ in range(3):
            await owner.next_change()
        served.refuse = None
        await connected(made)
        assert set(served.upgrades) == {"derp"}
        assert made.forced_websocket == ""


@pytest.mark.spec("tailnet", 31)
async def test_a_relay_that_restarts_keeps_what_waits() -> None:
    async with AsyncExitStack() as stack:
        served = Served()
        first = await stack.enter_async_context(AsyncExitStack())
        await first.enter_async_context(serving(served))
        one, owner, _ = await stack.enter_async_context(client(plain(served.port)))
        two, other, other_key = await stack.enter_async_context(client(plain(served.port)))
        await connected(one)
        await connected(two)
        await first.aclose()
        await other.next_change()
        for made in (one, two):
            while made.connected:
                await asyncio.sleep(0.01)
        assert one.send(other_key, [b"while it was away"] * (QUEUE + 5)) == QUEUE
        assert one.counters.dropped_full == 5
        again = Served()
        again.refuse = (503, "not yet")
        await stack.enter_async_context(serving(again, port=served.port))
        await owner.next_change()
        # The other one has to be there first: a relay keeps nothing.
        private = two._private_key
        again.refuse = None
        await connected(two)
        await connected(one)
        one.send(other_key, [b"afterwards"])
        received = [(await other.packet())[1]]
        while received[-1] != b"afterwards":
            received.append((await other.packet())[1])
        assert private == two._private_key


ServeRelay = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(serve: ServeRelay) -> AsyncIterator[int]:
    """A TCP server that does what a test says."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def log_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> ServerSession:
    """The relay's part up to the login."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    session = ServerSession(keys.generate())
    while True:
        writer.write(b"".join(session.data_to_send()))
        if session.client_key:
            return session
        session.receive(await reader.read(1000))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.spec("tailnet", 31)
async def test_pings_are_answered_and_silence_ends_the_connection(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    pongs: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await log_in(reader, writer)
        writer.write(derp.frame(derp.Kind.PING, b"12345678"))
        pongs.append(await reader.readexactly(13))
        await reader.read()

    caplog.set_level("INFO")
    async with scripted(serve) as port, client(plain(port), clock=clock) as (made, _, _key):
        await until(lambda: len(pongs) == 1)
        assert pongs == [derp.frame(derp.Kind.PONG, b"12345678")]
        await clock.advance(119)
        assert (made.connected, made.counters.failures) == (True, 0)
        await clock.advance(2)
        await until(lambda: len(pongs) == 2)
        assert (made.counters.failures, made.counters.connects) == (1, 2)
        assert "the relay said nothing for 120 s" in caplog.text


async def test_a_connection_that_is_verified_is_made_anew_unless_the_relay_answers(clock: ManualClock) -> None:
    answers = True
    pings = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pings
        await log_in(reader, writer)
        while len(frame := await reader.read(13)) == 13:
            pings += 1
            if answers:
                writer.write(derp.frame(derp.Kind.PONG, frame[5:]))

    async with scripted(serve) as port, client(plain(port), clock=clock) as (made, _, _key):
        await connected(made)
        await made.verify()
        assert (pings, made.counters.connects) == (1, 1)
        answers = False
        verified = asyncio.create_task(made.verify())
        await until(lambda: pings == 2)
        await clock.advance(6)
        await verified
        await clock.advance(1)
        await until(lambda: made.counters.connects == 2)
        assert made.counters.failures == 1


@pytest.mark.spec("tailnet", 31)
async def test_failures_in_a_row_are_spaced(clock: ManualClock) -> None:
    attempts = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1

    async with scripted(serve) as port, client(plain(port), clock=clock) as (_, owner, _key):
        for n in range(1, 6):
            await until(lambda n=n: owner.changes == n)  # type: ignore[misc]
            assert attempts == n
            await settle()
            # What waits began at most one short step before now.
            await clock.advance(0.01 * n**2 / 2)
            await asyncio.sleep(0.02)
            assert attempts == n
            await clock.advance(0.01 * n**2 / 2 + 0.001)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + derp.KEEP_ALIVE, "began with a frame of kind 0x06"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x05\x00\x10\x00\x01", "the limit is 1048576"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "status code 200"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "no HTTP"),
        (b"x" * 20_000, "a head of more than"),
        (b"", "ended early"),
    ],
)
async def test_servers_that_are_no_relay(answer: bytes, message: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.write_eof()
        await reader.read()

    async with scripted(serve) as port, client(plain(port)) as (made, owner, _):
        await owner.next_change()
        assert message in str(made.error)
        assert not made.over_websocket
        with pytest.raises(DialError, match="no connection to region 1"):
            await made.ping()


@pytest.mark.parametrize("phase", ["http", "key", "login"])
async def test_a_relay_that_says_nothing(clock: ManualClock, phase: str, caplog: pytest.LogCaptureFixture) -> None:
    begun = ended = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal begun, ended
        await reader.readuntil(b"\r\n\r\n")
        if phase != "http":
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        if phase == "login":
            writer.write(b"".join(ServerSession(keys.generate()).data_to_send()))
            await reader.readexactly(100)
        begun += 1
        with suppress(ConnectionError):
            await reader.read()
        ended += 1

    caplog.set_level("INFO")
    async with scripted(serve) as port:
        async with client(plain(port), clock=clock) as (made, _, _key):
            await until(lambda: begun == 1)
            await settle()
            await clock.advance(9.9)
            assert made.counters.failures == 0
            await clock.advance(0.3)
            await until(lambda: begun == 2)
            assert (made.counters.failures, made.counters.connects) == (1, 0)
            assert "no login within 10 s" in caplog.text
        # Cancelled in this phase: nothing is left open.
        await until(lambda: ended == 2)


@pytest.mark.spec("tailnet", 33)
async def test_frames_and_messages_of_a_websocket_do_not_match() -> None:
    sizes: list[int] = []
    packets: Packets = []

    async def handle(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=("derp",), compress=False)
        await socket.prepare(request)
        session = ServerSession(keys.generate())
        await socket.send_bytes(session.data_to_send()[0][:7])
        await socket.send_bytes(ServerSession(session._private_key).data_to_send()[0][7:])
        async for message in socket:
            sizes.append(len(message.data))
            before = session.client_key
            packets.extend(session.receive(message.data).packets)
            wire = b"".join(session.data_to_send())
            if session.client_key != before:
                wire += b"".join(
                    derp.packet_frame(derp.Kind.RECV_PACKET, session.client_key, bytes([n]) * 50) for n in range(20)
                )
            for at in range(0, len(wire), 333):
                await socket.send_bytes(wire[at : at + 333])
        return socket

    app = web.Application()
    app.router.add_get("/derp", handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with client(plain(runner.addresses[0][1]), force_websockets=True) as (made, owner, key):
            assert [await owner.packet() for _ in range(20)] == [(key, bytes([n]) * 50) for n in range(20)]
            made.send(key, [bytes(60000), bytes(5), bytes(60000)])
            await until(lambda: len(packets) == 3)
            assert max(sizes) <= 32768
    finally:
        await runner.cleanup()


async def test_a_text_message_breaks_the_connection() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=("derp",))
        await socket.prepare(request)
        await socket.send_str("hello")
        await socket.receive()
        return socket

    app = web.Application()
    app.router.add_get("/derp", handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with client(plain(runner.addresses[0][1]), force_websockets=True) as (made, owner, _):
            await owner.next_change()
            assert str(made.error) == "the relay sent a text message"
    finally:
        await runner.cleanup()


# ---- TLS


class Certificates:
    """A root in a file, and servers' certificates of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a root for tests")])
        root = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.roots = str(directory / "root.pem")
        Path(self.roots).write_bytes(root.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def server(self, name: str, asked: list[str | None]) -> ssl.SSLContext:
        """Settings of a server called `name`, which writes down what names clients asked for."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            alternative = x509.DNSName(name)
        certificate = (
            self._builder(x509.Name([]), key)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        path = self._directory / f"{name}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(path)
        context.sni_callback = lambda _socket, asked_for, _context: asked.append(asked_for)
        context.set_alpn_protocols(["http/1.1", "h2"])
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.spec("tailnet", 30)
@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("relay.example.com", {}, ""),
        ("other.example.com", {"cert_name": "other.example.com"}, ""),
        ("other.example.com", {"insecure_for_tests": True}, ""),
        ("other.example.com", {}, "TLS failed: .*CERTIFICATE_VERIFY_FAILED"),
        ("relay.example.com", {"cert_name": "other.example.com"}, "is for relay.example.com, not for other"),
    ],
)
async def test_names_in_tls(certificates: Certificates, name: str, changes: dict[str, Any], message: str) -> None:
    asked: list[str | None] = []
    context = certificates.server(name, asked)
    async with serving(Served(), context=context) as served:
        node = Node("1a", 1, "relay.example.com", ipv4="127.0.0.1", ipv6="none", derp_port=served.port, **changes)
        async with client(node, tls=Tls(certificates.roots)) as (made, owner, _):
            await owner.next_change()
            assert asked[0] == "relay.example.com"
            if message:
                with pytest.raises(DialError, match=message):
                    raise made.error or AssertionError
            else:
                assert made.connected
                assert served.requests[0].headers["Host"] == f"127.0.0.1:{served.port}"


@pytest.mark.spec("tailnet", 30)
@pytest.mark.parametrize(
    ("name", "changes", "works"),
    [
        ("localhost", {}, True),
        ("other.example.com", {"cert_name": "other.example.com"}, True),
        ("other.example.com", {}, False),
        ("localhost", {"cert_name": "other.example.com"}, False),
    ],
)
async def test_names_in_tls_under_a_websocket(
    certificates: Certificates, name: str, changes: dict[str, Any], works: bool
) -> None:
    asked: list[str | None] = []
    context = certificates.server(name, asked)
    async with serving(Served(), context=context) as served:
        node = Node("1a", 1, "localhost", derp_port=served.port, **changes)
        async with client(node, tls=Tls(certificates.roots), force_websockets=True) as (made, owner, _):
            await owner.next_change()
            assert made.connected is works, made.error
            assert asked[0] == "localhost"


@pytest.mark.parametrize("password", ["", "user:secret@"])
async def test_a_proxy_is_asked_for_port_443(certificates: Certificates, password: str) -> None:
    heads: list[str] = []
    async with serving(Served(), context=certificates.server("relay.example.com", [])) as served:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_copy(reader, far_writer))
                tasks.create_task(_copy(far_reader, writer))

        async with scripted(serve) as port:
            node = Node("1a", 1, "relay.example.com", derp_port=8443)
            environment = {"HTTPS_PROXY": f"http://{password}127.0.0.1:{port}"}
            async with client(node, tls=Tls(certificates.roots), environment=environment) as (made, _, _key):
                await connected(made)
                assert 0 < await made.ping() < 5
        assert heads[0].startswith("CONNECT relay.example.com:443 HTTP/1.1\r\n")
        assert ("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in heads[0]) is bool(password)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(10_000):
        writer.write(data)
    writer.close()


async def test_a_proxy_that_refuses_is_named_without_its_password() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

    async with scripted(serve) as port:
        environment = {"HTTPS_PROXY": f"http://user:secret@127.0.0.1:{port}"}
        async with client(Node("1a", 1, "relay.example.com"), environment=environment) as (made, owner, _):
            await owner.next_change()
            assert str(made.error) == (
                f"proxy 127.0.0.1 port {port} refuses a connection to relay.example.com:443 with status 407"
            )
            assert not made.over_websocket


# ---- nodes and families


async def test_nodes_are_tried_in_order_and_families_together() -> None:
    async with serving(Served()) as served:
        closed = plain(1)
        stun = plain(served.port, stun_only=True)
        both = plain(served.port, host_name="localhost")
        for nodes in ((closed, stun, both), (plain(served.port, host_name="x", ipv4="127.0.0.1", ipv6="::1"),)):
            async with client(*nodes, prefer_ipv6=lambda: True) as (made, _, _key):
                await connected(made)
        for nodes, message in (
            ((closed,), "127.0.0.1 port 1: "),
            ((plain(served.port, ipv4="none", ipv6="none"),), "neither IPv4 nor IPv6"),
            ((stun,), "only STUN servers"),
        ):
            async with client(*nodes) as (made, owner, _key):
                await owner.next_change()
                assert message in str(made.error)
