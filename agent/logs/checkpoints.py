"""How far each run's output has been taken in, as far as a later process must know it.

The newest position of a run stands in the spool, in the record that it belongs to. Before such records are removed, or
when there are none, it is written to a file of the run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from agent.logs.disk import Disk
from agent.logs.records import RunPosition, pack_position, unpack

_KEEP = 30 * 24 * 3600.0  # seconds that the files of a run nobody came back for are kept


class Checkpoints:
    """Positions of runs by run id. Thread-confined."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._positions: dict[UUID, RunPosition] = {}
        self._unwritten: dict[UUID, UUID] = {}  # run -> source

    def directory(self, run_id: UUID) -> Path | None:
        """Where a run's files are; it is made by who writes the first."""
        root = self._root
        return None if root is None else root / str(run_id)

    def get(self, run_id: UUID) -> RunPosition | None:
        return self._positions.get(run_id)

    def load(self, wall_seconds: float) -> None:
        """Read what former processes left, and remove what is too old. What cannot be read is said. `OSError`."""
        for run_id, directory in self._runs():
            try:
                self._load(run_id, directory, wall_seconds)
            except OSError as error:
                self._disk.damaged(directory, error.strerror or str(error))

    def _load(self, run_id: UUID, directory: Path, wall_seconds: float) -> None:
        newest = max(file.stat().st_mtime for file in (directory, *directory.iterdir()))
        if wall_seconds - newest > _KEEP:
            shutil.rmtree(directory)
            return
        try:
            data = (directory / "position").read_bytes()
        except FileNotFoundError:
            data = b""
        position = next((record.position for record, _ in unpack(data)), None)
        self._positions[run_id] = position or RunPosition(run_id)

    def recover(self, position: RunPosition, source_id: UUID) -> None:
        """A position out of the spool of a former process; it counts when the run is known and it is newer."""
        known = self._positions.get(position.run_id)
        if known is not None and _order(position) >= _order(known):
            self.update(position, source_id)

    def update(self, position: RunPosition, source_id: UUID) -> None:
        """The newest position of a run whose lines go to `source_id`."""
        self._positions[position.run_id] = position
        self._unwritten[position.run_id] = source_id

    def rests_on(self, source_id: UUID) -> bool:
        """Is there a run whose newest position stands in the records of this source alone?"""
        return source_id in self._unwritten.values()

    def save_source(self, source_id: UUID) -> None:
        """Records of this source are about to be removed."""
        for run_id in [run for run, source in self._unwritten.items() if source == source_id]:
            self.save(run_id)

    def save(self, run_id: UUID) -> None:
        """Write the position of one run to its file, unless that is done or the disk refuses."""
        directory = self.directory(run_id)
        if run_id not in self._unwritten or directory is None or not self._disk.usable:
            return
        del self._unwritten[run_id]
        temporary = directory / "position.new"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_bytes(pack_position(self._positions[run_id]))
            os.replace(temporary, directory / "position")
        except OSError as error:
            self._disk.failed(error)

    def forget(self, run_id: UUID) -> None:
        """The run is over and all of it is in the spool."""
        self._unwritten.pop(run_id, None)
        directory = self.directory(run_id)
        if self._positions.pop(run_id, None) is not None and directory is not None:
            shutil.rmtree(directory, ignore_errors=True)  # what remains is removed when it is old

    @property
    def _root(self) -> Path | None:
        return None if self._disk.directory is None else self._disk.directory / "capture"

    def _runs(self) -> Iterator[tuple[UUID, Path]]:
        if self._root is None or not self._root.is_dir():
            return
        for directory in sorted(self._root.iterdir()):
            try:
                yield UUID(directory.name), directory
            except ValueError:
                continue  # not ours


def _order(position: RunPosition) -> int:
    return position.stdout.offset + position.stderr.offset
