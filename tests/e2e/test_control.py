"""The agent's side of the control plane against real servers on loopback."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from yarl import URL

from agent.api.methods import GET_RESOURCES_MONITORING_CONFIGURATION, UPDATE_STATS
from agent.api.proto import agent_pb2 as pb
from agent.api.versions import CURRENT, ApiVersion, VersionRefusedError, accept_version
from agent.clock import Clock, SystemClock
from agent.control import (
    ControlHttp,
    ControlPlane,
    RedirectError,
    RefusedError,
    RestClient,
    UnreachableError,
    VersionMismatchError,
)
from agent.control.dial import DIAL_LIMIT, RPC_PATH
from agent.control.http import refusal
from agent.control.rest import REQUEST_LIMIT
from agent.identity import FixedToken, IdentityError
from agent.rpc import RpcServer, Unary, UnsupportedError, WebSocketTransport
from agent.testing import ManualClock

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[URL]]
Dial = Callable[..., ControlPlane]

TOKEN = "9c2b7c1e-7d3a-4c56-9a53-0f8a2f1d1c11"
SOURCE = UUID("3b579bf4-1ed8-4b99-87a8-e9a1e3410410")


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers whose requests all go to one handler."""
    servers: list[TestServer] = []

    async def start(handler: Handler) -> URL:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        server = TestServer(app, host="127.0.0.1")
        servers.append(server)
        await server.start_server()
        return server.make_url("/")

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
async def https() -> AsyncIterator[list[ControlHttp]]:
    """The sessions of a test, closed after it."""
    sessions: list[ControlHttp] = []
    yield sessions
    for session in sessions:
        await session.aclose()


@pytest.fixture
def dial(https: list[ControlHttp]) -> Dial:
    def make(url: URL, headers: Sequence[tuple[str, str]] = (), clock: Clock | None = None) -> ControlPlane:
        clock = clock or SystemClock()
        https.append(ControlHttp(url, headers, clock))
        return ControlPlane(https[-1], FixedToken(TOKEN), clock)

    return make


@pytest.fixture
def rest(https: list[ControlHttp]) -> Callable[..., RestClient]:
    def make(url: URL, headers: Sequence[tuple[str, str]] = (), clock: Clock | None = None) -> RestClient:
        clock = clock or SystemClock()
        https.append(ControlHttp(url, headers, clock))
        https[-1].token = TOKEN
        return RestClient(https[-1], clock)

    return make


class ControlPlaneServer:
    """Serves `me/rpc` in one version of the API and remembers the requests."""

    def __init__(self, version: ApiVersion = CURRENT) -> None:
        self.version = version
        self.requests: list[web.Request] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        try:
            accept_version(request.query["version"], self.version)
        except VersionRefusedError as error:
            body = {
                "message": "Unknown or unsupported API version",
                "validations": [{"field": "version", "detail": str(error)}],
            }
            return web.json_response(body, status=400)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await RpcServer(
            WebSocketTransport(socket), {UPDATE_STATS.path: Unary(self.update_stats)}, SystemClock()
        ).serve()
        return socket

    async def update_stats(self, _: bytes) -> bytes:
        response = pb.UpdateStatsResponse()
        response.report_interval.FromSeconds(7)
        return response.SerializeToString()


def answer(status: int, text: str = "", **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return handler


@pytest.mark.spec("daemon", 3)
async def test_the_dial_and_a_call(serve: Serve, dial: Dial) -> None:
    server = ControlPlaneServer()
    url = await serve(server.handle)
    plane = dial(url / "ignored/path", [("A", "1"), ("B", "x,y"), ("A", "2")])
    api = await plane.connect()
    try:
        response = await api.call(UPDATE_STATS, pb.UpdateStatsRequest())
        assert response.report_interval.seconds == 7
        assert api.version == CURRENT
    finally:
        await api.client.aclose()
    (request,) = server.requests
    assert request.path_qs == f"{RPC_PATH}?role=agent&version=2.10"
    assert request.headers["Coder-Session-Token"] == TOKEN
    assert request.headers.getall("A") == ["1", "2"]
    assert request.headers["B"] == "x,y"
    assert "Sec-WebSocket-Extensions" not in request.headers
    assert "Origin" not in request.headers
    assert "Cookie" not in request.headers
    assert plane.token == TOKEN


@pytest.mark.spec("agent-api", 26)
@pytest.mark.spec("daemon", 12)
async def test_an_older_server_is_spoken_to_in_its_version(serve: Serve, dial: Dial) -> None:
    server = ControlPlaneServer(ApiVersion(2, 2))
    plane = dial(await serve(server.handle))
    api = await plane.connect()
    try:
        assert api.version == ApiVersion(2, 2)
        with pytest.raises(UnsupportedError):
            await api.call(GET_RESOURCES_MONITORING_CONFIGURATION, pb.GetResourcesMonitoringConfigurationRequest())
        await api.call(UPDATE_STATS, pb.UpdateStatsRequest())
    finally:
        await api.client.aclose()
    assert [request.query["version"] for request in server.requests] == ["2.10", "2.2"]


async def test_a_server_that_was_upgraded_is_noticed_at_the_next_connection(serve: Serve, dial: Dial) -> None:
    server = ControlPlaneServer(ApiVersion(2, 4))
    plane = dial(await serve(server.handle))
    for version in (ApiVersion(2, 4), CURRENT):
        server.version = version
        api = await plane.connect()
        assert api.version == version
        await api.client.aclose()


async def test_a_server_of_another_major_version(serve: Serve, dial: Dial) -> None:
    plane = dial(await serve(ControlPlaneServer(ApiVersion(3, 0)).handle))
    with pytest.raises(VersionMismatchError, match="upgrade workspace-agent"):
        await plane.connect()


async def test_a_wrong_token(serve: Serve, dial: Dial) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "Workspace agent not authorized.", "detail": "No job."}, status=401)

    url = await serve(handler)
    with pytest.raises(RefusedError) as caught:
        await dial(url).connect()
    assert str(caught.value) == (
        f"GET {url.with_path(RPC_PATH)}: 401 Workspace agent not authorized. (No job.); "
        "check the agent token, and that its workspace build is the latest"
    )
    assert caught.value.status == 401


@pytest.mark.spec("daemon", 11)
@pytest.mark.parametrize("status", [401, 403, 404, 426, 500, 502])
async def test_refusals_are_typed_and_show_what_is_not_json(serve: Serve, dial: Dial, status: int) -> None:
    plane = dial(await serve(answer(status, "<h1>no</h1>")))
    with pytest.raises(RefusedError) as caught:
        await plane.connect()
    assert caught.value.status == status
    assert caught.value.message == 'unexpected non-JSON response "text/plain"'
    assert caught.value.detail == "<h1>no</h1>"
    assert caught.value.away == (status == 502)


async def test_an_endless_error_body_is_cut(serve: Serve, dial: Dial) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=500)
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    with pytest.raises(RefusedError) as caught:
        await dial(await serve(handler)).connect()
    assert len(caught.value.detail) == 2048


async def test_retry_after_in_seconds_and_as_a_date(serve: Serve, dial: Dial, clock: ManualClock) -> None:
    clock.set_wall(1_730_433_233_000_000_000)  # Fri, 01 Nov 2024 03:53:53 GMT
    for text, seconds in [("17", 17.0), ("Fri, 01 Nov 2024 03:54:03 GMT", 10.0), ("soon", None), ("-1", None)]:
        plane = dial(await serve(answer(503, Retry_After=text)), clock=clock)
        with pytest.raises(RefusedError) as caught:
            await plane.connect()
        assert caught.value.retry_after == seconds
        assert caught.value.away


async def test_an_answer_that_is_no_upgrade(serve: Serve, dial: Dial) -> None:
    with pytest.raises(RefusedError, match=r"200 no WebSocket was opened .*CODER_AGENT_URL may be wrong"):
        await dial(await serve(answer(200, "Welcome to the hotel"))).connect()


async def test_an_unreachable_server_is_named(dial: Dial, unused_tcp_port: int) -> None:
    url = URL(f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(UnreachableError) as caught:
        await dial(url).connect()
    assert str(caught.value).startswith(f"{url.with_path(RPC_PATH)}: Cannot connect to host")


async def test_an_unknown_host_is_named(dial: Dial) -> None:
    with pytest.raises(UnreachableError, match=r"http://nowhere\.invalid/"):
        await dial(URL("http://nowhere.invalid")).connect()


async def test_a_server_that_accepts_and_never_answers_is_given_up(
    serve: Serve, dial: Dial, rest: Callable[..., RestClient], clock: ManualClock
) -> None:
    reached = asyncio.Event()

    async def handler(_: web.Request) -> web.StreamResponse:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    url = await serve(handler)
    for attempt, limit in (
        (dial(url, clock=clock).connect(), DIAL_LIMIT),
        (rest(url, clock=clock).register_log_source(SOURCE, "x"), REQUEST_LIMIT),
    ):
        reached.clear()
        task = asyncio.ensure_future(attempt)
        await reached.wait()
        await clock.advance(limit - 1)
        assert not task.done()
        await clock.advance(1)
        with pytest.raises(UnreachableError, match="no answer in time"):
            await task


async def test_a_cancelled_dial_leaves_nothing_behind(serve: Serve, dial: Dial) -> None:
    reached, left = asyncio.Event(), asyncio.Event()

    async def handler(_: web.Request) -> web.StreamResponse:
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        raise AssertionError

    url = await serve(handler)
    before = asyncio.all_tasks()
    task = asyncio.create_task(dial(url).connect())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {found for found in asyncio.all_tasks() - before if "agent" in repr(found.get_coro())} == set()


async def test_the_credentials_are_asked_before_every_dial(serve: Serve, https: list[ControlHttp]) -> None:
    class Rotating:
        count = 0

        async def obtain(self) -> str:
            self.count += 1
            if self.count == 2:
                raise IdentityError("read token file")
            return f"token-{self.count}"

    server = ControlPlaneServer()
    https.append(ControlHttp(await serve(server.handle), (), SystemClock()))
    plane = ControlPlane(https[-1], Rotating(), SystemClock())
    await (await plane.connect()).client.aclose()
    with pytest.raises(IdentityError):
        await plane.connect()
    await (await plane.connect()).client.aclose()
    assert [request.headers["Coder-Session-Token"] for request in server.requests] == ["token-1", "token-3"]


async def test_a_redirect_takes_nothing_to_another_origin(serve: Serve, dial: Dial) -> None:
    elsewhere = ControlPlaneServer()
    other = await serve(elsewhere.handle)
    plane = dial(await serve(answer(307, Location=f"{other}api?version=2.10")), [("Secret", "hunter2")])
    with pytest.raises(RedirectError, match=f"redirects to {other.origin()}, .* set CODER_AGENT_URL"):
        await plane.connect()
    assert elsewhere.requests == []


async def test_a_redirect_within_the_origin_is_followed_with_the_token(serve: Serve, dial: Dial) -> None:
    server = ControlPlaneServer()

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == RPC_PATH:
            raise web.HTTPTemporaryRedirect(f"/moved?{request.query_string}")
        return await server.handle(request)

    api = await dial(await serve(handler), [("A", "1")]).connect()
    await api.client.aclose()
    (request,) = server.requests
    assert request.headers.getall("Coder-Session-Token") == [TOKEN]
    assert request.headers.getall("A") == ["1"]


async def test_a_redirect_loop_ends(serve: Serve, dial: Dial) -> None:
    with pytest.raises(UnreachableError, match="redirects that lead nowhere"):
        await dial(await serve(answer(307, Location=RPC_PATH))).connect()


async def test_a_proxy_of_the_environment_is_used(serve: Serve, dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ControlPlaneServer()
    proxy = await serve(server.handle)
    monkeypatch.setenv("HTTP_PROXY", str(proxy.with_user("me").with_password("hunter2")))
    monkeypatch.delenv("NO_PROXY", raising=False)
    api = await dial(URL("http://coder.invalid")).connect()
    await api.client.aclose()
    (request,) = server.requests
    assert request.host == "coder.invalid"
    assert request.headers["Proxy-Authorization"] == "Basic bWU6aHVudGVyMg=="
    assert request.headers["Coder-Session-Token"] == TOKEN


async def test_a_proxy_that_refuses_is_named_without_its_password(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:hunter2@127.0.0.1:{port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with server:
        with pytest.raises(UnreachableError) as caught:
            await dial(URL("https://coder.invalid"), [("Secret", "hunter2")]).connect()
    assert "https://coder.invalid/" in str(caught.value)
    assert "407" in str(caught.value)
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__!r} {caught.value.__cause__}"
    assert seen[0].startswith(b"CONNECT coder.invalid:443")
    assert b"Proxy-Authorization: Basic bWU6aHVudGVyMg==" in seen[0]
    assert TOKEN.encode() not in seen[0]
    assert b"Secret" not in seen[0]


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n"])
async def test_what_is_no_http_is_not_quoted(dial: Dial, head: bytes) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"session_token: 5ecret with no sense\x00\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UnreachableError, match="the answer is no HTTP") as caught:
            await dial(URL(f"http://127.0.0.1:{port}")).connect()
    assert "5ecret" not in f"{caught.value} {caught.value.__cause__}"


async def test_an_unusable_proxy_variable(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(UnreachableError, match="HTTP_PROXY names a socks5 proxy"):
        await dial(URL("http://coder.invalid")).connect()


@pytest.mark.spec("daemon", 3)
async def test_a_log_source_is_registered(serve: Serve, rest: Callable[..., RestClient]) -> None:
    requests: list[tuple[web.Request, bytes]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        requests.append((request, await request.read()))
        return web.json_response({"id": str(SOURCE)}, status=201)

    client = rest(await serve(handler), [("A", "1"), ("B", "x,y")])
    await client.register_log_source(SOURCE, "Agent", "/icon.svg")
    ((request, body),) = requests
    assert (request.method, request.path) == ("POST", "/api/v2/workspaceagents/me/log-source")
    assert body == b'{"id":"%s","display_name":"Agent","icon":"/icon.svg"}\n' % str(SOURCE).encode()
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Coder-Session-Token"] == TOKEN
    assert (request.headers["A"], request.headers["B"]) == ("1", "x,y")


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (answer(200, "{}"), "200 expected status 201"),
        (answer(201, "<html>"), "201 the answer is not JSON"),
        (answer(201, "[" * 65_536), "201 the answer is not JSON"),
        (answer(500, ""), "500 unexpected non-JSON response"),
    ],
)
async def test_a_strange_answer_is_a_refusal(
    serve: Serve, rest: Callable[..., RestClient], handler: Handler, message: str
) -> None:
    with pytest.raises(RefusedError, match=message):
        await rest(await serve(handler)).register_log_source(SOURCE, "Agent")


def test_refusals_read_whatever_json_there_is() -> None:
    for body, message in [
        (b"", "unexpected status code 418, response has no message"),
        (b"[1]", "unexpected status code 418, response has no message"),
        (b"[" * 65_536, "unexpected status code 418, response has no message"),
        (b'{"message": ""}', "unexpected status code 418, response has no message"),
        (b'{"message": "tea", "validations": [1, {"field": "pot"}]}', "tea"),
    ]:
        assert refusal("GET x", 418, "application/json", body, None).message == message


async def test_a_certificate_that_nobody_vouches_for(dial: Dial, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path / "server.pem"))
    server = TestServer(web.Application(), host="127.0.0.1", scheme="https")
    await server.start_server(ssl=context)
    try:
        with pytest.raises(UnreachableError, match=r"CERTIFICATE_VERIFY_FAILED.*; SSL_CERT_FILE names the authorities"):
            await dial(server.make_url("/")).connect()
    finally:
        await server.close()


def self_signed(path: Path) -> Path:
    """A file with a key and a certificate for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
    certificate = builder.sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    return path
