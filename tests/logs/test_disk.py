"""When the state directory is tried again."""

from __future__ import annotations

import errno
from pathlib import Path

from agent.logs.disk import Disk
from agent.testing import ManualClock
from tests.logs.kit import ListLogger

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_the_wait_doubles_with_every_try_not_with_every_failure(tmp_path: Path, clock: ManualClock) -> None:
    logger = ListLogger()
    disk = Disk(tmp_path, clock.now, logger)
    for wait in (30.0, 60.0, 120.0):
        for _ in range(5):  # as acknowledgements do that arrive meanwhile
            disk.failed(FULL)
        assert not disk.usable
        clock._now += wait
        assert disk.usable
    assert len(logger.warnings) == 1
    disk.worked()
    assert len(logger.infos) == 1
