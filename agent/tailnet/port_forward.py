"""Local ports that lead to ports of an agent: the client's end of port forwarding (tailnet.md §1.4, §8.4, §8.5)."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, Protocol, cast

from agent.clock import Clock
from agent.protocol.ip import MAX_UDP_PAYLOAD, Datagram
from agent.tailnet.forward import join, reset, share_of_files
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import TailnetError

LOOPBACK: Final = "127.0.0.1"
MAX_FORWARDS: Final = 1024
MAX_CONNECTIONS: Final = 4096
"""TCP connections at one time, over all forwards; fewer where this process may open few files."""
MAX_FLOWS: Final = 1024
"""Local UDP senders at one time, for each forward."""
UDP_IDLE: Final = 120.0
CHUNK: Final = 262_144
BACKLOG: Final = 256
"""Connections that wait to be accepted, and are accepted in one go; fewer in the same way."""

_SPEC: Final = re.compile(
    r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.-]*[^\W\d][\w.-]*|\d+(?:\.\d+){3}):)?"
    r"(?P<local>\d{1,5}(?:-\d{1,5})?)(?::(?P<remote>\d{1,5}(?:-\d{1,5})?))?"
)


class ForwardError(Exception):
    """A forward that is not understood or cannot be had; the text says which one, and what to do."""


@dataclass(frozen=True, slots=True)
class Forward:
    """One port. `host` is the local address; `local` 0 takes a free port."""

    protocol: Literal["tcp", "udp"]
    host: str
    local: int
    remote: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.local}/{self.protocol}"


def parse(protocol: Literal["tcp", "udp"], text: str) -> list[Forward]:
    """`8080`, `8080:80`, `address:8080:80`, ranges as `9000-9010:8000-8010`, several with commas.

    Without an address it is 127.0.0.1. Raises `ForwardError`.
    """
    found: list[Forward] = []
    for part in text.split(","):
        match = _SPEC.fullmatch(part.strip())
        if match is None:
            raise ForwardError(
                f"{part.strip()!r} is no forward; it looks like 8080, 8080:80, 127.0.0.1:8080:80 or 9000-9010:8000-8010"
            )
        host = (match["host"] or LOOPBACK).strip("[]")
        local = _range(match["local"], part)
        remote = _range(match["remote"] or match["local"], part)
        if len(local) != len(remote):
            raise ForwardError(f"{part.strip()!r}: both ranges must have the same length")
        if remote.start == 0:
            raise ForwardError(f"{part.strip()!r}: there is no remote port 0")
        found += [Forward(protocol, host, *ports) for ports in zip(local, remote, strict=True)]
        if len(found) > MAX_FORWARDS:
            raise ForwardError(f"more than {MAX_FORWARDS} forwards")
    return found


def _range(text: str, part: str) -> range:
    first, _, last = text.partition("-")
    ports = range(int(first), int(last or first) + 1)
    if not ports or ports[-1] > 65535:
        raise ForwardError(f"{part.strip()!r}: {text} are no ports")
    return ports


class UdpNode(Protocol):
    """The node, as far as datagrams need it; `agent.tailnet.tailnet.Tailnet`."""

    def open_udp(self, receive: Callable[[Datagram], None]) -> int: ...
    def send_datagram(self, local_port: int, address: bytes, port: int, payload: bytes) -> None: ...
    def close_udp(self, local_port: int) -> None: ...


Dial = Callable[[int], Awaitable[TailnetStream]]


class PortForwarder:
    """Open it with what to forward. `told` gets one line about each port that does not work, once until it does."""

    def __init__(self, dial: Dial, node: UdpNode, address: bytes, clock: Clock, told: Callable[[str], None]) -> None:
        self._dial = dial
        self._node = node
        self._address = address
        self._clock = clock
        self._told = told
        self._servers: list[asyncio.Server] = []
        self._datagrams: list[_UdpForward] = []
        self._connections: set[asyncio.Task[None]] = set()
        # The others are for what listens, for relays, and for connections on their way to being refused.
        self._most = min(MAX_CONNECTIONS, share_of_files(2))
        self._backlog = min(BACKLOG, max(share_of_files(16), 1))
        self._broken: set[int] = set()
        self._crowded = False

    @property
    def connections(self) -> int:
        """TCP connections that are open, or being made."""
        return len(self._connections)

    async def open(self, forwards: Iterable[Forward]) -> list[Forward]:
        """Listen for all of them, or raise `ForwardError` and listen for none. The same forwards with real ports."""
        opened = []
        try:
            for forward in forwards:
                if forward.protocol == "tcp":
                    opened.append(await self._open_tcp(forward))
                else:
                    opened.append(await self._open_udp(forward))
        except BaseException:
            await self.aclose()
            raise
        return opened

    async def aclose(self) -> None:
        """Stop listening and cut every connection. Idempotent."""
        for server in self._servers:
            server.close()
        for datagrams in self._datagrams:
            datagrams.close()
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, *(udp.sweeper for udp in self._datagrams), return_exceptions=True)
        self._servers.clear()
        self._datagrams.clear()

    # ---- TCP

    async def _open_tcp(self, forward: Forward) -> Forward:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(self._connections) >= self._most:
                reset(writer)
                if not self._crowded:
                    self._crowded = True
                    self._told(f"there are {self._most} connections: more are refused until some have ended")
                return
            task = asyncio.create_task(self._serve(forward.remote, reader, writer), name=f"forward {forward}")
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        try:
            server = await asyncio.start_server(
                accepted, forward.host, forward.local, limit=CHUNK, backlog=self._backlog, family=_family(forward.host)
            )
        except OSError as error:
            raise _cannot_listen(forward, error) from error
        self._servers.append(server)
        return Forward("tcp", forward.host, int(server.sockets[0].getsockname()[1]), forward.remote)

    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            stream = await self._dial(port)
        except TailnetError as error:
            reset(writer)
            if port not in self._broken:
                self._broken.add(port)
                self._told(f"port {port} of the agent: {error}")
            return
        except BaseException:
            reset(writer)
            raise
        self._broken.discard(port)
        self._crowded = False
        await join(stream, reader, writer)

    # ---- UDP

    async def _open_udp(self, forward: Forward) -> Forward:
        loop = asyncio.get_running_loop()
        made = _UdpForward(forward, self._node, self._address, self._clock, self._told)
        try:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: made, local_addr=(forward.host, forward.local), family=_family(forward.host)
            )
        except OSError as error:
            made.close()
            raise _cannot_listen(forward, error) from error
        self._datagrams.append(made)
        return Forward("udp", forward.host, int(transport.get_extra_info("sockname")[1]), forward.remote)


class _UdpForward(asyncio.DatagramProtocol):
    """One local UDP port. Each local sender has a port of its own in the tailnet, so that answers find their way."""

    def __init__(
        self, forward: Forward, node: UdpNode, address: bytes, clock: Clock, told: Callable[[str], None]
    ) -> None:
        self._forward = forward
        self._node = node
        self._address = address
        self._clock = clock
        self._told = told
        self._transport: asyncio.DatagramTransport | None = None
        self._ports: dict[object, int] = {}
        self._used: dict[object, float] = {}
        self._dropped = False
        self.sweeper = asyncio.create_task(self._sweep(), name=f"idle senders of {forward}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # asyncio's own are no subclass of it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        port = self._ports.get(addr)
        if len(data) > MAX_UDP_PAYLOAD or (port is None and len(self._ports) >= MAX_FLOWS):
            if not self._dropped:
                self._dropped = True
                reason = f"more than {MAX_UDP_PAYLOAD} bytes" if len(data) > MAX_UDP_PAYLOAD else "too many senders"
                self._told(f"{self._forward}: datagrams are dropped: {reason}")
            return
        if port is None:
            port = self._ports[addr] = self._node.open_udp(lambda datagram: self._answer(addr, datagram))
        self._used[addr] = self._clock.now()
        self._node.send_datagram(port, self._address, self._forward.remote, data)

    def error_received(self, exc: Exception) -> None:
        """A local sender has gone (ICMP); its port here is forgotten when it is idle."""

    def _answer(self, addr: tuple[str, int], datagram: Datagram) -> None:
        if (datagram.source, datagram.source_port) == (self._address, self._forward.remote):
            self._used[addr] = self._clock.now()
            if self._transport is not None:
                self._transport.sendto(datagram.payload, addr)

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(UDP_IDLE / 4)
            now = self._clock.now()
            for addr, used in list(self._used.items()):
                if now - used >= UDP_IDLE:
                    del self._used[addr]
                    self._node.close_udp(self._ports.pop(addr))

    def close(self) -> None:
        self.sweeper.cancel()
        for port in self._ports.values():
            self._node.close_udp(port)
        self._ports.clear()
        if self._transport is not None:
            self._transport.close()


def _family(host: str) -> socket.AddressFamily:
    # A name may mean both families; one of them must do, so that local port 0 means one port.
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _cannot_listen(forward: Forward, error: OSError) -> ForwardError:
    if error.errno == errno.EADDRINUSE:
        return ForwardError(
            f"{forward} is taken by another program; choose another local port, as in 0:{forward.remote} for any"
        )
    if error.errno == errno.EACCES:
        return ForwardError(f"{forward} needs privileges; choose a local port above 1023")
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return ForwardError(f"{forward.host} is no address of this machine; leave it out for 127.0.0.1")
    return ForwardError(f"cannot listen on {forward}: {error.strerror or error}")
