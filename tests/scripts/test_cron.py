"""Cron lines: golden cases, and a search second by second as the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import croniter
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.scripts.cron import Calendar, CronError, Every, parse_duration, parse_schedule

_ = croniter  # it is slow to import; the tests find it done

pytestmark = pytest.mark.spec("daemon", 36)


def instant(text: str) -> int:
    """Seconds of an ISO time; UTC where it has no offset."""
    when = datetime.fromisoformat(text)
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())


def firings(line: str, after: str, count: int) -> list[str]:
    schedule = parse_schedule(line)
    now = instant(after)
    found = []
    for _ in range(count):
        upcoming = schedule.next_after(now)
        assert upcoming is not None
        now = upcoming
        found.append(datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    return found


@pytest.mark.parametrize(
    ("line", "after", "expected"),
    [
        ("*/2 * * * * *", "2026-01-01T00:00:00", ["2026-01-01T00:00:02", "2026-01-01T00:00:04"]),
        ("*/5 * * * *", "2026-01-01T00:00:56", ["2026-01-01T00:01:00", "2026-01-01T00:01:05"]),
        ("0 30 9 * * mon-fri", "2026-01-02T09:30:00", ["2026-01-05T09:30:00", "2026-01-06T09:30:00"]),
        (
            "0 0 0 1,15 * 1",  # either day
            "2026-01-01T00:00:00",
            ["2026-01-05T00:00:00", "2026-01-12T00:00:00", "2026-01-15T00:00:00", "2026-01-19T00:00:00"],
        ),
        ("0 0 0 */10 * 1", "2026-01-05T00:00:00", ["2026-01-11T00:00:00", "2026-01-12T00:00:00"]),  # */10 is no star
        ("0 0 0 1-31 * 1", "2026-01-05T00:00:00", ["2026-01-06T00:00:00"]),  # nor is 1-31: every day is "either"
        ("0 0 0 *,5 * 1", "2026-01-05T00:00:00", ["2026-01-12T00:00:00"]),  # but this is one
        ("0 0 0 ? * SUN", "2026-01-01T00:00:00", ["2026-01-04T00:00:00"]),
        ("0 0 0 13 * ?", "2026-01-13T00:00:00", ["2026-02-13T00:00:00"]),
        ("0 0 0 29 feb *", "2026-01-01T00:00:00", ["2028-02-29T00:00:00", "2032-02-29T00:00:00"]),
        ("50/4 59 23 31 12", "2025-12-31T23:59:54", ["2025-12-31T23:59:58", "2026-12-31T23:59:50"]),
        ("0 0 10-20/5,7 * * *", "2026-01-01T00:00:00", [f"2026-01-01T{hour}:00:00" for hour in ("07", 10, 15, 20)]),
        (",0,, 0 0 1 JAN,Jun *", "2026-01-01T00:00:00", ["2026-06-01T00:00:00"]),
        ("CRON_TZ=America/New_York 0 0 9 * * *", "2026-01-01T00:00:00", ["2026-01-01T14:00:00"]),
        ("TZ=Europe/Berlin  @daily", "2026-07-01T00:00:00", ["2026-07-01T22:00:00"]),
        ("TZ= 0 0 9 * * *", "2026-01-01T00:00:00", ["2026-01-01T09:00:00"]),
        # Clocks go forward at 02:00: 02:30 does not exist on that day.
        ("TZ=Europe/Berlin 0 30 2 * * *", "2026-03-28T12:00:00", ["2026-03-30T00:30:00"]),
        # Clocks go back at 03:00: 02:30 is there twice.
        (
            "TZ=Europe/Berlin 0 30 2 * * *",
            "2026-10-24T12:00:00",
            ["2026-10-25T00:30:00", "2026-10-25T01:30:00", "2026-10-26T01:30:00"],
        ),
        ("TZ=Europe/Berlin 0 0 * * * *", "2026-10-25T00:00:00", ["2026-10-25T01:00:00", "2026-10-25T02:00:00"]),
        ("@yearly", "2026-01-01T00:00:00", ["2027-01-01T00:00:00"]),
        ("@weekly", "2026-01-01T00:00:00", ["2026-01-04T00:00:00"]),
        ("@hourly", "2026-01-01T00:30:00", ["2026-01-01T01:00:00"]),
        ("@every 1h30m10s", "2026-01-01T00:00:00", ["2026-01-01T01:30:10", "2026-01-01T03:00:20"]),
    ],
)
def test_golden(line: str, after: str, expected: list[str]) -> None:
    assert firings(line, after, len(expected)) == expected


@pytest.mark.parametrize("line", ["0 0 0 30 2 *", "0 0 0 31 4,6,9,11 *"])
def test_never(line: str) -> None:
    assert parse_schedule(line).next_after(instant("2026-01-01")) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("* * * *", r"expected 5 to 6 fields \(seconds first\), found 4: \[\* \* \* \*\]"),
        ("* * * * * * *", "found 7"),
        ("", "found 0"),
        ("60 * * * * *", "second: 60"),
        ("* 60 * * *", "minute: 60"),
        ("* * 24 * *", "hour: 24"),
        ("* * * 0 *", "day of month: 0"),
        ("* * * * 13", "month: 13"),
        ("* * * * * 7", "day of week: 7"),
        ("1-2-3 * * * *", 'more than one "-"'),
        ("*/2/3 * * * *", 'more than one "/"'),
        ("*/0 * * * *", "must be 1 or more"),
        ("5-3 * * * *", "begins after its end"),
        ("-1 * * * *", "second"),
        ("x * * * *", '"x" in "x" is no number'),
        ("* * * mon *", '"mon" in "mon" is no number'),
        ("1- * * * *", "second"),
        ("*/ * * * *", "second"),
        ("*-5 * * * *", r'"\*" in "\*-5" is no number'),
        (", * * * *", "names no value"),
        ("L * * * *", "no number"),
        ("* * * * * 1#2", "no number"),
        ("٣ * * * *", "no number"),
        ("CRON_TZ=Mars/Base * * * * *", 'unknown time zone "Mars/Base"'),
        ("CRON_TZ=../../etc/passwd * * * * *", "unknown time zone"),
        ("CRON_TZ=America * * * * *", "unknown time zone"),
        ("@reboot", 'unknown descriptor "@reboot"'),
        ("@every soon", '"soon" is no duration'),
        ("@every -1h", "is negative"),
        ("@every 99999999999h", "too long"),
    ],
)
def test_mistakes(line: str, message: str) -> None:
    with pytest.raises(CronError, match=message):
        parse_schedule(line)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("1h30m", 5400),
        ("1.5h", 5400),
        (".5m", 30),
        ("1500ms", 1.5),
        ("0", 0),
        ("+2us", 2e-6),
        ("1µs", 1e-6),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "h", "1 h", "1d", "--1s", ".s", "1h x", "1h1"])
def test_no_durations(text: str) -> None:
    with pytest.raises(CronError):
        parse_duration(text)


def test_every_is_whole_seconds_and_at_least_one() -> None:
    assert parse_schedule("@every 1ms") == Every(1)
    assert parse_schedule("@every 2900ms") == Every(2)


@dataclass(frozen=True)
class Case:
    line: str
    second: int
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    both: bool
    zone: str

    def matches(self, local: datetime) -> bool:
        day, weekday = local.day in self.days, (local.weekday() + 1) % 7 in self.weekdays
        return (
            local.second == self.second
            and local.minute in self.minutes
            and local.hour in self.hours
            and local.month in self.months
            and ((day and weekday) if self.both else (day or weekday))
        )


def fields(low: int, high: int) -> st.SearchStrategy[tuple[str, frozenset[int], bool]]:
    """A field's text, what it allows, whether it is a star."""
    every = frozenset(range(low, high + 1))
    number = st.integers(low, high)
    span = st.tuples(number, number).map(sorted)
    item = st.one_of(
        st.sampled_from(["*", "?"]).map(lambda star: (star, every, True)),
        number.map(lambda value: (str(value), frozenset([value]), False)),
        span.map(lambda ends: (f"{ends[0]}-{ends[1]}", frozenset(range(ends[0], ends[1] + 1)), False)),
        st.tuples(number, st.integers(1, 40)).map(
            lambda it: (f"{it[0]}/{it[1]}", frozenset(range(it[0], high + 1, it[1])), False)
        ),
        st.integers(1, 40).map(lambda step: (f"*/{step}", frozenset(range(low, high + 1, step)), step == 1)),
    )
    return st.lists(item, min_size=1, max_size=3).map(
        lambda items: (
            ",".join(text for text, _, _ in items),
            frozenset().union(*(values for _, values, _ in items)),
            any(star for _, _, star in items),
        )
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    second = draw(st.integers(0, 59))
    zone = draw(st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]))
    bounds = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
    parts = [draw(fields(low, high)) for low, high in bounds]
    minutes, hours, days, months, weekdays = (values for _, values, _ in parts)
    line = f"CRON_TZ={zone} {second} " + " ".join(text for text, _, _ in parts)
    both = parts[2][2] or parts[4][2]
    return Case(line, second, minutes, hours, days, months, weekdays, both, zone)


@settings(deadline=None, max_examples=150)
@given(
    cases(),
    st.one_of(
        st.integers(instant("2024-01-01"), instant("2028-01-01")),
        # near the changes of Berlin, New York and Lord Howe
        st.sampled_from(["2026-03-29T01", "2026-10-25T01", "2026-03-08T07", "2026-11-01T06", "2026-04-04T15"]).flatmap(
            lambda text: st.integers(-90_000, 7200).map(lambda seconds: instant(text + ":00:00") + seconds)
        ),
    ),
)
def test_against_a_search_minute_by_minute(case: Case, now: int) -> None:
    found = parse_schedule(case.line).next_after(now)
    zone = ZoneInfo(case.zone)
    if found is not None:
        assert found > now
        assert case.matches(datetime.fromtimestamp(found, zone))
    end = now + 4 * 86400 if found is None else min(found, now + 4 * 86400)
    candidate = now - now % 60 + case.second
    candidate += 60 if candidate <= now else 0
    while candidate < end:
        assert not case.matches(datetime.fromtimestamp(candidate, zone)), datetime.fromtimestamp(candidate, zone)
        candidate += 60


@settings(deadline=None, max_examples=100)
@given(fields(0, 59), st.integers(instant("2026-01-01"), instant("2026-01-02")))
def test_seconds_against_a_search(field: tuple[str, frozenset[int], bool], now: int) -> None:
    text, seconds, _ = field
    assert parse_schedule(f"CRON_TZ=UTC {text} * * * *").next_after(now) == next(
        instant for instant in range(now + 1, now + 61) if instant % 60 in seconds
    )


@given(st.text(alphabet="0123456789*?/-,@ monsunTZ=every h", max_size=30))
@settings(deadline=None)
def test_any_line_is_a_schedule_or_an_error(line: str) -> None:
    try:
        schedule = parse_schedule(line)
    except CronError:
        return
    upcoming = schedule.next_after(1_750_000_000)
    assert upcoming is None or upcoming > 1_750_000_000


def test_local_zone_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = parse_schedule("0 0 12 * * *")
    assert isinstance(schedule, Calendar)
    now = instant("2026-01-01")
    upcoming = schedule.next_after(now)
    assert upcoming is not None
    assert datetime.fromtimestamp(upcoming).astimezone().hour == 12
    assert timedelta(seconds=upcoming - now) <= timedelta(days=1)
