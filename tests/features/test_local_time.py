"""Local times on both sides of every change of a clock: as the slow twin, and as worked out by hand."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.clock import from_us, to_us
from features.importers.local_time import DATE_ONLY, REPEATED, SKIPPED, LocalTimes, Moment, at, checked_format, end_of, zone
from tests.oracle import local_time as oracle

ZONES = {
    "America/Denver": 2026,
    "Europe/Berlin": 2026,
    "Europe/Dublin": 2026,  # its winter time is the exception
    "Africa/Casablanca": 2025,  # changes around Ramadan
    "Australia/Lord_Howe": 2026,  # by half an hour
    "America/Sao_Paulo": 2017,  # at midnight: 00:00 → 01:00, 24:00 → 23:00
    "America/St_Johns": 2006,  # at 00:01, back into the day before
    "America/Scoresbysund": 2025,  # 23:00 → 24:00: a day without its last second
    "America/Toronto": 1919,  # 23:30 → 00:30
    "Pacific/Apia": 2011,  # a day that never was
    "Asia/Kathmandu": 1986,  # by a quarter of an hour, once
}
"""Zone → a year in which its clocks were changed."""
CHECKED = settings(max_examples=150, deadline=None, print_blob=True)


def changes(name: str) -> list[datetime]:
    """What the clock showed when it was changed, in that year."""
    where, start = ZoneInfo(name), datetime(ZONES[name], 1, 1, tzinfo=UTC) - timedelta(days=1)
    steps = [start + n * oracle.STEP for n in range(367 * 96)]
    found = [n for n in range(1, len(steps)) if steps[n].astimezone(where).utcoffset() != steps[n - 1].astimezone(where).utcoffset()]
    assert found, name
    return [oracle.wall(steps[n - 1], where) for n in found]


EDGES = [(name, change) for name in ZONES for change in changes(name)]
beside = st.one_of(
    st.sampled_from([n * 900 + more for n in range(-8, 9) for more in (-1, 0, 1)]),
    st.integers(-3 * 86_400, 3 * 86_400),
)
"""Seconds from a change: often on a quarter of an hour, or a second from it."""


@CHECKED
@given(edge=st.sampled_from(EDGES), seconds=beside)
def test_a_local_time_is_read_as_by_the_twin(edge: tuple[str, datetime], seconds: int) -> None:
    local, where = edge[1] + timedelta(seconds=seconds), ZoneInfo(edge[0])
    found, note = at(local, where).time_us, at(local, where).note
    assert (from_us(found), note) == oracle.at(local, where)
    shown = oracle.wall(from_us(found), where)
    assert shown > local if note == SKIPPED else shown == local


@CHECKED
@given(edge=st.sampled_from(EDGES), days=st.integers(-2, 2))
def test_a_date_is_its_last_second_as_by_the_twin(edge: tuple[str, datetime], days: int) -> None:
    day, where = edge[1].date() + timedelta(days=days), ZoneInfo(edge[0])
    found = end_of(day, where)
    assert (from_us(found.time_us), found.note) == (oracle.end_of(day, where), DATE_ONLY)
    assert oracle.wall(from_us(found.time_us + 1_000_000), where).date() > day


BY_HAND = [
    ("America/Denver", "2026-11-01 00:59:59", "2026-11-01T06:59:59", ""),
    ("America/Denver", "2026-11-01 01:00:00", "2026-11-01T07:00:00", REPEATED),
    ("America/Denver", "2026-11-01 01:59:59", "2026-11-01T07:59:59", REPEATED),
    ("America/Denver", "2026-11-01 02:00:00", "2026-11-01T09:00:00", ""),
    ("America/Denver", "2026-03-08 01:59:59", "2026-03-08T08:59:59", ""),
    ("America/Denver", "2026-03-08 02:00:00", "2026-03-08T09:00:00", SKIPPED),
    ("America/Denver", "2026-03-08 02:59:59", "2026-03-08T09:59:59", SKIPPED),
    ("America/Denver", "2026-03-08 03:00:00", "2026-03-08T09:00:00", ""),
    ("America/Denver", "2026-11-01", "2026-11-02T06:59:59", DATE_ONLY),
    ("America/Sao_Paulo", "2017-02-18", "2017-02-19T02:59:59", DATE_ONLY),  # 23:59:59 twice: the second
    ("America/Scoresbysund", "2025-03-29", "2025-03-30T00:59:59", DATE_ONLY),  # ends at 22:59:59
    ("UTC", "1969-12-31", "1969-12-31T23:59:59", DATE_ONLY),
]


@pytest.mark.parametrize(("name", "text", "expected", "note"), BY_HAND)
def test_times_by_hand(name: str, text: str, expected: str, note: str) -> None:
    moment = to_us(datetime.fromisoformat(expected).replace(tzinfo=UTC))
    assert LocalTimes(ZoneInfo(name), ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d"]).read(text) == Moment(moment, note)


def test_a_zone_in_the_text_wins_and_leaves_nothing_to_decide() -> None:
    read = LocalTimes(ZoneInfo("America/Denver"), ["%Y-%m-%dT%H:%M:%S%z"]).read
    for text in ("2026-11-01T01:30:00-07:00", "2026-11-01T08:30:00Z"):
        assert read(text) == Moment(to_us(datetime(2026, 11, 1, 8, 30, tzinfo=UTC)))


def test_midnights_that_are_only_written_can_be_dates() -> None:
    times = LocalTimes(ZoneInfo("UTC"), ["%Y-%m-%d 00:00:00", "%Y-%m-%d %H:%M:%S"])
    assert times.read("2026-05-03 00:00:00") == end_of(date(2026, 5, 3), UTC)
    assert times.read("2026-05-03 00:00:01") == Moment(to_us(datetime(2026, 5, 3, 0, 0, 1, tzinfo=UTC)))


@pytest.mark.parametrize("text", ["", "soon", "2026-02-30 08:00:00", "2026-05-03 24:00:00", "03.05.2026", "2026-05-03 08:00:00 x"])
def test_what_no_format_fits_is_no_time(text: str) -> None:
    assert LocalTimes(ZoneInfo("UTC"), ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d"]).read(text) is None


@pytest.mark.parametrize("text", ["%Y-%m-%d", "%d.%m.%y", "%m/%d/%Y %I:%M %p", "%Y%m%d%H%M%S", "%d-%b-%Y %H:%M", "%Y-%m-%dT%H:%M:%S.%f%z"])
def test_formats_that_keep_a_day_are_good(text: str) -> None:
    assert checked_format(text) == text


@pytest.mark.parametrize("text", ["", "%H:%M", "%Y-%m", "%m/%d/%Y %I:%M", "%Q", "%Y-%m-%d %", "iso"])
def test_formats_that_lose_a_day_or_half_of_it_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"%Y-%m-%d|%I"):
        checked_format(text)


@pytest.mark.parametrize("name", ["", "Denver", "../UTC", "america denver", "/etc/localtime", "Europe"])
def test_a_zone_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="America/Denver"):
        zone(name)
