"""Time as an argument: the only file that may ask the machine what time it is."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

import numpy as np
import numpy.typing as npt

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 86_400 * SECOND_US
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME_MIN_US = -2_208_988_800 * SECOND_US
"""1900-01-01T00:00:00Z: earlier times are not admitted."""
TIME_MAX_US = 8_835_955_200 * SECOND_US
"""2250-01-01T00:00:00Z, exclusive: later times are not admitted (Lua numbers are exact to the year 2255)."""
NEVER_US = 2**62
"""Later than every admitted time."""
ALWAYS_US = -NEVER_US
"""Earlier than every admitted time."""


class Clock(Protocol):
    """Where the time comes from."""

    def now_us(self) -> int:
        """UTC microseconds since 1970."""

    def monotonic_s(self) -> float:
        """Seconds that never go back, from an arbitrary start."""


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock moved by hand: tests, the Driver and replays.

    Example:
        >>> clock = ManualClock(start_us=0)
        >>> clock.advance(seconds=90); clock.now_us()
        90000000
    """

    def __init__(self, start_us: int = 0) -> None:
        self._now_us = start_us

    def now_us(self) -> int:
        return self._now_us

    def monotonic_s(self) -> float:
        return self._now_us / SECOND_US

    def advance(self, *, seconds: float) -> None:
        self._now_us += round(seconds * SECOND_US)

    def set_us(self, now_us: int) -> None:
        self._now_us = max(self._now_us, now_us)


def to_us(moment: datetime) -> int:
    """Microseconds since 1970 of an aware datetime, exactly (no float in between).

    Example:
        >>> to_us(datetime(1970, 1, 2, tzinfo=UTC))
        86400000000
    """
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * SECOND_US + since.microseconds


def from_us(time_us: int) -> datetime:
    """The aware UTC datetime of microseconds since 1970."""
    return EPOCH + timedelta(microseconds=time_us)


def rfc3339(time_us: int) -> str:
    """UTC text of a time, microseconds only where there are any.

    Example:
        >>> rfc3339(1_500_000)
        '1970-01-01T00:00:01.500000Z'
        >>> rfc3339(0)
        '1970-01-01T00:00:00Z'
    """
    return from_us(time_us).isoformat().replace("+00:00", "Z")


def rfc3339_many(times_us: npt.NDArray[np.int64]) -> list[str]:
    """`rfc3339` of many times at once.

    Example:
        >>> rfc3339_many(np.array([0, 1_500_000]))
        ['1970-01-01T00:00:00Z', '1970-01-01T00:00:01.500000Z']
    """
    moments = times_us.astype("datetime64[us]")
    texts: list[str] = np.datetime_as_string(moments, unit="us", timezone="UTC").tolist()
    for i in np.flatnonzero(times_us % SECOND_US == 0).tolist():
        texts[i] = texts[i][:19] + "Z"
    return texts
