"""What the commands say of real and of invented patients is what plain pandas said of them: joined by encounter, compared row by row.

import, features and labels make the tables (conftest.py); nothing here computes a window, a status or a look into the future.
Whole numbers, booleans, words and nulls must be equal; times and values to 1e-6, rounded as in the expected file.
PREMONITOR_DATA names a folder with mimic_iv_demo, eicu_demo_labs, synthea and expected; without it the sample in tests/data is read.

Columns of E1 that are not asked: `ed60_label_admitted_ed_only`, as an outcome cannot ask whether an emergency visit led to an
admission; `admission_type`, of which only the priority is told. Of E2 all are asked; `class` as far as ours tell Synthea's ten apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import ANY

import pytest

from features.importers.synthea import CLASSES

Row = dict[str, Any]
Table = Callable[[str, str], dict[str, Row]]
Source = str | Callable[[Row], Any]
"""The column of ours, or what makes it of our row."""
LABS = ("hemoglobin", "hematocrit", "albumin", "bilirubin")
VIEWS = ("event", "known")


@dataclass(frozen=True)
class Known:
    """Expected rows by the key of ours, the totals of their columns (none where there is no summary) and that summary."""

    rows: dict[Any, Row]
    totals: dict[str, int]
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def e1(expected: Callable[[str], Any]) -> Known:
    rows, summary = expected("e1_mimic_rows.jsonl.gz"), expected("e1_mimic_summary.json")
    return Known({row["hadm_id"]: row for row in rows}, summary.get("sums", {}), summary)


@pytest.fixture(scope="module")
def e1b(expected: Callable[[str], Any]) -> Known:
    rows, summary = expected("e1b_eicu_rows.jsonl.gz"), expected("e1b_eicu_summary.json")
    return Known({(row["patientunitstayid"], row["index"]): row for row in rows}, summary.get("sums", {}), summary)


@pytest.fixture(scope="module")
def e7(expected: Callable[[str], Any]) -> Known:
    words = {"True": True, "False": False}
    rows = [{name: words.get(text, text) for name, text in row.items()} for row in expected("e7_charlson.csv")]
    rows = [{name: int(x) if name != "hadm_id" else x for name, x in row.items()} for row in rows]
    summary = expected("e7_charlson_summary.json")
    return Known({row["hadm_id"]: row for row in rows}, summary.get("flags", {}), summary)


@pytest.fixture(scope="module")
def e2(expected: Callable[[str], Any]) -> Known:
    rows, summary = expected("e2_synthea_rows.jsonl.gz"), expected("e2_synthea_summary.json")
    return Known({row["encounter"]: row for row in rows}, summary["sums"], summary)


@pytest.fixture(scope="module")
def unit_stays(table: Table) -> dict[Any, Row]:
    """Rows of both questions of eICU, by unit stay and question."""
    admissions, discharges = table("features", "eicu_unit_admission"), table("features", "eicu_unit_discharge")
    return {(stay, "unit_admit"): row for stay, row in admissions.items()} | {
        (stay, "unit_discharge"): row for stay, row in discharges.items()
    }


def agree(known: Known, ours: Mapping[Any, Row], columns: Mapping[str, Source]) -> None:
    """Every expected row has one of ours and no more, equal in all the columns (expected name → ours), and so are the totals."""
    assert set(ours) == set(known.rows)
    got = {key: {name: of(row) if callable(of) else row[of] for name, of in columns.items()} for key, row in ours.items()}
    wrong = [
        f"{key} {name}: {answer[name]!r}, expected {known.rows[key][name]!r}"
        for key, answer in got.items()
        for name in columns
        if not same(answer[name], known.rows[key][name])
    ]
    assert not wrong, f"{len(wrong)} differences:\n" + "\n".join(wrong[:20])
    totals = {name: known.totals[name] for name in columns if name in known.totals}
    assert {name: sum(answer[name] for answer in got.values()) for name in totals} == totals


def same(got: Any, want: Any) -> bool:
    """1e-6 for a number with a fraction, rounded as the expected one is; all else exactly."""
    if isinstance(want, float) and isinstance(got, float):
        return math.isclose(round(got, 6), want, rel_tol=1e-6)
    return bool(got == want)


def windowed(**stems: str) -> dict[str, Source]:
    """Expected name → ours, for the three windows."""
    return {f"{want}_{days}d": f"{ours}_{days}d" for want, ours in stems.items() for days in (5, 30, 90)}


def after(row: Row, days: float) -> datetime:
    """The second that many days after the index time."""
    moment: datetime = row["index_time"] + timedelta(seconds=round(days * 86_400))
    return moment


def text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")


# MIMIC-IV (E1): one row an admission


def test_every_admission_asks_once_at_its_start(table: Table, e1: Known) -> None:
    """The index encounters are the admissions, in both tables, each with its patient and at its admittime."""
    for command in ("features", "labels"):
        ours = table(command, "mimic_admission")
        agree(e1, ours, {"hadm_id": "encounter_id", "subject_id": "patient_id", "t": lambda row: text(row["index_time"])})
        assert len(ours) == e1.summary.get("rows", ANY)
        assert len({row["patient_id"] for row in ours.values()}) == e1.summary.get("patients", ANY)


def test_emergency_visits_before_the_admission(table: Table, e1: Known) -> None:
    """All of them, those of other stays, and the registrations, which are fewer; and the days since the last visit."""
    counts = windowed(ed_count="ed_count", ed_count_not_own="ed_not_own_count", edreg_count="edreg_count")
    agree(e1, table("features", "mimic_admission"), {**counts, "days_since_last_ed": "ed_days_since_last"})


def test_admissions_before_the_admission(table: Table, e1: Known) -> None:
    """Stays that began in the window; the index begins at its open end and is none of them."""
    agree(e1, table("features", "mimic_admission"), windowed(prior_admissions="prior_admissions_count"))


@pytest.mark.parametrize("view", VIEWS)
def test_microbiology_in_windows(table: Table, e1: Known, view: str) -> None:
    """Results, specimens and whether anything grew, with hindsight (event) and as known at the admission."""
    stems = {"count": "count", "specimens": "distinct_episodes", "any_positive": "any_abnormal"}
    columns = windowed(**{f"micro_{view}_{want}": f"micro_{view}_{ours}" for want, ours in stems.items()})
    agree(e1, table("features", "mimic_admission"), columns)


@pytest.mark.parametrize("view", VIEWS)
def test_the_last_result_of_microbiology(table: Table, e1: Known, view: str) -> None:
    """Which one it is, by time and then by its number; whether it grew anything; and how long ago it was drawn."""
    stem = f"micro_{view}"

    def number(row: Row) -> str | None:
        return None if row[f"{stem}_last_ordinal"] is None else f"{row[f'{stem}_last_ordinal']:.0f}"

    columns: dict[str, Source] = {f"{stem}_last_id": number, f"{stem}_last_positive": f"{stem}_last"}
    agree(e1, table("features", "mimic_admission"), columns | {f"{stem}_days_since_last": f"{stem}_days_since_last"})


def test_hindsight_and_what_was_known_differ(table: Table, e1: Known) -> None:
    """In as many admissions as expected, so that the two views of microbiology are not one and the same."""
    ours = table("features", "mimic_admission").values()
    for window, rows in e1.summary.get("rows_where_known_differs_from_event", {}).items():
        assert sum(row[f"micro_event_count_{window}"] != row[f"micro_known_count_{window}"] for row in ours) == rows


def test_weights_before_the_admission(table: Table, e1: Known) -> None:
    """How many, the last one in pounds as it was told, and how long ago; a date without a time is its last second."""
    columns: dict[str, Source] = {"weight_last": "weight_last", "weight_days_since_last": "weight_days_since_last"}
    agree(e1, table("features", "mimic_admission"), windowed(weight_count="weight_count") | columns)


def test_an_emergency_visit_within_60_days(table: Table, e1: Known) -> None:
    """Label, status and maturity; the visit that led to the admission is no outcome of it."""
    ours = table("labels", "mimic_admission")

    def mature(row: Row) -> bool:
        return row["mature_time"] is not None

    agree(e1, ours, {"ed60_label": "label", "ed60_status": "status", "ed60_strict_mature": mature})
    assert Counter(row["status"] for row in ours.values()) == e1.summary.get("ed60_status", ANY)
    positive = sum(row["label"] == 1 for row in ours.values() if mature(row))
    assert positive == e1.summary.get("ed60_positives_among_strict_mature", ANY)


def test_a_label_is_not_known_before_the_emergency_visit(table: Table, e1: Known) -> None:
    """A positive label is known from the first visit on, any other at the end of the 60 days or never."""
    for encounter, row in table("labels", "mimic_admission").items():
        if row["label"] == 1:
            assert abs(row["label_known_time"] - after(row, e1.rows[encounter]["ed60_days_to_first"])) < timedelta(seconds=1)
        else:
            assert row["label_known_time"] == (row["mature_time"] if row["label"] == 0 else None)
            assert row["mature_time"] == (after(row, 60) if row["label"] == 0 else None)


def test_an_emergency_visit_within_60_days_its_own_included(table: Table, e1: Known) -> None:
    """Any visit after the admission counts, also one of its own stay."""
    agree(e1, table("labels", "mimic_admission_own"), {"ed60_raw_incl_own": lambda row: row["status"] == "event"})


def test_the_end_of_follow_up(table: Table, e1: Known) -> None:
    """The start of observation and its length, as two columns, give the last second at which the patient was seen."""

    def end(row: Row) -> str:
        return text(after(row, row["observed_last"] - row["observed_days_since_last"]))

    agree(e1, table("features", "mimic_stay"), {"follow_up_end": end})


def test_readmission_within_30_days(table: Table, e1: Known) -> None:
    """From discharge, alive ones only; an elective admission does not count, one that does not tell its priority does."""
    ours = table("labels", "mimic_discharge")
    agree(e1, ours, {"readm30_label": "label", "readm30_status": "status"})
    assert Counter(row["status"] for row in ours.values()) == e1.summary.get("readm30_status", ANY)


def test_readmission_as_an_emergency_or_urgent(table: Table, e1: Known) -> None:
    """Only the admissions that say so count."""
    agree(e1, table("labels", "mimic_discharge_strict"), {"readm30_strict_types_label": "label"})


def test_who_died_in_hospital_is_not_asked(table: Table, e1: Known) -> None:
    """The matrix of the discharges has the rows of those alone who left alive."""
    alive = {encounter for encounter, row in e1.rows.items() if row["readm30_status"] != "died_in_hospital"}
    assert set(table("features", "mimic_discharge")) == alive


# eICU (E1b): one row a unit stay and question


def test_every_unit_stay_asks_at_both_ends(e1b: Known, unit_stays: dict[Any, Row]) -> None:
    """At unit admission and discharge, in minutes of its hospital stay, which begins on 1 January of an even year."""

    def minutes(row: Row) -> int:
        year = (row["index_time"] + timedelta(days=180)).year
        return round((row["index_time"] - datetime(year - year % 2, 1, 1, tzinfo=UTC)) / timedelta(minutes=1))

    names: dict[str, Source] = {"patientunitstayid": "encounter_id", "uniquepid": "patient_id"}
    agree(e1b, unit_stays, names | {"t_minutes_since_hospital_admission": minutes})
    assert len(unit_stays) == e1b.summary.get("rows", ANY)
    assert len({row["patient_id"] for row in unit_stays.values()}) == e1b.summary.get("patients", ANY)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("lab", LABS)
def test_labs_in_windows(e1b: Known, unit_stays: dict[Any, Row], lab: str, view: str) -> None:
    """Results and whether one was abnormal, with hindsight (event) and as known: by the time of revision."""
    names = [f"{lab}_{view}_{what}" for what in ("count", "any_abnormal")]
    agree(e1b, unit_stays, windowed(**{name: name for name in names}))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("lab", LABS)
def test_the_last_lab(e1b: Known, unit_stays: dict[Any, Row], lab: str, view: str) -> None:
    """Its value and its age in minutes; of two at one time, the one with the greater number."""
    stem = f"{lab}_{view}"

    def minutes(row: Row) -> int | None:
        days = row[f"{stem}_days_since_last_365d"]
        return None if days is None else round(days * 1_440)

    agree(e1b, unit_stays, {f"{stem}_last": f"{stem}_last_365d", f"{stem}_minutes_since_last": minutes})


def test_the_last_lab_and_the_last_known_differ(e1b: Known, unit_stays: dict[Any, Row]) -> None:
    """In as many rows as expected, so that the two views of the labs are not one and the same."""
    for lab, rows in e1b.summary.get("rows_last_differs", {}).items():
        assert sum(row[f"{lab}_event_last_365d"] != row[f"{lab}_known_last_365d"] for row in unit_stays.values()) == rows


# MIMIC-IV (E7): Charlson conditions of one admission

CHARLSON = {
    "ami": ("myocardial_infarction", 1, 0),
    "chf": ("heart_failure", 1, 2),
    "pvd": ("peripheral_vascular", 1, 0),
    "cevd": ("cerebrovascular", 1, 0),
    "dementia": ("dementia", 1, 2),
    "copd": ("chronic_pulmonary", 1, 1),
    "rheumd": ("rheumatic", 1, 1),
    "pud": ("peptic_ulcer", 1, 0),
    "mld": ("mild_liver", 1, 2),
    "diab": ("diabetes", 1, 0),
    "diabwc": ("diabetes_complicated", 2, 1),
    "hp": ("paralysis", 2, 2),
    "rend": ("renal", 2, 1),
    "canc": ("cancer", 2, 2),
    "msld": ("severe_liver", 3, 4),
    "metacanc": ("metastatic_cancer", 6, 6),
    "aids": ("hiv", 6, 4),
}
"""Expected name → our stem, the weight of Charlson 1987 and that of Quan 2011."""
GRAVER = {"mld": "msld", "diab": "diabwc", "canc": "metacanc"}
"""In a score the graver condition stands for both."""


@pytest.mark.parametrize("condition", CHARLSON)
def test_a_charlson_condition(table: Table, e7: Known, condition: str) -> None:
    """An admission has it iff one of its own codes says so; E7 lets a code of two conditions stand for one (see mimic_stay.toml)."""
    agree(e7, table("features", "mimic_stay"), {condition: f"{CHARLSON[condition][0]}_any"})


def test_cancer_agrees_with_a_second_reading(table: Table, e7: Known) -> None:
    """The prefixes of cancer and of metastatic cancer, read apart from the other conditions, find the same admissions."""
    columns: dict[str, Source] = {"own_any_cancer_code_quan": "cancer_any", "own_metastatic_code_quan": "metastatic_cancer_any"}
    agree(e7, table("features", "mimic_stay"), columns)


def test_both_charlson_scores(table: Table, e7: Known) -> None:
    """Sums of the published weights; the expected scores of 2011 give HIV 2 (comorbidipy 0.5.0) where the paper gives 4."""

    def score(row: Row, weight: int) -> int:
        has = {name for name, (stem, *_) in CHARLSON.items() if row[f"{stem}_any"]}
        lesser = {name for name, graver in GRAVER.items() if graver in has}
        return sum(int(CHARLSON[name][weight]) for name in has - lesser)

    columns: dict[str, Source] = {
        "score_weights_charlson1987": lambda row: score(row, 1),
        "score_weights_quan2011": lambda row: score(row, 2) - 2 * int(row["hiv_any"]),
    }
    agree(e7, table("features", "mimic_stay"), columns)


# Synthea (E2): one row an encounter


def seconds(column: str) -> Source:
    return lambda row: None if row[column] is None else round(row[column] * 86_400)


def test_every_encounter_of_synthea_asks_once_at_its_start(table: Table, e2: Known) -> None:
    """All classes, also after a death, in both tables; the greatest start is the end of the data."""
    keys: dict[str, Source] = {"encounter": "encounter_id", "patient": "patient_id"}
    for command in ("features", "labels"):
        ours = table(command, "synthea_encounter")
        agree(e2, ours, keys | {"t": lambda row: row["index_time"].strftime("%Y-%m-%dT%H:%M:%SZ")})
        assert len(ours) == e2.summary["rows"]
        assert len({row["patient_id"] for row in ours.values()}) == e2.summary["patients"]
        assert text(max(row["index_time"] for row in ours.values())) == e2.summary["cut"]


def test_classes_of_synthea(table: Table, e2: Known) -> None:
    """A second later the encounter itself is in its window: exactly one class holds, the one that stands for Synthea's word."""
    classes = sorted(set(CLASSES.values()))
    rows = table("features", "synthea_second_later").items()
    found = {encounter: [name for name in classes if row[f"{name}_any"]] for encounter, row in rows}
    assert found == {encounter: [CLASSES[row["class"]]] for encounter, row in e2.rows.items()}
    want = Counter[str]()
    for word, count in e2.summary["classes"].items():
        want[CLASSES[word]] += count
    assert Counter(name for (name,) in found.values()) == want


def test_emergency_visits_of_synthea(table: Table, e2: Known) -> None:
    """Those that began before the encounter, the encounter itself not among them, and the seconds since the last."""
    columns = windowed(ed_count="ed_count") | {"ed_seconds_since_last": seconds("ed_days_since_last")}
    agree(e2, table("features", "synthea_encounter"), columns)


@pytest.mark.parametrize("lab", [*LABS, "weight"])
def test_observations_of_synthea(table: Table, e2: Known, lab: str) -> None:
    """Counts, the last value and its age; what is stamped exactly at the start is none of them, and comes in one second later."""
    ours, later = table("features", "synthea_encounter"), table("features", "synthea_second_later")

    def at_t(row: Row) -> float:
        more: float = later[row["encounter_id"]][f"{lab}_count"] - row[f"{lab}_count"]
        return more

    columns: dict[str, Source] = {f"{lab}_last": f"{lab}_last", f"{lab}_seconds_since_last": seconds(f"{lab}_days_since_last")}
    agree(e2, ours, windowed(**{f"{lab}_count": f"{lab}_count"}) | columns | {f"{lab}_at_t_count": at_t})
    values = [row[f"{lab}_last"] for row in ours.values()]
    assert round(sum(value or 0.0 for value in values), 1) == e2.summary["last_sums"][lab]
    assert values.count(None) == e2.summary["last_nulls"][lab]
    assert sum(at_t(row) > 0 for row in ours.values()) == e2.summary["obs_at_exactly_t_rows"][lab] > 0


def test_an_emergency_visit_within_60_days_in_synthea(table: Table, e2: Known) -> None:
    """Label, status and the seconds to the first visit, which with one clock is when the label was known."""
    ours = table("labels", "synthea_encounter")

    def first(row: Row) -> int | None:
        return round((row["label_known_time"] - row["index_time"]).total_seconds()) if row["label"] == 1 else None

    agree(e2, ours, {"ed60_label": "label", "ed60_status": "status", "ed60_seconds_to_first": first})
    assert Counter(row["status"] for row in ours.values()) == e2.summary["ed60_status"]
    positive = Counter(e2.rows[encounter]["class"] for encounter, row in ours.items() if row["label"] == 1)
    assert positive == e2.summary["ed60_by_class_positive"]
    assert max(filter(None, map(first, ours.values()))) == 60 * 86_400, "a visit exactly at the end of the time at risk counts"


def test_the_end_of_follow_up_in_synthea(table: Table, e2: Known) -> None:
    """Observation ends with the last start of all encounters, or with the last second of the day of death."""
    rows = [row for row in table("features", "synthea_encounter").values() if row["observed_last"] is not None]
    ends = {text(after(row, row["observed_last"] - row["observed_days_since_last"])) for row in rows}
    assert e2.summary["cut"] in ends and len(ends) > 1
    assert all(end.endswith(" 23:59:59") for end in ends - {e2.summary["cut"]})
