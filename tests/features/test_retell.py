"""Retelling: what a log holds, told again as events, is the same log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from features import codes, decode, event, fact, merge
from features.clock import TIME_MAX_US, TIME_MIN_US, rfc3339
from features.errors import InputError, Rejected
from features.importers.build import build_log
from features.log import Log
from features.retell import is_told, retell
from tests.logs import KINDS, events
from tests.strategies import BOOK, CHECKED, T_US

STAMPS = ("given", "append")


def converted(feed: str, told: dict[str, Any], stamp: str) -> tuple[str, bytes]:
    """An event as (patient, value of `facts`)."""
    decoded = decode.decode(feed, msgspec.json.encode(told))
    return fact.key_of(decoded), fact.convert(decoded, feed=feed, told=7, stamp=stamp, book=BOOK)[1]


def assert_told_again(feed: str, told: dict[str, Any], stamp: str) -> None:
    """Event → fact → event → fact: the facts are the same bytes under the same patient, and a second telling says the same again."""
    patient, value = converted(feed, told, stamp)
    assert is_told(value)
    again = retell(patient, value)
    assert again[0] == feed
    assert converted(*again, stamp) == (patient, value)
    assert event.validate(feed, msgspec.json.encode(again[1])), "it keeps the written contract, too"
    assert retell(*converted(*again, stamp)) == again


# --- generated events of every feed ----------------------------------------------------------------------------------------------------

ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)
times_us = st.integers(TIME_MIN_US, TIME_MAX_US - 1) | st.sampled_from([TIME_MIN_US, TIME_MAX_US - 1, T_US, T_US + 1])
texts = {
    "code": st.sampled_from(["718-7", "1751-7", "29463-7", "C50.9", "observed", "female"]) | st.text(min_size=1, max_size=128),
    "code_system": st.sampled_from(["loinc", "icd10cm", "coverage", "sex"]) | st.text(max_size=128),
    "unit": st.sampled_from(["g/dL", "g/L", "kg", ""]) | st.text(max_size=128),
    "facility": st.text(max_size=128),
    "value": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-1000, 1000),
    "expired": st.booleans(),
}
COMMON = {
    "id": ids,
    "patient_id": ids,
    "version": st.integers(1, event.VERSION_MAX),
    "ordinal": st.integers(0, 2**32 - 1),
    "episode_id": st.none() | ids,
}


def _words(feed: str, name: str) -> st.SearchStrategy[Any]:
    """Values of a field: those of the lists of the contract, or free ones."""
    if name in COMMON or name == "from_patient_id":
        return COMMON.get(name, ids)
    if name in texts:
        return st.none() | texts[name] if name == "value" else texts[name]
    said = event.json_schema()[feed]["properties"][name]
    lists = [part.get("enum", [part.get("const")]) for part in said.get("anyOf", [said])]
    return st.sampled_from([word for words in lists for word in words])


@st.composite
def told_events(draw: st.DrawFn, feed: str) -> dict[str, Any]:
    """An event with any of the fields that its contract lets it leave out."""
    fields = event.FEEDS[feed].model_fields
    told: dict[str, Any] = {"event_time": rfc3339(draw(times_us)), "known_time": rfc3339(draw(times_us))}
    for name, field in fields.items():
        if name in told or name in ("kind", "schema_version"):
            continue
        if not field.is_required() and draw(st.booleans()):
            continue
        told[name] = rfc3339(draw(times_us)) if name == "end_time" else draw(_words(feed, name))
    return told


@pytest.mark.parametrize("feed", event.FEEDS)
@CHECKED
@given(data=st.data())
def test_what_was_told_is_told_again(feed: str, data: st.DataObject) -> None:
    """Whatever admission takes, of every feed, with stamps of a history and live."""
    told = data.draw(told_events(feed))
    for stamp in STAMPS:
        try:
            converted(feed, told, stamp)
        except Rejected:
            continue  # a unit or an order of times that is refused: it never stood in a log
        assert_told_again(feed, told, stamp)


@pytest.mark.parametrize("feed", event.FEEDS)
def test_the_generator_reaches_the_log(feed: str) -> None:
    """Every kind of event is generated such that admission takes it, in each status, class, priority and kind of target."""
    required = {n: f for n, f in event.FEEDS[feed].model_fields.items() if f.is_required() or n in ("status", "priority", "comparator")}
    told = {"id": "x", "patient_id": "p", "from_patient_id": "q", "event_time": rfc3339(T_US), "code": "other", "code_system": "local"}
    lists = {n: event.json_schema()[feed]["properties"][n] for n in required if n not in told}
    plain = {n: part["const"] if "const" in part else part["enum"][0] for n, part in lists.items() if "const" in part or "enum" in part}
    told = {n: v for n, v in told.items() if n in event.FEEDS[feed].model_fields} | plain
    assert_told_again(feed, told, "append")
    for name, part in lists.items():
        for words in part.get("anyOf", [part]):
            for word in words.get("enum", []):
                assert_told_again(feed, told | {name: word}, "append")
                assert retell(*converted(feed, told | {name: word}, "append"))[1][name] == word


# --- single rules ----------------------------------------------------------------------------------------------------------------------

VISIT = {"id": "x", "patient_id": "p", "encounter_class": "inpatient"}


@CHECKED
@given(start_us=st.integers(TIME_MIN_US, TIME_MIN_US + 2**53 // 16), short_us=st.integers(0, 9))
@example(start_us=TIME_MIN_US, short_us=0)
@example(start_us=TIME_MIN_US + 1, short_us=0)
def test_an_end_centuries_later_stays_one_that_is_admitted(start_us: int, short_us: int) -> None:
    """Its length is rounded to even microseconds, up or down, and never over the year 2250."""
    told = {**VISIT, "event_time": rfc3339(start_us), "end_time": rfc3339(TIME_MAX_US - 1 - short_us)}
    assert_told_again("encounters", told, "append")


@pytest.mark.parametrize("length_us", [0, 1, 2**53 - 1, 2**53])
def test_an_end_is_told_to_the_microsecond(length_us: int) -> None:
    """Up to 285 years after its start."""
    told = {**VISIT, "event_time": rfc3339(TIME_MIN_US), "end_time": rfc3339(TIME_MIN_US + length_us)}
    again = retell(*converted("encounters", told, "append"))[1]
    assert (again["end_time"], again["event_time"]) == (told["end_time"], told["event_time"])
    assert "end_time" not in retell(*converted("encounters", {**VISIT, "event_time": rfc3339(T_US)}, "append"))[1]


def test_what_nobody_told_is_not_told_again() -> None:
    """A control, the end of a merge and what a merge carries; the facts themselves stand under the first patient."""
    redirect = converted("merges", {"id": "m", "patient_id": "q", "from_patient_id": "p", "event_time": rfc3339(T_US)}, "append")[1]
    visit = converted("encounters", {**VISIT, "event_time": rfc3339(T_US)}, "append")[1]
    carried = merge.carried_value(merge.sent_on(visit[1:65], merge=merge.number(redirect[1:17]), packed=True), b"x")
    for value in (fact.control(name="tick", number=1, stamp_us=T_US, payload={}), merge.end_record(redirect[1:65], "p"), carried):
        assert not is_told(value)
        with pytest.raises(InputError, match="cannot be told again"):
            retell("p", value)
    assert is_told(redirect)
    assert is_told(merge.settled(visit)), "a flag of the way changes nothing"
    assert retell("p", merge.settled(visit)) == retell("p", visit)


# --- whole logs ------------------------------------------------------------------------------------------------------------------------


def merged() -> list[tuple[str, dict[str, Any]]]:
    """Invented patients, of whom one goes over to another in the middle and another comes back."""
    told = events("simulated", patients=6)
    names = sorted({e["patient_id"] for _, e in told})
    merges = [("m1", names[0], names[1], "2025-03-01", 1, "final"), ("m2", names[2], names[3], "2025-03-02", 1, "final")]
    merges.append(("m2", names[2], names[3], "2025-05-02", 2, "entered-in-error"))
    for name, goes, stays, day, version, status in merges:
        when = {"event_time": f"{day}T09:00:00Z", "known_time": f"{day}T09:00:00Z"}
        told.append(("merges", {"id": name, "from_patient_id": goes, "patient_id": stays, "version": version, "status": status, **when}))
    return told


def but_told(log: Log) -> list[tuple[int, str | None, int, bytes]]:
    """The records of a log without the numbers of the feed records."""

    def without(value: bytes) -> bytes:
        if int.from_bytes(value[59:61], "little") >= codes.CONTROL_FLOOR:
            return value
        return fact.join(value[1:65], fact.source_id(value), msgspec.structs.replace(fact.told(value), told=0))

    return [(r.seq, r.patient_id, r.stamp_us, without(r.value)) for r in log.records()]


@pytest.mark.parametrize("kind", [*KINDS, "merged"])
def test_a_log_told_again_is_the_same_log(kind: str, tmp_path: Path) -> None:
    """All events of the clinic, with merges too, and of the samples: every record of the second log is that of the first."""
    build_log(merged() if kind == "merged" else events(kind), tmp_path / "first", book=BOOK, source=kind)
    first = Log(tmp_path / "first", BOOK)
    again = [retell(r.patient_id, r.value) for r in first.records() if r.patient_id is not None and is_told(r.value)]
    assert again
    build_log(again, tmp_path / "second", book=BOOK, source=kind)
    assert but_told(Log(tmp_path / "second", BOOK)) == but_told(first)
    carried = sum(r.patient_id is not None for r in first.records()) - len(again)
    assert (carried > 0) == (kind in ("merged", "clinic"))
