"""Slow twin of `features.importers.local_time`: walks through real time and looks at the clock on the wall, which is never ambiguous."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo

STEP, SECOND = timedelta(minutes=15), timedelta(seconds=1)
SPAN = timedelta(hours=52)
"""Further than any clock was ever put."""


def wall(instant: datetime, where: tzinfo) -> datetime:
    """What the clock shows."""
    return instant.astimezone(where).replace(tzinfo=None)


def at(local: datetime, where: tzinfo) -> tuple[datetime, str]:
    """The first instant at which the clock shows `local`; where it never does, as if it had not been put forward yet."""
    start = local.replace(tzinfo=UTC) - SPAN
    steps = [start + n * STEP for n in range(2 * SPAN // STEP + 1)]
    gains = {wall(step, where) - step.replace(tzinfo=None) for step in steps}
    shown = sorted(u for gain in gains if wall(u := (local - gain).replace(tzinfo=UTC), where) == local)
    if shown:
        return shown[0], "repeated-hour" if len(shown) > 1 else ""
    before = max(step for step in steps if wall(step, where) < local)
    return before + (local - wall(before, where)), "skipped-hour"


def end_of(day: date, where: tzinfo) -> datetime:
    """The last instant, in whole seconds, at which the clock shows `day` or an earlier one."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC) - SPAN
    last = max(step for step in (start + n * STEP for n in range(2 * SPAN // STEP + 1)) if wall(step, where).date() <= day)
    return max(u for n in range(STEP // SECOND) if wall(u := last + n * SECOND, where).date() <= day)
