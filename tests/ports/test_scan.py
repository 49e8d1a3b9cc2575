"""Whose sockets are whose, in a made-up `/proc` and on this machine's."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from agent.ports import ListeningPort, ScanError, Scanner, portable
from agent.ports import scan as scan_module


class FakeProc:
    """A `/proc` with sockets and processes as files and links."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "net").mkdir()
        self.listen({})

    def listen(self, v4: dict[int, int], v6: dict[int, int] | None = None) -> None:
        """Ports by inode."""
        for name, table in (("tcp", v4), ("tcp6", v6 or {})):
            rows = [
                f"   0: 00000000:{port:04X} 00000000:0000 0A 0:0 00:0 0 {os.getuid()} 0 {inode} 1 0\n"
                for inode, port in table.items()
            ]
            (self.path / "net" / name).write_text("header\n" + "".join(rows))

    def process(self, pid: int, name: str, inodes: list[int], started: int = 100) -> None:
        directory = self.path / str(pid)
        (directory / "fd").mkdir(parents=True, exist_ok=True)
        (directory / "stat").write_text(f"{pid} ({name}) S {' '.join(['0'] * 18)} {started} 0 0\n")
        for link in (directory / "fd").iterdir():
            link.unlink()
        (directory / "fd" / "0").symlink_to("/dev/null")
        for number, inode in enumerate(inodes, 3):
            (directory / "fd" / str(number)).symlink_to(f"socket:[{inode}]")

    def ended(self, pid: int) -> None:
        for link in (self.path / str(pid) / "fd").iterdir():
            link.unlink()
        (self.path / str(pid) / "fd").rmdir()
        (self.path / str(pid) / "stat").unlink()
        (self.path / str(pid)).rmdir()


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def named(*ports: tuple[int, str]) -> tuple[ListeningPort, ...]:
    return tuple(ListeningPort(port, name) for port, name in ports)


def test_both_families_each_port_once(proc: FakeProc) -> None:
    proc.listen({1: 3000, 2: 8080, 3: 3000}, {4: 8080, 5: 9000})
    proc.process(10, "node", [1, 3])
    proc.process(11, "my server", [2, 4, 5])
    assert Scanner(proc=str(proc.path)).scan() == named((3000, "node"), (8080, "my server"), (9000, "my server"))


def test_no_ipv6(proc: FakeProc) -> None:
    proc.listen({1: 3000})
    (proc.path / "net" / "tcp6").unlink()
    assert Scanner(proc=str(proc.path)).scan() == named((3000, ""))


def test_a_table_that_cannot_be_read_is_named(proc: FakeProc) -> None:
    (proc.path / "net" / "tcp").unlink()
    with pytest.raises(ScanError, match=r"net/tcp: No such file or directory"):
        Scanner(proc=str(proc.path)).scan()


def test_own_sockets_are_left_out(proc: FakeProc) -> None:
    proc.listen({1: 3000, 2: 3001})
    proc.process(10, "agent", [1])
    proc.process(11, "node", [2])
    assert Scanner(own_pid=10, proc=str(proc.path)).scan() == named((3001, "node"))


def test_what_is_known_is_not_looked_for_again(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    scanner = Scanner(proc=str(proc.path))
    looked: list[int] = []
    look = scanner._open_sockets

    def watched(pid: int, wanted: Mapping[str, int]) -> set[str]:
        looked.append(pid)
        return look(pid, wanted)

    monkeypatch.setattr(scanner, "_open_sockets", watched)
    proc.listen({1: 3000})
    for pid in (10, 11, 12):
        proc.process(pid, f"p{pid}", [1] if pid == 11 else [])
    assert scanner.scan() == named((3000, "p11"))
    assert looked == [12, 11]  # the youngest first, and no further than needed
    looked.clear()
    assert scanner.scan() == named((3000, "p11"))
    assert not looked
    proc.listen({1: 3000, 2: 3001})
    proc.process(9, "new", [2])
    assert scanner.scan() == named((3000, "p11"), (3001, "new"))
    assert looked == [9]  # a process that was not there before, whatever its number


def test_an_owner_that_ended_or_became_another(proc: FakeProc) -> None:
    scanner = Scanner(proc=str(proc.path))
    proc.listen({1: 3000})
    proc.process(10, "parent", [1])
    assert scanner.scan() == named((3000, "parent"))
    proc.process(10, "renamed", [1])
    assert scanner.scan() == named((3000, "renamed"))  # exec
    proc.process(10, "stranger", [], started=200)
    proc.process(12, "child", [1])
    assert scanner.scan() == named((3000, "child"))
    proc.ended(12)
    assert scanner.scan() == named((3000, ""))


def test_others_processes_are_looked_at_ever_more_rarely(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    scanner = Scanner(proc=str(proc.path))
    looked: list[float] = []
    find = scanner._find

    def watched(missing: set[int]) -> None:
        looked.append(now[0])
        find(missing)

    monkeypatch.setattr(scanner, "_find", watched)
    proc.listen({1: 3000})
    proc.process(10, "hidden", [])
    for second in range(1500):
        now[0] = float(second)
        assert scanner.scan() == named((3000, ""))
    assert looked == [0, 5, 15, 35, 75, 155, 315, 615, 915, 1215]
    proc.process(10, "hidden", [1])
    now[0] = 1515.0
    assert scanner.scan() == named((3000, "hidden"))
    assert not scanner._unowned


def test_what_is_gone_is_forgotten(proc: FakeProc) -> None:
    scanner = Scanner(proc=str(proc.path))
    proc.listen({1: 3000, 2: 3001})
    proc.process(10, "node", [1])
    scanner.scan()
    proc.listen({})
    assert scanner.scan() == ()
    assert not scanner._owners
    assert not scanner._unowned


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="netlink and /proc are Linux's")
async def test_this_machine_by_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_ways() -> None:
        with socket.create_server(("127.0.0.1", 0)) as v4, socket.socket(socket.AF_INET6) as v6:
            v6.bind(("::1", 0))
            v6.listen()
            ports = {v4.getsockname()[1], v6.getsockname()[1]}
            name = Path("/proc/self/stat").read_text().partition("(")[2].rpartition(")")[0]
            by_text = Scanner()
            by_text._netlink = False
            for scanner in (Scanner(), by_text):
                mine = {item for item in scanner.scan() if item.port in ports}
                assert mine == {ListeningPort(port, name) for port in ports}
            assert ports <= {item.port for item in portable.scan(None)}
            assert not ports & {item.port for item in Scanner(own_pid=os.getpid()).scan()}
            assert not ports & {item.port for item in portable.scan(os.getpid())}

            def refused(kind: str) -> list[object]:
                raise psutil.AccessDenied

            monkeypatch.setattr(psutil, "net_connections", refused)
            assert ports <= {item.port for item in portable.scan(None)}

    await asyncio.to_thread(all_ways)


def test_others_sockets_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where psutil may not see whose a socket is, the socket is listed all the same."""
    item = SimpleNamespace(family=socket.AF_INET, laddr=SimpleNamespace(port=3000), status=psutil.CONN_LISTEN, pid=None)
    monkeypatch.setattr(psutil, "net_connections", lambda kind: [item, item])
    assert portable.scan(None) == portable.scan(7) == named((3000, ""))


def test_a_kernel_without_netlink_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(family: int) -> list[tuple[int, int]]:
        asked.append(family)
        raise OSError(93, "Protocol not supported")

    monkeypatch.setattr(scan_module, "_ask_kernel", refuse)
    scanner = Scanner()
    scanner.scan()
    scanner.scan()
    assert len(asked) == 1


def test_no_descriptors_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure, and a passing one: the kernel is asked again."""
    ask = scan_module._ask_kernel

    def refuse(family: int) -> list[tuple[int, int]]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(scan_module, "_ask_kernel", refuse)
    scanner = Scanner()
    with pytest.raises(ScanError, match="Too many open files"):
        scanner.scan()
    monkeypatch.setattr(scan_module, "_ask_kernel", ask)
    scanner.scan()
    assert scanner._netlink
