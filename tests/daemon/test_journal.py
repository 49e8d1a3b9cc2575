"""The journal survives a kill at any byte, a damaged file, and a disk that does not write."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent.daemon import journal as module
from agent.daemon.journal import Journal, JournalState, Record, encode, machine_start, replay
from agent.daemon.lifecycle import State, Transition

SCRIPT = UUID(int=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


async def reopened(path: Path, machine: str = "boot/1") -> tuple[Journal, bool]:
    journal = Journal()
    resumed = await journal.open(path, machine)
    return journal, resumed


async def test_a_killed_process_is_continued(path: Path) -> None:
    journal, resumed = await reopened(path)
    assert not resumed
    journal.enter(State.STARTING, 1_000_000)
    journal.acknowledge(journal.state.lifecycle.pending[0])
    journal.start_script_ended(SCRIPT, "OK")
    journal.start_phase_ended("OK")
    journal.enter(State.READY, 2_000_000)
    journal.timing(b"one")
    journal.timing(b"two")
    journal.timing_reported()
    await journal.flush()  # and then SIGKILL: nothing is closed

    again, resumed = await reopened(path)
    assert resumed
    assert again.state.lifecycle.state is State.READY
    assert again.state.lifecycle.pending == (Transition(State.READY, 2_000),)
    assert again.state.results == {SCRIPT: "OK"}
    assert again.state.start_result == "OK"
    assert list(again.state.timings) == [b"two"]
    assert os.stat(path).st_mode & 0o777 == 0o600
    await again.aclose()
    await journal.aclose()


async def test_a_continued_life_says_its_state_once_more(path: Path) -> None:
    """A process that was told to end before it had a manifest has told the server so, and nobody else."""
    journal, _ = await reopened(path)
    journal.enter(State.STARTING, 1_000_000)
    journal.enter(State.READY, 2_000_000)
    for transition in journal.state.lifecycle.pending:
        journal.acknowledge(transition)
    await journal.aclose()

    again, _ = await reopened(path)
    assert again.state.lifecycle.pending == (Transition(State.READY, 2_000),)
    again.acknowledge(again.state.lifecycle.pending[0])
    assert not again.state.lifecycle.pending
    await again.aclose()


async def test_a_reboot_begins_a_new_life_and_keeps_what_is_owed(path: Path) -> None:
    journal, _ = await reopened(path)
    journal.enter(State.STARTING, 1_000_000)
    journal.start_phase_ended("OK")
    journal.timing(b"one")
    await journal.aclose()

    again, resumed = await reopened(path, "boot/2")
    assert not resumed
    assert again.state.lifecycle.state is State.CREATED
    assert again.state.start_result == ""
    assert [item.state for item in again.state.lifecycle.pending] == [State.STARTING]
    assert list(again.state.timings) == [b"one"]
    await again.aclose()


@pytest.mark.parametrize("last", [State.SHUTTING_DOWN, State.OFF])
async def test_a_shutdown_ends_the_life_even_when_it_was_cut_short(path: Path, last: State) -> None:
    journal, _ = await reopened(path)
    journal.enter(State.STARTING, 1)
    journal.enter(last, 2)
    await journal.aclose()
    with capture_logs() as logs:
        again, resumed = await reopened(path)
    assert not resumed
    assert again.state.lifecycle.state is State.CREATED
    assert len(logs) == (1 if last is State.SHUTTING_DOWN else 0)
    assert again.state.life != journal.state.life
    await again.aclose()


async def test_a_large_journal_is_compacted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_ABOVE", 1000)
    journal, _ = await reopened(path)
    for number in range(500):
        journal.timing(b"%d" % number)
        journal.timing_reported()
    journal.timing(b"last")
    await journal.flush()
    assert path.stat().st_size < 2000
    await journal.aclose()
    again, _ = await reopened(path)
    assert list(again.state.timings) == [b"last"]
    await again.aclose()


async def test_another_agent_id_takes_the_state_along(path: Path, tmp_path: Path) -> None:
    journal, _ = await reopened(path)
    journal.enter(State.STARTING, 1)
    journal.start_phase_ended("OK")
    await journal.move(tmp_path / "other")
    journal.enter(State.READY, 2)
    await journal.aclose()
    again, resumed = await reopened(tmp_path / "other")
    assert resumed
    assert again.state.start_result == "OK"
    assert again.state.lifecycle.state is State.READY
    await again.aclose()


async def test_without_a_usable_file_it_goes_on_in_memory_with_one_warning(path: Path) -> None:
    path.mkdir()
    with capture_logs() as logs:
        journal, resumed = await reopened(path)
        assert not resumed
        journal.enter(State.STARTING, 1)
        await journal.flush()
    assert journal.state.lifecycle.state is State.STARTING
    assert len(logs) == 1
    await journal.aclose()


async def test_a_link_in_place_of_the_file_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    path.symlink_to(tmp_path / "victim")
    with capture_logs() as logs:
        journal, _ = await reopened(path)
    assert (tmp_path / "victim").read_text() == "precious"
    assert len(logs) == 1
    await journal.aclose()


async def test_a_full_disk_costs_the_file_not_the_function(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, _ = await reopened(path)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with capture_logs() as logs:
        for state in (State.STARTING, State.READY):
            journal.enter(state, int(state))
        await journal.flush()
        await asyncio.sleep(0)
    assert [item.state for item in journal.state.lifecycle.pending] == [State.STARTING, State.READY]
    assert len([entry for entry in logs if entry["log_level"] == "warning"]) == 1
    monkeypatch.undo()
    await journal.aclose()


def test_machine_start_reads_past_odd_names(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("abc\n")
    (tmp_path / "1").mkdir()
    fields = " ".join(str(number) for number in range(3, 53))
    (tmp_path / "1/stat").write_text(f"1 (in) it) {fields}\n")
    assert machine_start(tmp_path) == "abc/22"
    assert machine_start() == machine_start()


def test_machine_start_where_other_processes_are_hidden(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("abc\n")
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").write_text("")
    assert machine_start(tmp_path) == f"abc/ns{(tmp_path / 'self/ns/pid').stat().st_ino}"


# ---- properties

OPERATIONS: list[Callable[[Journal, int], object]] = [
    lambda journal, n: journal.enter(State(n % 9 + 1), n * 1000),
    lambda journal, n: (
        journal.acknowledge(journal.state.lifecycle.pending[0]) if journal.state.lifecycle.pending else None
    ),
    lambda journal, n: journal.reintroduce(n),
    lambda journal, n: journal.start_script_ended(UUID(int=n), "TIMEOUT"),
    lambda journal, n: journal.start_phase_ended("OK"),
    lambda journal, n: journal.timing(bytes([n % 256]) * (n % 50)),
    lambda journal, n: journal.timing_reported() if journal.state.timings else None,
    lambda journal, n: journal._add({"type": "life", "id": str(n), "machine": "m"}),
    lambda journal, n: journal._add({"type": "continued"}),
]


class Recording(Journal):
    """A journal without a file that keeps the records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []

    def _add(self, record: Record) -> None:
        self.records.append(record)
        super()._add(record)


def played(steps: list[tuple[int, int]]) -> Recording:
    journal = Recording()
    for operation, number in steps:
        OPERATIONS[operation](journal, number)
    return journal


STEPS = st.lists(st.tuples(st.integers(0, len(OPERATIONS) - 1), st.integers(0, 1000)), max_size=30)


@given(STEPS)
def test_a_snapshot_and_the_records_add_up_to_the_same(steps: list[tuple[int, int]]) -> None:
    journal = played(steps)
    replayed, _ = replay(b"".join(map(encode, journal.records)))
    restored, _ = replay(encode({"type": "timing", "timing": ""}) + encode(journal.state.snapshot()))
    assert replayed.snapshot() == journal.state.snapshot() == restored.snapshot()


@given(STEPS, st.data())
def test_a_torn_tail_is_cut_at_a_record(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    records = [encode(record) for record in played(steps).records]
    whole = b"".join(records)
    cut = data.draw(st.integers(0, len(whole)))
    state, good = replay(whole[:cut])
    complete = 0
    while complete < len(records) and sum(map(len, records[: complete + 1])) <= cut:
        complete += 1
    assert good == sum(map(len, records[:complete]))
    assert state.snapshot() == replay(b"".join(records[:complete]))[0].snapshot()


@given(STEPS, st.data())
def test_a_flipped_byte_never_raises(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    whole = bytearray(b"".join(encode(record) for record in played(steps).records))
    if whole:
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    _, good = replay(bytes(whole))
    assert 0 <= good <= len(whole)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_journal(data: bytes) -> None:
    state, good = replay(data)
    assert isinstance(state, JournalState)
    assert good <= len(data)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=10,
    ),
    st.sampled_from(["life", "state", "acknowledged", "result", "started", "timing", "reported", "snapshot", "x"]),
)
def test_a_record_with_a_good_checksum_and_nonsense_inside_ends_the_replay(value: object, kind: str) -> None:
    record = {"type": kind, "id": value, "state": value, "at": value, "script": value, "result": value}
    record |= {
        "timing": value,
        "pending": value,
        "last": value,
        "machine": value,
        "results": value,
        "timings": value,
        "life": value,
        "started": value,
    }
    replay(encode(record) + encode({"type": "timing", "timing": ""}))
