"""The parent of one script: a program of its own, so that a script outlives an agent that is killed.

It is started as `python -I -S keeper.py STDOUT_R STDERR_R STDOUT_W STDERR_W WAKE_R WAKE_W STATUS` (descriptors) in a
session of its own, with the request on standard input. It never reads the script's output: by holding the read ends it
sees to it that, when the agent dies, the script gets no SIGPIPE and what it printed stays in the pipes. A later agent
opens these again through `/proc/<keeper>/fd`.

- Request: fields, each ended by a NUL: working directory, number of arguments, arguments, number of variables,
  `NAME=value`…, `end`. The agent sends it only after it has written down that this keeper exists. An incomplete request
  means that the agent died: nothing is run. (It is not taken from the keeper's own environment: the script's could
  keep Python from starting, and Python adds LC_CTYPE to it.)
- Status file: lines `started PID`, then `ended exit CODE NS` or `ended signal NUMBER NS` (wall time); or, alone,
  `failed STEP ERRNO`. After `started` one byte goes into the wake pipe; its end means that there is no more to come.
- The script stays a zombie until the keeper ends, so that its number keeps meaning its process group. SIGUSR1 ends the
  keeper; nobody came for a day after the script ended: so does that.

Only modules that are built into the interpreter are imported: a keeper starts in 10 ms and has 3 MB of its own.
"""

# The public `signal` costs 4 ms more, for its enums.
import _signal as signal  # type: ignore[import-not-found]
import posix
import sys
import time

KEPT_FOR = 24 * 3600  # seconds that an ended script is kept for an agent to come


def main() -> None:
    # Everything is blocked and taken up by sigwait below: a HUP, INT or TERM to the keeper does nothing.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an inherited "ignore" would lose the script's status
    fds = [int(argument) for argument in sys.argv[1:]]
    for fd in fds:
        posix.set_inheritable(fd, False)
    _, _, stdout, stderr, _, wake, status = fds
    request = read_request()
    if request is None:
        return
    try:
        pid, failure = spawn(*request, stdout, stderr)
    except OSError as error:
        pid, failure = 0, f"keeper {error.errno}"
    if failure:
        posix.write(status, f"failed {failure}\n".encode())
        return
    posix.chdir("/")  # keeps no file system busy
    posix.close(stdout)
    posix.close(stderr)
    posix.write(status, f"started {pid}\n".encode())
    posix.write(wake, b"s")
    ended = wait_for_script(pid)
    if ended:
        posix.write(status, f"ended {ended} {time.time_ns()}\n".encode())
        posix.close(wake)
        signal.sigtimedwait({signal.SIGUSR1}, KEPT_FOR)
    posix.waitpid(pid, posix.WNOHANG)


def read_request() -> tuple[bytes, list[bytes], dict[bytes, bytes]] | None:
    """Directory, arguments and environment; None when the agent died before it had sent them all."""
    chunks = []
    while chunk := posix.read(0, 1 << 20):
        chunks.append(chunk)
    fields = b"".join(chunks).split(b"\0")
    if fields[-2:] != [b"end", b""]:
        return None
    count = int(fields[1])
    arguments = fields[2 : 2 + count]
    variables = fields[3 + count : 3 + count + int(fields[2 + count])]
    environment = {}
    for variable in variables:
        name, _, value = variable.partition(b"=")
        environment[name] = value
    return fields[0], arguments, environment


def spawn(
    directory: bytes, arguments: list[bytes], environment: dict[bytes, bytes], stdout: int, stderr: int
) -> tuple[int, str]:
    """Start the script. Its process id and, when it could not be executed, `STEP ERRNO`."""
    failure_read, failure_write = posix.pipe()  # closed by a successful exec
    pid = posix.fork()
    if pid == 0:
        step = "start"
        try:
            posix.setsid()
            lower_priority(environment)
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_DFL)
            posix.dup2(posix.open("/dev/null", posix.O_RDONLY), 0)
            posix.dup2(stdout, 1)
            posix.dup2(stderr, 2)
            step = "directory"
            posix.chdir(directory)
            step = "exec"
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            posix.execve(arguments[0], arguments, environment)
        except (OSError, ValueError) as error:  # ValueError: a variable without a name
            posix.write(failure_write, f"{step} {getattr(error, 'errno', 22)}".encode())  # 22 is EINVAL
        finally:
            posix._exit(127)
    posix.close(failure_write)
    failure = posix.read(failure_read, 100).decode()
    posix.close(failure_read)
    if failure:
        posix.waitpid(pid, 0)
    return pid, failure


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


def wait_for_script(pid: int) -> str | None:
    """How the script ended; None when the agent ended the keeper before that."""
    while True:
        info = posix.waitid(posix.P_PID, pid, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
        if info is not None:
            return f"{'exit' if info.si_code == posix.CLD_EXITED else 'signal'} {info.si_status}"
        if signal.sigwait({signal.SIGCHLD, signal.SIGUSR1}) == signal.SIGUSR1:
            return None


if __name__ == "__main__":
    main()
