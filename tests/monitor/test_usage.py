"""Made-up machines: files under a directory that stands for `/`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.monitor import usage
from agent.monitor.usage import UNLIMITED_V1, Usage, UsageError

MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\nHugePages_Total:  0\n"
HOST = Usage(600 * 1024, 1000 * 1024)


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, "proc/1/cgroup": "0::/\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(limit: str = "max", **more: str) -> dict[str, str]:
    return {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cgroup.controllers": "memory\n",
        "sys/fs/cgroup/cgroup.type": "domain\n",
        "sys/fs/cgroup/memory.current": "5000\n",
        "sys/fs/cgroup/memory.stat": "anon 100\ninactive_file 2000\nfile 1\n",
        "sys/fs/cgroup/memory.max": f"{limit}\n",
        **more,
    }


def v1(limit: int) -> dict[str, str]:
    return {
        "proc/1/cgroup": "5:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000\n",
        "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 2000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{limit}\n",
    }


def test_a_host_counts_what_is_not_available(tmp_path: Path) -> None:
    assert usage.memory(machine(tmp_path, {})) == HOST


def test_a_container_counts_its_own(tmp_path: Path) -> None:
    assert usage.memory(machine(tmp_path, v2("9000"))) == Usage(3000, 9000)


def test_so_does_one_of_the_old_kind(tmp_path: Path) -> None:
    assert usage.memory(machine(tmp_path, v1(9000))) == Usage(3000, 9000)


@pytest.mark.spec("daemon", 42)
@pytest.mark.parametrize("files", [v2(), v1(UNLIMITED_V1)], ids=["v2", "v1"])
def test_without_a_limit_the_total_is_the_hosts(tmp_path: Path, files: dict[str, str]) -> None:
    assert usage.memory(machine(tmp_path, files)) == Usage(3000, HOST.total)


def test_a_limit_above_counts(tmp_path: Path) -> None:
    files = v2()
    del files["sys/fs/cgroup/memory.max"]
    group = "sys/fs/cgroup/a/b"
    files |= {
        "proc/self/cgroup": "0::/a/b\n",
        f"{group}/memory.current": "10",
        f"{group}/memory.stat": "inactive_file 20\n",
        f"{group}/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.max": "777\n",
    }
    assert usage.memory(machine(tmp_path, files)) == Usage(0, 777)


def test_a_group_that_is_not_mounted_here_is_the_mounted_one(tmp_path: Path) -> None:
    files = v2("9000") | {"proc/self/cgroup": "0::/kubepods/../../etc\n"}
    assert usage.memory(machine(tmp_path, files)) == Usage(3000, 9000)


def test_an_odd_container_shows_the_host(tmp_path: Path) -> None:
    assert usage.memory(machine(tmp_path, {"proc/1/cgroup": "1:x:/docker/a\n"})) == HOST


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal: x\nMemAvailable:\n"])
def test_a_host_that_says_nothing_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="meminfo"):
        usage.memory(machine(tmp_path, {"proc/meminfo": text}))


def test_a_missing_path_is_named() -> None:
    with pytest.raises(UsageError, match='"/no/such/path"'):
        usage.disk("/no/such/path")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, False),
        ({"proc/1/cgroup": "0::/system.slice/x\n"}, True),
        ({"proc/1/cgroup": "3:cpu:/lxc/a\n"}, True),
        ({"proc/mounts": "sysboxfs /proc/sys fuse\n"}, True),
        ({"var/run/secrets/kubernetes.io/serviceaccount/token": "x"}, True),
    ],
)
def test_signs_of_a_container(tmp_path: Path, files: dict[str, str], expected: bool) -> None:
    assert usage.is_container(machine(tmp_path, files)) is expected


@given(text=st.text(max_size=200))
def test_whatever_a_file_holds_there_is_usage_or_an_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    files = v2() | dict.fromkeys(("sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.max"), text)
    root = machine(tmp_path_factory.mktemp("root"), files)
    with contextlib.suppress(UsageError):
        usage.container_memory(root)


def test_this_machine_can_be_read() -> None:
    for read in (usage.memory(), usage.disk(os.getcwd())):
        assert read.total is not None
        assert 0 < read.used <= read.total
