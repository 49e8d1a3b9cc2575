"""A terminal in this process, without a network: output and echo, beside a raw terminal read in the same run."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
import tty
from pathlib import Path
from uuid import uuid4

from agent.clock import SystemClock
from agent.protocol.pty import Init, encode_request
from agent.terminal import TerminalService
from agent.terminal.tracker import Tracker

SIZE = 200_000_000
ECHOES = 500
PLAIN = b"the quick brown fox jumps over the lazy dog\r\n" * 100_000
COLOURED = b"".join(
    b"\x1b[0m\x1b[01;34mdirectory%d\x1b[0m  \x1b[01;32mprogram%d\x1b[0m  text\r\n" % (n, n) for n in range(60_000)
)


class _Context:
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"]}

    def shell(self) -> str:
        return "/bin/sh"

    def directory(self) -> str:
        return "/"


class _Viewer:
    """A connection that takes everything at once."""

    peer = (bytes(16), 1)

    def __init__(self) -> None:
        self.taken = 0
        self.first = 0.0
        self.arrived = asyncio.Event()
        self._requests: asyncio.Queue[bytes] = asyncio.Queue()

    def say(self, data: bytes) -> None:
        self._requests.put_nowait(data)

    async def read(self, limit: int = 65536) -> bytes:
        return await self._requests.get()

    async def write(self, data: bytes) -> None:
        self.first = self.first or time.perf_counter()
        self.taken += len(data)
        self.arrived.set()

    async def sent(self, most: int) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


async def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        service = TerminalService(_Context(), SystemClock())
        await service.open(Path(directory))
        try:
            await _output(service)  # the first terminal starts the keeper
            output = max([await _output(service) for _ in range(3)])
            echoes = await _echo(service)
        finally:
            await service.aclose()
    raw_echoes = await asyncio.to_thread(_raw_echo)
    return {
        "output MB/s": output,
        "raw terminal, output MB/s": max([await asyncio.to_thread(_raw_output) for _ in range(3)]),
        "echo p50 µs": statistics.median(echoes) * 1e6,
        "echo p99 µs": sorted(echoes)[len(echoes) * 99 // 100] * 1e6,
        "raw terminal, echo p50 µs": statistics.median(raw_echoes) * 1e6,
        "state tracker MB/s, plain": _tracked(PLAIN),
        "state tracker MB/s, coloured": _tracked(COLOURED),
    }


async def _output(service: TerminalService) -> float:
    viewer = _Viewer()
    viewer.say(Init(uuid4(), 24, 80, f"stty raw; head -c {SIZE} /dev/zero").encode())
    await service.serve(viewer)
    return viewer.taken / (time.perf_counter() - viewer.first) / 1e6


async def _echo(service: TerminalService) -> list[float]:
    """From a request to the echo that the kernel gives for it."""
    viewer = _Viewer()
    viewer.say(Init(uuid4(), 24, 80, "echo; cat").encode())
    serving = asyncio.create_task(service.serve(viewer))
    await viewer.arrived.wait()
    times = []
    for _ in range(ECHOES):
        await asyncio.sleep(0.001)
        viewer.arrived.clear()
        began = time.perf_counter()
        viewer.say(encode_request("x"))
        await viewer.arrived.wait()
        times.append(time.perf_counter() - began)
        if len(times) % 50 == 0:
            viewer.say(encode_request("\r"))
    viewer.say(b"")
    await serving
    return times


def _raw_output() -> float:
    master, slave = os.openpty()
    tty.setraw(slave)
    pid = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", f"exec head -c {SIZE} /dev/zero"],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, slave, 1)],
    )
    os.close(slave)
    taken, began = 0, 0.0
    try:
        while data := os.read(master, 65536):
            began = began or time.perf_counter()
            taken += len(data)
    except OSError:  # EIO is the end
        pass
    rate = taken / (time.perf_counter() - began) / 1e6
    os.waitpid(pid, 0)
    os.close(master)
    return rate


def _raw_echo() -> list[float]:
    master, slave = os.openpty()
    times = []
    for _ in range(ECHOES):
        time.sleep(0.001)
        began = time.perf_counter()
        os.write(master, b"x")
        os.read(master, 100)
        times.append(time.perf_counter() - began)
    os.close(slave)
    os.close(master)
    return times


def _tracked(data: bytes) -> float:
    best = 0.0
    for _ in range(3):
        tracker, began = Tracker(), time.perf_counter()
        for at in range(0, len(data), 16384):
            tracker.feed(data[at : at + 16384])
        best = max(best, len(data) / (time.perf_counter() - began) / 1e6)
    return best


if __name__ == "__main__":
    for name, value in asyncio.run(measure()).items():
        print(f"{name}: {value:.1f}")
