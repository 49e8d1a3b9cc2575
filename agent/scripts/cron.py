"""Cron lines (daemon.md §4.4): seconds first, five or six fields, or a descriptor.

The line is parsed here, strictly; croniter finds the next match of what it means. croniter is given a normal form that
it cannot read otherwise (plain lists, `*` for "all", no time zone), and is imported when the first firing is computed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_YEARS = 5
"""A schedule that matches nothing for so long never fires."""

_DESCRIPTORS = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_DURATION_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")

Offset = Callable[[int], int]
"""Seconds that local time is ahead of UTC at an instant (seconds since 1970 UTC)."""


class CronError(ValueError):
    """A cron line cannot be understood; the text names the field and the mistake."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()  # the names of low, low + 1, …


_FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, tuple(_MONTHS)),
    _Field("day of week", 0, 6, tuple(_WEEKDAYS)),
)


class Schedule:
    """When a script fires: instants are whole seconds since 1970 UTC."""

    def next_after(self, now: int) -> int | None:
        """The first instant strictly after `now`; None when there is none within five years."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Every(Schedule):
    """`@every`: `seconds` after the previous one."""

    seconds: int

    def next_after(self, now: int) -> int | None:
        return now + self.seconds


@dataclass(frozen=True, slots=True)
class Calendar(Schedule):
    """Instants whose local time matches `expression`, a line in croniter's terms."""

    expression: str
    offset: Offset

    def next_after(self, now: int) -> int | None:
        # Time is a row of stretches in which local time runs evenly. Searching one after the other makes local times
        # that are skipped not match, and those that are repeated match twice.
        after = now
        horizon = now + _YEARS * 366 * 86400
        while after < horizon:
            offset = self.offset(after + 1)
            local = _next_local(self.expression, after + offset)
            if local is None:
                return None
            candidate = local - offset
            change = self._offset_change(after + 1, candidate)
            if change is None:
                return candidate
            after = change - 1
        return None

    def _offset_change(self, start: int, end: int) -> int | None:
        """The first instant in (start, end] with another offset than `start` has; changes are days apart."""
        offset = self.offset(start)
        low = start
        while low < end:
            high = min(low + 86400, end)
            if self.offset(high) != offset:
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (middle, high) if self.offset(middle) == offset else (low, middle)
                return high
            low = high
        return None


def parse_schedule(line: str) -> Schedule:
    """What a cron line means. Raises `CronError`. Reads the zone database when the line names a time zone."""
    text = line.strip()
    offset: Offset = _local_offset
    if found := re.match(r"(?:CRON_TZ|TZ)=(\S*)(\s+|$)", text):
        offset = _zone_offset(found[1])
        text = text[found.end() :]
    if text.startswith("@"):
        if text.startswith("@every "):
            return Every(max(int(parse_duration(text.removeprefix("@every ").strip())), 1))
        if text not in _DESCRIPTORS:
            known = " ".join(_DESCRIPTORS)
            raise CronError(f'unknown descriptor "{text}": there are {known} and "@every <duration>"')
        text = _DESCRIPTORS[text]
    fields = text.split()
    if not 5 <= len(fields) <= 6:
        raise CronError(f"expected 5 to 6 fields (seconds first), found {len(fields)}: [{' '.join(fields)}]")
    if len(fields) == 5:
        fields.append("*")
    parsed = [_parse_field(field, value) for field, value in zip(_FIELDS, fields, strict=True)]
    normal = [_normal(field, values) for field, (values, _) in zip(_FIELDS, parsed, strict=True)]
    (_, day_star), (_, weekday_star) = parsed[3], parsed[5]
    if not day_star and not weekday_star and "*" in (normal[3], normal[5]):
        # Either may match, and one of them always does, though it is no star: `1-31`.
        normal[3] = normal[5] = "*"
    return Calendar(" ".join(normal), offset)


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `1h30m` or `1.5s`, as Go writes them. Raises `CronError`."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    parts = _DURATION_PART.findall(digits)
    if digits != "0" and (not parts or "".join(number + unit for number, unit in parts) != digits):
        raise CronError(f'"{text}" is no duration: write it like 90s, 15m or 1h30m')
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if text.startswith("-") and seconds:
        raise CronError(f'the duration "{text}" is negative')
    if seconds > 292 * 365 * 86400:
        raise CronError(f'the duration "{text}" is too long')
    return seconds


def _parse_field(field: _Field, text: str) -> tuple[set[int], bool]:
    """The values that a field allows, and whether it counts as a star."""
    values: set[int] = set()
    star = False
    items = [item for item in text.split(",") if item]
    if not items:
        raise CronError(f'{field.name}: "{text}" names no value')
    for item in items:
        span, slash, step_text = item.partition("/")
        if "/" in step_text:
            raise CronError(f'{field.name}: more than one "/" in "{item}"')
        step = _number(field, step_text, item) if slash else 1
        if step < 1:
            raise CronError(f'{field.name}: the step in "{item}" must be 1 or more')
        if span in ("*", "?"):
            low, high = field.low, field.high
            star = star or step == 1
        else:
            first, dash, last = span.partition("-")
            if "-" in last:
                raise CronError(f'{field.name}: more than one "-" in "{item}"')
            low = _value(field, first, item)
            high = _value(field, last, item) if dash else field.high if slash else low
            if low > high:
                raise CronError(f'{field.name}: "{item}" begins after its end')
        values.update(range(low, high + 1, step))
    return values, star


def _value(field: _Field, text: str, item: str) -> int:
    if text.lower() in field.names:
        return field.names.index(text.lower()) + field.low
    value = _number(field, text, item)
    if not field.low <= value <= field.high:
        raise CronError(f'{field.name}: {value} in "{item}" is not between {field.low} and {field.high}')
    return value


def _number(field: _Field, text: str, item: str) -> int:
    if re.fullmatch("[0-9]{1,9}", text, re.ASCII) is None:
        raise CronError(f'{field.name}: "{text}" in "{item}" is no number' if text else f'{field.name}: "{item}"')
    return int(text)


def _normal(field: _Field, values: set[int]) -> str:
    if len(values) == field.high - field.low + 1:
        return "*"
    return ",".join(map(str, sorted(values)))


def _next_local(expression: str, after: int) -> int | None:
    """The first match strictly after a local time; both are seconds since 1970 on the local clock."""
    from croniter import CroniterBadDateError, croniter  # slow to import, and most agents have no cron script

    search = croniter(expression, float(after), second_at_beginning=True, max_years_between_matches=_YEARS)
    try:
        return int(search.get_next(float))
    except CroniterBadDateError:
        return None


def _local_offset(instant: int) -> int:
    return time.localtime(instant).tm_gmtoff


def _zone_offset(name: str) -> Offset:
    if name == "Local":
        return _local_offset
    import zoneinfo  # few scripts name a time zone

    try:
        zone = zoneinfo.ZoneInfo(name or "UTC")
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise CronError(
            f'unknown time zone "{name}": use a name of the IANA database, such as Europe/Berlin'
        ) from error

    def offset(instant: int) -> int:
        difference = datetime.fromtimestamp(instant, UTC).astimezone(zone).utcoffset()
        assert difference is not None  # it is aware
        return round(difference.total_seconds())

    return offset
