"""One look at who listens, cheap enough to be taken every second (terminal-ssh-http.md §4.2, §6)."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from agent.ports.table import diag_answer, diag_request, identity, listeners

RETRY_AFTER: Final = 5.0
"""Seconds before a socket whose owner was not found is looked for again; twice as long each further time …"""
RETRY_AT_MOST: Final = 300.0
"""… up to this: others' processes mostly stay unreadable, and looking means looking at every descriptor there is."""

NETLINK_LIMIT: Final = 1.0
"""Seconds for one answer of the kernel, which has it at once."""
_NETLINK_SOCK_DIAG: Final = 4
_TRANSIENT: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class ScanError(Exception):
    """The ports could not be found out; the text says what could not be read."""


@dataclass(frozen=True, slots=True)
class ListeningPort:
    """`process` is the name of a process that holds the socket; empty where that may not be known."""

    port: int
    process: str


@dataclass(frozen=True, slots=True)
class _Owner:
    pid: int
    started: int  # clock ticks since boot: tells a process from a later one with the same number


@dataclass(frozen=True, slots=True)
class _Retry:
    at: float
    pause: float


class Scanner:
    """Remembers who owned which socket, so that a scan in which nothing changed looks at no descriptors.

    `own_pid`: a process whose sockets are not listed (the agent's own). All methods block for some milliseconds and
    are not for the event loop; one thread at a time.
    """

    def __init__(self, own_pid: int | None = None, proc: str = "/proc") -> None:
        self._own_pid = own_pid
        self._proc = proc
        self._netlink = proc == "/proc"
        self._owners: dict[int, _Owner] = {}
        self._unowned: dict[int, _Retry] = {}
        self._known: set[int] = set()

    def scan(self) -> tuple[ListeningPort, ...]:
        """Every port that somebody listens on, once, IPv4's before IPv6's. Raises `ScanError`."""
        if not sys.platform.startswith("linux"):
            from agent.ports.portable import scan

            return scan(self._own_pid)
        try:
            return self._scan()
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise ScanError(f"{where}{error.strerror or error}") from error

    def _scan(self) -> tuple[ListeningPort, ...]:
        sockets = self._sockets()
        inodes = {inode for _, inode in sockets}
        names = self._names(inodes)
        missing = self._missing(inodes)
        if missing:
            self._find(missing)
            names |= self._names(missing)
        own = {inode for inode, owner in self._owners.items() if owner.pid == self._own_pid}
        ports: dict[int, ListeningPort] = {}
        for port, inode in sockets:
            if inode not in own and port not in ports:
                ports[port] = ListeningPort(port, names.get(inode, ""))
        return tuple(ports.values())

    def _sockets(self) -> list[tuple[int, int]]:
        if self._netlink:
            try:
                return [pair for family in (socket.AF_INET, socket.AF_INET6) for pair in _ask_kernel(family)]
            except OSError as error:
                if error.errno in _TRANSIENT:
                    raise
                # Some sandboxes and kernels have no sock_diag. Not asked again: it might load a module each time.
                self._netlink = False
        found = listeners(_read(f"{self._proc}/net/tcp"))
        try:
            found += listeners(_read(f"{self._proc}/net/tcp6"))
        except OSError:
            return found  # a kernel without IPv6 has no such file (§4.2, rule 1)
        return found

    def _names(self, inodes: Iterable[int]) -> dict[int, str]:
        """Names of the owners that are still the processes they were; forgets the others."""
        running: dict[_Owner, str | None] = {}
        names: dict[int, str] = {}
        wanted = set(inodes)
        for inode in [known for known in self._owners if known in wanted]:
            owner = self._owners[inode]
            if owner not in running:
                found = self._identity(owner.pid)
                running[owner] = found[0] if found is not None and found[1] == owner.started else None
            name = running[owner]
            if name is None:
                del self._owners[inode]
            else:
                names[inode] = name
        return names

    def _missing(self, inodes: set[int]) -> set[int]:
        """Sockets to look for now; forgets those that are gone."""
        now = time.monotonic()
        self._owners = {inode: owner for inode, owner in self._owners.items() if inode in inodes}
        self._unowned = {inode: retry for inode, retry in self._unowned.items() if inode in inodes}
        later = {inode for inode, retry in self._unowned.items() if now < retry.at}
        return inodes - self._owners.keys() - later

    def _find(self, missing: set[int]) -> None:
        """Look for owners until all are found: in new processes, then in those that listen already, then in all."""
        left = {f"socket:[{inode}]": inode for inode in missing}
        pids = {int(name) for name in os.listdir(self._proc) if name.isdigit()}
        listening = {owner.pid for owner in self._owners.values()}
        known, self._known = self._known, pids
        for pid in sorted(pids, key=lambda pid: (pid in known, pid not in listening, -pid)):
            found = self._open_sockets(pid, left)
            if found and (process := self._identity(pid)) is not None:
                owner = _Owner(pid, process[1])
                for link in found:
                    inode = left.pop(link)
                    self._owners[inode] = owner
                    self._unowned.pop(inode, None)
                if not left:
                    return
        now = time.monotonic()
        for inode in left.values():
            before = self._unowned.get(inode)
            pause = min(before.pause * 2, RETRY_AT_MOST) if before is not None else RETRY_AFTER
            self._unowned[inode] = _Retry(now + pause, pause)

    def _open_sockets(self, pid: int, wanted: Mapping[str, int]) -> set[str]:
        """Which of these link texts are among a process's descriptors; none when that may not be seen."""
        try:
            directory = os.open(f"{self._proc}/{pid}/fd", _DIRECTORY)
        except OSError:
            return set()  # another user's, or just gone
        found = set()
        try:
            for name in os.listdir(directory):
                try:
                    link = os.readlink(name, dir_fd=directory)
                except FileNotFoundError:
                    continue  # closed meanwhile
                if link in wanted:
                    found.add(link)
        except OSError:
            return found  # ended meanwhile, or another's
        finally:
            os.close(directory)
        return found

    def _identity(self, pid: int) -> tuple[str, int] | None:
        try:
            return identity(_read(f"{self._proc}/{pid}/stat"))
        except OSError:
            return None


def _ask_kernel(family: int) -> list[tuple[int, int]]:
    """Port and inode of every listening TCP socket, from netlink. Raises `OSError` where there is none."""
    sockets: list[tuple[int, int]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(NETLINK_LIMIT)
        netlink.send(diag_request(family))
        while True:
            answer = diag_answer(netlink.recv(65536))
            if answer.error:
                raise OSError(answer.error, os.strerror(answer.error), "netlink sock_diag")
            sockets += answer.sockets
            if answer.done:
                return sockets


def _read(path: str) -> bytes:
    # By descriptor: a file object costs more than the read.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(descriptor, 65536):
            pieces.append(piece)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)
    return b"".join(pieces)
