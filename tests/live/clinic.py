"""An invented clinic of this very moment: its past until now, visits that begin now, and visits booked for soon."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from features import clinic
from tests.live.system import Event

PATIENTS = 30
TOLERANCE = timedelta(minutes=5)
"""A visit is due so long before it begins (S7)."""


def now() -> datetime:
    return datetime.now(UTC)


def past(*, seed: int = 8) -> list[Event]:
    """Half a year that ends now, in the order in which it was told."""
    return list(clinic.events(patients=PATIENTS, start=now() - timedelta(days=180), end=now(), seed=seed))


def visits(numbers: Sequence[int]) -> Iterator[Event]:
    """Visits that began some minutes ago."""
    return (_visit(n, "in-progress", now() - timedelta(minutes=n % PATIENTS)) for n in numbers)


def bookings(numbers: Sequence[int], due_in_s: float) -> Iterator[Event]:
    """Visits that will be due so soon: only time can bring them."""
    return (_visit(n, "planned", now() + TOLERANCE + timedelta(seconds=due_in_s)) for n in numbers)


def _visit(number: int, status: str, begin: datetime) -> Event:
    about: dict[str, Any] = {"id": f"now{number}", "patient_id": f"p{number % PATIENTS:06d}"}
    times = {"event_time": begin.isoformat(), "known_time": now().isoformat()}
    return "encounters", {**about, **times, "status": status, "encounter_class": "ambulatory"}
