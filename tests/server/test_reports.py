"""What the server takes from an agent and what it refuses, with the texts of agent-api.md §11."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from agent.api.proto import agent_pb2 as pb
from agent.server import reports
from agent.server.reports import ReportRefusedError
from agent.server.resources import ResourceState, judge, next_state

NOW = 1_767_323_045_678_901
ID = UUID("936f0a74-460e-44d7-a254-0789f5951835")
HALF_PAST = Timestamp(seconds=1730433233, nanos=500_000_999)
YEAR_ONE = Timestamp(seconds=-62135596800)


@pytest.mark.parametrize(
    "version", ["v2.10.1+abc", "v0.0.0-devel+1234567", "v2", "v2.1", "v1.2.3-a.1.b-c", "v1.0.0+001", "v2.21.0"]
)
def test_semantic_versions_are_taken(version: str) -> None:
    assert reports.parse_startup(pb.Startup(version=version)).version == version


@pytest.mark.parametrize("version", ["", "2.10.1", "v", "v01.2.3", "v1.2.3-01", "v1.2-a", "v1.2.3 ", "v1.2.3\n", "vX"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(ReportRefusedError, match=r"^invalid agent semver version "):
        reports.parse_startup(pb.Startup(version=version))


def test_startup_subsystems() -> None:
    kinds = pb.Startup.Subsystem
    report = reports.parse_startup(
        pb.Startup(
            version="v1.0.0", expanded_directory="/home/x", subsystems=[kinds.EXECTRACE, kinds.ENVBOX, kinds.EXECTRACE]
        )
    )
    assert report.subsystems == ("exectrace", "envbox")
    with pytest.raises(ReportRefusedError, match=r'^invalid agent subsystem "SUBSYSTEM_UNSPECIFIED"$'):
        reports.parse_startup(pb.Startup(version="v1.0.0", subsystems=[kinds.SUBSYSTEM_UNSPECIFIED]))


def test_lifecycle() -> None:
    state = pb.Lifecycle.State
    report = reports.parse_lifecycle(pb.Lifecycle(state=state.START_TIMEOUT, changed_at=HALF_PAST), NOW)
    assert report.state == "start_timeout"
    assert report.changed_at == 1_730_433_233_500_000
    for without_time in (pb.Lifecycle(state=state.READY), pb.Lifecycle(state=state.READY, changed_at=YEAR_ONE)):
        assert reports.parse_lifecycle(without_time, NOW).changed_at == NOW
    with pytest.raises(ReportRefusedError, match=r'^unknown lifecycle state "STATE_UNSPECIFIED"$'):
        reports.parse_lifecycle(pb.Lifecycle(), NOW)
    with pytest.raises(ReportRefusedError, match=r'^unknown lifecycle state "77"$'):
        reports.parse_lifecycle(pb.Lifecycle.FromString(b"\x08\x4d"), NOW)
    with pytest.raises(ReportRefusedError, match=r"^lifecycle is required$"):
        reports.parse_lifecycle(None, NOW)


def _metadata(key: str, value: str = "", error: str = "") -> pb.Metadata:
    return pb.Metadata(key=key, result=pb.WorkspaceAgentMetadata.Result(value=value, error=error))


@pytest.mark.spec("agent-api", 34)
def test_metadata_limits() -> None:
    [value], failure = reports.parse_metadata([_metadata("cpu", "x" * 3000)])
    assert (value.value, value.error) == ("x" * 2048, "value of 3000 bytes exceeded 2048 bytes")
    assert failure == ""
    values, failure = reports.parse_metadata([_metadata("a" * 6000), _metadata("b" * 145), _metadata("c")])
    assert [len(value.key) for value in values] == [6000]
    assert failure == "metadata keys of 6145 bytes exceeded 6144 bytes"
    values, failure = reports.parse_metadata([_metadata("a" * 6000), _metadata("b" * 144)])
    assert (len(values), failure) == (2, "")


def test_metadata_text() -> None:
    [value], _ = reports.parse_metadata([_metadata("k", "  1\0 \n", "\te\n")])
    assert (value.value, value.error) == ("1❌", "e")
    [value], _ = reports.parse_metadata([_metadata("k", "é" * 1025, "e" * 2049)])
    assert value.value == "é" * 1024
    [value], _ = reports.parse_metadata([_metadata("k", "1", "e" * 2049)])
    assert value.error == "error of 2049 bytes exceeded 2048 bytes"
    with pytest.raises(ReportRefusedError, match=r'^metadata "k" has no result$'):
        reports.parse_metadata([pb.Metadata(key="k")])


@dataclass
class App:
    slug: str
    healthcheck_url: str


def test_app_health() -> None:
    update = pb.BatchUpdateAppHealthRequest.HealthUpdate
    apps: dict[UUID, reports.KnownApp] = {ID: App("web", "http://x")}
    assert reports.parse_app_healths([update(id=ID.bytes, health=pb.AppHealth.UNHEALTHY)], apps) == {ID: "unhealthy"}
    with pytest.raises(ReportRefusedError, match=r'^parse workspace app ID "a\\x00": invalid UUID \(got 2 bytes\)$'):
        reports.parse_app_healths([update(id=b"a\0", health=pb.AppHealth.HEALTHY)], apps)
    with pytest.raises(ReportRefusedError, match=f'^workspace app ID "{ID}" not found$'):
        reports.parse_app_healths([update(id=ID.bytes, health=pb.AppHealth.HEALTHY)], {})
    with pytest.raises(
        ReportRefusedError, match=rf'^workspace app "{ID}" \("web"\) does not have healthchecks enabled$'
    ):
        reports.parse_app_healths([update(id=ID.bytes, health=pb.AppHealth.HEALTHY)], {ID: App("web", "")})
    with pytest.raises(ReportRefusedError, match=r'^unknown health status "APP_HEALTH_UNSPECIFIED"$'):
        reports.parse_app_healths([update(id=ID.bytes)], apps)


def test_script_timing() -> None:
    timing = pb.Timing(script_id=ID.bytes, start=HALF_PAST, end=HALF_PAST, exit_code=255, status=pb.Timing.TIMED_OUT)
    report = reports.parse_timing(timing)
    assert (report.script_id, report.exit_code, report.stage, report.status) == (ID, 255, "start", "timed_out")

    def refusal(**changes: object) -> str:
        changed = pb.Timing.FromString(timing.SerializeToString())
        for name, value in changes.items():
            changed.ClearField(name)  # type: ignore[arg-type]
            if isinstance(value, Timestamp):
                getattr(changed, name).CopyFrom(value)
            elif value is not None:
                setattr(changed, name, value)
        with pytest.raises(ReportRefusedError) as refused:
            reports.parse_timing(changed)
        return str(refused.value)

    assert refusal(script_id=b"x") == "script id from bytes: invalid UUID (got 1 bytes)"
    assert refusal(start=None) == refusal(start=YEAR_ONE) == "script start time is required and cannot be zero"
    assert refusal(end=None) == "script end time is required and cannot be zero"
    assert refusal(end=Timestamp(seconds=1)) == "script start time cannot be after end time"
    assert refusal(stage=9).endswith("unknown stage 9")
    assert refusal(status=-1).endswith("unknown status -1")
    with pytest.raises(ReportRefusedError, match=r"^script timing is required$"):
        reports.parse_timing(None)


@pytest.mark.spec("agent-api", 37)
def test_connection_reports() -> None:
    kinds = pb.Connection
    connect = pb.Connection(id=ID.bytes, action=kinds.CONNECT, type=kinds.SSH, timestamp=HALF_PAST, status_code=5)
    report = reports.parse_connection(connect, NOW)
    assert (report.action, report.type, report.ip, report.status_code, report.reason) == (
        "connect",
        "ssh",
        None,
        None,
        None,
    )
    end = pb.Connection(id=ID.bytes, action=kinds.DISCONNECT, type=kinds.VSCODE, ip="::1", status_code=5, reason="")
    report = reports.parse_connection(end, NOW)
    assert (report.at, report.ip, report.status_code, report.reason) == (NOW, "::1", 5, "")
    end.reason = "x" * 5000
    assert reports.parse_connection(end, NOW).reason == "x" * 1024
    refused = {
        "connection is required": None,
        "connection id from bytes: invalid UUID (got 0 bytes)": pb.Connection(),
        "connection ID cannot be nil": pb.Connection(id=bytes(16)),
        'unknown agent connection action "ACTION_UNSPECIFIED"': pb.Connection(id=ID.bytes),
        'unknown agent connection type "TYPE_UNSPECIFIED"': pb.Connection(id=ID.bytes, action=kinds.CONNECT),
    }
    for text, connection in refused.items():
        with pytest.raises(ReportRefusedError) as error:
            reports.parse_connection(connection, NOW)
        assert str(error.value) == text


@given(st.binary(max_size=200))
def test_whatever_decodes_is_taken_or_refused(data: bytes) -> None:
    parsers: list[Callable[[], object]] = [
        lambda: reports.parse_startup(pb.Startup.FromString(data)),
        lambda: reports.parse_lifecycle(pb.Lifecycle.FromString(data), NOW),
        lambda: reports.parse_timing(pb.Timing.FromString(data)),
        lambda: reports.parse_connection(pb.Connection.FromString(data), NOW),
        lambda: reports.parse_metadata(pb.BatchUpdateMetadataRequest.FromString(data).metadata),
        lambda: reports.parse_app_healths(pb.BatchUpdateAppHealthRequest.FromString(data).updates, {}),
    ]
    for parse in parsers:
        with contextlib.suppress(DecodeError, ReportRefusedError):
            parse()


@given(st.integers(), st.integers())
def test_any_time_stamp_is_a_time_or_none(seconds: int, nanos: int) -> None:
    stamp = Timestamp(seconds=max(min(seconds, 2**63 - 1), -(2**63)), nanos=max(min(nanos, 2**31 - 1), -(2**31)))
    report = reports.parse_lifecycle(pb.Lifecycle(state=pb.Lifecycle.CREATED, changed_at=stamp), NOW)
    assert -(2**63) < report.changed_at < 2**63


OK, BAD, UNKNOWN = ResourceState.OK, ResourceState.BAD, ResourceState.UNKNOWN


@pytest.mark.parametrize(
    ("used", "total", "threshold", "state"),
    [
        (80, 100, 80, BAD),
        (799, 1000, 80, OK),
        (None, 100, 80, UNKNOWN),
        (1, None, 80, UNKNOWN),
        (1, 0, 80, UNKNOWN),
    ],
)
def test_judging_one_measurement(used: int | None, total: int | None, threshold: int, state: ResourceState) -> None:
    assert judge(used, total, threshold) is state


@pytest.mark.parametrize(
    ("previous", "points", "state"),
    [
        (OK, [], OK),
        (OK, [BAD] * 5 + [OK] * 5, BAD),
        (OK, [BAD, OK, OK, OK, OK, BAD, OK, OK, OK, OK], BAD),
        (OK, [BAD] + [OK] * 9, OK),
        (BAD, [BAD] + [OK] * 9, BAD),
        (BAD, [OK] * 10, OK),
        (BAD, [OK] * 9 + [UNKNOWN], BAD),
        (BAD, [UNKNOWN] * 10, BAD),
    ],
)
def test_conclusion_over_points(previous: ResourceState, points: list[ResourceState], state: ResourceState) -> None:
    assert next_state(previous, points) is state
