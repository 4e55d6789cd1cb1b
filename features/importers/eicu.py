"""Tells the tables of the eICU Collaborative Research Database as events of our feeds, on an artificial calendar.

eICU has no dates, only minutes since the admission to a unit. Decisions:

- **Calendar.** One timeline a hospital stay: minutes since hospital admission (offset - hospitaladmitoffset), all its unit stays
  together. The stays of a patient follow each other by discharge year, age, death last, and number; the n-th (from 0) is admitted at
  00:00 UTC on 1 January of `FIRST_YEAR` + 2 n. So no window or time at risk below two years less the stay itself reaches another stay;
  time between stays means nothing (`ever` does reach back: it is the same person). The order is partly made up: of two stays
  within one year of discharge and one year of age nothing says which came first.
- **Encounters.** One a unit stay, inpatient. Version 1 is known at unit admission, version 2 with its end at unit discharge: nothing
  is told before it happened. `expired` is the status on leaving the unit; a death later in hospital is only in the feed of deaths.
- **Deaths.** One a hospital stay that somebody left as Expired: when leaving the unit, else when leaving the hospital.
- **Labs.** Every row; `event_time` = labresultoffset, `known_time` = labresultrevisedoffset, even where that is earlier (nothing is
  clamped). A row without labresult is rejected, also where labresulttext has a limit such as `<0.1`. Units are as told.
- **Coverage.** `observed` from hospital admission to discharge, the end told at the end.
- **Persons.** Sex, race (column ethnicity, as told) and birth are told at each hospital admission. Birth is 1 January of the
  calendar's year less the age (`> 89` is 90), amended at each stay, as the time between two stays is artificial.
- **Conditions** are known when entered; **medication orders** likewise, and stay although cancelled, as no row says when that was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from features.errors import InputError
from features.importers.source import find, finite

FIRST_YEAR = 2000
"""Year in which each patient's first hospital stay begins on the artificial calendar."""
YEARS_APART = 2
"""Years from one hospital admission of a patient to the next on that calendar."""
CODE_LENGTH_MAX = 128

_PATIENT = (
    "patientunitstayid patienthealthsystemstayid uniquepid gender age ethnicity hospitaladmitoffset hospitaldischargeyear "
    "hospitaldischargeoffset hospitaldischargestatus unitdischargeoffset unitdischargestatus"
)
_LAB = "labid patientunitstayid labresultoffset labname labresult labmeasurenamesystem labresultrevisedoffset"
_DIAGNOSIS = "diagnosisid patientunitstayid diagnosisoffset diagnosisstring"
_MEDICATION = "medicationid patientunitstayid drugorderoffset drugname"

Row = dict[str, str]
Told = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Stay:
    """One unit stay on the artificial calendar."""

    patient_id: str
    hospital_stay_id: str
    admitted: datetime
    """Admission to the unit: offset 0."""

    def at(self, offset: str) -> str:
        return _text(self.admitted + timedelta(minutes=int(offset)))


def events(src: Path) -> Iterator[Told]:
    """Tell an eICU folder: (feed, event) in JSON form, or ("rejected", {feed, reason}) for a row that cannot be an event.

    Args:
        src: Folder with patient, lab, diagnosis and medication as .csv.gz or .csv.
    Raises:
        InputError: a table or one of its columns is missing, or a file is damaged.
    """
    stays: dict[str, _Stay] = {}
    for hospital_stays in _patients(src):
        for n, rows in enumerate(hospital_stays):
            try:
                placed = {row["patientunitstayid"]: _place(row, n) for row in rows}
                told = list(_hospital_stay(rows, placed, n))
            except (ValueError, OverflowError):
                yield from (_rejected("encounters", "bad-time") for _ in rows)
                continue
            stays.update(placed)
            yield from told
    yield from _facts(src, "lab", _LAB, stays, "labs", _lab)
    yield from _facts(src, "diagnosis", _DIAGNOSIS, stays, "conditions", _condition)
    yield from _facts(src, "medication", _MEDICATION, stays, "medication-orders", _order)


def _patients(src: Path) -> Iterator[list[list[Row]]]:
    """Per patient: the hospital stays in order, each as the rows of its unit stays."""
    people: dict[str, dict[str, list[Row]]] = {}
    for row in _rows(src, "patient", _PATIENT):
        people.setdefault(row["uniquepid"], {}).setdefault(row["patienthealthsystemstayid"], []).append(row)
    for stays in people.values():
        yield sorted(stays.values(), key=_order_of_stay)


def _order_of_stay(rows: list[Row]) -> tuple[str, int, bool, int, str]:
    row = rows[0]
    died = any(r["hospitaldischargestatus"] == "Expired" or r["unitdischargestatus"] == "Expired" for r in rows)
    number = row["patienthealthsystemstayid"]
    return row["hospitaldischargeyear"], _age(row) or 0, died, len(number), number


def _place(row: Row, n: int) -> _Stay:
    admitted = datetime(FIRST_YEAR + YEARS_APART * n, 1, 1, tzinfo=UTC) - timedelta(minutes=int(row["hospitaladmitoffset"]))
    return _Stay(row["uniquepid"], row["patienthealthsystemstayid"], admitted)


def _hospital_stay(rows: list[Row], placed: dict[str, _Stay], n: int) -> Iterator[Told]:
    """Person, coverage, encounters and death of the n-th hospital stay of a patient."""
    first = rows[0]
    stay = placed[first["patientunitstayid"]]
    start, end = stay.at(first["hospitaladmitoffset"]), stay.at(first["hospitaldischargeoffset"])
    number, patient_id = stay.hospital_stay_id, stay.patient_id
    yield from _person(first, start, n)
    observed = {"id": number, "patient_id": patient_id, "event_time": start, "episode_id": number, "code": "observed"}
    yield "coverage", {**observed, "known_time": start}
    yield "coverage", {**observed, "version": 2, "known_time": end, "end_time": end}
    died = end if any(row["hospitaldischargestatus"] == "Expired" for row in rows) else None
    for row in rows:
        stay = placed[row["patientunitstayid"]]
        begins, ends = stay.at("0"), stay.at(row["unitdischargeoffset"])
        expired = row["unitdischargestatus"] == "Expired"
        died = ends if expired else died
        visit = {"id": row["patientunitstayid"], "patient_id": patient_id, "event_time": begins, "episode_id": number}
        visit["encounter_class"] = "inpatient"
        yield "encounters", {**visit, "known_time": begins, "status": "in-progress"}
        yield "encounters", {**visit, "version": 2, "known_time": ends, "status": "finished", "end_time": ends, "expired": expired}
    if died is not None:
        yield "deaths", {"id": number, "patient_id": patient_id, "event_time": died, "known_time": died, "episode_id": number}


def _person(row: Row, start: str, n: int) -> Iterator[Told]:
    """What one hospital stay tells of the person; a blank column tells nothing."""
    number, patient_id = row["patienthealthsystemstayid"], row["uniquepid"]
    for name, code in (("sex", row["gender"].lower()), ("race", row["ethnicity"])):
        if code:
            fact = {"id": f"{name}-{number}", "patient_id": patient_id, "event_time": start, "known_time": start}
            yield "persons", {**fact, "code_system": name, "code": code}
    age = _age(row)
    if age is not None:
        born = _text(datetime(FIRST_YEAR + YEARS_APART * n - age, 1, 1, tzinfo=UTC))
        birth = {"id": f"birth-{patient_id}", "version": n + 1, "patient_id": patient_id, "event_time": born, "known_time": start}
        yield "persons", {**birth, "code_system": "birth", "code": "birth"}


def _facts(
    src: Path, table: str, columns: str, stays: dict[str, _Stay], feed: str, describe: Callable[[Row, _Stay], dict[str, Any] | str]
) -> Iterator[Told]:
    """The rows of a table as events of one feed; `describe` returns an event, or the reason why the row is none."""
    for row in _rows(src, table, columns):
        stay = stays.get(row["patientunitstayid"])
        if stay is None:
            yield _rejected(feed, "unknown-stay")
            continue
        try:
            told = describe(row, stay)
        except (ValueError, OverflowError):
            told = "bad-time"
        if isinstance(told, str):
            yield _rejected(feed, told)
        else:
            yield feed, {"patient_id": stay.patient_id, "episode_id": stay.hospital_stay_id, **told}


def _lab(row: Row, stay: _Stay) -> dict[str, Any] | str:
    value = finite(row["labresult"])
    if value is None:
        return "bad-value" if row["labresult"] else "value-missing"
    return {
        "id": row["labid"],
        "ordinal": int(row["labid"]) if row["labid"].isdecimal() else 0,
        "event_time": stay.at(row["labresultoffset"]),
        "known_time": stay.at(row["labresultrevisedoffset"]),
        "code_system": "eicu",
        "code": row["labname"],
        "value": value,
        "unit": row["labmeasurenamesystem"],
    }


def _condition(row: Row, stay: _Stay) -> dict[str, Any] | str:
    return _coded(row["diagnosisid"], "eicu_diagnosis", row["diagnosisstring"], stay.at(row["diagnosisoffset"]))


def _order(row: Row, stay: _Stay) -> dict[str, Any] | str:
    return _coded(row["medicationid"], "eicu", row["drugname"], stay.at(row["drugorderoffset"]))


def _coded(source_id: str, system: str, code: str, moment: str) -> dict[str, Any] | str:
    if not code:
        return "code-missing"
    return {"id": source_id, "event_time": moment, "known_time": moment, "code_system": system, "code": code[:CODE_LENGTH_MAX]}


def _rejected(feed: str, reason: str) -> Told:
    return "rejected", {"feed": feed, "reason": reason}


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _age(row: Row) -> int | None:
    text = "90" if row["age"] == "> 89" else row["age"]
    return int(text) if text.isdecimal() else None


def _rows(src: Path, table: str, columns: str) -> Iterator[Row]:
    """The rows of a table, every field the text in the file: "None" stays a word, 0070 keeps its zeros, blank is ""."""
    names = columns.split()
    path = find(table, src)
    if path is None:
        raise InputError(f"{src / table}.csv.gz is missing (.csv would do too): give the folder into which eICU was unpacked")
    try:
        with pd.read_csv(path, dtype=str, keep_default_na=False, usecols=names, chunksize=50_000) as parts:
            for part in parts:
                for values in part[names].fillna("").itertuples(index=False, name=None):
                    yield dict(zip(names, values, strict=True))
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: expected CSV with the columns {', '.join(names)}; download it anew") from error
