"""Local times of a source as instants: one reading of hours that a clock change repeats or skips, and of dates without a time.

    repeated autumn hour      00:30  01:30  01:30  02:30      01:30 is the first one
    skipped spring hour       00:30  01:30  03:30  04:30      02:30 moves forward: 03:30
    date without a time       the last second of the local day, whatever the clock did on it

Each of these is named in the answer, so that an importer can count them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from features.clock import SECOND_US, from_us, to_us

REPEATED, SKIPPED, DATE_ONLY = "repeated-hour", "skipped-hour", "date-only"
CACHED_TEXTS = 65_536
"""Texts whose reading is kept: the results of one specimen, and of one day, share theirs."""

_SAMPLE = datetime(1987, 11, 23, 16, 48, 59, tzinfo=UTC)
"""Each part is another number, so that a format which loses or swaps one gives another time."""


@dataclass(frozen=True, slots=True)
class Moment:
    """An instant, and what had to be decided about it."""

    time_us: int
    """UTC microseconds since 1970."""
    note: str = ""
    """`REPEATED`, `SKIPPED`, `DATE_ONLY`; empty where the text said it all."""


def zone(name: str) -> ZoneInfo:
    """A time zone of the IANA data base by name.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise ValueError('no such time zone; expected a name of the IANA data base such as "America/Denver"') from None


def at(local: datetime, where: tzinfo) -> Moment:
    """The instant of a local time without a zone.

    Example:
        >>> at(datetime(2026, 11, 1, 1, 30), ZoneInfo("America/Denver"))
        Moment(time_us=1793518200000000, note='repeated-hour')
    """
    first, second = (to_us(local.replace(tzinfo=where, fold=fold)) for fold in (0, 1))
    # In a gap fold=0 counts with the clock as it was before the change, which moves the time forward by what was skipped.
    return Moment(first, "" if first == second else REPEATED if first < second else SKIPPED)


def end_of(day: date, where: tzinfo) -> Moment:
    """The last second of a local day: of a repeated one the second, of a skipped one the last before the gap.

    Example:
        >>> end_of(date(2026, 5, 3), ZoneInfo("UTC")).time_us == to_us(datetime(2026, 5, 3, 23, 59, 59, tzinfo=UTC))
        True
    """
    local = datetime.combine(day, time(23, 59, 59), tzinfo=where)
    before, after = (to_us(local.replace(fold=fold)) for fold in (0, 1))
    if before <= after:
        return Moment(after, DATE_ONLY)
    seconds = range(after // SECOND_US, before // SECOND_US + 1)  # the clock was put forward somewhere in here
    ended = bisect_left(seconds, True, key=lambda second: from_us(second * SECOND_US).astimezone(where).date() > day)
    return Moment((seconds[ended] - 1) * SECOND_US, DATE_ONLY)


def checked_format(text: str) -> str:
    """A format of `strptime` that keeps year, month, day and, where it has a clock time, the hour.

    Raises:
        ValueError: with what is wrong and an example.
    """
    try:
        back = datetime.strptime(_SAMPLE.strftime(text), text)  # noqa: DTZ007 (the zone comes from the mapping)
    except ValueError:
        raise ValueError('not a format of strptime; expected such as "%Y-%m-%d %H:%M:%S"') from None
    if back.date() != _SAMPLE.date():
        raise ValueError('the format needs year, month and day, such as "%Y-%m-%d %H:%M:%S"')
    if back.hour not in (0, _SAMPLE.hour):
        raise ValueError('%I is a 12-hour clock: add %p, as in "%m/%d/%Y %I:%M %p", or write %H')
    return text


def has_clock(text: str) -> bool:
    """Whether a checked format reads a time of day; `%Y-%m-%d 00:00:00` does not, as its midnight is only written."""
    return datetime.strptime(_SAMPLE.strftime(text), text).hour == _SAMPLE.hour  # noqa: DTZ007 (only its hour is looked at)


class LocalTimes:
    """Reads the times of one source.

    Args:
        where: Zone of the texts that do not state one.
        formats: Of `strptime`, checked; the first that fits a text reads it. `%z` reads a zone that stands in the text.

    Example:
        >>> LocalTimes(ZoneInfo("Europe/Berlin"), ["%d.%m.%Y %H:%M"]).read("29.03.2026 02:30")
        Moment(time_us=1774747800000000, note='skipped-hour')
    """

    def __init__(self, where: tzinfo, formats: Sequence[str]) -> None:
        self._where = where
        self._formats = [(text, has_clock(text)) for text in formats]
        self.read = lru_cache(CACHED_TEXTS)(self._read)
        """The instant of a text; None where no format fits."""

    def _read(self, text: str) -> Moment | None:
        for form, clock in self._formats:
            try:
                local = datetime.strptime(text, form)  # noqa: DTZ007 (the zone is put on below)
            except ValueError:
                continue
            if not clock:
                return end_of(local.date(), self._where)
            return at(local, self._where) if local.tzinfo is None else Moment(to_us(local))
        return None
