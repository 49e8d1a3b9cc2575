"""The parent of an agent that is PID 1 (daemon.md §1.6): a program of its own, so that it stays small.

`workspace-agent agent` becomes it by exec, as `python -I -S init.py LOG PYTHON ARGUMENT…`, and it starts the agent with
these arguments and `--no-reap`. It buries orphans, passes on signals and ends with the agent's exit code, or with
128 + the number of the signal that killed it.

An agent that crashes is started again, so that terminals and scripts go on (they have keepers, which are orphans
meanwhile). A crash is a death by a signal that nobody sent through here, or another failure after `SETTLED` seconds:
what fails earlier could not start, and who started the container should see that. After SIGUSR2 (make way for a newer
agent) there is a new one in any case.

Only modules that are built into the interpreter are imported.
"""

# The public `signal` costs 4 ms more, for its enums.
import _signal as signal  # type: ignore[import-not-found]
import posix
import sys
import time

STOP = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
PASSED_ON = STOP | {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTRAP}
SETTLED = 10.0  # seconds
FIRST, CAP = 1.0, 30.0  # seconds until a crashed agent is started again; doubled with each crash
STEADY = 60.0  # seconds after which an agent's crash counts as its first one
CRASHES = 8  # in a row; then whatever runs the container decides
LOG_LIMIT = 5 * 1024 * 1024


class Init:
    """One container's life."""

    def __init__(self, log: str, command: list[str]) -> None:
        self.log = log
        self.command = [*command, "--no-reap"]
        self.stopping = False
        self.making_way = False

    def run(self) -> int:
        """Keep an agent running; the exit code."""
        crashes = 0
        while True:
            began = time.monotonic()
            status = self.wait_for(self.start())
            lasted = time.monotonic() - began
            code = 128 + posix.WTERMSIG(status) if posix.WIFSIGNALED(status) else posix.WEXITSTATUS(status)
            if self.making_way and not self.stopping:
                self.making_way = False
                self.tell("the agent has made way for a newer one")
                crashes = 0
                continue
            crashed = posix.WIFSIGNALED(status) or (code != 0 and lasted >= SETTLED)
            if self.stopping or not crashed:
                self.tell(f"the agent ended with {code}")
                return code
            crashes = 1 if lasted >= STEADY else crashes + 1
            if crashes >= CRASHES:
                self.tell(f"the agent crashed with {code}, {crashes} times in a row: giving up")
                return code
            delay = min(CAP, FIRST * 2 ** (crashes - 1))
            self.tell(f"the agent crashed with {code} after {lasted:.1f} s; it is started again in {delay:g} s")
            self.pause(delay)
            if self.stopping:
                return code

    def start(self) -> int:
        """A new agent's process id."""
        pid = posix.fork()
        if pid == 0:
            try:
                posix.setsid()
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                posix.execv(self.command[0], self.command)
            except OSError as error:
                self.tell(f"cannot run {self.command[0]}: {error.strerror}")
            finally:
                posix._exit(1)
        return pid

    def wait_for(self, agent: int) -> int:
        """The agent's status. Until then signals are passed on to it, and strangers are buried."""
        while True:
            status = bury(agent)
            if status is not None:
                return status
            number = signal.sigwait(PASSED_ON | {signal.SIGCHLD})
            self.note(number)
            if number != signal.SIGCHLD:
                posix.kill(agent, number)  # it cannot be a stranger: nobody but `bury` frees the number

    def pause(self, seconds: float) -> None:
        """Wait for the next start, or for a signal to stop."""
        end = time.monotonic() + seconds
        while not self.stopping and (left := end - time.monotonic()) > 0:
            caught = signal.sigtimedwait(PASSED_ON | {signal.SIGCHLD}, left)
            if caught is not None:
                self.note(caught.si_signo)
                bury(0)
        self.making_way = False  # the next agent is a new one anyway

    def note(self, number: int) -> None:
        """What a signal changes here."""
        self.stopping |= number in STOP
        self.making_way |= number == signal.SIGUSR2

    def tell(self, text: str) -> None:
        """One line for standard error and the log; a log that cannot be written must not end the container."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} agent-init: {text}\n".encode()
        for write in (self.to_stderr, self.to_log):
            try:  # noqa: SIM105 - contextlib would have to be imported
                write(line)
            except OSError:
                pass  # the other one may have it

    def to_stderr(self, line: bytes) -> None:
        posix.write(2, line)

    def to_log(self, line: bytes) -> None:
        flags = posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW
        file = posix.open(self.log, flags, 0o600)
        try:
            posix.write(file, line)
            full = posix.fstat(file).st_size > LOG_LIMIT
        finally:
            posix.close(file)
        if full:
            posix.rename(self.log, self.log.removesuffix(".log") + "-old.log")


def bury(agent: int) -> int | None:
    """Collect every ended child; the agent's status if it was among them. (One place only: no race for it.)"""
    found = None
    while True:
        try:
            pid, status = posix.waitpid(-1, posix.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == agent:
            found = status


def main() -> int:
    # Everything is blocked and taken up by sigwait: PID 1 has no default actions, and none may get lost in between.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON | {signal.SIGCHLD})
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an inherited "ignore" would lose the agent's status
    posix.umask(0o022)
    return Init(sys.argv[1], sys.argv[2:]).run()


if __name__ == "__main__":
    sys.exit(main())
