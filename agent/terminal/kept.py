"""The agent's side of the keeper (keeper.py): find the one that a killed agent left, or start one, and talk to it."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from agent.clock import Clock, wait_for

_KEEPER = str(Path(__file__).with_name("keeper.py"))
_ANSWER_LIMIT = 20.0
"""Seconds that a keeper has to answer; it takes some 2 ms unless the machine is very busy."""
_MAX_MESSAGE = 4096
_MAX_FDS = 4


class KeeperError(Exception):
    """A terminal could not be made; the text names what was at fault."""


class KeeperGoneError(KeeperError):
    """The keeper has ended, by itself or by somebody else's hand."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A terminal: its master side (non-blocking), its process (a pidfd), the memory of its history.

    The descriptors belong to whoever has this.
    """

    id: UUID
    master: int
    process: int
    ring: int

    def close(self) -> None:
        for fd in (self.master, self.process, self.ring):
            os.close(fd)


class Keeper:
    """The process that holds terminals. `patience` is how many seconds it holds those that no agent asks for; `warn` is
    told when terminals do not outlive their agent after all, and why."""

    def __init__(self, clock: Clock, *, patience: float, warn: Callable[[str], None]) -> None:
        self._directory: Path | None = None
        self._clock = clock
        self._patience = patience
        self._warn = warn
        self._connection: socket.socket | None = None
        self._child: int | None = None
        self._starting = asyncio.Lock()
        self._answers: dict[UUID, asyncio.Future[tuple[int, int]]] = {}

    async def find(self, directory: Path | None) -> list[Kept]:
        """The terminals that a former agent left in `directory`, where later agents will find those of this one."""
        self._directory = directory
        if directory is None:
            return []
        connection = await asyncio.to_thread(_connect, directory)
        if connection is None:
            return []
        found: list[Kept] = []
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            undo.callback(_close_all, found)
            try:
                await wait_for(self._clock, self._take_over(connection, found), _ANSWER_LIMIT)
            except (OSError, TimeoutError, ValueError) as error:
                self._warn(f"those of a former agent were not handed over: {str(error) or 'no answer'}")
                return []
            undo.pop_all()
        self._use(connection)
        return found

    async def start(
        self,
        terminal: UUID,
        argv: Sequence[str],
        directory: str,
        environment: Mapping[str, str],
        *,
        rows: int,
        columns: int,
        ring: int,
    ) -> Kept:
        """Start a process in a new terminal; takes over `ring`. Raises `KeeperError`."""
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, ring)
            request = await asyncio.to_thread(_write_request, argv, directory, environment)
            undo.callback(os.close, request)
            message = f"start {terminal} {rows} {columns}"
            try:
                try:
                    fds = await self._ask(terminal, message, request, ring)
                except KeeperGoneError:  # it ended a moment ago: another one can do it
                    fds = await self._ask(terminal, message, request, ring)
            except StepFailedError as error:
                raise KeeperError(_explain(error.step, error.number, argv, directory)) from error
            undo.pop_all()
            os.close(request)
        return Kept(terminal, *fds, ring)

    async def _ask(self, terminal: UUID, message: str, request: int, ring: int) -> tuple[int, int]:
        """Master side and process. Raises `KeeperError`, `StepFailedError`."""
        connection = await self._connected()
        self._send(connection, message, request, ring)
        answer: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self._answers[terminal] = answer
        try:
            return await wait_for(self._clock, answer, _ANSWER_LIMIT)
        except TimeoutError:
            self.forget(terminal)  # it may yet be made
            raise KeeperError(f"the process that keeps terminals did not answer in {_ANSWER_LIMIT:g} s") from None
        except asyncio.CancelledError:
            self.forget(terminal)
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                for fd in answer.result():
                    os.close(fd)
            raise
        finally:
            del self._answers[terminal]

    def forget(self, terminal: UUID) -> None:
        """The terminal is at its end: the keeper closes what it holds of it."""
        if self._connection is not None:
            with contextlib.suppress(KeeperError):  # a keeper that is gone holds nothing
                self._send(self._connection, f"forget {terminal}")

    async def aclose(self) -> None:
        """Say goodbye: the keeper ends if it holds nothing, else it waits for another agent. Idempotent."""
        self._disconnect()
        child, self._child = self._child, None
        if child is not None:
            await asyncio.to_thread(_reap, child)

    # ---- the connection

    async def _connected(self) -> socket.socket:
        async with self._starting:
            if self._connection is None:
                if self._child is not None:
                    await asyncio.to_thread(_reap, self._child)
                    self._child = None
                try:
                    listener = await asyncio.to_thread(self._listen)
                    connection, self._child = await asyncio.to_thread(
                        _start_keeper, listener, max(round(self._patience), 1)
                    )
                except OSError as error:
                    raise KeeperError(f"the process that keeps terminals cannot be started: {error}") from error
                self._use(connection)
            assert self._connection is not None
            return self._connection

    def _listen(self) -> socket.socket | None:
        """Where a later agent will ask. Without that there are terminals all the same: on a full disk, somebody needs
        one to make room."""
        if self._directory is None:
            return None
        try:
            return _listen(self._directory)
        except OSError as error:
            self._warn(f"those that are opened from now on end with this agent: {self._directory}: {error}")
            return None

    def _use(self, connection: socket.socket) -> None:
        self._connection = connection
        asyncio.get_running_loop().add_reader(connection.fileno(), self._readable)

    def _gone(self) -> None:
        if self._connection is not None:
            self._disconnect()
            self._warn("those that are open now end with this agent: the process that keeps them has ended")

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        asyncio.get_running_loop().remove_reader(connection.fileno())
        connection.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(KeeperGoneError("the process that keeps terminals has ended"))

    def _send(self, connection: socket.socket, message: str, *fds: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            connection.sendmsg([message.encode()], rights)
        except BlockingIOError:
            raise KeeperError("the process that keeps terminals takes no messages") from None
        except OSError as error:
            self._gone()
            raise KeeperGoneError(f"the process that keeps terminals has ended: {error.strerror}") from error

    def _readable(self) -> None:
        assert self._connection is not None
        try:
            words, fds = _receive(self._connection)
        except BlockingIOError:
            return
        except OSError:
            words, fds = [], []
        match words:
            case ["started", name] if len(fds) == 2 and (answer := self._answer(name)) is not None:
                os.set_blocking(fds[0], False)
                answer.set_result((fds[0], fds[1]))
            case ["started", name] if len(fds) < 2 and (answer := self._answer(name)) is not None:
                for fd in fds:
                    os.close(fd)
                self.forget(UUID(name))
                answer.set_exception(StepFailedError("terminal", errno.EMFILE))  # there was no room for the descriptors
            case ["failed", name, step, number]:
                if (answer := self._answer(name)) is not None:
                    answer.set_exception(StepFailedError(step, int(number)))
            case []:
                self._gone()
            case _:  # the answer to a question that was given up
                for fd in fds:
                    os.close(fd)

    def _answer(self, name: str) -> asyncio.Future[tuple[int, int]] | None:
        answer = self._answers.get(UUID(name))
        return answer if answer is not None and not answer.done() else None

    async def _take_over(self, connection: socket.socket, found: list[Kept]) -> None:
        while True:
            await _until_readable(connection)
            words, fds = _receive(connection)
            match words:
                case ["kept", name] if len(fds) == 3:
                    os.set_blocking(fds[0], False)
                    found.append(Kept(UUID(name), *fds))
                case ["ready"]:
                    return
                case _:
                    for fd in fds:
                        os.close(fd)
                    raise ValueError(f"{' '.join(words) or 'the end'!r} came with {len(fds)} descriptors")


class StepFailedError(Exception):
    """The keeper tells that a step failed."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(step, number)
        self.step = step
        self.number = number


def _close_all(found: Iterable[Kept]) -> None:
    for kept in found:
        kept.close()


def _receive(connection: socket.socket) -> tuple[list[str], list[int]]:
    """The words of one message and its descriptors; no words at the end."""
    data, fds, _, _ = socket.recv_fds(connection, _MAX_MESSAGE, _MAX_FDS)
    for fd in fds:
        os.set_inheritable(fd, False)
    return data.decode().split(), fds


async def _until_readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection.fileno())


@contextlib.contextmanager
def _address(directory: Path) -> Iterator[str]:
    """The name of the socket in `directory`, short whatever that one is called: 108 bytes are possible."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/terminals"
    finally:
        os.close(fd)


def _connect(directory: Path) -> socket.socket | None:
    """A connection to the keeper that is there already; None without one."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(_ANSWER_LIMIT)
        with _address(directory) as address:
            connection.connect(address)
        if struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1] != os.geteuid():
            raise PermissionError("it belongs to another user")
    except OSError:
        connection.close()
        return None
    connection.setblocking(False)
    return connection


def _listen(directory: Path) -> socket.socket:
    """Raises `OSError`."""
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(directory / "terminals")
        with _address(directory) as address:
            listener.bind(address)
        listener.listen(1)
        undo.pop_all()
    return listener


def _start_keeper(listener: socket.socket | None, patience: int) -> tuple[socket.socket, int]:
    """A new keeper: the connection to it and its process id. Takes over `listener`. Raises `OSError`."""
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as given:
        if listener is not None:
            given.enter_context(listener)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        given.enter_context(theirs)
        undo.callback(ours.close)
        child = _spawn_keeper(theirs.fileno(), listener.fileno() if listener is not None else None, patience)
        ours.setblocking(False)
        undo.pop_all()
    return ours, child


def _spawn_keeper(connection: int, listener: int | None, patience: int) -> int:
    """Its descriptors are 0 to 2: /dev/null, then 3, the connection, and 4, the listener.

    Not `subprocess`: that wants to wait for a child which is to outlive this process.
    """
    # First to numbers that are in nobody's way: 3 may be the listener here.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (connection, listener) if fd is not None]
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", _KEEPER, "3", "-1" if listener is None else "4", str(patience)],
            {},  # holds no secrets; the terminals' environment comes with each request
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
                *((os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(high, 3)),
            ],
            setsid=True,
        )
    finally:
        for fd in high:
            os.close(fd)


def _write_request(argv: Sequence[str], directory: str, environment: Mapping[str, str]) -> int:
    """A descriptor of what to run, in memory: no file, and no argument that others could read."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    fields = [directory, str(len(argv)), *argv, str(len(variables)), *variables, "end", ""]
    try:
        request = b"\0".join(os.fsencode(value) for value in fields)
    except UnicodeEncodeError as error:
        place = "the environment, the working directory or the command"
        raise KeeperError(
            f"a character in {place} that the locale of the agent does not have: {error.reason}"
        ) from None
    if request.count(b"\0") != len(fields) - 1:
        raise KeeperError("a NUL character in the environment, the working directory or the command")
    fd = os.memfd_create("command", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(request)
    return fd


def _explain(step: str, number: int, argv: Sequence[str], directory: str) -> str:
    reason = os.strerror(number)
    match step:
        case "terminal":
            return f"there is no free terminal ({reason}); /proc/sys/kernel/pty has the limits"
        case "directory":
            return f'cannot enter the working directory "{directory}": {reason}'
        case "exec":
            return f'cannot run "{argv[0]}": {reason}'
        case _:
            return f"cannot start a process in a terminal: {reason}"


def _reap(child: int) -> None:
    """Bury a keeper that has ended or is about to. One that stays is another agent's to find."""
    for _ in range(20):
        try:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                return
        except ChildProcessError:
            return  # whoever buries the orphans of this machine was faster
        time.sleep(0.01)
