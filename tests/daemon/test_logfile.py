"""The agent's own log: never in the way, rotated as specified, without secrets."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from agent.daemon import logfile
from agent.daemon.logfile import LogOutput, LogOutputError, Record, RotatingFile, StreamSink, install

ROTATED = re.compile(r"coder-agent-\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}\.\d{3}\.log")
WALL = 1_782_561_600_123_456_789


class Memory:
    """A sink that keeps lines, and fails or blocks on request."""

    def __init__(self) -> None:
        self.level = logging.DEBUG
        self.adjustable = True
        self.lines: list[str] = []
        self.error: OSError | None = None
        self.gate = threading.Event()
        self.gate.set()

    def render(self, record: Record) -> str:
        return record.message + "\n"

    def write(self, text: bytes) -> None:
        self.gate.wait(10)
        if self.error:
            raise self.error
        self.lines += text.decode().splitlines()

    def close(self) -> None:
        pass


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def record(message: str, level: int = logging.INFO, **fields: str) -> Record:
    return Record(WALL, level, "agent.test", message, tuple(fields.items()))


def test_human_lines() -> None:
    assert logfile.human(record("hi", a="1", b="x y", c="")) == (
        '2026-06-27 12:00:00.123 [info]  agent.test: hi  a=1  b="x y"  c=""\n'
    )
    assert logfile.human(record("hi", a="x\ny\n", b="1")) == (
        "2026-06-27 12:00:00.123 [info]  agent.test: hi  b=1\n  a= x\n    y\n"
    )


def test_human_lines_steer_no_terminal() -> None:
    entry = record("a\x1b[2Jb\r", x="\x1b]0;title\x07\nü\t")
    assert logfile.human(entry) == (
        "2026-06-27 12:00:00.123 [info]  agent.test: a\\x1b[2Jb\\x0d\n  x= \\x1b]0;title\\x07\n    ü\t\n"
    )


def test_json_and_stackdriver_are_one_object_per_line() -> None:
    entry = json.loads(logfile.as_json(record("hi\nthere", a="1")))
    assert entry == {
        "ts": "2026-06-27T12:00:00.123456789Z",
        "level": "INFO",
        "logger_names": ["agent.test"],
        "msg": "hi\nthere",
        "fields": {"a": "1"},
    }
    entry = json.loads(logfile.stackdriver(record("hi", logging.WARNING, severity="mine", a="1")))
    assert (entry["severity"], entry["message"], entry["a"]) == ("WARNING", "agent.test: hi", "1")


@pytest.mark.spec("daemon", 4)
def test_rotation(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "logs")
    line = b"x" * 65535 + b"\n"
    for _ in range(5 * 16 * 14):  # fourteen times 5 MiB
        file.write(line)
    file.close()
    names = sorted(os.listdir(tmp_path / "logs"))
    rotated = [name for name in names if ROTATED.fullmatch(name)]
    assert 0 < len(rotated) <= 10
    assert names == sorted([*rotated, "coder-agent.log"])
    for name in names:
        assert os.stat(tmp_path / "logs" / name).st_mode & 0o777 == 0o600
        assert os.stat(tmp_path / "logs" / name).st_size <= 5 * 1024 * 1024


def test_rotation_keeps_the_newest_and_only_touches_its_own(tmp_path: Path) -> None:
    for month in range(1, 13):
        (tmp_path / f"coder-agent-2020-{month:02d}-01T00-00-00.000.log").write_text("")
    (tmp_path / "coder-agent-init.log").write_text("")
    file = RotatingFile(tmp_path, limit=10)
    file.write(b"12345678\n")
    file.write(b"12345678\n")
    names = sorted(os.listdir(tmp_path))
    assert len([name for name in names if ROTATED.fullmatch(name)]) == 10
    assert "coder-agent-2020-03-01T00-00-00.000.log" not in names
    assert "coder-agent-2020-04-01T00-00-00.000.log" in names
    assert "coder-agent-init.log" in names
    file.close()


def test_an_existing_file_is_appended_to_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "coder-agent.log"
    path.write_bytes(b"old\n")
    path.chmod(0o640)
    file = RotatingFile(tmp_path, limit=20)
    file.write(b"new\n")
    assert path.read_bytes() == b"old\nnew\n"
    file.write(b"0123456789012\n")
    assert path.read_bytes() == b"0123456789012\n"
    assert os.stat(path).st_mode & 0o777 == 0o640
    file.close()


def test_a_full_existing_file_is_rotated_first_and_an_oversized_record_dropped(tmp_path: Path) -> None:
    path = tmp_path / "coder-agent.log"
    path.write_bytes(b"0123456789")
    file = RotatingFile(tmp_path, limit=15)
    file.write(b"x" * 16)
    file.write(b"01234")
    assert path.read_bytes() == b"01234"
    file.close()


@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_something_else_in_place_of_the_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "coder-agent.log"
    match kind:
        case "link":
            path.symlink_to(tmp_path / "victim")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
    with pytest.raises(OSError):
        RotatingFile(tmp_path).write(b"x\n")
    assert not (tmp_path / "victim").exists()


def test_a_sink_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(LogOutputError, match=r'open log sink ".*/missing/log": No such file'):
        StreamSink(str(tmp_path / "missing" / "log"), logfile.human)


def test_a_sink_file_is_appended_to(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("old\n")
    sink = StreamSink(str(tmp_path / "log"), logfile.human)
    sink.write(b"new\n")
    sink.close()
    assert (tmp_path / "log").read_text() == "old\nnew\n"


def test_a_failing_sink_costs_its_own_lines_and_says_how_many() -> None:
    now = 0.0
    sick, well = Memory(), Memory()
    output = LogOutput([sick, well], lambda: now)
    output.start()
    sick.error = OSError(28, "No space left on device")
    for message in ("one", "two", "three"):
        output.put(record(message))
    _wait_for(lambda: len(well.lines) == 3)
    sick.error, now = None, 60.0
    output.put(record("four"))
    output.close()
    assert well.lines == ["one", "two", "three", "four"]
    assert sick.lines == ["3 log records were lost here: No space left on device", "four"]


def test_a_sink_that_hangs_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "QUEUE_LIMIT", 5)
    monkeypatch.setattr(logfile, "CLOSE_LIMIT", 0.05)
    sink = Memory()
    sink.gate.clear()
    output = LogOutput([sink])
    output.start()
    for number in range(20):
        output.put(record(str(number)))
    output.close()  # gives up after its limit
    sink.gate.set()
    _wait_for(lambda: len(sink.lines) >= 5)
    assert len(sink.lines) <= 7


def test_dropped_records_are_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Memory()
    output = LogOutput([sink])
    monkeypatch.setattr(logfile, "QUEUE_LIMIT", 1)
    for number in range(4):
        output.put(record(str(number)))  # nobody writes yet
    monkeypatch.setattr(logfile, "QUEUE_LIMIT", 10)
    output.put(record("last"))
    output.start()
    output.close()
    assert sink.lines == ["0", "3 log records were dropped: the log could not be written fast enough", "last"]


def test_secrets_are_never_written() -> None:
    sink = Memory()
    output = LogOutput([sink])
    output.redact(["sesame-open", "sesame-open-wide", "abc", ""])
    output.start()
    output.put(record("say sesame-open-wide, then sesame-open and abc"))
    output.close()
    assert sink.lines == ["say [redacted], then [redacted] and abc"]


@pytest.mark.usefixtures("restored")
def test_structlog_and_the_standard_library_end_up_in_the_same_place() -> None:
    sink = Memory()
    sink.render = logfile.human  # type: ignore[method-assign]
    output = LogOutput([sink])
    install(output, lambda: WALL)
    output.start()
    structlog.get_logger("agent.x").info("hi", error=ValueError("bad"), nothing=TimeoutError())
    logging.getLogger("library").warning("watch %s", "out")
    try:
        raise ValueError("boom")
    except ValueError:
        structlog.get_logger("agent.x").exception("failed", exc_info=True)
    output.close()
    assert sink.lines[0] == "2026-06-27 12:00:00.123 [info]  agent.x: hi  error=bad  nothing=TimeoutError"
    assert sink.lines[1].endswith("[warning]  library: watch out")
    assert sink.lines[2].endswith("[error]  agent.x: failed")
    assert sink.lines[-1].strip() == "ValueError: boom"


def test_rich_is_not_loaded_for_logging() -> None:
    import subprocess
    import sys

    code = "import sys, agent.daemon.logfile; sys.exit(any(name.split('.')[0] == 'rich' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _wait_for(condition: object) -> None:
    assert callable(condition)
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it did not happen")
