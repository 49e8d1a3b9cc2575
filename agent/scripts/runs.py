"""What is written down about runs, so that a later agent can take over those of one that was killed.

`<runs>/<run id>/run.json` exists before the script may print anything; `status` next to it is written by the keeper.
Both directories are the owner's alone. All of this is file I/O: call it in a thread.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from agent.process import ProcessId

_PADDING = b"\n" * 128
"""The status file is as long as this from the start, so that a full disk cannot lose the exit status."""


class RunRecord(msgspec.Struct, frozen=True):
    """One run. `started` is wall time in nanoseconds, `timeout` in seconds (0: none), `stage` a `pb.Timing.Stage`.

    `life` is the daemon's life in which it was started. The descriptors are the keeper's: the read ends of the pipes.
    """

    run_id: UUID
    life: str
    script_id: UUID
    source_id: UUID
    stage: int
    started: int
    timeout: float
    log_path: bytes  # it need not be UTF-8
    keeper: ProcessId
    stdout_fd: int
    stderr_fd: int
    wake_fd: int


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What a keeper has reported so far.

    `exit_code` is -1 for a script that a signal ended (daemon.md §4.7) and None while that is not known; `ended` is
    wall time in nanoseconds. `failure` is the step that kept the script from starting, and its errno.
    """

    pid: int | None = None
    failure: tuple[str, int] | None = None
    exit_code: int | None = None
    ended: int = 0

    @classmethod
    def parse(cls, data: bytes) -> RunStatus:
        """From the bytes of a status file (see keeper.py). What is torn or unknown counts as not reported."""
        pid: int | None = None
        failure: tuple[str, int] | None = None
        exit_code: int | None = None
        ended = 0
        for line in data.decode("ascii", "replace").splitlines():
            try:
                match line.split():
                    case ["started", number]:
                        pid = int(number)
                    case ["failed", step, errno]:
                        failure = step, int(errno)
                    case ["ended", how, number, at]:
                        exit_code, ended = int(number) if how == "exit" else -1, int(at)
            except ValueError:
                continue  # as good as not there
        return cls(pid, failure, exit_code, ended)


class RunStore:
    """The directory of runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._complained = False

    def path(self, run_id: UUID) -> Path:
        return self._directory / str(run_id)

    def create(self, run_id: UUID) -> int:
        """Make room for a run; the descriptor of its status file. Raises `OSError`."""
        path = self.path(run_id)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
        try:
            status = os.open(path / "status", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(status, _PADDING)
                os.lseek(status, 0, os.SEEK_SET)
            except OSError:
                os.close(status)
                raise
        except OSError:
            self.remove(run_id)
            raise
        return status

    def write(self, record: RunRecord) -> None:
        """Write the record down, all of it or nothing. Raises `OSError`."""
        path = self.path(record.run_id)
        temporary = path / "run.json.new"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(record))
        os.replace(temporary, path / "run.json")

    def complain(self, error: OSError) -> None:
        """Say, once, that runs cannot be written down; scripts run all the same."""
        if not self._complained:
            self._complained = True
            _logger().warning(
                "runs cannot be written down: an agent that is started after this one was killed will not know them",
                directory=str(self._directory),
                reason=error.strerror,
            )

    def load(self) -> list[RunRecord]:
        """The runs of a former process. One whose script was never started is removed. Raises `OSError`.

        One that cannot be read is told and left out.
        """
        records = []
        try:
            entries = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return []
        for name in entries:
            try:
                run_id = UUID(name)
            except ValueError:
                continue  # not ours
            try:
                record = self._load(run_id)
            except OSError as error:
                _logger().warning(
                    "a run of a former process cannot be read, and its script is not known any more",
                    directory=str(self.path(run_id)),
                    reason=error.strerror,
                )
                continue
            if record is not None:
                records.append(record)
            else:
                self.remove(run_id)
        return records

    def _load(self, run_id: UUID) -> RunRecord | None:
        """None for a run that never began. Raises `OSError`."""
        try:
            record = msgspec.json.decode((self.path(run_id) / "run.json").read_bytes(), type=RunRecord)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        began = record.run_id == run_id and (record.keeper.alive() or self._was_started(run_id))
        return record if began else None

    def _was_started(self, run_id: UUID) -> bool:
        try:
            return RunStatus.parse((self.path(run_id) / "status").read_bytes()).pid is not None
        except FileNotFoundError:
            return False

    def open_status(self, run_id: UUID) -> int:
        """The descriptor of a run's status file. Raises `OSError`."""
        return os.open(self.path(run_id) / "status", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def remove(self, run_id: UUID) -> None:
        """Forget a run; one that cannot be removed is found, and finished, by the next process."""
        shutil.rmtree(self.path(run_id), ignore_errors=True)


def _logger() -> Any:
    import structlog  # slow to import; in the daemon it is there already

    return structlog.get_logger("agent.scripts")
