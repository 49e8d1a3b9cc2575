"""The UDP sockets of a node: one for each address family, drained and written in bounded batches (design: §4 of
tailnet.md's data path). asyncio's datagram transports are too slow for this.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from agent.protocol.ip import Endpoint, mapped, unmapped

DRAIN: Final = 64
"""Datagrams that are taken in one go, so that the rest of the loop gets its turn; the last read may bring some more."""
MAX_WAITING: Final = 1024
"""Datagrams that wait while the kernel takes none."""
MAX_DATAGRAM: Final = 65_536
BUFFER: Final = 7 * 1024 * 1024
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DO = 10, 23, 2
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_GRO_SIZE: Final = struct.Struct("=i")
_GRO_SPACE: Final = socket.CMSG_SPACE(_GRO_SIZE.size)
MAX_SEGMENTS: Final = 64
MAX_SEGMENTED: Final = 65_000

Receiver = Callable[[Endpoint, list[bytes]], None]


class UdpSocket:
    """One family. `receive` gets what came from one endpoint in one go."""

    def __init__(self, family: socket.AddressFamily, port: int, receive: Receiver, host: str = "") -> None:
        """Raises `OSError` when the family or the port cannot be had."""
        self._family = family
        self._receive = receive
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._waiting: deque[tuple[tuple[str, int], bytes]] = deque()
        self._segments = True
        self._names: dict[Endpoint, tuple[str, int]] = {}
        self._ends: dict[tuple[str, int], Endpoint] = {}
        self._buffer = memoryview(bytearray(MAX_DATAGRAM))
        self.dropped = 0
        try:
            self._enlarge(socket.SO_RCVBUF, _SO_RCVBUFFORCE)
            self._enlarge(socket.SO_SNDBUF, _SO_SNDBUFFORCE)
            # A run of datagrams of one sender and size comes in one read, if the kernel has that.
            with contextlib.suppress(OSError):
                self._socket.setsockopt(_SOL_UDP, _UDP_GRO, 1)
            if family == socket.AF_INET6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
            else:
                self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
            self._socket.bind((host or ("::" if family == socket.AF_INET6 else "0.0.0.0"), port))
        except OSError:
            self._socket.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._readable)

    def _enlarge(self, option: int, beyond_limits: int) -> None:
        """A buffer that takes a burst; who may exceed the limit of the system does."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, beyond_limits, BUFFER)
        except OSError:
            with contextlib.suppress(OSError):  # as much as the system allows
                self._socket.setsockopt(socket.SOL_SOCKET, option, BUFFER)

    @property
    def port(self) -> int:
        """The local port."""
        return int(self._socket.getsockname()[1])

    def send(self, endpoint: Endpoint, datagrams: Sequence[bytes]) -> None:
        """Write, or keep for later what the kernel does not take now; beyond a bound it is dropped."""
        name = self._names.get(endpoint)
        if name is None:
            if len(self._names) > 4096:
                self._names.clear()
            name = self._names[endpoint] = socket.inet_ntop(self._family, unmapped(endpoint[0])), endpoint[1]
        if self._waiting:
            self._wait(name, datagrams)
            return
        at = 0
        while at < len(datagrams):
            count = self._write(name, datagrams, at)
            if not count:
                self._wait(name, datagrams[at:])
                return
            at += count

    def _write(self, name: tuple[str, int], datagrams: Sequence[bytes], at: int) -> int:
        """Write one datagram, or a run of the same size as one; how many, 0 when the kernel takes none now."""
        first = datagrams[at]
        count = 1
        if self._segments and at + 1 < len(datagrams):
            size, total = len(first), len(first)
            while at + count < len(datagrams) and count < MAX_SEGMENTS and total < MAX_SEGMENTED:
                following = len(datagrams[at + count])
                if following > size or total + following > MAX_SEGMENTED:
                    break
                total += following
                count += 1
                if following < size:  # only the last one may be shorter
                    break
        try:
            if count == 1:
                self._socket.sendto(first, name)
            else:
                size_option = (_SOL_UDP, _UDP_SEGMENT, len(first).to_bytes(2, "little"))
                self._socket.sendmsg(datagrams[at : at + count], (size_option,), 0, name)
        except BlockingIOError:
            return 0
        except OSError:
            if count > 1:
                # The kernel, or the interface, does not segment.
                self._segments = False
                return self._write(name, datagrams, at)
            # No route, too large for this path, refused by the other end: as lost as on the way.
            self.dropped += 1
        return count

    def _wait(self, name: tuple[str, int], datagrams: Sequence[bytes]) -> None:
        if not self._waiting:
            self._loop.add_writer(self._socket, self._writable)
        room = MAX_WAITING - len(self._waiting)
        self.dropped += max(len(datagrams) - room, 0)
        self._waiting.extend((name, datagram) for datagram in datagrams[:room])

    def _writable(self) -> None:
        for _ in range(DRAIN):
            if not self._waiting:
                self._loop.remove_writer(self._socket)
                return
            name, datagram = self._waiting[0]
            if not self._write(name, (datagram,), 0):
                return
            self._waiting.popleft()

    def _readable(self) -> None:
        batch: list[bytes] = []
        last: tuple[str, int] | None = None
        buffers, buffer = (self._buffer,), self._buffer
        taken = 0
        while taken < DRAIN:
            try:
                size, ancillary, _, address = self._socket.recvmsg_into(buffers, _GRO_SPACE)
            except BlockingIOError:
                break
            except OSError:
                taken += 1
                continue  # an ICMP error of an earlier send: the path is judged by its pongs
            name = address[0], address[1]
            if name != last and batch:
                assert last is not None
                self._receive(self._end(last), batch)
                batch = []
            last = name
            step = segment_size(ancillary) if ancillary else size
            if step < size:
                data = bytes(buffer[:size])
                pieces = [data[at : at + step] for at in range(0, size, step)]
                batch += pieces
                taken += len(pieces)
            else:
                batch.append(bytes(buffer[:size]))
                taken += 1
        if batch:
            assert last is not None
            self._receive(self._end(last), batch)

    def _end(self, name: tuple[str, int]) -> Endpoint:
        end = self._ends.get(name)
        if end is None:
            if len(self._ends) > 4096:
                self._ends.clear()
            host = name[0].partition("%")[0]
            end = self._ends[name] = mapped(socket.inet_pton(self._family, host)), name[1]
        return end

    def close(self) -> None:
        """Close the socket; what waits is dropped."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
        self._waiting.clear()


def segment_size(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The size of the datagrams that came as one; more than any read if they did not."""
    for level, kind, data in ancillary:
        if level == _SOL_UDP and kind == _UDP_GRO and len(data) >= _GRO_SIZE.size:
            return max(int(_GRO_SIZE.unpack_from(data)[0]), 1)
    return MAX_DATAGRAM
