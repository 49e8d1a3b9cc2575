"""Opens terminals, starts their shells, and holds both for an agent that may be killed: a program of its own.

It is started as `python -I -S keeper.py CONNECTION LISTENER SECONDS` (descriptors; a LISTENER of -1: there is none) in
a session of its own. It never reads a terminal's output: while no agent is there, programs block once the kernel's
buffer is full, and nothing is lost. A later agent connects to LISTENER and is handed everything.

Messages of a SOCK_SEQPACKET connection are words; descriptors go with them.

    agent:  start ID ROWS COLUMNS  + request, ring    keeper: started ID + master, process | failed ID STEP ERRNO
            forget ID
    keeper, to an agent that connects: kept ID + master, process, ring, for each terminal; then ready

- Request (a memfd): fields, each ended by a NUL: working directory, number of arguments, arguments, number of
  variables, `NAME=value`…, `end`.
- A process is a pidfd: a number could mean another process by the time that it is used.
- The latest agent counts: another's connection is closed.
- Without an agent for SECONDS, or without one and without terminals, it ends, and with it the shells: nobody could
  reach them any more, and some take no notice of a hang-up.

Only modules in C are imported: a keeper starts in 10 ms and has 4 MB of its own.
"""

# The public `socket` and `signal` would double the time to start, for their enums.
import _signal as signal  # type: ignore[import-not-found]
import _socket as socket
import errno
import fcntl
import posix
import select
import struct
import sys
import termios

MAX_MESSAGE = 4096
MAX_FDS = 4


class Terminal:
    def __init__(self, *fds: int) -> None:
        self.fds = fds
        """Master side, process, ring."""

    def kill(self) -> None:
        try:  # noqa: SIM105 - contextlib is slow to import
            signal.pidfd_send_signal(self.fds[1], signal.SIGKILL)
        except OSError:
            pass  # it has ended, or runs as another user: then the hang-up ends it

    def close(self) -> None:
        for fd in self.fds:
            posix.close(fd)


class Keeper:
    def __init__(self, connection: int, listener: int, patience: int) -> None:
        self.connection: socket.socket | None = socket.socket(fileno=connection)
        self.listener = socket.socket(fileno=listener) if listener >= 0 else None
        self.patience = patience
        self.terminals: dict[str, Terminal] = {}

    def run(self) -> None:
        try:
            self.serve()
        finally:
            for terminal in self.terminals.values():
                terminal.kill()

    def serve(self) -> None:
        while self.connection is not None or (self.terminals and self.listener is not None):
            poll = select.poll()
            if self.connection is not None:
                poll.register(self.connection.fileno(), select.POLLIN)
            if self.listener is not None:
                poll.register(self.listener.fileno(), select.POLLIN)
            ready = [fd for fd, _ in poll.poll(None if self.connection is not None else self.patience * 1000)]
            if not ready:
                return
            if self.listener is not None and self.listener.fileno() in ready:
                self.accept(self.listener)
            elif self.connection is not None:
                self.receive(self.connection)

    def accept(self, listener: socket.socket) -> None:
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]
        except OSError:
            # There is no descriptor for it: it gets the one of the former agent's connection next.
            if self.connection is not None:
                self.connection.close()
                self.connection = None
            return
        connection = socket.socket(fileno=fd)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if struct.unpack("3i", credentials)[1] != posix.geteuid():
            connection.close()
            return
        if self.connection is not None:
            self.connection.close()
        self.connection = connection
        for name, terminal in self.terminals.items():
            self.say(f"kept {name}", *terminal.fds)
        self.say("ready")

    def receive(self, connection: socket.socket) -> None:
        space = socket.CMSG_SPACE(4 * MAX_FDS)
        try:
            data, ancillary, _, _ = connection.recvmsg(MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            data, ancillary = b"", []
        fds = [
            int.from_bytes(content[at : at + 4], sys.byteorder)
            for level, kind, content in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for at in range(0, len(content) - 3, 4)
        ]
        words = data.decode().split()
        match words:
            case ["start", name, rows, columns] if len(fds) == 2:
                self.start(name, int(rows), int(columns), *fds)
            case ["start", name, _, _]:  # descriptors are lost where there is no room for more
                for fd in fds:
                    posix.close(fd)
                self.say(f"failed {name} terminal {errno.EMFILE}")
            case ["forget", name]:
                terminal = self.terminals.pop(name, None)
                if terminal is not None:
                    terminal.close()
            case _:  # the end, or nothing that an agent says
                for fd in fds:
                    posix.close(fd)
                connection.close()
                self.connection = None

    def start(self, name: str, rows: int, columns: int, request: int, ring: int) -> None:
        try:
            master, process = spawn(read_request(request), rows, columns)
        except StepError as error:
            posix.close(ring)
            self.say(f"failed {name} {error.step} {error.number}")
            return
        finally:
            posix.close(request)
        self.terminals[name] = Terminal(master, process, ring)
        self.say(f"started {name}", master, process)

    def say(self, message: str, *fds: int) -> None:
        if self.connection is None:
            return
        content = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, content)] if fds else []
        try:
            self.connection.sendmsg([message.encode()], rights)
        except OSError:  # the agent is gone; a later one is told when it comes
            self.connection.close()
            self.connection = None


class StepError(Exception):
    """What kept a shell from being started: the step, and the number of the error."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(step, number)
        self.step = step
        self.number = number


def read_request(fd: int) -> tuple[bytes, list[bytes], dict[bytes, bytes]]:
    """Directory, arguments and environment."""
    chunks, offset = [], 0
    while chunk := posix.pread(fd, 1 << 20, offset):
        chunks.append(chunk)
        offset += len(chunk)
    fields = b"".join(chunks).split(b"\0")
    count = int(fields[1])
    arguments = fields[2 : 2 + count]
    variables = fields[3 + count : 3 + count + int(fields[2 + count])]
    environment = {}
    for variable in variables:
        name, _, value = variable.partition(b"=")
        environment[name] = value
    return fields[0], arguments, environment


def spawn(request: tuple[bytes, list[bytes], dict[bytes, bytes]], rows: int, columns: int) -> tuple[int, int]:
    """The master side of a new terminal, and a process in it. Raises `StepError`."""
    fds: list[int] = []
    step = "terminal"
    try:
        master, slave = posix.openpty()
        fds += (master, slave)
        failure_read, failure_write = posix.pipe()  # closed by a successful exec
        fds += (failure_read, failure_write)
        attributes = termios.tcgetattr(slave)
        attributes[0] |= 0o40000  # IUTF8: erasing takes a whole character
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        step = "process"
        process = start_process(request, slave, failure_write)
        fds.append(process)
        posix.close(fds.pop(fds.index(failure_write)))
        failure = posix.read(failure_read, 100).decode()
        if failure:
            step, _, number = failure.partition(" ")
            raise StepError(step, int(number))
        fds.remove(master)
        fds.remove(process)
        return master, process
    except OSError as error:
        raise StepError(step, error.errno or 0) from error
    finally:
        for fd in fds:
            posix.close(fd)


def start_process(request: tuple[bytes, list[bytes], dict[bytes, bytes]], slave: int, failure: int) -> int:
    """A pidfd. The process waits until that is there: then its number means it."""
    go_read, go_write = posix.pipe()
    try:
        pid = posix.fork()
        if pid == 0:
            posix.close(go_write)
            posix.read(go_read, 1)
            become(request, slave, failure)
        return posix.pidfd_open(pid)
    finally:
        posix.close(go_read)
        posix.close(go_write)


def become(request: tuple[bytes, list[bytes], dict[bytes, bytes]], slave: int, failure: int) -> None:
    """The new process: it becomes the command, or tells why not. Does not return."""
    directory, arguments, environment = request
    step = "process"
    try:
        posix.setsid()
        lower_priority(environment)
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        for fd in (0, 1, 2):
            posix.dup2(slave, fd)
        step = "directory"
        posix.chdir(directory)
        step = "exec"
        posix.execve(arguments[0], arguments, environment)
    except (OSError, ValueError) as error:  # ValueError: a variable without a name
        posix.write(failure, f"{step} {getattr(error, 'errno', 22)}".encode())  # 22 is EINVAL
    finally:
        posix._exit(127)


def lower_priority(environment: dict[bytes, bytes]) -> None:
    """Called in the new process: it takes on, and out of its environment, what `agent.process.priority` put there."""
    oom = environment.pop(b"CODER_PROC_OOM_SCORE", b"")
    nice = environment.pop(b"CODER_PROC_NICE_SCORE", b"")
    environment.pop(b"CODER_PROC_PRIO_MGMT", None)
    try:
        if oom:
            posix.write(posix.open("/proc/self/oom_score_adj", posix.O_WRONLY | posix.O_CLOEXEC), oom)
    except OSError:
        pass  # not permitted here: it is as likely to be ended as the agent
    try:
        if nice:
            posix.setpriority(posix.PRIO_PROCESS, 0, int(nice))
    except (OSError, ValueError):
        pass  # not permitted here


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the shells: the kernel buries them
    posix.chdir("/")  # keeps no file system busy
    connection, listener, patience = (int(argument) for argument in sys.argv[1:])
    for fd in (connection, listener):
        if fd >= 0:
            posix.set_inheritable(fd, False)
    Keeper(connection, listener, patience).run()


if __name__ == "__main__":
    main()
