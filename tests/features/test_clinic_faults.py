"""The clinic's feeds make each kind of trouble on purpose; here each is counted from the output alone, without its code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from features import event
from features.clinic import Knobs, events
from features.codes import OTHER, codebook
from features.decode import decode
from features.errors import InputError
from tests.features.troubles import DETECTORS, MEASURED, Told, by_fact, patients_of, starts

START, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC)
CARE = {"encounter", "lab", "vital", "medication_order", "medication_administration", "condition"}


def told(patients: int = 200, seed: int = 11, **knobs: float) -> Told:
    """All events in order, times as datetimes, without the feed names."""
    return [
        {**e, **{name: datetime.fromisoformat(e[name]) for name in ("event_time", "known_time")}}
        for _, e in events(patients=patients, start=START, end=END, seed=seed, knobs=Knobs(**knobs))
    ]


@cache
def default() -> Told:
    return told()


def raw(patients: int = 60, seed: int = 3) -> bytes:
    pairs = events(patients=patients, start=START, end=END, seed=seed)
    return b"\n".join(feed.encode() + b" " + msgspec.json.encode(e) for feed, e in pairs)


FEW = {"rescheduled": 30, "cancelled": 200, "second": 30}
"""How many a knob at 1 makes at least, where it is not 300: bookings are a tenth of the visits."""
ASKED_FOR = ("edges", "second")
"""What the defaults do not make."""


def test_every_knob_has_a_detector() -> None:
    """The last two take facts away and patients apart: tests/features/test_clinic.py counts those."""
    assert [*DETECTORS, "missing", "merges"] == list(Knobs.__dataclass_fields__)


@pytest.mark.parametrize("knob", DETECTORS)
def test_a_knob_at_0_removes_its_kind(knob: str) -> None:
    """All other knobs stay as they are: no other kind of trouble may look like this one."""
    assert DETECTORS[knob](told(**{knob: 0})) == 0


@pytest.mark.parametrize("knob", DETECTORS)
def test_a_knob_at_1_makes_plenty(knob: str) -> None:
    most = DETECTORS[knob](told(patients=200, **{knob: 1}))
    assert most >= FEW.get(knob, 300)
    assert most >= 3 * DETECTORS[knob](default())


@pytest.mark.parametrize("knob", [knob for knob in DETECTORS if knob not in ASKED_FOR])
def test_the_defaults_make_each_kind(knob: str) -> None:
    assert DETECTORS[knob](told(patients=600) if knob == "rescheduled" else default()) > 0


@pytest.mark.parametrize("knobs", [Knobs(), Knobs(*[0.0] * 15), Knobs(*[1.0] * 13), Knobs(*[0.3] * 15)], ids=["default", "0", "1", "0.3"])
def test_every_event_keeps_the_contract(knobs: Knobs) -> None:
    """Both decoders take it, its code is in a code set where it must be, and every known time is given and in order."""
    book, before = codebook(), START
    for feed, e in events(patients=30, start=START, end=END, seed=5, knobs=knobs):
        value = msgspec.json.encode(e)
        decoded = decode(feed, value)
        event.FEEDS[feed].model_validate_json(value)
        assert before <= decoded.known_time < END
        before = decoded.known_time
        if feed == "encounters" and decoded.end_time is not None:
            assert decoded.end_time >= decoded.event_time
        if feed in ("labs", "vitals"):
            concept = book.concept(kind=decoded.kind, system=decoded.code_system, code=decoded.code)
            assert concept != OTHER
            if decoded.value is not None:
                book.in_unit(concept, decoded.value, decoded.unit)


def test_without_trouble_every_fact_is_told_once() -> None:
    """Only visits have two versions, the second finished, and observation, which ends when somebody leaves."""
    none: dict[str, Any] = dict.fromkeys(DETECTORS, 0)
    for (_, kind, _), group in by_fact(told(**none)).items():
        assert [1, 2][: len(group)] == [e["version"] for e in group]
        assert kind in ("encounter", "coverage") or len(group) == 1
        if kind == "coverage" and len(group) == 2:
            assert {e["code"] for e in group} == {"observed"} and [e.get("end_time") is None for e in group] == [True, False]
        if kind == "encounter":
            assert ["in-progress", "finished"][: len(group)] == [e["status"] for e in group]


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert raw() == raw()
    assert raw(seed=3) != raw(seed=4)


def test_the_bytes_do_not_depend_on_the_hash_seed() -> None:
    code = f"import hashlib, runpy; print(hashlib.sha256(runpy.run_path({__file__!r})['raw'](20)).hexdigest())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True, text=True
        ).stdout
        for seed in ("0", "4711")
    ]
    assert len(runs[0]) == 65
    assert runs[0] == runs[1]


def test_a_knob_changes_how_care_is_told_and_not_what_happens() -> None:
    def happened(rows: Iterable[dict[str, Any]]) -> set[tuple[Any, ...]]:
        return {(e["id"], e["event_time"], e.get("value")) for e in rows if e["kind"] in CARE and e["version"] == 1}

    plain, late_too = told(patients=20, late=0), told(patients=20, late=0.5, duplicated=0, retracted=0)
    assert len(happened(plain) & happened(late_too)) > 0.8 * len(happened(plain))


def test_facts_lie_on_the_edges_of_windows() -> None:
    """Other facts exactly 0, 5, 30 and 90 days before an encounter of the same patient, and some a microsecond beside it."""
    starts: dict[tuple[str, datetime], set[str]] = defaultdict(set)
    rows = told(patients=400)
    for e in rows:
        if e["kind"] == "encounter" and e["status"] == "finished":
            starts[e["patient_id"], e["event_time"]].add(e["id"])
    for kinds in (MEASURED, {"encounter"}):
        for days in (0, 5, 30, 90):
            moments = [(e["id"], e["patient_id"], e["event_time"] + timedelta(days=days)) for e in rows if e["kind"] in kinds]
            assert sum(bool(starts.get((patient, at), set()) - {id}) for id, patient, at in moments) >= 5, (kinds, days)
    assert {0, 1, 999_999} == {e["event_time"].microsecond for e in rows}


def test_results_on_edges_lie_on_each_of_them() -> None:
    """Exactly 5, 30 and 90 days before a visit, and a microsecond before and behind; they belong to no episode."""
    rows = told(edges=0.5)
    visits = starts(rows)
    for days in (5, 30, 90):
        for by_us in (-1, 0, 1):
            span = timedelta(days, microseconds=by_us)
            on = [e for e in rows if e["kind"] in MEASURED and (e["patient_id"], e["event_time"] + span) in visits]
            assert sum("episode_id" not in e for e in on) >= 20, span


def test_half_of_the_misfiled_facts_are_taken_back_where_they_were_misfiled() -> None:
    """The right patient gets them later, some from version 2 on."""
    rows = told(patients=60, wrong_patient=1, retracted=0, late=0, duplicated=0, conflicting=0, lower_version_late=0)
    facts = by_fact(rows)
    wrong, first_version = Counter[bool](), Counter[int]()
    for (kind, id), patients in patients_of(rows).items():
        if len(patients) == 2:
            first, then = sorted((facts[patient, kind, id] for patient in patients), key=lambda g: g[0]["known_time"])
            wrong[any(e.get("status", "entered-in-error") == "entered-in-error" for e in first)] += 1
            first_version[then[0]["version"]] += 1
            assert first[0]["version"] == 1
    assert all(0.4 < n / wrong.total() < 0.6 for n in wrong.values())
    assert {1, 2} == set(first_version)


def test_encounters_come_after_other_facts_known_at_the_same_instant() -> None:
    ties = [(a, b) for a, b in pairwise(default()) if a["known_time"] == b["known_time"]]
    assert not any(a["kind"] == "encounter" != b["kind"] for a, b in ties)
    assert sum(a["kind"] != "encounter" == b["kind"] and a["patient_id"] == b["patient_id"] for a, b in ties) >= 5


def test_equal_times_have_ordinals_against_the_order_of_ids() -> None:
    """`last` goes by ordinal before id: some pairs at one instant tell the two apart."""
    groups: dict[Any, Told] = defaultdict(list)
    for e in default():
        if e["kind"] in MEASURED and e["version"] == 1 and "value" in e:
            groups[e["patient_id"], e["code"], e["event_time"]].append(e)
    pairs = [{e["id"]: e for e in g} for g in groups.values() if len({e["ordinal"] for e in g}) == 2]
    last_by_ordinal = [max(p.values(), key=lambda e: (e["ordinal"], e["id"])) for p in pairs]
    last_by_id = [max(p.values(), key=lambda e: e["id"]) for p in pairs]
    assert sum(a["value"] != b["value"] for a, b in zip(last_by_ordinal, last_by_id, strict=True)) >= 5


def test_second_results_are_told_later_where_that_is_asked_for() -> None:
    """Up to three days after the first, be its ordinal the lower or the higher one."""
    groups: dict[Any, Told] = defaultdict(list)
    for e in told(**dict.fromkeys(DETECTORS, 0) | {"second": 1}):
        if e["kind"] in MEASURED:
            groups[e["patient_id"], e["code"], e["event_time"]].append(e)
    pairs = [g for g in groups.values() if {e["ordinal"] for e in g} == {0, 1} and len({e["id"] for e in g}) == 2]
    assert len(pairs) > 100
    assert all(timedelta(0) < b["known_time"] - a["known_time"] <= timedelta(3) for a, b in pairs)
    assert {0, 1} == {a["ordinal"] for a, _ in pairs}


def test_the_variety_that_the_pipeline_must_take() -> None:
    rows = default()
    assert {f"{e['code']} {e['unit']}" for e in rows if "value" in e} == {
        "718-7 g/dL", "4544-3 %", "1751-7 g/dL", "1751-7 g/L", "1975-2 mg/dL", "1975-2 umol/L", "29463-7 kg"
    }  # fmt: skip
    assert {None, "<", ">"} == {e.get("comparator") for e in rows}
    assert {"ambulatory", "emergency", "inpatient"} <= {e["encounter_class"] for e in rows if e["kind"] == "encounter"}
    assert set(event.FEED_OF_KIND) - {"merge"} == {e["kind"] for e in rows}
    assert any(e["kind"] in MEASURED and "value" not in e for e in rows)
    assert any(e["kind"] == "encounter" and e.get("expired") for e in rows)
    months = [g[0]["known_time"] - timedelta(days=30) for g in by_fact(rows).values() if g[0]["kind"] in MEASURED]
    visits = {e["known_time"] for e in rows if e["kind"] == "encounter"}
    assert any(known in visits for known in months)


def test_frailty_shows_in_visits_and_in_laboratory_values() -> None:
    emergencies = Counter(e["patient_id"] for e in default() if e.get("encounter_class") == "emergency" and e["version"] == 1)
    albumin = [(emergencies[e["patient_id"]], e["value"]) for e in default() if e.get("code") == "1751-7" and e.get("unit") == "g/dL"]
    often, seldom = ([value for n, value in albumin if (n >= 2) == many] for many in (True, False))
    assert sum(often) / len(often) < sum(seldom) / len(seldom) - 0.05


def test_wrong_arguments_are_refused_at_once() -> None:
    right: dict[str, Any] = {"patients": 2, "start": START, "end": END, "seed": 0}
    for wrong in ({"patients": 1}, {"seed": -1}, {"end": START + timedelta(days=2)}, {"start": START.replace(tzinfo=None)}):
        with pytest.raises(InputError, match="expected 2 patients or more"):
            events(**right | wrong)
    with pytest.raises(InputError, match="knob late must be a share from 0 to 1, got 2"):
        Knobs(late=2)
