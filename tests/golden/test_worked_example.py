"""The worked example of the semantics, from feed records to score records: what is issued after which record, to the last number."""

from __future__ import annotations

import struct
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from features import codes, decode, fact, history, usecase
from features.clock import to_us
from tests.oracle import revision as oracle
from tests.strategies import issued

USE_CASE = usecase.load(Path(__file__).with_name("worked_example.toml"), codes.codebook())


def visit(source: str, version: int, start: str) -> dict[str, object]:
    return {"kind": "encounter", "id": source, "version": version, "event_time": start, "encounter_class": "ambulatory"}


def hb(source: str, version: int, drawn: str, value: float | None, status: str = "final") -> dict[str, object]:
    told = {"kind": "lab", "id": source, "version": version, "event_time": drawn, "code": "718-7", "status": status}
    return told if value is None else told | {"value": value, "unit": "g/dL"}


LOG: list[tuple[int, str, dict[str, object]]] = [
    (10, "05-01T08:00:00", hb("L1", 1, "04-30T08:00:00", 13.0)),
    (20, "05-03T09:00:00", visit("E1", 1, "05-03T09:00:00")),
    (30, "05-03T09:00:02", hb("L2", 1, "05-03T07:30:00", 9.8)),
    (40, "05-03T09:00:02", hb("L2", 1, "05-03T07:30:00", 9.8)),
    (41, "05-03T09:00:02", hb("L4", 1, "05-03T09:00:00", 9.0)),
    (50, "05-03T09:05:00", hb("L2", 2, "05-03T07:30:00", 12.9, "corrected")),
    (60, "05-03T09:09:00", hb("L3", 1, "05-02T08:00:00", 9.5)),
    (80, "05-12T09:00:00", visit("E2", 1, "05-12T09:00:00")),
    (90, "05-12T11:00:00", visit("E1", 2, "05-03T08:00:00")),
    (100, "05-20T10:00:00", hb("L3", 2, "05-02T08:00:00", None, "entered-in-error")),
    (110, "06-03T10:00:00", hb("L5", 1, "05-02T08:00:00", 8.0)),
]
"""(ten times k of the example, known time, record). k = 7 activates a model: a control, in no patient's history."""

EXPECTED = [
    (20, "E1", 0, "05-03T09:00:00", (0, 0), 0.10),
    (30, "E1", 1, "05-03T09:00:00", (1, 0), 0.22),
    (50, "E1", 2, "05-03T09:00:00", (0, 0), 0.10),
    (60, "E1", 3, "05-03T09:00:00", (1, 0), 0.22),
    (80, "E2", 0, "05-12T09:00:00", (1, 0), 0.22),
    (90, "E1", 4, "05-03T08:00:00", (1, 0), 0.22),
    (100, "E1", 5, "05-03T08:00:00", (0, 0), 0.10),
]
"""(place, encounter, revision, index time, row, risk); risk = .10 + .12·abn + .05·ED."""


def time_us(text: str) -> int:
    return to_us(datetime.fromisoformat(f"2026-{text}+00:00"))


def patient() -> bytes:
    """The history of the example's patient, built as the reader of `facts` builds it: place and stamp filled in, names attached."""
    parts: list[bytes] = []
    for place, known, record in LOG:
        feed = "encounters" if record["kind"] == "encounter" else "labs"
        sent = record | {"patient_id": "P", "event_time": f"2026-{record['event_time']}Z"}
        event = decode.decode(feed, msgspec.json.encode(sent))
        _, value = fact.convert(event, feed=feed, told=place, stamp="append", book=USE_CASE.book)
        head = fact.heads([value])
        head["place"], head["stamp_us"] = place, time_us(known)
        parts.append(head.tobytes())
        if feed == "encounters":
            parts.append(fact.name_records(fact.source_id(value), place=place))
    return b"".join(parts)


def test_the_worked_example() -> None:
    """Each line of the table is issued at its place, with its revision, index time and row, and nothing beside it."""
    (found,) = issued(history.read([patient()]), USE_CASE)
    lines = [(i.place, i.encounter, i.revision, i.index_us, struct.unpack("<2d", i.row)) for i in sorted(found, key=lambda i: i.place)]
    assert lines == [(place, name, revision, time_us(index), row) for place, name, revision, index, row, _ in EXPECTED]
    assert {i.status for i in found} == {"scored"}
    for *_, (abnormal, ed_visits), risk in EXPECTED:
        assert 0.10 + 0.12 * abnormal + 0.05 * ed_visits == pytest.approx(risk, abs=1e-12)


def test_the_worked_example_by_the_oracle() -> None:
    """The slow twin issues the same."""
    assert oracle.walk(patient(), USE_CASE) == issued(history.read([patient()]), USE_CASE)[0]


def test_the_worked_example_told_line_by_line() -> None:
    """After each line exactly what stands in it is new."""
    h = history.read([patient()])
    places = [place for place, _, _ in LOG]
    for place in range(10, 120, 10):
        (new,) = issued(h, USE_CASE, since=place, until=place + 10)
        assert [(i.encounter, i.revision) for i in new] == [line[1:3] for line in EXPECTED if line[0] // 10 == place // 10]
    assert h.place.tolist() == places
    assert (h.duplicates, h.conflicts) == (1, 0)
