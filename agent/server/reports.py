"""What an agent reports, checked and turned into plain values (agent-api.md §11). No database, no waiting.

Points in time are microseconds since 1970. A report that cannot be taken raises `ReportRefusedError`; its text is the
answer to the agent, word for word.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from agent.api.proto import agent_pb2 as pb
from agent.server.log_lines import clean
from agent.server.resources import Measurement

MAX_METADATA_VALUE = MAX_METADATA_ERROR = 2048  # bytes (§11.2)
MAX_METADATA_KEYS = 6144  # bytes, all keys of one report

MAX_VERSION, MAX_DIRECTORY, MAX_REASON = 128, 4096, 1024  # characters that are stored
MAX_PROTOCOLS, MAX_PROTOCOL = 64, 64  # how many kinds of connections a report counts, and characters of each name

MAX_DATAPOINTS = 1000  # per push; the agent sends as many as it was told to keep

# The names that the REST API shows (§3.1) per number on the wire.
_LIFECYCLE_NAMES = {state: name.lower() for name, state in pb.Lifecycle.State.items() if state}
_SUBSYSTEM_NAMES = {value: name.lower() for name, value in pb.Startup.Subsystem.items() if value}
_HEALTH_NAMES = {value: name.lower() for name, value in pb.AppHealth.items() if value}
_STAGE_NAMES = {value: name.lower() for name, value in pb.Timing.Stage.items()}
_STATUS_NAMES = {value: name.lower() for name, value in pb.Timing.Status.items()}
_ACTION_NAMES = {value: name.lower() for name, value in pb.Connection.Action.items() if value}
_TYPE_NAMES = {value: name.lower() for name, value in pb.Connection.Type.items() if value}

_YEAR_ONE = -62135596800  # seconds of 0001-01-01, the zero time of the Go agent
_LAST_SECOND = 253402300799  # 9999-12-31T23:59:59


class ReportRefusedError(ValueError):
    """The agent gets this text as the error of its call."""


@dataclass(frozen=True, slots=True)
class StartupReport:
    """§11.5. `subsystems` has no duplicates."""

    version: str
    expanded_directory: str
    subsystems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LifecycleReport:
    """§11.4. `state` is the name that the REST API shows."""

    state: str
    changed_at: int


@dataclass(frozen=True, slots=True)
class MetadataValue:
    """One result, trimmed and within the limits of §11.2."""

    key: str
    value: str
    error: str


@dataclass(frozen=True, slots=True)
class TimingReport:
    """One run of a script, §11.6."""

    script_id: UUID
    start: int
    end: int
    exit_code: int
    stage: str
    status: str


@dataclass(frozen=True, slots=True)
class ConnectionReport:
    """§11.8. `status_code` and `reason` belong to a disconnect; `ip` is None when it was none."""

    id: UUID
    action: str
    type: str
    at: int
    ip: str | None
    status_code: int | None
    reason: str | None


class KnownApp(Protocol):
    """What `parse_app_healths` needs to know of an app."""

    @property
    def slug(self) -> str: ...
    @property
    def healthcheck_url(self) -> str: ...


def parse_startup(startup: pb.Startup | None) -> StartupReport:
    """Raises `ReportRefusedError` unless the version is semantic with a leading `v` (§11.5)."""
    if startup is None:
        raise ReportRefusedError("startup is required")
    if _SEMVER.fullmatch(startup.version) is None:
        raise ReportRefusedError(f"invalid agent semver version {quote(startup.version)}")
    for subsystem in startup.subsystems:
        if subsystem not in _SUBSYSTEM_NAMES:
            raise ReportRefusedError(f"invalid agent subsystem {_enum(pb.Startup.Subsystem.items(), subsystem)}")
    names = dict.fromkeys(_SUBSYSTEM_NAMES[subsystem] for subsystem in startup.subsystems)
    directory = clean(startup.expanded_directory[:MAX_DIRECTORY])
    return StartupReport(startup.version[:MAX_VERSION], directory, tuple(names))


def parse_lifecycle(lifecycle: pb.Lifecycle | None, now: int) -> LifecycleReport:
    """A state without a time, or with the zero time of the Go agent, happened `now`."""
    if lifecycle is None:
        raise ReportRefusedError("lifecycle is required")
    state = _LIFECYCLE_NAMES.get(lifecycle.state)
    if state is None:
        raise ReportRefusedError(f"unknown lifecycle state {_enum(pb.Lifecycle.State.items(), lifecycle.state)}")
    changed_at = _time(lifecycle.changed_at) if lifecycle.HasField("changed_at") else None
    return LifecycleReport(state, changed_at or now)


def parse_metadata(entries: Iterable[pb.Metadata]) -> tuple[list[MetadataValue], str]:
    """The values to store and, when the keys were too long, the error to answer after storing them (§11.2)."""
    values: list[MetadataValue] = []
    length = 0
    for entry in entries:
        length += len(entry.key.encode())
        if length > MAX_METADATA_KEYS:
            return values, f"metadata keys of {length} bytes exceeded {MAX_METADATA_KEYS} bytes"
        if not entry.HasField("result"):
            raise ReportRefusedError(f"metadata {quote(entry.key)} has no result")
        value, error = clean(entry.result.value.strip()), clean(entry.result.error.strip())
        value_size, error_size = len(value.encode()), len(error.encode())
        if error_size > MAX_METADATA_ERROR:
            error = f"error of {error_size} bytes exceeded {MAX_METADATA_ERROR} bytes"
        if value_size > MAX_METADATA_VALUE:
            value = value.encode()[:MAX_METADATA_VALUE].decode(errors="ignore")
            error = f"value of {value_size} bytes exceeded {MAX_METADATA_VALUE} bytes"
        values.append(MetadataValue(clean(entry.key), value, error))
    return values, ""


def parse_app_healths(
    updates: Iterable[pb.BatchUpdateAppHealthRequest.HealthUpdate], apps: Mapping[UUID, KnownApp]
) -> dict[UUID, str]:
    """The health per app; one bad update refuses all of them (§11.3)."""
    healths: dict[UUID, str] = {}
    for update in updates:
        app_id = parse_uuid(update.id, "parse workspace app ID " + quote_bytes(update.id))
        app = apps.get(app_id)
        if app is None:
            raise ReportRefusedError(f'workspace app ID "{app_id}" not found')
        if not app.healthcheck_url:
            raise ReportRefusedError(f'workspace app "{app_id}" ({quote(app.slug)}) does not have healthchecks enabled')
        health = _HEALTH_NAMES.get(update.health)
        if health is None:
            raise ReportRefusedError(f"unknown health status {_enum(pb.AppHealth.items(), update.health)}")
        healths[app_id] = health
    return healths


def parse_timing(timing: pb.Timing | None) -> TimingReport:
    """Order and texts of the checks as §11.6."""
    if timing is None:
        raise ReportRefusedError("script timing is required")
    script_id = parse_uuid(timing.script_id, "script id from bytes")
    start = _time(timing.start) if timing.HasField("start") else None
    if start is None:
        raise ReportRefusedError("script start time is required and cannot be zero")
    end = _time(timing.end) if timing.HasField("end") else None
    if end is None:
        raise ReportRefusedError("script end time is required and cannot be zero")
    if start > end:
        raise ReportRefusedError("script start time cannot be after end time")
    stage, status = _STAGE_NAMES.get(timing.stage), _STATUS_NAMES.get(timing.status)
    if stage is None or status is None:
        unknown = f"stage {timing.stage}" if stage is None else f"status {timing.status}"
        raise ReportRefusedError(f"insert workspace agent script timings into database: unknown {unknown}")
    return TimingReport(script_id, start, end, timing.exit_code, stage, status)


def parse_measurements(datapoints: Iterable[pb.PushResourcesMonitoringUsageRequest.Datapoint]) -> list[Measurement]:
    """At most `MAX_DATAPOINTS` are taken; one without a time cannot be placed (§11.7)."""
    measurements = []
    for datapoint in datapoints:
        at = _time(datapoint.collected_at) if datapoint.HasField("collected_at") else None
        if at is None:
            raise ReportRefusedError("datapoint collection time is required and cannot be zero")
        usage = {volume.volume: (volume.used, volume.total) for volume in datapoint.volumes if volume.volume}
        if datapoint.HasField("memory"):
            usage[""] = datapoint.memory.used, datapoint.memory.total
        measurements.append(Measurement(at, usage))
    if len(measurements) > MAX_DATAPOINTS:
        raise ReportRefusedError(f"{len(measurements)} datapoints exceed the maximum of {MAX_DATAPOINTS}")
    return measurements


def parse_stats(stats: pb.Stats) -> dict[str, object]:
    """The columns of a stats report (§8.3); the agent's own metrics are not kept."""
    return {
        "connections_by_proto": {
            clean(name[:MAX_PROTOCOL]): count
            for name, count in islice(stats.connections_by_proto.items(), MAX_PROTOCOLS)
        },
        "connection_count": stats.connection_count,
        # Not a number and infinities have no place in JSON.
        "connection_median_latency_ms": latency
        if math.isfinite(latency := stats.connection_median_latency_ms)
        else -1.0,
        "rx_packets": stats.rx_packets,
        "rx_bytes": stats.rx_bytes,
        "tx_packets": stats.tx_packets,
        "tx_bytes": stats.tx_bytes,
        "session_count_vscode": stats.session_count_vscode,
        "session_count_jetbrains": stats.session_count_jetbrains,
        "session_count_reconnecting_pty": stats.session_count_reconnecting_pty,
        "session_count_ssh": stats.session_count_ssh,
    }


def parse_connection(connection: pb.Connection | None, now: int) -> ConnectionReport:
    """Order and texts of the checks as §11.8."""
    if connection is None:
        raise ReportRefusedError("connection is required")
    identity = parse_uuid(connection.id, "connection id from bytes")
    if identity.int == 0:
        raise ReportRefusedError("connection ID cannot be nil")
    action = _ACTION_NAMES.get(connection.action)
    if action is None:
        raise ReportRefusedError(
            f"unknown agent connection action {_enum(pb.Connection.Action.items(), connection.action)}"
        )
    kind = _TYPE_NAMES.get(connection.type)
    if kind is None:
        raise ReportRefusedError(f"unknown agent connection type {_enum(pb.Connection.Type.items(), connection.type)}")
    try:
        ip: str | None = str(ipaddress.ip_address(connection.ip))
    except ValueError:
        ip = None
    ended = action == "disconnect"
    return ConnectionReport(
        id=identity,
        action=action,
        type=kind,
        at=(_time(connection.timestamp) if connection.HasField("timestamp") else None) or now,
        ip=ip,
        status_code=connection.status_code if ended else None,
        reason=clean(connection.reason[:MAX_REASON]) if ended and connection.HasField("reason") else None,
    )


def parse_uuid(value: bytes, context: str) -> UUID:
    """A UUID out of its 16 bytes; `context` opens the text of the refusal."""
    if len(value) != 16:
        raise ReportRefusedError(f"{context}: invalid UUID (got {len(value)} bytes)")
    return UUID(bytes=value)


def quote(text: str) -> str:
    """As Go's `%q` would show it."""
    return json.dumps(text, ensure_ascii=False)


def quote_bytes(value: bytes) -> str:
    """As Go's `%q` would show bytes that are mostly no text."""
    return '"' + "".join(_quoted_byte(byte) for byte in value[:64]) + '"'


def _quoted_byte(byte: int) -> str:
    if byte in b'"\\':
        return "\\" + chr(byte)
    return chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}"


def _enum(items: Iterable[tuple[str, int]], value: int) -> str:
    return quote(next((name for name, number in items if number == value), str(value)))


def _time(stamp: Timestamp) -> int | None:
    """Microseconds since 1970 (§1.4); None for the zero time and for what is no time at all."""
    if not _YEAR_ONE <= stamp.seconds <= _LAST_SECOND or not 0 <= stamp.nanos < 1_000_000_000:
        return None
    if stamp.seconds == _YEAR_ONE and stamp.nanos == 0:
        return None
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000


_NUMBER = r"(?:0|[1-9][0-9]*)"
_PRE = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_SEMVER = re.compile(
    rf"v{_NUMBER}(?:\.{_NUMBER}(?:\.{_NUMBER}(?:-{_PRE}(?:\.{_PRE})*)?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?)?)?"
)
