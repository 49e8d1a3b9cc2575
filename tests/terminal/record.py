"""Makes the recordings: real programs in a terminal of 24 x 80, and what they draw after a resize nudge.

Run it as `python -m tests.terminal.record` where vim, less, htop, top and tmux are installed. `NAME.bin` is the output
of a program, `NAME.again` what it drew after the nudge.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import tempfile
import termios
import time
from pathlib import Path

HERE = Path(__file__).with_name("recordings")
SHELL = ["bash", "--norc", "--noprofile", "-i"]
ALONE = ["unshare", "--pid", "--fork", "--mount-proc", "--uts", "sh", "-c"]
"""Programs that show the machine see one without anything of the machine that records."""
TEXT = "\n".join(f"def function_{i}(x):\n    return {i} * x  # 'a string' and 🙂\n" for i in range(60))
PROGRAMS: dict[str, tuple[list[str], list[bytes]]] = {
    "shell": (
        SHELL,
        [
            b"for i in $(seq 60); do printf '\\e[3%dmline %d\\e[0m of \\e[1;4msixty\\e[m\\n' $((i % 8)) $i; done\r",
            b"ech\to abc\x1b[D\x1b[D\x17\x15ls -a --color=always\r",
            b"printf '\\e(0lqqk\\e(B \\e]2;a title\\a \\e[7mreverse\\e[27m\\n'\r",
        ],
    ),
    "vim": (
        ["vim", "-u", "NONE", "-N", "-c", "syntax on | set nu", "record.py"],
        [b"10jdd", b"5\x06", b"iinserted\x1b", b":set hls\r/def\r", b"u"],
    ),
    "less": (["less", "-R", "record.py"], [b"  ", b"/def\r", b"G", b"b"]),
    "htop": ([*ALONE, "hostname box; exec htop -d 20"], [b"j", b"\x1b[B", b"t"]),
    "top": ([*ALONE, "hostname box; exec top -d 2"], [b"z", b"x"]),
    "tmux": (
        [*ALONE, "hostname box; exec tmux -L record -f /dev/null new-session 'exec " + " ".join(SHELL) + "'"],
        [b"\x02%", b"seq 40\r", b'\x02"', b"printf '\\e[48;2;90;20;120mtrue\\e[m\\n'\r"],
    ),
    "emoji": (
        SHELL,
        [
            'for i in $(seq 30); do echo "$i 😀 家族 👩‍👩‍👧 é ❯ 漢字"; done\r'.encode(),
            "echo '全角'\x1b[D\x1b[D\r".encode(),
        ],
    ),
    "truecolor": (
        SHELL,
        [
            b"for i in $(seq 0 5 1200); do printf '\\e[38;2;%d;%d;%dm#\\e[48;5;%dm.' "
            b"$((i % 256)) $((i * 7 % 256)) $((i / 5)) $((i % 256)); done; printf '\\e[0m\\n'\r"
        ],
    ),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        Path("record.py").write_text(TEXT)
        for name, (argv, keys) in PROGRAMS.items():
            first, again = record(argv, keys)
            (HERE / f"{name}.bin").write_bytes(first)
            (HERE / f"{name}.again").write_bytes(again)
        os.chdir("/")


def record(argv: list[str], keys: list[bytes]) -> tuple[bytes, bytes]:
    pid, master = pty.fork()
    if pid == 0:
        environment = {
            "PATH": os.environ["PATH"],
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "PS1": "$ ",
            "HOME": "/nonexistent",
        }
        os.execvpe(argv[0], argv, environment)
    resize(master, 24)
    output = read(master, 1.0)
    for key in keys:
        os.write(master, key)
        output += read(master, 0.7)
    resize(master, 23)
    output += read(master, 0.5)
    resize(master, 24)
    again = read(master, 1.0)
    os.kill(pid, 9)
    os.close(master)
    os.waitpid(pid, 0)
    return output, again


def resize(master: int, rows: int) -> None:
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", rows, 80, 0, 0))


def read(master: int, seconds: float) -> bytes:
    output, until = b"", time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([master], [], [], left)[0]:
            output += os.read(master, 65536)
    return output


if __name__ == "__main__":
    main()
