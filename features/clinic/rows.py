"""Versions of facts as rows of one array, and their events in the form of the contract.

Words stand in a row as numbers, and a number that is 0 means that the event has no such field.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from features import event
from features.clinic.draws import Int
from features.clinic.people import CANCERS, CONDITIONS, COVERS, ETHNICITIES, METASTASES, RACES, SEXES
from features.clock import NEVER_US, rfc3339_many

Rows = npt.NDArray[np.void]
KINDS = ("", *event.KINDS)
KIND = {kind: number for number, kind in enumerate(KINDS)}
LETTERS = "?elwoackrdtm"
"""The first of the ids of each kind."""
STATUSES = ("", "planned", "in-progress", "finished", "final", "amended", "corrected", "cancelled", "entered-in-error")
STATUS = {status: number for number, status in enumerate(STATUSES)}
CLASSES = ("", "ambulatory", "emergency", "inpatient", "observation", "virtual")
PRIORITIES = ("", "emergency", "urgent")
COMPARATORS = ("", "<", ">")
UNITS = ("", "g/dL", "%", "mg/dL", "kg", "g/L", "umol/L")
MEDICATIONS = ("308136", "314076", "197361", "860975", "1049221", "312615")
DOSES = ("1736854", "1734919", "583214", "1657074", "1045456")
CODES: tuple[tuple[str, str], ...] = (
    ("", ""),
    ("birth", "birth"),
    *(("sex", code) for code in SEXES),
    *(("race", code) for code in RACES),
    *(("ethnicity", code) for code in ETHNICITIES),
    *(("coverage", code) for code in ("observed", *COVERS)),
    *(("icd10cm", row[0]) for row in CANCERS),
    *(("icd10cm", code) for code in METASTASES),
    *(("icd10cm", row[0]) for row in CONDITIONS),
    *(("loinc", code) for code in ("718-7", "4544-3", "1751-7", "1975-2", "29463-7")),
    *(("rxnorm", code) for code in (*MEDICATIONS, *DOSES)),
)
CODE = {code: number for number, code in enumerate(CODES)}
FACTS_MAX = 100_000
"""Of one kind and patient."""

ROW = np.dtype(
    [
        ("fact", "i8"),  # which fact this is a version of, from 0
        ("key", "u8"),  # of the chance of this row, of its patient
        ("kind", "u1"),
        ("target", "u1"),  # retraction: kind of what is taken back
        ("patient", "i8"),
        ("second_id", "?"),  # told under the patient's second id
        ("number", "i8"),  # of the fact among those of its kind and patient
        ("owner", "i8"),  # patient whose number is in the id: stays when a fact is filed under another
        ("version", "i8"),
        ("status", "u1"),
        ("event_us", "i8"),
        ("known_us", "i8"),
        ("end_us", "i8"),  # NEVER_US: not given
        ("ordinal", "i8"),
        ("episode", "i8"),  # -1: not given
        ("code", "u1"),
        ("value", "f8"),  # NaN: not given
        ("comparator", "u1"),
        ("unit", "u1"),
        ("encounter_class", "u1"),
        ("priority", "u1"),
        ("expired", "?"),
        ("site", "u2"),
    ]
)


def new(kind: str, patient: Int, *, event_us: Int, known_us: Int, status: str = "final", **columns: Any) -> Rows:
    """First versions of facts, shape (n,); times in µs, other columns by the names of `ROW`."""
    rows = np.zeros(len(patient), ROW)
    rows["kind"], rows["patient"], rows["owner"], rows["version"] = KIND[kind], patient, patient, 1
    rows["event_us"], rows["known_us"], rows["status"] = event_us, known_us, STATUS[status]
    rows["end_us"], rows["episode"], rows["value"] = NEVER_US, -1, np.nan
    for name, column in columns.items():
        rows[name] = column
    return rows


def visit_ids(rows: Rows) -> list[str]:
    """The ids in rows of encounters."""
    return [
        _id(LETTERS[KIND["encounter"]], owner, number)
        for owner, number in zip(rows["owner"].tolist(), rows["number"].tolist(), strict=True)
    ]


def patient_id(number: int, second: bool = False) -> str:
    """The id of a patient, or the second id of one who has two."""
    return f"{'q' if second else 'p'}{number:06d}"


def _id(letter: str, owner: int, number: int) -> str:
    return f"{letter}{owner:06d}{number:05d}"


def told(rows: Rows, *, at_once: int = 20_000) -> Iterator[tuple[str, dict[str, Any]]]:
    """(feed, event in the JSON form of `features.event`) of each row, in their order; some at a time, so that memory stays small."""
    feeds = ("", *(event.FEED_OF_KIND[kind] for kind in KINDS[1:]))
    for begin in range(0, len(rows), at_once):
        some = rows[begin : begin + at_once]
        times = {name: rfc3339_many(some[name].astype(np.int64)) for name in ("event_us", "known_us")}
        ends = [None if us == NEVER_US else us for us in some["end_us"].tolist()]
        end_texts = dict(zip(some["end_us"].tolist(), rfc3339_many(np.where(some["end_us"] == NEVER_US, 0, some["end_us"])), strict=True))
        for row, event_time, known_time, end in zip(some.tolist(), times["event_us"], times["known_us"], ends, strict=True):
            yield feeds[row[2]], _event(row, event_time, known_time, None if end is None else end_texts[end])


def _event(row: tuple[Any, ...], event_time: str, known_time: str, end_time: str | None) -> dict[str, Any]:
    """One row in the order of `ROW`; a field that is not given is left out."""
    (_, _, kind, target, patient, second, number, owner, version, status, _, _, _, ordinal, episode, code) = row[:16]
    (value, comparator, unit, encounter_class, priority, expired, site) = row[16:]
    made: dict[str, Any] = {
        "kind": KINDS[kind],
        "id": _id(LETTERS[target or kind], owner, number),
        "patient_id": patient_id(patient, second),
        "version": version,
        "event_time": event_time,
        "known_time": known_time,
    }
    if status:
        made["status"] = STATUSES[status]
    if code:
        made["code_system"], made["code"] = CODES[code]
    if end_time is not None:
        made["end_time"] = end_time
    if episode >= 0:
        made["episode_id"] = f"s{owner:06d}{episode:06d}"
    if encounter_class:
        made["encounter_class"], made["expired"], made["facility"] = CLASSES[encounter_class], expired, f"site-{site}"
        if priority:
            made["priority"] = PRIORITIES[priority]
    elif unit or KINDS[kind] in ("lab", "vital"):
        made["ordinal"] = ordinal
        if value == value:
            made["value"], made["unit"] = value, UNITS[unit]
        if comparator:
            made["comparator"] = COMPARATORS[comparator]
    elif target:
        made["target_kind"] = KINDS[target]
    elif KINDS[kind] == "merge":
        made["from_patient_id"] = patient_id(patient, True)
    return made
