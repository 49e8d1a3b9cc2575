"""What the kernel says about sockets and processes, as pure functions over its bytes (terminal-ssh-http.md §6).

Sockets come from netlink (`sock_diag(7)`), where the kernel is asked for listening ones only; the text in
`/proc/net/tcp` has every connection in it, and costs milliseconds and more on a machine with many.
"""

from __future__ import annotations

import errno
import re
import struct
from dataclasses import dataclass
from typing import Final

LISTEN_ROW: Final = re.compile(
    rb"^ *\d+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} 0A"  # local and remote address, state LISTEN
    rb" \S+ \S+ \S+ +\d+ +\d+ (\d+)(?= |$)",  # queues, timer, retransmits, uid, time-out, inode
    re.MULTILINE,
)

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_REQUEST: Final = struct.Struct("=BBBxI48x")  # inet_diag_req_v2: family, protocol, extensions, states, no socket id
_PORT: Final = struct.Struct(">4xH")  # the start of inet_diag_msg: family, state, timer, retransmits, source port
_INODE: Final = struct.Struct("=68xI")  # its end
_ERROR: Final = struct.Struct("=i")
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_AND_DUMP: Final = 0x301
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_TCP: Final = 6
_LISTEN: Final = 10


def diag_request(family: int) -> bytes:
    """A netlink message that asks for all TCP sockets of an address family in state LISTEN."""
    body = _REQUEST.pack(family, _TCP, 0, 1 << _LISTEN)
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_AND_DUMP, 0, 0) + body


@dataclass(frozen=True, slots=True)
class DiagAnswer:
    """One packet of the answer: port and inode of sockets, and whether it was the last one.

    `error` is an errno, 0 if there was none; a packet that is not made as it should be has EPROTO.
    """

    sockets: list[tuple[int, int]]
    done: bool
    error: int = 0


def diag_answer(packet: bytes) -> DiagAnswer:
    """Read one packet of the answer to `diag_request`."""
    sockets: list[tuple[int, int]] = []
    at = 0
    while at + _HEADER.size <= len(packet):
        length, kind, *_ = _HEADER.unpack_from(packet, at)
        body = at + _HEADER.size
        if length < _HEADER.size or at + length > len(packet):
            break
        if kind == _NLMSG_DONE:
            return DiagAnswer(sockets, True)
        if kind == _NLMSG_ERROR and length >= _HEADER.size + _ERROR.size:
            return DiagAnswer(sockets, True, -_ERROR.unpack_from(packet, body)[0])
        if kind == _SOCK_DIAG_BY_FAMILY and length >= _HEADER.size + _INODE.size:
            sockets.append((_PORT.unpack_from(packet, body)[0], _INODE.unpack_from(packet, body)[0]))
        at += (length + 3) & ~3
    if at < len(packet):
        return DiagAnswer(sockets, True, errno.EPROTO)
    return DiagAnswer(sockets, False)


def listeners(table: bytes) -> list[tuple[int, int]]:
    """Port and socket inode of every row in state LISTEN of `/proc/net/tcp` or `tcp6`, in the table's order.

    Rows that do not look like rows are left out: the kernel writes no others.
    """
    return [(int(port, 16), int(inode)) for port, inode in LISTEN_ROW.findall(table)]


def identity(stat: bytes) -> tuple[str, int] | None:
    """Name and start time (clock ticks since boot) from `/proc/<pid>/stat`; None if it is cut short.

    The name is what stands between the first `(` and the last `)`: it may contain spaces and brackets.
    """
    head, opened, rest = stat.partition(b"(")
    name, closed, fields = rest.rpartition(b")")
    words = fields.split(None, 20)
    if not (opened and closed and head.strip().isdigit() and len(words) >= 20 and words[19].isdigit()):
        return None
    return name.decode("utf-8", "replace"), int(words[19])
