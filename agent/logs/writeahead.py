"""A script's output on disk before anything else happens to it.

    <directory>/capture/<run id>/stdout.00000000000000000000

A file's number is the position of its first byte in the stream, so that a kill at any moment leaves nothing to repair.
The kernel moves the bytes from the pipe into the file: there is no moment at which they are only in this process.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from agent.logs.disk import Disk

CHUNK = 262_144
FILE_SIZE = 4 * 1024 * 1024
"""Bytes in one file; a file is removed when all of it is in the spool."""


class WriteAhead:
    """One stream of one run. Thread-confined."""

    def __init__(self, directory: Path | None, name: str, disk: Disk, file_size: int = FILE_SIZE) -> None:
        self._directory = directory
        self._name = name
        self._disk = disk
        self._file_size = file_size
        self._files: list[tuple[int, Path]] = []  # position of the first byte
        self._descriptor: int | None = None
        self._size = 0  # of the last file, while it is open
        self._can_splice = hasattr(os, "splice")
        self.end = 0
        """Position after the last byte taken out of the pipe."""

    def resume(self, position: int) -> int:
        """Find what a former process left; everything before `position` is in the spool. The bytes to replay."""
        self.end = position
        if self._directory is None:
            return 0
        try:
            for path in sorted(self._directory.glob(f"{self._name}.*")):
                if path.suffix[1:].isdecimal():
                    start = int(path.suffix[1:])
                    self._files.append((start, path))
                    self.end = max(self.end, start + path.stat().st_size)
        except OSError as error:
            self._disk.failed(error)
        return self.end - position

    def replay(self, position: int) -> Iterator[bytes]:
        """What is there from `position` on, in chunks. A part that is missing is passed over."""
        for start, path in self._files:
            try:
                with path.open("rb") as file:
                    file.seek(max(position - start, 0))
                    while chunk := file.read(CHUNK):
                        yield chunk
            except OSError as error:
                self._disk.damaged(path, error.strerror or str(error))

    def transfer(self, pipe: int) -> bytes | None:
        """What the pipe holds: b"" at its end, None when there is nothing just now. The pipe does not block."""
        try:
            if self._disk.usable and self._directory is not None:
                try:
                    return self._through_file(pipe, self._open_file())
                except BlockingIOError:
                    raise
                except OSError as error:
                    self._disk.failed(error)
            self._close()  # what comes by memory is missing in the file, so the next byte begins a new one
            data = os.read(pipe, CHUNK)
        except BlockingIOError:
            return None
        self.end += len(data)
        return data

    def _through_file(self, pipe: int, file: int) -> bytes:
        """The same by way of the file. `OSError`: the disk refuses, and nothing was taken out of the pipe."""
        if self._can_splice:
            try:
                count = os.splice(pipe, file, CHUNK, offset_dst=self._size, flags=os.SPLICE_F_NONBLOCK)
                data = os.pread(file, count, self._size)
                self._size += count
                self.end += count
                return data
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
                self._can_splice = False  # not with this file system, or not a pipe
        data = os.read(pipe, CHUNK)
        self.end += len(data)
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(file, view, self._size)
                self._size += written
                view = view[written:]
        except OSError as error:
            self._close()
            self._disk.failed(error)
        return data

    def _open_file(self) -> int:
        if self._descriptor is not None and self._size >= self._file_size:
            self._close()
        if self._descriptor is None:
            assert self._directory is not None
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._directory / f"{self._name}.{self.end:020}"
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if not self._files or self._files[-1][1] != path:
                self._files.append((self.end, path))
            self._size = 0
        return self._descriptor

    def removable(self, position: int) -> bool:
        """Is there a file that is not needed once everything before `position` is in the spool?"""
        return len(self._files) > 1 and self._files[1][0] <= position

    def remove_before(self, position: int) -> None:
        """Remove such files."""
        while self.removable(position):
            self._unlink(self._files.pop(0)[1])

    def remove(self) -> None:
        """Remove all files."""
        self._close()
        while self._files:
            self._unlink(self._files.pop(0)[1])

    def close(self) -> None:
        """Leave the files for a later process."""
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _unlink(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._disk.failed(error)
