"""Getting a byte stream to a relay: TCP on both families, proxies, TLS, and the HTTP upgrade (tailnet.md §5.1)."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from yarl import URL

from agent.clock import Clock, wait_for
from agent.proxy import ProxyError, proxy_for
from agent.tailnet.derp_map import DEFAULT_DERP_PORT, Node
from agent.version import VERSION

if TYPE_CHECKING:
    import ssl

NODE_TIMEOUT: Final = 1.5
"""For the TCP connection to one node (§5.1)."""
BODY_TIMEOUT: Final = 2.0
IPV4_DELAY: Final = 0.2
"""The head start of IPv6 where it is known to work."""
MAX_HEAD: Final = 16 * 1024
MAX_BODY: Final = 4096
"""Of an answer that is no upgrade; the rest is not read."""
HTTP2_REASON: Final = "The server wanted us to use HTTP/2, but DERP requires Upgrade which needs HTTP/1.1"
HIGH_WATER: Final = 256 * 1024
"""Bytes that may wait for the kernel before a connection counts as slow."""


class DialError(Exception):
    """The relay cannot be reached; the text says which one, and why."""


class UpgradeRefusedError(DialError):
    """Something in between does not let the upgrade pass: a WebSocket may. The text is for others to read."""


@dataclass(frozen=True, slots=True)
class DialOptions:
    """How relays are dialled.

    `headers` go with every HTTP request. `prefer_ipv6` is asked before each dial: the last network check knows.
    """

    headers: Sequence[tuple[str, str]] = ()
    force_websockets: bool = False
    prefer_ipv6: Callable[[], bool] = lambda: False
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    roots: str | None = None
    """File of certificates to trust in place of the system's."""


class Tls:
    """TLS settings of one process: reading the system's roots takes a while, so that it happens once."""

    def __init__(self, roots: str | None = None) -> None:
        self._roots = roots
        self._contexts: dict[tuple[bool, bool], ssl.SSLContext] = {}

    async def context(self, node: Node) -> ssl.SSLContext:
        """For connections to `node`; `check_certificate` completes the verification."""
        verify, own_name = not node.insecure_for_tests, not node.cert_name
        if (verify, own_name) not in self._contexts:
            self._contexts[verify, own_name] = await asyncio.to_thread(self._make, verify, own_name)
        return self._contexts[verify, own_name]

    def _make(self, verify: bool, own_name: bool) -> ssl.SSLContext:
        import ssl

        context = ssl.create_default_context(cafile=self._roots)
        context.set_alpn_protocols(["http/1.1"])
        if not (verify and own_name):
            context.check_hostname = False
        if not verify:
            context.verify_mode = ssl.CERT_NONE
        return context


def check_certificate(node: Node, certificate: Mapping[str, Any] | None) -> None:
    """The name in a verified certificate, where it is not the name that was dialled. Raises `DialError`."""
    if node.insecure_for_tests or not node.cert_name:
        return
    names = [value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    if not any(_matches(node.cert_name.lower(), name.lower()) for name in names):
        raise DialError(f"{node.host_name}: its certificate is for {', '.join(names)}, not for {node.cert_name}")


def _matches(name: str, pattern: str) -> bool:
    if not pattern.startswith("*."):
        return name == pattern
    _, dot, rest = name.partition(".")
    return bool(dot) and rest == pattern[2:]


def authority(node: Node) -> str:
    """What stands in the Host header: IPv4 address or name, and the port where it is not the scheme's own."""
    host = node.ipv4 if _is_literal(node.ipv4, 4) else node.host_name
    return _with_port(host, node)


def url(node: Node) -> URL:
    """Where a WebSocket finds the relay."""
    scheme = "http" if node.force_http else "https"
    return URL(f"{scheme}://{_with_port(node.host_name, node)}/derp")


def _with_port(host: str, node: Node) -> str:
    host = f"[{host}]" if ":" in host else host
    return host if node.port == (80 if node.force_http else 443) else f"{host}:{node.port}"


class Stream(asyncio.Protocol):
    """A connection whose first bytes are read as HTTP; `attach` hands all that follow to somebody else."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.paused = False
        self.closed = asyncio.Event()
        self.error: Exception | None = None
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._receive: Callable[[bytes], None] | None = None
        self._writable: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        if self._receive is not None:
            self._receive(data)
            return
        self._buffer += data
        self._arrived.set()
        if len(self._buffer) > MAX_HEAD:
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self.closed.set()
        self._arrived.set()

    def eof_received(self) -> None:
        self._arrived.set()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._writable is not None:
            self._writable()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers (by lower-case name) of an HTTP response. Raises `DialError`."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD:
                raise DialError(f"the answer has a head of more than {MAX_HEAD} bytes")
            await self._more()
        status, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        found = re.match(r"HTTP/1\.[01] (\d{3})(?: |$)", status, re.ASCII)
        if found is None:
            raise DialError(f"the answer is no HTTP: {status[:80]!r}")
        headers = (line.partition(":") for line in lines)
        return int(found[1]), {name.strip().lower(): value.strip() for name, _, value in headers}

    async def body(self, headers: Mapping[str, str]) -> bytes:
        """What follows a head that is no upgrade, as far as it is there within `MAX_BODY` bytes."""
        chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        length = headers.get("content-length", "")
        wanted = min(int(length[:9]), MAX_BODY) if length.isascii() and length.isdigit() and not chunked else MAX_BODY
        try:
            while len(self._buffer) < wanted and not (chunked and b"\r\n0\r\n" in b"\r\n" + self._buffer):
                await self._more()
        except DialError:
            pass  # the connection ended, and with it the body
        body = bytes(self._buffer[:wanted])
        return _unchunked(body) if chunked else body

    def attach(self, receive: Callable[[bytes], None], writable: Callable[[], None]) -> None:
        """Give what was read beyond the head, and all that comes, to `receive`."""
        self._receive, self._writable = receive, writable
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            receive(data)
        if not self.transport.is_closing():
            self.transport.resume_reading()

    async def _more(self) -> None:
        if self.closed.is_set():
            raise DialError(f"the connection ended early{f': {self.error}' if self.error else ''}")
        self._arrived.clear()
        await self._arrived.wait()


def _unchunked(data: bytes) -> bytes:
    parts: list[bytes] = []
    while True:
        size, separator, data = data.partition(b"\r\n")
        digits = size.partition(b";")[0].strip()
        if not separator or not re.fullmatch(rb"[0-9a-fA-F]{1,8}", digits) or int(digits, 16) == 0:
            return b"".join(parts)
        length = int(digits, 16)
        parts.append(data[:length])
        data = data[length + 2 :]


async def dial(nodes: Iterable[Node], options: DialOptions, tls: Tls, clock: Clock) -> Stream:
    """A connection on which DERP may begin, to the first of a region's relays that answers.

    Raises `UpgradeRefusedError`, and `DialError` for everything else that goes wrong. The caller bounds the time.
    """
    stream, node = await _connect_first(nodes, options, clock)
    try:
        if not node.force_http:
            await _start_tls(stream, node, tls)
        request = [
            "GET /derp HTTP/1.1",
            f"Host: {authority(node)}",
            f"User-Agent: workspace-agent/{VERSION}",
            *(f"{name}: {value}" for name, value in options.headers),
            "Connection: Upgrade",
            "Upgrade: DERP",
        ]
        stream.transport.write("\r\n".join([*request, "", ""]).encode("latin-1", "replace"))
        status, headers = await stream.head()
        if status != 101:
            try:
                body = await wait_for(clock, stream.body(headers), BODY_TIMEOUT)
            except TimeoutError:
                body = b""
            reason = (
                f"GET failed with status code {status} (a proxy could be disallowing the use of 'Upgrade: derp'): "
                + body.decode("utf-8", "replace")
            )
            raise (UpgradeRefusedError if 400 <= status < 500 else DialError)(reason)
    except BaseException:
        stream.transport.abort()
        raise
    return stream


async def _connect_first(nodes: Iterable[Node], options: DialOptions, clock: Clock) -> tuple[Stream, Node]:
    errors: list[str] = []
    for node in nodes:
        try:
            return await wait_for(clock, _connect(node, options, clock), NODE_TIMEOUT), node
        except TimeoutError:
            errors.append(f"{node.host_name} port {node.port}: no answer within {NODE_TIMEOUT} s")
        except DialError as error:
            errors.append(str(error))
    raise DialError("; ".join(errors) or "the region has no relay, only STUN servers")


async def _connect(node: Node, options: DialOptions, clock: Clock) -> Stream:
    """TCP to one node. A relay without TLS is one in the neighbourhood: no proxy leads there (it would be asked for
    port 443)."""
    try:
        proxy = None if node.force_http else proxy_for(url(node), options.environment)
    except ProxyError as error:
        raise DialError(f"{node.host_name}: {error}") from error
    if proxy is not None:
        return await _connect_through(proxy, node)
    return await _race(node, options.prefer_ipv6(), clock)


async def _race(node: Node, prefer_ipv6: bool, clock: Clock) -> Stream:
    """Both families at once; the first connection wins."""
    attempts: set[asyncio.Task[Stream]] = set()
    for family, version, text in ((socket.AF_INET6, 6, node.ipv6), (socket.AF_INET, 4, node.ipv4)):
        host = text if _is_literal(text, version) else "" if text else node.host_name
        if host:
            delay = IPV4_DELAY if prefer_ipv6 and version == 4 else 0.0
            attempts.add(asyncio.create_task(_open(host, node.port, family, delay, clock), name=f"dial {host}"))
    if not attempts:
        raise DialError(f"{node.host_name}: the DERP map allows neither IPv4 nor IPv6")
    errors: list[str] = []
    pending = attempts
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                if attempt.exception() is None:
                    attempts.discard(attempt)
                    return attempt.result()
                errors.append(str(attempt.exception()))
    finally:
        for attempt in attempts:
            attempt.cancel()
        for result in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(result, Stream):
                result.transport.abort()
    raise DialError(f"{node.host_name} port {node.port}: {', '.join(dict.fromkeys(errors))}")


async def _open(host: str, port: int, family: int, delay: float, clock: Clock) -> Stream:
    """Raises OSError."""
    if delay:
        await clock.sleep(delay)
    _, stream = await asyncio.get_running_loop().create_connection(Stream, host, port, family=family)
    return stream


async def _connect_through(proxy: URL, node: Node) -> Stream:
    """By CONNECT, which always asks for port 443 as other clients do: many proxies allow no other."""
    host, port = proxy.host or "", proxy.port or DEFAULT_DERP_PORT
    encrypted = await asyncio.to_thread(_proxy_context) if proxy.scheme == "https" else None
    try:
        _, stream = await asyncio.get_running_loop().create_connection(
            Stream, host, port, ssl=encrypted, server_hostname=host if encrypted else None
        )
    except OSError as error:
        raise DialError(f"proxy {host} port {port}: {error}") from error
    try:
        name = f"[{node.host_name}]" if ":" in node.host_name else node.host_name
        target = f"{name}:{DEFAULT_DERP_PORT}"
        request = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if proxy.user is not None:
            secret = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
            request.append(f"Proxy-Authorization: Basic {secret}")
        stream.transport.write("\r\n".join([*request, "", ""]).encode())
        status, _ = await stream.head()
        if status != 200:
            raise DialError(f"proxy {host} port {port} refuses a connection to {target} with status {status}")
    except BaseException:
        stream.transport.abort()
        raise
    return stream


def _proxy_context() -> ssl.SSLContext:
    import ssl

    return ssl.create_default_context()


async def _start_tls(stream: Stream, node: Node, tls: Tls) -> None:
    import ssl

    context = await tls.context(node)
    loop = asyncio.get_running_loop()
    try:
        encrypted = await loop.start_tls(stream.transport, stream, context, server_hostname=node.host_name)
    except (OSError, ssl.SSLError) as error:
        raise DialError(f"{node.host_name} port {node.port}: TLS failed: {error}") from error
    if encrypted is None:
        raise DialError(f"{node.host_name} port {node.port}: the connection ended during the TLS handshake")
    stream.connection_made(encrypted)
    session = encrypted.get_extra_info("ssl_object")
    check_certificate(node, session.getpeercert())
    if session.selected_alpn_protocol() == "h2":
        raise UpgradeRefusedError(HTTP2_REASON)


def _is_literal(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False
