"""Counts each kind of trouble in told events, from the events alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

MEASURED = {"lab", "vital"}
Told = list[dict[str, Any]]


def fact_of(e: dict[str, Any]) -> tuple[str, str, str]:
    """Whose fact, of which kind, with which id; of a retraction those of its target."""
    return e["patient_id"], e.get("target_kind", e["kind"]), e["id"]


def by_fact(rows: Told) -> dict[tuple[str, str, str], Told]:
    groups: dict[tuple[str, str, str], Told] = defaultdict(list)
    for e in rows:
        groups[fact_of(e)].append(e)
    return groups


def content(e: dict[str, Any]) -> str:
    return repr(sorted((name, value) for name, value in e.items() if name != "known_time"))


def late(rows: Told) -> int:
    """Of facts told in one version only; a first version that comes after the second is another kind of trouble."""
    groups = [g for (_, kind, _), g in by_fact(rows).items() if kind in MEASURED and {e["version"] for e in g} == {1}]
    return sum(g[0]["known_time"] - g[0]["event_time"] > timedelta(days=1) for g in groups)


def corrected(rows: Told) -> int:
    """Facts of measurement told in two versions with different content, neither of them a taking back."""
    groups = (
        {e["version"]: (e.get("value"), e["event_time"]) for e in g if e.get("status") not in (None, "entered-in-error")}
        for (_, kind, _), g in by_fact(rows).items()
        if kind in MEASURED
    )
    return sum(len(set(versions.values())) > 1 for versions in groups)


def retracted(rows: Told) -> int:
    """Facts taken back, save those that another patient has too."""
    patients = patients_of(rows)
    back = {fact_of(e) for e in rows if e["kind"] == "retraction" or e["status"] == "entered-in-error"}
    return sum(len(patients[kind, id]) == 1 for _, kind, id in back)


def duplicated(rows: Told) -> int:
    return sum(n - 1 for n in Counter(content(e) for e in rows).values())


def conflicting(rows: Told) -> int:
    contents: dict[Any, set[str]] = defaultdict(set)
    for e in rows:
        contents[*fact_of(e), e["version"]].add(content(e))
    return sum(len(c) > 1 for c in contents.values())


def patients_of(rows: Told) -> dict[tuple[str, str], set[str]]:
    patients: dict[tuple[str, str], set[str]] = defaultdict(set)
    for e in rows:
        patient, kind, id = fact_of(e)
        patients[kind, id].add(patient)
    return patients


def wrong_patient(rows: Told) -> int:
    return sum(len(p) > 1 for p in patients_of(rows).values())


def planned(rows: Told) -> dict[str, Told]:
    """Bookings by visit."""
    groups: dict[str, Told] = defaultdict(list)
    for e in rows:
        if e.get("status") == "planned":
            groups[e["id"]].append(e)
    return groups


def booked(rows: Told) -> int:
    return len(planned(rows))


def rescheduled(rows: Told) -> int:
    """A conflict shifts a start too, but not in another version."""
    return sum(len({e["version"] for e in g if e["patient_id"] == g[-1]["patient_id"]}) > 1 for g in planned(rows).values())


def cancelled(rows: Told) -> int:
    return sum(e.get("status") == "cancelled" for e in rows)


def future_clock(rows: Told) -> int:
    ahead = set(planned(rows))
    return sum(e["event_time"] > e["known_time"] for e in rows if e["id"] not in ahead)


def lower_version_late(rows: Told) -> int:
    """Facts of which a lower version is told for the first time after a higher one."""
    found = 0
    for group in by_fact(rows).values():
        versions = list(dict.fromkeys(e["version"] for e in group))
        found += versions != sorted(versions)
    return found


def starts(rows: Told) -> set[tuple[str, datetime]]:
    """(patient, start) of visits that took place."""
    return {(e["patient_id"], e["event_time"]) for e in rows if e["kind"] == "encounter" and e["status"] == "finished"}


def beside(patient: str, at: datetime, visits: set[tuple[str, datetime]]) -> bool:
    """Whether a visit of the patient starts then, or a microsecond before or after."""
    return any((patient, at + timedelta(microseconds=by)) in visits for by in (-1, 0, 1))


def edges(rows: Told) -> int:
    """Results found at no visit, and exactly 5, 30 or 90 days before one or a microsecond beside it."""
    visits = starts(rows)
    found = {(e["patient_id"], e["id"], e["event_time"]) for e in rows if e["kind"] in MEASURED and e["version"] == 1}
    return sum(
        not beside(patient, at, visits) and any(beside(patient, at + timedelta(days), visits) for days in (5, 30, 90))
        for patient, _, at in found
    )


def second(rows: Told) -> int:
    """Emergency visits at the very start of another visit."""
    others: dict[tuple[str, datetime], set[str]] = defaultdict(set)
    for e in rows:
        if e["kind"] == "encounter" and e["status"] == "finished" and e["encounter_class"] != "emergency":
            others[e["patient_id"], e["event_time"]].add(e["id"])
    emergencies = {(e["patient_id"], e["event_time"], e["id"]) for e in rows if e.get("encounter_class") == "emergency"}
    return sum(bool(others[patient, at] - {id}) for patient, at, id in emergencies)


DETECTORS: dict[str, Callable[[Told], int]] = {
    f.__name__: f
    for f in (
        late, corrected, retracted, duplicated, conflicting, wrong_patient,
        booked, rescheduled, cancelled, future_clock, lower_version_late, edges, second,
    )
}  # fmt: skip
