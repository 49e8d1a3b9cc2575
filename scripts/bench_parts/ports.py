"""Finding listening ports: ours against psutil, beside 300 processes of which some hold 200 listeners."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil

from agent.ports import Scanner, portable

PROCESSES = 300
LISTENERS = 200
SCANS = 30

# Half of the listeners in one process, as a development server has them, half in one each. A listener's process is a
# Python; the others are sleeping shells with the descriptors that such have.
_LISTEN = """
import socket, sys
held = []
for _ in range(int(sys.argv[1])):
    held.append(socket.create_server(("127.0.0.1", 0)))
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def crowd() -> Iterator[None]:
    """The processes and their listeners."""
    shared = LISTENERS // 2
    single = LISTENERS - shared
    listening = [_start([sys.executable, "-S", "-E", "-c", _LISTEN, str(shared)])]
    # Forked with their socket already open: a hundred interpreters would take the bench's time.
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(single)]
    try:
        for held in sockets:
            listening.append(_start(["sleep", "600"], held))
        for held in sockets:
            held.close()
        listening += [_start(["sleep", "600"]) for _ in range(PROCESSES - len(listening))]
        output = listening[0].stdout
        assert output is not None
        output.readline()
        yield
    finally:
        for process in listening:
            process.kill()
        for process in listening:
            process.communicate()


@contextlib.contextmanager
def _one_more() -> Iterator[None]:
    """A process that has just begun to listen."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        process = _start(["sleep", "600"], held)
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def _start(argv: list[str], held: socket.socket | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[held.fileno()] if held is not None else (),
    )


def _median(scan: Callable[[], object], count: int = SCANS) -> float:
    """Milliseconds of a scan."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        scan()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3


def _measure() -> dict[str, float]:
    with crowd():
        scanner = Scanner()
        found = {port.port for port in scanner.scan()}
        theirs = {port.port for port in portable.scan(None)}
        assert len(found) >= LISTENERS, len(found)
        assert found == theirs, found ^ theirs
        fresh = []
        for _ in range(SCANS // 3):
            with _one_more():
                fresh.append(_median(scanner.scan, 1))
            scanner.scan()
        return {
            "ms, nothing changed": _median(scanner.scan),
            "ms, one new listener": statistics.median(fresh),
            "ms, nothing known": _median(lambda: Scanner().scan()),
            "ms, psutil.net_connections": _median(lambda: psutil.net_connections("tcp")),
            "processes on the machine": len(psutil.pids()),
        }


async def measure() -> dict[str, float]:
    """Medians of a scan by each way."""
    return await asyncio.to_thread(_measure)


if __name__ == "__main__":
    for what, value in asyncio.run(measure()).items():
        print(f"{what:28} {value:8.2f}")
