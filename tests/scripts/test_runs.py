"""What is written down about runs."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.process import ProcessId
from agent.scripts.runs import RunRecord, RunStatus, RunStore


def record(keeper: ProcessId) -> RunRecord:
    return RunRecord(
        run_id=uuid4(),
        life="life",
        script_id=uuid4(),
        source_id=uuid4(),
        stage=0,
        started=1,
        timeout=2.5,
        log_path=b"/x/\xff",
        keeper=keeper,
        stdout_fd=3,
        stderr_fd=4,
        wake_fd=5,
    )


def me() -> ProcessId:
    found = ProcessId.of(os.getpid())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", RunStatus()),
        (b"\n" * 128, RunStatus()),
        (b"started 12\n\n\n", RunStatus(pid=12)),
        (b"started 12\nended exit 3 99\n", RunStatus(pid=12, exit_code=3, ended=99)),
        (b"started 12\nended signal 9 99\n", RunStatus(pid=12, exit_code=-1, ended=99)),
        (b"started 12\nended exit", RunStatus(pid=12)),
        (b"failed exec 2\n", RunStatus(failure=("exec", 2))),
        (b"started x\nelse\n\xff", RunStatus()),
    ],
)
def test_status(data: bytes, status: RunStatus) -> None:
    assert RunStatus.parse(data) == status


@given(
    st.binary() | st.lists(st.sampled_from([b"started", b"ended", b"failed", b" ", b"\n", b"1", b"x"])).map(b"".join)
)
def test_any_bytes_are_a_status(data: bytes) -> None:
    RunStatus.parse(data)


def test_round_trip_and_modes(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "a" / "runs")
    it = record(me())
    os.close(store.create(it.run_id))
    store.write(it)
    assert stat.S_IMODE(store.path(it.run_id).stat().st_mode) == 0o700
    assert stat.S_IMODE(store.path(it.run_id).parent.stat().st_mode) == 0o700
    assert {entry.name for entry in store.path(it.run_id).iterdir()} == {"run.json", "status"}
    assert all(stat.S_IMODE(entry.stat().st_mode) == 0o600 for entry in store.path(it.run_id).iterdir())
    assert store.load() == [it]
    store.remove(it.run_id)
    store.remove(it.run_id)
    assert store.load() == []


def test_what_never_started_is_removed(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    gone = ProcessId(os.getpid(), 1)
    unwritten, torn, never, started = (record(gone) for _ in range(4))
    for it in (unwritten, torn, never, started):
        os.close(store.create(it.run_id))
    (store.path(torn.run_id) / "run.json").write_bytes(b'{"run_id": ')
    store.write(never)
    store.write(started)
    (store.path(started.run_id) / "status").write_bytes(b"started 1\n")
    (tmp_path / "not a run").mkdir()
    assert store.load() == [started]
    assert sorted(os.listdir(tmp_path)) == sorted([str(started.run_id), "not a run"])


def test_an_entry_that_cannot_be_read_costs_itself_alone(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    stray, odd = uuid4(), record(me())
    (tmp_path / str(stray)).write_text("a file")
    os.close(store.create(odd.run_id))
    (store.path(odd.run_id) / "run.json").mkdir()
    it = record(me())
    os.close(store.create(it.run_id))
    store.write(it)
    assert store.load() == [it]


def test_no_directory(tmp_path: Path) -> None:
    assert RunStore(tmp_path / "absent").load() == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        RunStore(tmp_path / "file" / "runs").create(uuid4())


def test_complains_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = RunStore(tmp_path)
    store.complain(OSError(28, "No space left on device"))
    store.complain(OSError(28, "No space left on device"))
    assert capsys.readouterr().out.count("No space left on device") == 1
