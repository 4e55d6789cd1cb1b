"""Tells the CSV export of Synthea (invented patients) as events of our feeds; its times are UTC. Written against Synthea 3.3.

Decisions:

- **One clock.** Synthea says when a thing was, never when it was told: known_time = event_time. What lasts is told at both ends: version 1
  at its start, version 2 with the end at its end. So nothing of the result of a test is late here, as it is in a hospital.
- **Dates** without a time are the last second of their day: conditions, deaths, a cover told by the day. A birth is the first second of
  its day, so that nobody is seen before it.
- **Exactly at the start.** Most observations carry the START of their encounter to the second. They happened at that instant, not before
  it: a window `[t - W, t)` of the encounter that starts at t leaves them out, and counts them at the next one.
- **Ids.** An encounter's is Synthea's. The other tables have none: it is `encounter|code|n`, n counting from 1 those of that encounter and
  code in the order of the file, so that it stays when other patients are exported with them.
- **Order.** The ordinal is the number of the row in its file, from 1: of two facts at one time the later row is the last.
- **Encounters** are of class `CLASSES`, as Synthea's own FHIR export groups them; hospice is care at home there, a nursing facility a stay.
  Each is its own episode, and that of what was found at it. Some start after the death of the patient: they are told as they stand.
- **Observations** of category vital-signs are vitals, all others labs. A text is a result without a number. One without an encounter
  (QALY, DALY, QOLS) is a sum of the simulator's own, some of years to come, and is rejected.
- **Follow-up.** `observed` from the first encounter to the end of the data, which is the greatest START of all encounters, or to the end
  of the day of death if that is earlier. The past of the living is cut (exporter.years_of_history), that of the dead is not.
- **Cover** is told where payer_transitions.csv is there, by the names in payers.csv (`PAYERS`), with the ids `patient|cover|n`.
- **Persons.** Sex, race, ethnicity and birth are true from the birth on, so that the first encounter sees them, and known at the first
  encounter; a patient without any is rejected.
- **Medications** are orders, told at START; that one stopped is not told. Other files (procedures, claims, imaging) are not read.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from features.errors import InputError
from features.importers.source import find, finite

CLASSES = {
    "ambulatory": "ambulatory",
    "outpatient": "ambulatory",
    "urgentcare": "ambulatory",
    "wellness": "ambulatory",
    "emergency": "emergency",
    "inpatient": "inpatient",
    "snf": "inpatient",
    "home": "home",
    "hospice": "home",
    "virtual": "virtual",
}
"""ENCOUNTERCLASS → class of encounter; another word is rejected."""
PAYERS = {"Medicare": ("medicare",), "Medicaid": ("medicaid",), "Dual Eligible": ("medicare", "medicaid"), "NO_INSURANCE": ()}
"""Name of a payer → the covers it stands for; every other name is a commercial one."""
SYSTEMS = {"SNOMED-CT": "snomed", "http://snomed.info/sct": "snomed"}
"""SYSTEM of a condition → ours; another one is told as it stands."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")

Row = dict[str, str]
Told = tuple[str, dict[str, Any]]


def events(src: Path) -> Iterator[Told]:
    """Tell the csv folder of a Synthea export: (feed, event) in JSON form, or ("rejected", {feed, reason}) for a row that is no event.

    Args:
        src: Folder with patients, encounters, observations, conditions, medications and, where there are any, payer_transitions and
            payers, as .csv.gz or .csv.
    Raises:
        InputError: a table or one of its columns is missing, or a file is damaged.
    """
    first: dict[str, str] = {}
    data_end = ""
    for n, row in enumerate(_rows(src, "encounters", "Id START STOP PATIENT ENCOUNTERCLASS"), 1):
        start, patient_id = row["START"], row["PATIENT"]
        if _TIME.fullmatch(start):
            first[patient_id] = min(first.get(patient_id, start), start)
            data_end = max(data_end, start)
        yield from _encounter(row, n)
    for row in _rows(src, "patients", "Id BIRTHDATE DEATHDATE RACE ETHNICITY GENDER"):
        if row["Id"] in first:
            yield from _patient(row, first[row["Id"]], data_end)
        else:
            yield _rejected("persons", "never-seen")
    if find("payer_transitions", src) is not None:
        yield from _covers(src)
    yield from _observations(src)
    yield from _coded(src, "conditions", "START PATIENT ENCOUNTER SYSTEM CODE", "conditions")
    yield from _coded(src, "medications", "START PATIENT ENCOUNTER CODE", "medication-orders")


def _encounter(row: Row, n: int) -> Iterator[Told]:
    kind, start, stop = CLASSES.get(row["ENCOUNTERCLASS"]), row["START"], row["STOP"]
    if kind is None:
        yield _rejected("encounters", "class-unknown")
    elif not _TIME.fullmatch(start) or (stop and not _TIME.fullmatch(stop)):
        yield _rejected("encounters", "bad-time")
    elif stop and stop < start:
        yield _rejected("encounters", "end-before-start")
    else:
        about: dict[str, Any] = {"ordinal": n, "episode_id": row["Id"], "encounter_class": kind}
        yield from _stretch("encounters", row["Id"], row["PATIENT"], start, stop, **about)


def _patient(row: Row, first: str, data_end: str) -> Iterator[Told]:
    """Who it is, until when we looked, and the death; `first` is the start of the first encounter."""
    patient_id = row["Id"]
    sex = {"M": "male", "F": "female"}.get(row["GENDER"], row["GENDER"])
    born = f"{row['BIRTHDATE']}T00:00:00Z" if _DAY.fullmatch(row["BIRTHDATE"]) else ""
    for name, code in (("sex", sex), ("race", row["RACE"]), ("ethnicity", row["ETHNICITY"]), ("birth", "birth" if born else "")):
        if code:
            yield "persons", _event(f"{name}-{patient_id}", patient_id, born or first, first, code_system=name, code=code)
    if row["BIRTHDATE"] and not born:
        yield _rejected("persons", "bad-time")
    died = _moment(row["DEATHDATE"])
    if died:
        yield "deaths", _event(patient_id, patient_id, died)
    elif row["DEATHDATE"]:
        yield _rejected("deaths", "bad-time")
    end = min(data_end, died or data_end)
    if end >= first:  # one whose every encounter is after the death was never followed
        yield from _stretch("coverage", f"observed-{patient_id}", patient_id, first, end, code="observed")


def _covers(src: Path) -> Iterator[Told]:
    seen: Counter[tuple[str, str]] = Counter()
    names = {row["Id"]: row["NAME"] for row in _rows(src, "payers", "Id NAME")}
    for n, row in enumerate(_rows(src, "payer_transitions", "PATIENT START_DATE END_DATE PAYER"), 1):
        start, end = _moment(row["START_DATE"]), _moment(row["END_DATE"])
        name = names.get(row["PAYER"])
        if name is None:
            yield _rejected("coverage", "payer-unknown")
        elif not start or (row["END_DATE"] and not end):
            yield _rejected("coverage", "bad-time")
        elif end and end < start:
            yield _rejected("coverage", "end-before-start")
        elif name in PAYERS and not PAYERS[name]:
            yield _rejected("coverage", "not-insured")
        else:
            for cover in PAYERS.get(name, ("commercial",)):
                source_id = _numbered(seen, row["PATIENT"], cover)
                yield from _stretch("coverage", source_id, row["PATIENT"], start, end, ordinal=n, code=cover)


def _observations(src: Path) -> Iterator[Told]:
    seen: dict[str, Counter[tuple[str, str]]] = {"labs": Counter(), "vitals": Counter()}
    for n, row in enumerate(_rows(src, "observations", "DATE PATIENT ENCOUNTER CATEGORY CODE VALUE UNITS TYPE"), 1):
        feed = "vitals" if row["CATEGORY"] == "vital-signs" else "labs"
        value = finite(row["VALUE"]) if row["TYPE"] == "numeric" else None
        if not row["ENCOUNTER"]:
            yield _rejected(feed, "no-encounter")
        elif not _TIME.fullmatch(row["DATE"]):
            yield _rejected(feed, "bad-time")
        elif value is None and row["TYPE"] == "numeric":
            yield _rejected(feed, "bad-value" if row["VALUE"] else "value-missing")
        else:
            source_id = _numbered(seen[feed], row["ENCOUNTER"], row["CODE"])
            about: dict[str, Any] = {"ordinal": n, "episode_id": row["ENCOUNTER"], "code_system": "loinc", "code": row["CODE"]}
            about |= {"value": value, "unit": row["UNITS"]} if value is not None else {}
            yield feed, _event(source_id, row["PATIENT"], row["DATE"], **about)


def _coded(src: Path, table: str, columns: str, feed: str) -> Iterator[Told]:
    """The rows of conditions or of medications."""
    seen: Counter[tuple[str, str]] = Counter()
    for n, row in enumerate(_rows(src, table, columns), 1):
        moment = _moment(row["START"])
        if not moment:
            yield _rejected(feed, "bad-time")
            continue
        system = SYSTEMS.get(row["SYSTEM"], row["SYSTEM"]) if "SYSTEM" in row else "rxnorm"
        about: dict[str, Any] = {"ordinal": n, "episode_id": row["ENCOUNTER"] or None, "code_system": system, "code": row["CODE"]}
        yield feed, _event(_numbered(seen, row["ENCOUNTER"] or row["PATIENT"], row["CODE"]), row["PATIENT"], moment, **about)


def _numbered(seen: Counter[tuple[str, str]], whose: str, code: str) -> str:
    """The id of a row without one: which of those of an encounter (or patient) with this code it is, counted in `seen`."""
    seen[whose, code] += 1
    return f"{whose}|{code}|{seen[whose, code]}"


def _stretch(feed: str, source_id: str, patient_id: str, start: str, end: str, **about: Any) -> Iterator[Told]:
    """Something that lasts: version 1 known at its start, version 2 at its end; while it goes on, only version 1."""
    visit = feed == "encounters"
    yield feed, _event(source_id, patient_id, start, **about, **({"status": "in-progress"} if visit else {}))
    if end:
        ended = {"version": 2, "end_time": end, **({"status": "finished"} if visit else {})}
        yield feed, _event(source_id, patient_id, start, end, **about, **ended)


def _event(source_id: str, patient_id: str, event_time: str, known_time: str = "", **about: Any) -> dict[str, Any]:
    return {"id": source_id, "patient_id": patient_id, "event_time": event_time, "known_time": known_time or event_time, **about}


def _rejected(feed: str, reason: str) -> Told:
    return "rejected", {"feed": feed, "reason": reason}


def _moment(text: str) -> str:
    """A time as it stands, a date as its last second; "" for anything else."""
    return text if _TIME.fullmatch(text) else f"{text}T23:59:59Z" if _DAY.fullmatch(text) else ""


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _rows(src: Path, table: str, columns: str) -> Iterator[Row]:
    """The rows of a table with the named columns, every field the text in the file."""
    path = find(table, src)
    if path is None:
        raise InputError(f"{src / table}.csv is missing (.csv.gz would do too): give the folder output/csv of Synthea")
    names = columns.split()
    try:
        with _open(path) as text:
            lines = csv.reader(text, strict=True)
            head = next(lines, [])
            missing = [name for name in names if name not in head]
            if missing:
                raise InputError(f"{path} has no column {missing[0]}: expected the CSV export of Synthea 3.3, with {', '.join(names)}")
            places = [head.index(name) for name in names]
            for fields in lines:
                if len(fields) != len(head):
                    raise InputError(f"{path}, line {lines.line_num}: {len(fields)} columns, expected {len(head)}: export it anew")
                yield dict(zip(names, (fields[place] for place in places), strict=True))
    except (ValueError, OSError, EOFError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}): expected CSV in UTF-8; export it anew") from error
