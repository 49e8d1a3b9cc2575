"""What the agent must not forget when it is killed, kept in memory and in an append-only file of checked records.

`JournalState` is the meaning of the records, without I/O; `Journal` adds records to it and to the file. A record is a
length and a CRC-32 (both little-endian u32) followed by JSON. A torn tail is cut at opening. Losing the file loses
history, never function: when it cannot be read or written, one warning is logged and the journal goes on in memory.

A *life* is the time from a machine start (the boot id and the start time of PID 1, so that a reboot and a new container
both count) to the agent's shutdown. A process that finds a life that was not shut down goes on with it: start scripts
that ran are not run again. A shutdown that was cut short ends the life, too: whoever starts the agent after it wants
the workspace started.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from agent.daemon.lifecycle import Lifecycle, State, Transition
from agent.daemon.logfile import get_logger

COMPACT_ABOVE = 256 * 1024
"""Bytes; a larger file is rewritten with only what still counts."""
MAX_RECORD = 4 * 1024 * 1024
"""Bytes; a length above it is damage, not a record."""
MAX_TIMINGS = 1000
"""Unreported script timings that are kept; the oldest go first."""
MAX_UNWRITTEN = 1000
"""Records that may wait for a slow disk before the file is given up."""

_HEADER = struct.Struct("<II")

Record = dict[str, Any]


@dataclass
class JournalState:
    """The sum of all records.

    `life` names this life and no other; `machine` is the machine start that it belongs to, see `machine_start`.
    `results` holds how each start script of this life ended, by script id; `start_result` how the start phase did,
    empty while it has not ended. `timings` are encoded `pb.Timing` messages that the server has not taken yet.
    """

    life: str = ""
    machine: str = ""
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    results: dict[UUID, str] = field(default_factory=dict)
    start_result: str = ""
    timings: deque[bytes] = field(default_factory=lambda: deque(maxlen=MAX_TIMINGS))

    def apply(self, record: Record) -> None:
        """Take in one record. Raises `ValueError`, `KeyError`, `TypeError` or `IndexError` when it makes no sense."""
        match record["type"]:
            case "life":
                # What the server has not been told of the former life still has to be told.
                self.life, self.machine = str(record["id"]), str(record["machine"])
                self.lifecycle = Lifecycle(pending=self.lifecycle.pending)
                self.results, self.start_result = {}, ""
            case "state":
                self.lifecycle.enter(State(record["state"]), int(record["at"]))
            case "acknowledged":
                self.lifecycle.acknowledge(self.lifecycle.pending[0])
            case "continued":
                self.lifecycle.repeat()
            case "reintroduced":
                self.lifecycle.reintroduce(int(record["at"]))
            case "result":
                self.results[UUID(record["script"])] = str(record["result"])
            case "started":
                self.start_result = str(record["result"])
            case "timing":
                self.timings.append(base64.b64decode(record["timing"], validate=True))
            case "reported":
                self.timings.popleft()
            case "snapshot":
                self._restore(record)
            case unknown:
                raise ValueError(f"unknown record type {unknown!r}")

    def snapshot(self) -> Record:
        """The one record that makes this state out of any other."""
        last = self.lifecycle.last
        return {
            "type": "snapshot",
            "life": self.life,
            "machine": self.machine,
            "last": [int(last.state), last.changed_at] if last is not None else None,
            "pending": [[int(item.state), item.changed_at] for item in self.lifecycle.pending],
            "results": {str(script): result for script, result in self.results.items()},
            "started": self.start_result,
            "timings": [base64.b64encode(timing).decode() for timing in self.timings],
        }

    def _restore(self, record: Record) -> None:
        pending = [Transition(State(state), int(at)) for state, at in record["pending"]]
        results = {UUID(script): str(result) for script, result in record["results"].items()}
        timings = [base64.b64decode(timing, validate=True) for timing in record["timings"]]
        last = Transition(State(record["last"][0]), int(record["last"][1])) if record["last"] is not None else None
        self.lifecycle = Lifecycle(last, pending)
        self.life, self.machine = str(record["life"]), str(record["machine"])
        self.results, self.start_result = results, str(record["started"])
        self.timings = deque(timings, MAX_TIMINGS)


class Journal:
    """The journal of this process. It begins in memory; `open` gives it a file once the agent id is known.

    Adding a record takes effect at once and reaches the file in order, written by a thread; `flush` waits for that.
    """

    def __init__(self) -> None:
        self.state = JournalState()
        self._file: _File | None = None
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait for the next change of `state`."""
        await self._changed.wait()

    async def open(self, path: Path, machine: str) -> bool:
        """Go on from the file at `path`; True when it tells of a life of this machine start that was not shut down.

        Otherwise a new life begins. A file that cannot be used is told in one warning.
        """
        await self.aclose()
        file = _File(path)
        try:
            self.state = await file.run(file.load)
        except OSError as error:
            self._warn(path, error)
            await file.aclose()
        else:
            self._file = file
        if self.state.machine == machine and self.state.lifecycle.state < State.SHUTTING_DOWN:
            self._add({"type": "continued"})
            return True
        if self.state.lifecycle.state is State.SHUTTING_DOWN:
            get_logger("agent.journal").warning("the previous shutdown did not complete; stop scripts may not have run")
        self._add({"type": "life", "id": secrets.token_hex(8), "machine": machine})
        return False

    async def move(self, path: Path) -> None:
        """Go on in another file: the same process now is another agent. What was there before is replaced."""
        state = self.state
        await self.aclose()
        file = _File(path)
        try:
            await file.run(lambda: file.rewrite(state))
        except OSError as error:
            self._warn(path, error)
            await file.aclose()
        else:
            self._file = file

    def enter(self, state: State, wall_ns: int) -> bool:
        """Enter a lifecycle state; False when it would be a step back."""
        if state <= self.state.lifecycle.state:
            return False
        self._add({"type": "state", "state": int(state), "at": wall_ns})
        return True

    def acknowledge(self, transition: Transition) -> None:
        """The server has taken `transition`."""
        if self.state.lifecycle.pending[:1] and self.state.lifecycle.pending[0] is transition:
            self._add({"type": "acknowledged"})

    def reintroduce(self, wall_ns: int) -> None:
        """This process now is another agent; see `Lifecycle.reintroduce`."""
        self._add({"type": "reintroduced", "at": wall_ns})

    def start_script_ended(self, script: UUID, result: str) -> None:
        """A start script has ended."""
        self._add({"type": "result", "script": str(script), "result": result})

    def start_phase_ended(self, result: str) -> None:
        """All start scripts have ended."""
        self._add({"type": "started", "result": result})

    def timing(self, timing: bytes) -> None:
        """A script timing waits to be reported."""
        self._add({"type": "timing", "timing": base64.b64encode(timing).decode()})

    def timing_reported(self) -> None:
        """The oldest timing needs no more reporting."""
        self._add({"type": "reported"})

    async def flush(self) -> None:
        """Wait until everything added is in the file, or the file was given up."""
        if self._file is not None:
            await self._file.flush()

    async def aclose(self) -> None:
        """Write what is left and close the file. Idempotent."""
        if self._file is not None:
            file, self._file = self._file, None
            await file.flush()
            await file.aclose()

    def _add(self, record: Record) -> None:
        self.state.apply(record)
        self._tell_change()
        if self._file is None:
            return
        if self._file.needs_compaction:
            record = self.state.snapshot()
            self._file.replace(record, self._failed)
        else:
            self._file.append(record, self._failed)

    def _tell_change(self) -> None:
        # Whoever waits holds the old event, so nobody can eat another's wake-up.
        self._changed.set()
        self._changed = asyncio.Event()

    def _failed(self, error: OSError) -> None:
        if self._file is not None:
            self._warn(self._file.path, error)
            self._file = None

    @staticmethod
    def _warn(path: Path, error: OSError) -> None:
        get_logger("agent.journal").warning(
            "the journal cannot be kept on disk; if this process is killed, the next one may run start scripts again",
            path=str(path),
            error=error,
        )


class _File:
    """The file and the one thread that writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = 0
        self._descriptor = -1
        self._thread = ThreadPoolExecutor(1, "journal")
        self._waiting: deque[Future[None]] = deque()
        self._loop = asyncio.get_running_loop()

    @property
    def needs_compaction(self) -> bool:
        return self._size > COMPACT_ABOVE

    async def run(self, work: Callable[[], Any]) -> Any:
        return await self._loop.run_in_executor(self._thread, work)

    def append(self, record: Record, failed: Callable[[OSError], None]) -> None:
        data = encode(record)
        self._size += len(data)
        self._submit(lambda: _write_all(self._descriptor, data), failed)

    def replace(self, record: Record, failed: Callable[[OSError], None]) -> None:
        data = encode(record)
        self._size = len(data)
        self._submit(lambda: self._replace(data), failed)

    async def flush(self) -> None:
        if self._waiting:
            await asyncio.wait({asyncio.wrap_future(self._waiting[-1])})

    async def aclose(self) -> None:
        await self.run(self._close)
        self._thread.shutdown(wait=False)

    def _submit(self, work: Callable[[], None], failed: Callable[[OSError], None]) -> None:
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        if len(self._waiting) >= MAX_UNWRITTEN:
            failed(OSError(0, "the disk takes too long"))
            return
        future = self._thread.submit(work)
        self._waiting.append(future)

        def done(future: Future[None]) -> None:
            error = future.exception()
            if isinstance(error, OSError) and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(failed, error)

        future.add_done_callback(done)

    # ---- in the thread

    def load(self) -> JournalState:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self.path, flags, 0o600)
        with open(self._descriptor, "rb", closefd=False) as file:
            data = file.read()
        state, good = replay(data)
        os.ftruncate(self._descriptor, good)
        self._size = good
        return state

    def rewrite(self, state: JournalState) -> None:
        data = encode(state.snapshot())
        self._size = len(data)
        self._replace(data)

    def _replace(self, data: bytes) -> None:
        temporary = self.path.with_suffix(".new")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, 0o600)
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
            os.rename(temporary, self.path)
        except OSError:
            os.close(descriptor)
            raise
        self._close()
        self._descriptor = descriptor

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def encode(record: Record) -> bytes:
    """A record as it stands in the file."""
    payload = json.dumps(record, separators=(",", ":")).encode()
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def decode(data: bytes) -> Iterator[tuple[Record, int]]:
    """The whole records of `data`, each with the position after it; ends before the first damaged one."""
    position = 0
    while position + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        payload = data[position : position + length]
        position += length
        if length > MAX_RECORD or len(payload) < length or zlib.crc32(payload) != checksum:
            return
        try:
            record = json.loads(payload)
        except ValueError:
            return
        if not isinstance(record, dict):
            return
        yield record, position


def replay(data: bytes) -> tuple[JournalState, int]:
    """The state that the file's good part adds up to, and how many bytes of the file that is."""
    state, good = JournalState(), 0
    for record, position in decode(data):
        try:
            state.apply(record)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
            break
        good = position
    return state, good


def machine_start(proc: Path = Path("/proc")) -> str:
    """Names the start of this machine or container: the boot id and when PID 1 started, in ticks since boot.

    Where other users' processes are hidden (`hidepid`), the PID namespace stands for PID 1.
    """
    boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
    try:
        # The command name, field 2, may contain blanks and parentheses; the start time is field 22.
        started = (proc / "1/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        started = f"ns{(proc / 'self/ns/pid').stat().st_ino}"
    return f"{boot}/{started}"


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
