"""What the spool promises: order, nothing lost or doubled, bounds."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.api.proto import agent_pb2 as pb
from agent.logs import SpoolLimits
from agent.logs.records import MAX_LINE, RunPosition, StreamPosition
from agent.logs.spool import Spool
from agent.testing import ManualClock
from tests.logs.kit import A, B, FakeServer, ListLogger, make_spool, send_all

INFO = pb.Log.INFO
_GAP = re.compile(r"\[agent\] (\d+) lines \((\d+) bytes\) are left out here")


def _lines(count: int, start: int = 0) -> list[bytes]:
    return [b"line %06d" % number for number in range(start, start + count)]


def _texts(lines: list[bytes]) -> list[str]:
    return [line.decode() for line in lines]


def _segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("spool/*/*.seg"))


def _damage(path: Path, at: int, change: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(change)] = change
    path.write_bytes(data)


@pytest.mark.spec("agent-api", 31)
@pytest.mark.parametrize("on_disk", [True, False])
def test_sixty_thousand_short_lines_leave_in_two_requests(tmp_path: Path, clock: ManualClock, on_disk: bool) -> None:
    spool = make_spool(tmp_path if on_disk else None, clock)
    spool.append(A, INFO, [b"x"] * 60_000)
    server = FakeServer()
    send_all(spool, A, server)
    assert len(server.requests) == 2
    assert server.lines[A] == ["x"] * 60_000


@pytest.mark.spec("agent-api", 31)
def test_memory_takes_one_line_more_once_the_limit_is_reached(clock: ManualClock) -> None:
    spool = make_spool(None, clock)
    spool.append(A, INFO, [b"a" * 262_144] * 4)
    spool.append(B, INFO, [b"one", b"two"])
    spool.append(B, INFO, [b"three"])
    assert spool.dropped_lines == 2
    server = FakeServer()
    send_all(spool, B, server)
    assert server.lines[B][0] == "one"
    assert _GAP.match(server.lines[B][1])
    send_all(spool, A, server)
    spool.append(B, INFO, [b"four"])
    send_all(spool, B, server)
    assert server.lines[B][2:] == ["four"]
    assert len(server.lines[A]) == 4


def test_empty_lines_do_not_fill_the_memory(clock: ManualClock) -> None:
    spool = make_spool(None, clock, SpoolLimits(memory=1000))
    for _ in range(100):
        spool.append(A, INFO, [b""] * 1000)
    assert spool.dropped_lines > 99_000


@pytest.mark.spec("agent-api", 32)
def test_what_was_not_acknowledged_is_sent_again_in_order(tmp_path: Path, clock: ManualClock) -> None:
    spool = make_spool(tmp_path, clock)
    spool.append(A, INFO, _lines(3))
    first, again = spool.next_batch(A), spool.next_batch(A)
    assert first is not None
    assert again is not None
    assert first.request == again.request
    spool.append(A, INFO, _lines(3, 3))
    server = FakeServer()
    server.take(first.request)
    send_all(spool, A, server)
    assert server.lines[A] == _texts(_lines(6))


def test_lines_survive_a_restart_and_acknowledged_ones_are_not_sent_again(tmp_path: Path, clock: ManualClock) -> None:
    spool = make_spool(tmp_path, clock, SpoolLimits(segment=4000))
    server = FakeServer()
    for start in range(0, 1000, 100):
        spool.append(A, INFO, _lines(100, start))
        if start == 400:
            send_all(spool, A, server)
    assert len(_segments(tmp_path)) == 3  # those of acknowledged lines are gone
    requests = len(server.requests)
    again = make_spool(tmp_path, clock)
    again.append(A, INFO, _lines(10, 1000))
    send_all(again, A, server)
    assert server.lines[A] == _texts(_lines(1010))
    assert server.requests[requests].first_sequence == 501
    again.close()
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_new_process_numbers_under_a_spool_id_of_its_own(tmp_path: Path, clock: ManualClock) -> None:
    spool = make_spool(tmp_path, clock)
    server = FakeServer()
    spool.append(A, INFO, _lines(10))
    [segment] = _segments(tmp_path)
    before = segment.read_bytes()
    spool.append(A, INFO, _lines(10, 10))
    batch = spool.next_batch(A)
    assert batch is not None
    server.take(batch.request)
    segment.write_bytes(before)  # the power went before the second half was on the medium
    again = make_spool(tmp_path, clock)
    again.append(A, INFO, [b"new"] * 5)
    send_all(again, A, server)
    assert server.lines[A] == _texts(_lines(20)) + ["new"] * 5


def test_the_middle_goes_when_there_is_no_room_and_one_line_says_so(tmp_path: Path, clock: ManualClock) -> None:
    limits = SpoolLimits(total=64_000, segment=4000)
    spool = make_spool(tmp_path, clock, limits)
    spool.append(B, INFO, [b"of a quiet source"])
    for start in range(0, 20_000, 50):
        spool.append(A, INFO, _lines(50, start))
        assert sum(path.stat().st_size for path in _segments(tmp_path)) <= limits.total
    dropped = spool.dropped_lines, spool.dropped_bytes
    again = make_spool(tmp_path, clock, limits)  # the gap needs no memory of it
    server = FakeServer()
    send_all(again, A, server)
    send_all(again, B, server)
    assert server.lines[B] == ["of a quiet source"]
    gaps = [(index, match) for index, line in enumerate(server.lines[A]) if (match := _GAP.match(line))]
    assert len(gaps) == 1
    [(index, match)] = gaps
    assert server.levels[A][index] == pb.Log.WARN
    assert (int(match[1]), int(match[2])) == dropped
    assert server.lines[A][:index] == _texts(_lines(index))
    tail = server.lines[A][index + 1 :]
    assert tail == _texts(_lines(len(tail), 20_000 - len(tail)))
    assert index + len(tail) + int(match[1]) == 20_000
    assert 0.5 < index / len(tail) < 2


def test_what_is_being_sent_is_not_taken_away(tmp_path: Path, clock: ManualClock) -> None:
    spool = make_spool(tmp_path, clock, SpoolLimits(total=40_000, segment=4000))
    for start in range(0, 500, 50):
        spool.append(A, INFO, _lines(50, start))
    batch = spool.next_batch(A)
    assert batch is not None
    assert batch.lines == 500
    for start in range(500, 3000, 50):
        spool.append(A, INFO, _lines(50, start))
    server = FakeServer()
    server.take(batch.request)
    spool.acknowledge(batch)
    spool.acknowledge(batch)  # twice is nothing
    send_all(spool, A, server)
    assert server.lines[A][:500] == _texts(_lines(500))
    assert len([line for line in server.lines[A] if _GAP.match(line)]) <= 1


def test_a_bound_smaller_than_one_record_is_kept(tmp_path: Path, clock: ManualClock) -> None:
    spool = make_spool(tmp_path, clock, SpoolLimits(total=1000, segment=500))
    spool.append(A, INFO, _lines(1000))
    assert spool.dropped_lines == 1000
    server = FakeServer()
    send_all(spool, A, server)
    assert len(server.lines[A]) == 1
    assert _GAP.match(server.lines[A][0])


def test_the_longest_line_fits(tmp_path: Path, clock: ManualClock) -> None:
    spool = make_spool(tmp_path, clock)
    spool.append(A, INFO, [b"before", b"x" * MAX_LINE, b"after"])
    server = FakeServer()
    send_all(spool, A, server)
    assert [len(line) for line in server.lines[A]] == [6, MAX_LINE, 5]


def test_a_damaged_segment_is_skipped_with_a_line(tmp_path: Path, clock: ManualClock) -> None:
    spool = make_spool(tmp_path, clock, SpoolLimits(segment=2000))
    for start in range(0, 400, 50):
        spool.append(A, INFO, _lines(50, start))
    segments = _segments(tmp_path)
    _damage(segments[1], 700, b"\xff\xff\xff")
    _damage(segments[2], 0, b"not a segment")
    logger = ListLogger()
    again = make_spool(tmp_path, clock, logger=logger)
    server = FakeServer()
    send_all(again, A, server)
    assert len(logger.warnings) == 2
    [gap] = [match for line in server.lines[A] if (match := _GAP.match(line))]
    assert len(server.lines[A]) + int(gap[1]) - 1 == 400
    assert server.lines[A][-1] == "line 000399"


def test_a_segment_damaged_or_removed_while_it_waits(tmp_path: Path, clock: ManualClock) -> None:
    logger = ListLogger()
    spool = make_spool(tmp_path, clock, SpoolLimits(segment=2000), logger)
    for start in range(0, 400, 50):
        spool.append(A, INFO, _lines(50, start))
    segments = _segments(tmp_path)
    segments[0].unlink()
    _damage(segments[2], 100, b"\xff\xff")
    server = FakeServer()
    send_all(spool, A, server)
    assert len(logger.warnings) == 2
    gaps = [match for line in server.lines[A] if (match := _GAP.match(line))]
    assert len(server.lines[A]) - len(gaps) + sum(int(gap[1]) for gap in gaps) == 400
    assert spool.chain(A).lines == 0


def test_damage_at_the_very_end_is_told(tmp_path: Path, clock: ManualClock) -> None:
    spool = make_spool(tmp_path, clock)
    for start in range(0, 150, 50):
        spool.append(A, INFO, _lines(50, start))
    [segment] = _segments(tmp_path)
    _damage(segment, segment.stat().st_size // 2, b"\xff\xff")
    server = FakeServer()
    send_all(make_spool(tmp_path, clock), A, server)
    assert server.lines[A][:50] == _texts(_lines(50))
    assert server.lines[A][50:] == ["[agent] lines are missing here: the log spool was damaged"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EFBIG])
def test_a_full_disk_is_said_once_and_the_lines_go_on_from_memory(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    logger = ListLogger()
    spool = make_spool(tmp_path, clock, logger=logger)
    spool.append(A, INFO, _lines(10))
    real = os.pwrite
    with monkeypatch.context() as patch:

        def full(descriptor: int, data: bytes, offset: int) -> int:
            if len(data) > 20:
                return real(descriptor, data[:20], offset)
            raise OSError(error, os.strerror(error))

        patch.setattr(os, "pwrite", full)
        assert not spool.append(A, INFO, _lines(10, 10))
        assert not spool.append(A, INFO, _lines(10, 20))
    clock._now += 31.0
    assert spool.append(A, INFO, _lines(10, 30))
    assert len(logger.warnings) == 1
    assert len(logger.infos) == 1
    server = FakeServer()
    send_all(spool, A, server)
    assert server.lines[A] == _texts(_lines(40))
    assert _segments(tmp_path) == []


def test_a_directory_that_cannot_be_made(tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / "file").write_text("")
    logger = ListLogger()
    spool = make_spool(tmp_path / "file", clock, logger=logger)
    spool.append(A, INFO, _lines(10))
    spool.append(A, INFO, _lines(10, 10))
    assert len(logger.warnings) == 1
    server = FakeServer()
    send_all(spool, A, server)
    assert server.lines[A] == _texts(_lines(20))


def test_without_a_directory_nothing_is_said(clock: ManualClock) -> None:
    logger = ListLogger()
    spool = make_spool(None, clock, logger=logger)
    spool.append(A, INFO, _lines(10))
    spool.close()
    assert logger.warnings == []


@pytest.mark.spec("agent-api", 31)
def test_after_the_end_nothing_is_kept(tmp_path: Path, clock: ManualClock) -> None:
    spool = make_spool(tmp_path, clock)
    spool.append(A, INFO, _lines(10))
    spool.end()
    spool.append(A, INFO, _lines(10))
    assert spool.next_batch(A) is None
    assert list((tmp_path / "spool").iterdir()) == []


def test_positions_outlive_the_records(tmp_path: Path, clock: ManualClock) -> None:
    run = UUID(int=7)
    (tmp_path / "capture" / str(run)).mkdir(parents=True)
    spool = make_spool(tmp_path, clock, SpoolLimits(segment=1000))
    server = FakeServer()
    for start in range(0, 500, 100):
        position = RunPosition(run, StreamPosition(start + 100), StreamPosition(0, 3, True), start)
        spool.append(A, INFO, _lines(100, start), position)
        spool._checkpoints.update(position, A)
    send_all(spool, A, server)
    assert len(_segments(tmp_path)) == 1
    shutil.rmtree(tmp_path / "spool" / str(A))
    again = make_spool(tmp_path, clock)
    kept = again._checkpoints.get(run)
    assert kept is not None
    assert kept.stdout.offset >= 400
    assert kept.stderr == StreamPosition(0, 3, True)


class _Crashing:
    """A spool that is killed at any byte, and a server that may have got what was being sent."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = ManualClock()
        self.server = FakeServer()
        self.appended: list[str] = []
        self.limits = SpoolLimits(segment=600)
        self.spool = self.open()

    def open(self) -> Spool:
        return make_spool(self.directory, self.clock, self.limits)

    def append(self, count: int) -> None:
        lines = _lines(count, len(self.appended))
        self.appended += _texts(lines)
        self.spool.append(A, INFO, lines)

    def send(self, acknowledged: bool) -> None:
        batch = self.spool.next_batch(A)
        if batch is not None:
            self.server.take(batch.request)
            if acknowledged:
                self.spool.acknowledge(batch)

    def crash(self, torn: int) -> None:
        """The end of the newest file is missing; the lines there are lost, unless the server has them."""
        newest = _segments(self.directory)[-1:]
        for path in newest:
            os.truncate(path, max(path.stat().st_size - torn, 0))
        with contextlib.suppress(FileNotFoundError):
            if torn % 2:
                (self.directory / "spool" / str(A) / "acked").write_bytes(b"torn")
        self.spool = self.open()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 60)),
            st.tuples(st.just("send"), st.booleans()),
            st.tuples(st.just("crash"), st.integers(0, 300)),
        ),
        max_size=25,
    )
)
def test_crashes_at_any_byte_lose_only_what_was_torn(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        model = _Crashing(Path(directory))
        for name, value in steps:
            getattr(model, name)(value)
        send_all(model.spool, A, model.server)
        got = model.server.lines[A]
        assert got == [line for line in model.appended if line in set(got)]  # in order, none doubled, none made up
        if not any(name == "crash" and value for name, value in steps):
            assert got == model.appended
