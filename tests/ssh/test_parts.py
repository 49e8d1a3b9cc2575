"""Variables, greetings, file transfer, terminal modes and authority files: what needs no connection."""

from __future__ import annotations

import os
import re
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ssh.counters import Kind
from agent.ssh.environment import MAX_BYTES, MAX_VARIABLES, Requested, RequestedVariables
from agent.ssh.greeting import Greeting
from agent.ssh.jetbrains import PortLooks, serves_jetbrains
from agent.ssh.modes import apply_modes
from agent.ssh.streams import Window
from agent.ssh.transfer import is_file_transfer
from agent.ssh.x11 import Entry, X11Request, merge_authority, parse_authority, write_authority
from agent.testing import ManualClock

# ---- variables


@pytest.mark.spec("terminal-ssh-http", 34)
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("VSCode", Kind.VSCODE),
        ("JetBrains", Kind.JETBRAINS),
        ("SSH", Kind.SSH),
        ("", Kind.SSH),
        ("cursor", Kind.UNKNOWN),
    ],
)
def test_the_type_of_a_session(text: str, kind: Kind) -> None:
    pairs = [("CODER_SSH_SESSION_TYPE", "vscode"), ("A", "1"), ("CODER_SSH_SESSION_TYPE_X", text), ("A", "2")]
    found = Requested.of([*pairs, ("CODER_CONTAINER", "c"), ("CODER_CONTAINER_USER", "u")])
    assert (found.kind, found.variables) == (kind, {"A": "1"})


@given(st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=100)), max_size=50))
def test_variables_are_possible_ones(pairs: list[tuple[bytes, bytes]]) -> None:
    asked = RequestedVariables()
    for name, value in pairs:
        possible = bool(name) and b"=" not in name and b"\0" not in name + value
        assert asked.add(name, value) == possible
    for name_, value_ in asked.resolve().variables.items():
        assert (os.fsencode(name_), os.fsencode(value_)) in pairs


def test_variables_are_bounded() -> None:
    asked = RequestedVariables()
    assert not asked.add(b"A", b"x" * 131072)
    assert asked.add(b"A", b"x" * 100_000)
    assert asked.add(b"B", b"x" * 100_000)
    assert not asked.add(b"C", b"x" * (MAX_BYTES - 200_000))
    many = RequestedVariables()
    assert [many.add(b"%d" % number, b"") for number in range(MAX_VARIABLES + 1)] == [True] * MAX_VARIABLES + [False]


# ---- greetings


@pytest.mark.spec("terminal-ssh-http", 29)
def test_banners_and_the_message_of_the_day(tmp_path: Path) -> None:
    motd = tmp_path / "motd"
    motd.write_bytes(b"one\ntwo\r\nthree")
    greeting = Greeting(["\n\n  hello\nworld\n\n\n", "   ", "second"], str(motd), str(tmp_path))
    banners = b"hello\r\nworld\r\n\r\nsecond\r\n\r\n"
    assert greeting.render() == banners + b"one\r\ntwo\r\nthree\r\n"
    (tmp_path / ".hushlogin").touch()
    assert greeting.render() == banners
    assert Greeting((), str(motd), "").render() == b"one\r\ntwo\r\nthree\r\n"
    assert Greeting((), str(tmp_path / "none"), "").render() == b""
    with pytest.raises(IsADirectoryError):
        Greeting((), str(tmp_path), "").render()


# ---- file transfer


@pytest.mark.spec("terminal-ssh-http", 31)
@pytest.mark.parametrize(
    ("command", "blocked"),
    [
        ("scp -t x", True),
        ("  /usr/bin/rsync", True),
        ("'n'c -l 1", True),
        ("sftp", True),
        ("sh -c scp", False),
        ("FOO=1 scp", False),
        ("scp 'unclosed", False),
        ("", False),
        ("scpx", False),
    ],
)
def test_what_counts_as_file_transfer(command: str, blocked: bool) -> None:
    assert is_file_transfer(command) is blocked


# ---- terminals


@pytest.fixture
def terminal() -> Iterator[int]:
    master, slave = os.openpty()
    yield slave
    os.close(master)
    os.close(slave)


def test_modes(terminal: int) -> None:
    apply_modes(terminal, {53: 0, 36: 0, 72: 0, 1: 7, 2: 255, 42: 1, 90: 1, 92: 1, 128: 9600, 129: 38400, 11: 5, 99: 1})
    input_, output, control, local, ispeed, ospeed, characters = termios.tcgetattr(terminal)
    assert not local & termios.ECHO
    assert not input_ & termios.ICRNL
    assert input_ & 0o40000
    assert not output & termios.ONLCR
    assert control & termios.CSIZE == termios.CS8
    assert (characters[termios.VINTR], characters[termios.VQUIT]) == (b"\x07", b"\x00")
    assert ospeed == termios.B38400
    assert ispeed in (termios.B9600, termios.B38400)  # Linux has one speed for both


@given(st.dictionaries(st.integers(1, 159), st.integers(0, 0xFFFFFFFF), max_size=20))
def test_any_modes_can_be_applied(modes: dict[int, int]) -> None:
    master, slave = os.openpty()
    try:
        apply_modes(slave, modes)
    finally:
        os.close(master)
        os.close(slave)


@given(*(st.integers(0, 0xFFFFFFFF),) * 4)
def test_any_window_has_a_size_for_the_kernel(rows: int, columns: int, width: int, height: int) -> None:
    assert len(Window(rows, columns, width, height).packed()) == 8


# ---- X11

EXAMPLE = bytes.fromhex(
    "0100000277730002313000124d49542d4d414749432d434f4f4b49452d310010000102030405060708090a0b0c0d0e0f"
)
COOKIE = bytes(range(16))
entries = st.builds(
    Entry, st.integers(0, 3), st.sampled_from([b"a", b"b"]), st.sampled_from([b"10", b"11"]),
    st.sampled_from([b"p", b"q"]), st.binary(min_size=1, max_size=3),
)  # fmt: skip


def test_an_entry_of_an_authority_file(tmp_path: Path) -> None:
    entry = Entry(0x0100, b"ws", b"10", b"MIT-MAGIC-COOKIE-1", COOKIE)
    assert entry.encode() == EXAMPLE
    assert list(parse_authority(EXAMPLE)) == [entry]
    path = tmp_path / ".Xauthority"
    write_authority(str(path), entry)
    write_authority(str(path), entry)
    assert path.read_bytes() == EXAMPLE
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(EXAMPLE[:-1])
    with pytest.raises(ValueError, match="middle of an entry"):
        write_authority(str(path), entry)
    assert path.read_bytes() == EXAMPLE[:-1]


@given(st.lists(entries, max_size=8), entries)
def test_an_entry_is_there_once(existing: list[Entry], entry: Entry) -> None:
    merged = list(parse_authority(merge_authority(b"".join(part.encode() for part in existing), entry)))
    assert [part for part in merged if part.key == entry.key] == [entry]
    assert [part for part in merged if part.key != entry.key] == [part for part in existing if part.key != entry.key]


@given(st.binary(max_size=60))
def test_any_file_is_read_or_refused(data: bytes) -> None:
    try:
        read = list(parse_authority(data))
    except ValueError:
        return
    assert b"".join(part.encode() for part in read) == data


def test_a_request() -> None:
    request = X11Request.parse(True, b"p", b"00ff", 2)
    assert request == X11Request(True, b"p", b"\x00\xff", 2)
    assert re.search("cookie|ff", repr(request)) is None
    assert X11Request.parse(True, b"p", b"nothex", 2) is None


# ---- JetBrains


def test_the_process_of_a_port(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 100\n"
    (tmp_path / "net/tcp").write_text(head + line)
    assert not serves_jetbrains(8080, tmp_path)
    (tmp_path / "17/fd").mkdir(parents=True)
    (tmp_path / "17/fd/3").symlink_to("socket:[4242]")
    (tmp_path / "17/cmdline").write_bytes(b"java\0-Didea.vendor.name=JetBrains\0")
    assert serves_jetbrains(8080, tmp_path)
    assert not serves_jetbrains(8081, tmp_path)
    assert not serves_jetbrains(8080, tmp_path / "none")


async def test_a_port_is_looked_at_once_in_a_while(clock: ManualClock) -> None:
    looked: list[int] = []

    def look(port: int) -> bool:
        looked.append(port)
        return port == 1

    looks = PortLooks(clock, look)
    assert [await looks.look(port) for port in (1, 2, 1, 2)] == [True, False, True, False]
    assert looked == [1, 2]
    await clock.advance(6)
    assert await looks.look(1)
    assert looked == [1, 2, 1]
