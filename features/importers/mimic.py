"""Tells the tables of MIMIC-IV (module hosp) as events of our feeds; its local times are taken as UTC, its shifted years stay.

Decisions; a date without a time is its last second, and nothing is known before it happened:

- **Visits.** An admission is an inpatient encounter, or observation where its type says so; an ED visit is each row of transfers with
  eventtype ED, and an admission with edregtime and no such row. Version 1 is known at the start, version 2 with the end at the end.
  The two kinds of one stay share hadm_id as episode; one who was seen and sent home has the transfer_id. Each edregtime is also a
  vital `ed_registration` of its own: the count of registrations differs from that of visits, and one lies after its admission.
- **Microbiology.** value 1: an organism grew, 0: none. The episode is the specimen, so that cultures can be counted.
- **Never known.** A result without storetime was drawn but nothing says that it was ever told. It is an event, as a look from hindsight
  counts it; its known_time is `NEVER_DAYS` after the last time known of the patient, so that no score can have read it, nor be revised.
- **Coverage.** Insurance from admission to discharge. `observed` from the first date seen to the end of follow-up: the end of the day of
  death, else the greatest of edregtime, admittime, dischtime, intime, outtime, date in omr (its first second, unlike a weight then)
  and time of drawing in microbiology; not storetime, which is no contact. Ends are told at the end.
- **Deaths** are dod at its last second also where deathtime is finer, so that death and end of follow-up are one moment.
- **Conditions** are known at discharge, when they are coded. **Weights** come from omr, by date.
- **Persons.** Sex and birth (1 January of anchor_year - anchor_age; 91 means over 89) at the first contact, race at each admission.
- **Labs.** labevents is read where it is there; its ids get `lab-` before them, as microbiology counts from 1 too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from features.errors import InputError
from features.importers.source import find, finite

NEVER_DAYS = 3650
"""Days after all else that is known of a patient at which a result that was never filed stands in the log."""

PRIORITY = {
    "EW EMER.": "emergency",
    "DIRECT EMER.": "emergency",
    "URGENT": "urgent",
    "ELECTIVE": "elective",
    "SURGICAL SAME DAY ADMISSION": "elective",
}
"""admission_type → priority; the types of observation say nothing of it."""

_ADMISSIONS = "subject_id hadm_id admittime dischtime admission_type insurance race edregtime edouttime hospital_expire_flag"
_TRANSFERS = "subject_id hadm_id transfer_id eventtype intime outtime"
_MICROBIOLOGY = "microevent_id subject_id micro_specimen_id chartdate charttime storetime org_name"
_LABEVENTS = "labevent_id subject_id hadm_id itemid charttime storetime valuenum valueuom"
_TIME = r"(?:\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d)?)?"

Row = dict[str, str]
Told = tuple[str, dict[str, Any]]


@dataclass(slots=True)
class _Seen:
    """When a patient was in touch with the hospital; times as in the tables, so that text order is time order."""

    first: str
    last: str
    known: str
    died: str = ""

    def add(self, moment: str, known: str = "") -> None:
        self.first, self.last, self.known = min(self.first, moment), max(self.last, moment), max(self.known, moment, known)

    @property
    def follow_up_end(self) -> str:
        return self.died or self.last

    @property
    def never(self) -> str:
        """Later than all that is known of the patient."""
        return (datetime.fromisoformat(max(self.known, self.died)) + timedelta(days=NEVER_DAYS)).isoformat(sep=" ")


def events(src: Path) -> Iterator[Told]:
    """Tell a MIMIC-IV folder: (feed, event) in JSON form, or ("rejected", {feed, reason}) for a row that cannot be an event.

    Args:
        src: Folder with the tables as .csv.gz or .csv, or the folder above `hosp`: patients, admissions, transfers, diagnoses_icd,
            microbiologyevents, omr and, where there is one, labevents.
    Raises:
        InputError: a table or one of its columns is missing, a file is damaged or its times were rewritten.
    """
    admissions = {row["hadm_id"]: row for row in _rows(src, "admissions", _ADMISSIONS)}
    people = _people(src, admissions)
    yield from _persons(src, people)
    for row in admissions.values():
        yield from _admission(row)
    yield from _emergency(src, admissions)
    yield from _microbiology(src, people)
    if find("labevents", src, src / "hosp") is not None:
        yield from _labs(src, people)
    yield from _weights(src)
    yield from _diagnoses(src, admissions)


def _people(src: Path, admissions: dict[str, Row]) -> dict[str, _Seen]:
    """Contacts of each patient that has any, and the end of the day of death."""
    people: dict[str, _Seen] = {}

    def seen(row: Row, *moments: str, known: str = "") -> None:
        for moment in filter(None, moments):
            person = people.setdefault(row["subject_id"], _Seen(moment, moment, moment))
            person.add(moment, known)

    for row in admissions.values():
        seen(row, row["edregtime"], row["admittime"], row["dischtime"])
    for row in _rows(src, "transfers", _TRANSFERS):
        seen(row, row["intime"], row["outtime"])
    for row in _rows(src, "omr", "subject_id chartdate"):
        seen(row, row["chartdate"] and f"{row['chartdate'][:10]} 00:00:00", known=_end_of(row["chartdate"]))
    for row in _rows(src, "microbiologyevents", _MICROBIOLOGY):
        seen(row, row["charttime"] or _end_of(row["chartdate"]), known=row["storetime"])
    for row in _rows(src, "patients", "subject_id dod"):
        if row["dod"] and row["subject_id"] in people:
            people[row["subject_id"]].died = _end_of(row["dod"])
    return people


def _persons(src: Path, people: dict[str, _Seen]) -> Iterator[Told]:
    """Sex, birth, the time under observation and death."""
    for row in _rows(src, "patients", "subject_id gender anchor_age anchor_year dod"):
        subject = row["subject_id"]
        seen = people.get(subject)
        if seen is None:
            yield _rejected("persons", "never-seen")
            continue
        sex = {"M": "male", "F": "female"}.get(row["gender"], row["gender"])
        if sex:
            yield "persons", _event(f"sex-{subject}", subject, seen.first, seen.first, code_system="sex", code=sex)
        if row["anchor_age"].isdecimal() and row["anchor_year"].isdecimal():
            born = f"{int(row['anchor_year']) - int(row['anchor_age']):04}-01-01 00:00:00"
            yield "persons", _event(f"birth-{subject}", subject, born, seen.first, code_system="birth", code="birth")
        start, end = f"{seen.first[:10]} 00:00:00", seen.follow_up_end
        yield from _stretch("coverage", f"observed-{subject}", subject, start, end, known=seen.first, code="observed")
        if seen.died:
            yield "deaths", _event(subject, subject, seen.died, seen.died)


def _admission(row: Row) -> Iterator[Told]:
    """The stay, its insurance, and what was registered on the way in."""
    hadm, subject, start, end = row["hadm_id"], row["subject_id"], row["admittime"], row["dischtime"]
    if row["race"]:
        yield "persons", _event(f"race-{hadm}", subject, start, start, code_system="race", code=row["race"])
    if row["insurance"]:
        yield from _stretch("coverage", f"insurance-{hadm}", subject, start, end, episode_id=hadm, code=row["insurance"].lower())
    if row["edregtime"]:
        registered = row["edregtime"]
        more = {"episode_id": hadm, "code_system": "mimic", "code": "ed_registration"}
        yield "vitals", _event(f"edreg-{hadm}", subject, registered, registered, **more)
    kind = "observation" if "OBSERV" in row["admission_type"] else "inpatient"
    about: dict[str, Any] = {"episode_id": hadm, "encounter_class": kind, "priority": PRIORITY.get(row["admission_type"])}
    yield from _stretch("encounters", hadm, subject, start, end, expired=row["hospital_expire_flag"] == "1", **about)


def _emergency(src: Path, admissions: dict[str, Row]) -> Iterator[Told]:
    """Visits to the emergency department, admitted from there or not."""
    with_row: set[str] = set()
    for row in _rows(src, "transfers", _TRANSFERS):
        if row["eventtype"] == "ED":
            with_row.add(row["hadm_id"])
            episode = row["hadm_id"] or row["transfer_id"]
            yield from _emergency_visit(f"ed-{row['transfer_id']}", row["subject_id"], row["intime"], row["outtime"], episode)
    for hadm, row in admissions.items():
        if row["edregtime"] and hadm not in with_row:
            yield from _emergency_visit(f"edreg-{hadm}", row["subject_id"], row["edregtime"], row["edouttime"], hadm)


def _emergency_visit(source_id: str, subject: str, start: str, end: str, episode: str) -> Iterator[Told]:
    return _stretch("encounters", source_id, subject, start, end, episode_id=episode, encounter_class="emergency")


def _microbiology(src: Path, people: dict[str, _Seen]) -> Iterator[Told]:
    for row in _rows(src, "microbiologyevents", _MICROBIOLOGY):
        about: dict[str, Any] = {"episode_id": f"spec-{row['micro_specimen_id']}", "code": "microbiology", "unit": "1"}
        about["value"] = 1.0 if row["org_name"] else 0.0
        yield _result(row["microevent_id"], row, row["charttime"] or _end_of(row["chartdate"]), people, **about)


def _labs(src: Path, people: dict[str, _Seen]) -> Iterator[Told]:
    for row in _rows(src, "labevents", _LABEVENTS):
        value = finite(row["valuenum"])
        if value is None:
            yield _rejected("labs", "bad-value" if row["valuenum"] else "value-missing")
            continue
        about: dict[str, Any] = {"episode_id": row["hadm_id"] or None, "code": row["itemid"], "value": value, "unit": row["valueuom"]}
        yield _result(row["labevent_id"], row, row["charttime"], people, prefix="lab-", **about)


def _result(number: str, row: Row, drawn: str, people: dict[str, _Seen], *, prefix: str = "", **about: Any) -> Told:
    """A result of a laboratory; one without storetime stands after all that is known of the patient."""
    subject = row["subject_id"]
    known = row["storetime"] or (people[subject].never if subject in people else "")
    if not known:
        return _rejected("labs", "never-known")
    return "labs", _event(f"{prefix}{number}", subject, drawn, known, ordinal=_ordinal(number), code_system="mimic", **about)


def _weights(src: Path) -> Iterator[Told]:
    for row in _rows(src, "omr", "subject_id chartdate seq_num result_name result_value"):
        if row["result_name"] != "Weight (Lbs)":
            continue
        value = finite(row["result_value"])
        if value is None:
            yield _rejected("vitals", "bad-value" if row["result_value"] else "value-missing")
            continue
        subject, day = row["subject_id"], _end_of(row["chartdate"])
        about = {"ordinal": _ordinal(row["seq_num"]), "code_system": "loinc", "code": "29463-7", "value": value, "unit": "[lb_av]"}
        yield "vitals", _event(f"{subject}|{day[:10]}|{row['seq_num']}", subject, day, day, **about)


def _diagnoses(src: Path, admissions: dict[str, Row]) -> Iterator[Told]:
    for row in _rows(src, "diagnoses_icd", "subject_id hadm_id seq_num icd_code icd_version"):
        admission = admissions.get(row["hadm_id"])
        if admission is None or not row["icd_code"]:
            yield _rejected("conditions", "code-missing" if admission else "unknown-stay")
            continue
        coded = admission["dischtime"]
        about = {"episode_id": row["hadm_id"], "code_system": f"icd{row['icd_version']}cm", "code": row["icd_code"].strip()}
        yield "conditions", _event(f"{row['hadm_id']}|{row['seq_num']}", row["subject_id"], coded, coded, **about)


def _stretch(
    feed: str, source_id: str, subject: str, start: str, end: str, *, known: str = "", expired: bool = False, **about: Any
) -> Iterator[Told]:
    """Something that lasts: version 1 known at its start (or `known`), version 2 at its end; while it goes on, only version 1."""
    known = known or start
    visit = feed == "encounters"
    yield feed, _event(source_id, subject, start, known, **about, **({"status": "in-progress"} if visit else {}))
    if end:
        ended = {"version": 2, "end_time": _utc(end), **({"status": "finished", "expired": expired} if visit else {})}
        yield feed, _event(source_id, subject, start, max(end, known), **about, **ended)


def _event(source_id: str, subject: str, event_time: str, known_time: str, **about: Any) -> dict[str, Any]:
    return {"id": source_id, "patient_id": subject, "event_time": _utc(event_time), "known_time": _utc(known_time), **about}


def _rejected(feed: str, reason: str) -> Told:
    return "rejected", {"feed": feed, "reason": reason}


def _utc(text: str) -> str:
    return text.replace(" ", "T") + "Z"


def _end_of(date: str) -> str:
    return f"{date[:10]} 23:59:59" if date else ""


def _ordinal(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _rows(src: Path, table: str, columns: str) -> Iterator[Row]:
    """The rows of a table, every field the text in the file: "None" stays a word, 07070 keeps its zero, blank is ""."""
    names = columns.split()
    path = find(table, src, src / "hosp")
    if path is None:
        raise InputError(f"{src / table}.csv.gz is missing (.csv would do too): give the folder hosp of MIMIC-IV, or the one above it")
    try:
        with pd.read_csv(path, dtype=str, keep_default_na=False, usecols=names, chunksize=50_000) as parts:
            for part in parts:
                part = part[names].fillna("")
                for name in names:
                    if name.endswith(("time", "date", "dod")) and not part[name].str.fullmatch(_TIME).all():
                        raise InputError(f"{path}, column {name}: a time is not written like 2180-05-06 22:23:00; take the original file")
                for values in part.itertuples(index=False, name=None):
                    yield dict(zip(names, values, strict=True))
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: expected CSV with the columns {', '.join(names)}; download it anew") from error
