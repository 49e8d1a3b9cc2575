"""Findings of checks that need no network; the others are proved against a real server (tests/e2e)."""

from __future__ import annotations

from email.utils import formatdate
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.daemon.config import parse_config
from agent.doctor import Finding, Outcome, machine, relays, server
from agent.doctor.finding import Subject
from agent.doctor.run import _all_guarded
from agent.tailnet.netinfo import NetInfo
from tests.monitor.test_usage import machine as made_up_machine


def subject(path: Path, **environment: str) -> Subject:
    places = {f"CODER_AGENT_{name}_DIR": str(path / name.lower()) for name in ("STATE", "LOG", "SCRIPT_DATA")}
    variables = {"CODER_AGENT_URL": "http://server.example", "CODER_AGENT_TOKEN": "x", "HOME": str(path), **places}
    return Subject(parse_config({}, variables), {**variables, **environment}, SystemClock())


def info(latencies: dict[str, float] | None = None, udp: bool | None = True, varies: bool | None = False) -> NetInfo:
    return NetInfo(
        home=1,
        latencies=latencies if latencies is not None else {"1-v4": 0.012},
        ipv6_socket=False,
        udp4=udp,
        udp6=None,
        mapping_varies=varies,
        seen4="192.0.2.1:5",
        seen6="",
    )


def check(finding: Finding, outcome: Outcome, saw: str) -> None:
    assert finding.outcome is outcome, finding
    assert saw in finding.saw
    assert bool(finding.advice) == (outcome in (Outcome.WARNING, Outcome.FAILED)), finding


def test_a_good_machine(tmp_path: Path) -> None:
    here = subject(tmp_path, TMPDIR=str(tmp_path))
    check(machine.disk(here), Outcome.OK, "free: state")
    check(machine.temporary_directory(here), Outcome.OK, str(tmp_path))
    check(machine.time_zones(), Outcome.OK, "known")
    assert not any(tmp_path.iterdir())


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    check(machine.disk(subject(tmp_path)), Outcome.FAILED, "cannot be written")
    check(machine.temporary_directory(subject(tmp_path, TMPDIR=str(tmp_path / "no"))), Outcome.FAILED, "no")
    check(machine.time_zones(["Mars/Olympus"]), Outcome.WARNING, "Mars/Olympus")


@pytest.mark.parametrize(("available", "outcome"), [(400, Outcome.OK), (50, Outcome.WARNING)])
def test_memory_that_runs_out(tmp_path: Path, available: int, outcome: Outcome) -> None:
    text = f"MemTotal: 1000 kB\nMemAvailable: {available} kB\n"
    check(machine.memory(made_up_machine(tmp_path, {"proc/meminfo": text})), outcome, "this is a host")


@pytest.mark.parametrize(
    ("difference", "outcome", "saw"),
    [
        (0, Outcome.OK, "s from"),
        (-59, Outcome.OK, "s from"),
        (90, Outcome.WARNING, "ahead of"),
        (-3600, Outcome.WARNING, "behind"),
    ],
)
def test_clocks(difference: float, outcome: Outcome, saw: str) -> None:
    check(server.skew(formatdate(1_700_000_000, usegmt=True), 1_700_000_000 + difference), outcome, saw)


@pytest.mark.parametrize("date", ["", "now"])
def test_a_server_without_a_clock(date: str) -> None:
    check(server.skew(date, 0), Outcome.SKIPPED, "does not tell")


def test_relays_and_udp() -> None:
    check(relays.relay(info(), {1: "near"}), Outcome.OK, "near, 12 ms")
    check(relays.relay(info({}), {1: "near"}), Outcome.FAILED, "near")
    check(relays.udp(info()), Outcome.OK, "192.0.2.1")
    check(relays.udp(info(udp=False)), Outcome.WARNING, "no STUN")
    check(relays.udp(info(udp=None)), Outcome.SKIPPED, "names no STUN")
    check(relays.udp(info(varies=True)), Outcome.WARNING, "NAT")


async def test_a_check_that_breaks_is_a_finding() -> None:
    async def broken() -> list[Finding]:
        raise ZeroDivisionError("oh")

    (finding,) = await _all_guarded("odd", broken())
    check(finding, Outcome.FAILED, "ZeroDivisionError: oh")
