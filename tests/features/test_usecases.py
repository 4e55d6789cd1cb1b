"""The shipped use cases, through the command line: their columns, whom they ask, and rows and labels worked out by hand."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from features import usecase
from features.clock import DAY_US, rfc3339
from features.codes import codebook
from features.importers.build import build_log
from streams.cli import main
from tests.logs import DATA

BOOK = codebook()
SHIPPED = sorted(p.name.removesuffix(".toml") for p in files("features").joinpath("usecases").iterdir() if p.name.endswith(".toml"))
T_US = 1_777_798_800_000_000
"""2026-05-03 09:00 UTC: when every index visit begins, or the index stay ends."""
Events = list[tuple[str, dict[str, Any]]]
Row = dict[str, Any]


def premonitor(*arguments: object) -> str:
    """Run one command; it must succeed."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, f"premonitor {' '.join(map(str, arguments))}: {done.output} {done.exception!r}"
    return done.stdout


def tables(log: Path, use_case: str, folder: Path) -> dict[str, dict[str, Row]]:
    """`features` and `labels` of a log, by encounter."""
    found = {}
    for command in ("features", "labels"):
        out = folder / f"{use_case}.{command}.parquet"
        premonitor(command, log, "--use-case", use_case, "--out", out)
        found[command] = {row["encounter_id"]: row for row in pq.read_table(out).to_pylist()}
    return found


# --- all of them, on invented patients -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, dict[str, Row]]]:
    """Tables of a use case on 120 patients of 2025, made once."""
    folder = tmp_path_factory.mktemp("simulated")
    premonitor("simulate", "--patients", 120, "--start", "2025-01-01", "--end", "2025-12-31", "--seed", 3, "--out", folder / "log")
    return cache(lambda use_case: tables(folder / "log", use_case, folder))


def test_these_are_shipped() -> None:
    """The names stand in documents."""
    assert SHIPPED == ["ed_60d_any", "ed_60d_oncology", "example_minimal", "readmission_30d"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_use_case_computes(simulated: Callable[[str], dict[str, dict[str, Row]]], name: str) -> None:
    """It has rows, events and non-events; the rows are those that the labels do not exclude; no column looks ahead or says nothing."""
    case, made = usecase.load(name, BOOK), simulated(name)
    assert case.leaks == [] and case.name == name and case.definition.title
    excluded = {"died_in_hospital", *(rule.reason for rule in case.definition.cohort)}
    assert set(made["features"]) == {encounter for encounter, row in made["labels"].items() if row["status"] not in excluded}
    assert {row["status"] for row in made["labels"].values()} >= {"event", "no_event"}
    assert list(next(iter(made["features"].values()))) == ["patient_id", "encounter_id", "index_time", *case.feature_names]
    kinds = {BOOK.concepts[n].kind for f in case.features for n in f.concepts}
    assert kinds <= {"encounter", "measurement", "condition", "person", "coverage", "medication_order", "medication_administration"}


@pytest.mark.parametrize(
    ("name", "stems"),
    [
        ("ed_60d_any", "hemoglobin albumin bilirubin weight ed_visits admissions age"),
        ("ed_60d_oncology", "female male race_white medicaid hemoglobin albumin bilirubin hematocrit weight ed_visits clinic_visits "
         "admissions medication_orders medication_administrations cancer_breast cancer_lung cancer_myeloma diabetes renal heart_failure"),
        ("readmission_30d", "stay_days came_through_ed admissions ed_visits hemoglobin hematocrit medication_orders age"),
        ("example_minimal", "hemoglobin weight ed_visits"),
    ],
)  # fmt: skip
def test_its_columns_have_something_to_tell(simulated: Callable[[str], dict[str, dict[str, Row]]], name: str, stems: str) -> None:
    """Of these groups each has a column that is not the same in all rows: what the clinic tells arrives in them."""
    found = list(simulated(name)["features"].values())
    for stem in stems.split():
        columns = [column for column in found[0] if column.startswith(f"{stem}_")]
        assert any(len({row[column] for row in found}) > 1 for column in columns), f"{stem}: {columns}"


NAMED = """
female_any male_any race_american_indian_any race_asian_any race_black_any race_pacific_islander_any race_white_any race_other_any
hispanic_any medicaid_any cancer_breast_any cancer_lung_any cancer_metastatic_any heart_failure_any renal_any
albumin_any_abnormal_5d albumin_any_abnormal_30d albumin_any_abnormal_90d albumin_count_30d albumin_last albumin_days_since_last
bilirubin_any_abnormal_5d hematocrit_any_abnormal_30d hemoglobin_any_abnormal_90d hemoglobin_count_30d hemoglobin_days_since_last
weight_percent_change_90d weight_slope_90d
ed_visits_count_30d ed_visits_count_90d ed_visits_days_since_last clinic_visits_count_90d admissions_days_since_last
medication_orders_count_30d medication_administrations_count_30d medication_administrations_days_since_last
"""


def test_the_oncology_use_case_has_the_published_features() -> None:
    """By the names under which they are spoken of; every condition of the code sets is read."""
    case = usecase.load("ed_60d_oncology", BOOK)
    assert set(NAMED.split()) <= set(case.feature_names)
    concepts = {n for f in case.features for n in f.concepts}
    assert {c.number for c in BOOK.concepts.values() if c.kind == "condition"} <= concepts
    assert all(f.topic == "background" for f in case.features if {BOOK.concepts[n].kind for n in f.concepts} & {"person", "coverage"})


# --- by hand ---------------------------------------------------------------------------------------------------------------------------


class Story:
    """Tells events of patients, each known when it happened unless said otherwise."""

    def __init__(self) -> None:
        self.events: Events = []

    def tell(self, feed: str, patient: str, event_us: int, *, known_us: int | None = None, **fields: Any) -> Story:
        about = {"id": f"{patient}-{len(self.events)}", "patient_id": patient} | fields
        times = {"event_time": rfc3339(event_us), "known_time": rfc3339(event_us if known_us is None else known_us)}
        self.events.append((feed, {**about, **times}))
        return self

    def tables(self, use_case: str, folder: Path) -> dict[str, dict[str, Row]]:
        counts = build_log(self.events, folder / "log", book=BOOK, source="by hand")
        assert not any(count.rejected for count in counts.values()), counts
        return tables(folder / "log", use_case, folder)


def clinic(story: Story, patient: str, at_us: int = T_US, **fields: Any) -> Story:
    """A clinic visit whose encounter id is the patient's."""
    return story.tell("encounters", patient, at_us, **({"id": patient, "encounter_class": "ambulatory", "status": "finished"} | fields))


COHORT = {
    "a microsecond before": ({"code": "C50.911"}, T_US - 1, T_US - 1, None),
    "long before, in ICD-9-CM": ({"code": "174.9", "code_system": "icd9cm"}, T_US - 4_000 * DAY_US, None, None),
    "known in the same instant as the visit": ({"code": "C61"}, T_US - DAY_US, T_US, None),
    "metastatic": ({"code": "C78.7"}, T_US - DAY_US, None, None),
    "neuroendocrine": ({"code": "C7A.00"}, T_US - DAY_US, None, None),
    "at the index time": ({"code": "C50.911"}, T_US, None, "no_cancer_known"),
    "known a microsecond after the visit": ({"code": "C50.911"}, T_US - DAY_US, T_US + 1, "no_cancer_known"),
    "taken back before": ({"code": "C50.911", "status": "entered-in-error"}, T_US - DAY_US, None, "no_cancer_known"),
    "other skin cancer": ({"code": "C44.91"}, T_US - DAY_US, None, "no_cancer_known"),
    "in situ": ({"code": "D05.11"}, T_US - DAY_US, None, "no_cancer_known"),
    "history of": ({"code": "Z85.3"}, T_US - DAY_US, None, "no_cancer_known"),
}
"""Why → the condition, when it was true, when known (None: then), and the reason of exclusion (None: in the cohort)."""


def test_the_cohort_has_those_whose_cancer_was_known(tmp_path: Path) -> None:
    """Judged at the index, from what was known: both edges of time and of knowledge, and what counts as cancer."""
    story = Story()
    for why, (condition, event_us, known_us, _) in COHORT.items():
        clinic(story.tell("conditions", why, event_us, known_us=known_us, **condition), why)
    clinic(story, "nothing known")
    made = story.tables("ed_60d_oncology", tmp_path)
    reasons = {why: reason for why, (*_, reason) in COHORT.items()} | {"nothing known": "no_cancer_known"}
    assert {why: row["status"] for why, row in made["labels"].items()} == {why: reason or "censored" for why, reason in reasons.items()}
    assert set(made["features"]) == {why for why, reason in reasons.items() if reason is None}


def test_an_oncology_row_by_hand(tmp_path: Path) -> None:
    """One patient with all that the published features ask for, some of it on the edges of the windows; and all other columns 0 or null."""
    story = Story()
    for system, code in [("sex", "female"), ("race", "Black or African American"), ("ethnicity", "2135-2")]:
        story.tell("persons", "p", T_US - 800 * DAY_US, code_system=system, code=code)
    story.tell("coverage", "p", T_US - 800 * DAY_US, code="medicaid", end_time=rfc3339(T_US - 700 * DAY_US))
    for code, system in [("C50.911", "icd10cm"), ("404.03", "icd9cm"), ("196.3", "icd9cm")]:
        story.tell("conditions", "p", T_US - 60 * DAY_US, code=code, code_system=system)
    for loinc, days, value, unit in [
        ("1751-7", 5, 3.4, "g/dL"), ("1751-7", 30, 36.0, "g/L"), ("1975-2", 30, 1.3, "mg/dL"), ("718-7", 90, 11.9, "g/dL"),
        ("718-7", 0, 5.0, "g/dL"), ("4544-3", 91, 30.0, "%"),
    ]:  # fmt: skip
        story.tell("labs", "p", T_US - days * DAY_US, code=loinc, value=value, unit=unit)
    for days, kg in [(80, 80.0), (40, 78.0), (20, 76.0), (10, 75.0)]:
        story.tell("vitals", "p", T_US - days * DAY_US, code="29463-7", value=kg, unit="kg")
    for word, days in [("emergency", 30), ("emergency", 31), ("inpatient", 30), ("ambulatory", 90), ("virtual", 3)]:
        story.tell("encounters", "p", T_US - days * DAY_US, encounter_class=word, status="finished")
    story.tell("encounters", "p", T_US - DAY_US // 24, encounter_class="emergency", status="finished", episode_id="index")
    for feed, days in [("medication-orders", 5), ("medication-orders", 6), ("medication-administrations", 0)]:
        story.tell(feed, "p", T_US - days * DAY_US, code="any")
    story.tell("encounters", "p", T_US + 60 * DAY_US, encounter_class="emergency", status="finished")
    made = clinic(story, "p", episode_id="index").tables("ed_60d_oncology", tmp_path)
    told = {name: value for name, value in made["features"]["p"].items() if name not in ("patient_id", "encounter_id", "index_time")}
    for name, value in {"weight_percent_change_30d": 100 * -1 / 76, "weight_slope_90d": -202.5 / 2875}.items():
        assert told.pop(name) == pytest.approx(value, rel=1e-12), name
    assert {name: value for name, value in told.items() if value} == {
        "female_any": 1, "race_black_any": 1, "hispanic_any": 1, "medicaid_any": 1,
        "cancer_breast_any": 1, "cancer_metastatic_any": 1, "heart_failure_any": 1, "renal_any": 1,
        "albumin_any_abnormal_5d": 1, "albumin_any_abnormal_30d": 1, "albumin_any_abnormal_90d": 1,
        "albumin_count_5d": 1, "albumin_count_30d": 2, "albumin_count_90d": 2, "albumin_last": 3.4, "albumin_days_since_last": 5,
        "bilirubin_any_abnormal_30d": 1, "bilirubin_any_abnormal_90d": 1, "bilirubin_count_30d": 1, "bilirubin_count_90d": 1,
        "bilirubin_last": 1.3, "bilirubin_days_since_last": 30,
        "hematocrit_last": 30, "hematocrit_days_since_last": 91,
        "hemoglobin_any_abnormal_90d": 1, "hemoglobin_count_90d": 1, "hemoglobin_last": 11.9, "hemoglobin_days_since_last": 90,
        "weight_percent_change_90d": -6.25,
        "ed_visits_count_30d": 1, "ed_visits_count_90d": 2, "ed_visits_days_since_last": 30,
        "clinic_visits_count_90d": 1, "clinic_visits_days_since_last": 90,
        "admissions_count_30d": 1, "admissions_count_90d": 1, "admissions_days_since_last": 30,
        "other_visits_count_30d": 1, "other_visits_count_90d": 1, "other_visits_days_since_last": 3,
        "medication_orders_count_5d": 1, "medication_orders_count_30d": 2, "medication_orders_count_90d": 2,
        "medication_orders_days_since_last": 5,
    }  # fmt: skip
    assert [name for name, value in told.items() if value is None] == ["medication_administrations_days_since_last"]
    assert made["labels"]["p"]["label"] == 1, "the visit at the end of the 60 days counts"


def stay(story: Story, patient: str, start_us: int, end_us: int | None, **fields: Any) -> Story:
    """A hospital stay, told at its end; without one, at its start."""
    about = {"encounter_class": "inpatient", "status": "in-progress" if end_us is None else "finished", **fields}
    if end_us is None:
        return story.tell("encounters", patient, start_us, **about)
    return story.tell("encounters", patient, start_us, known_us=end_us, end_time=rfc3339(end_us), **about)


AGAIN = {
    "never again": (None, "urgent", 0),
    "at the moment of discharge": (0, "urgent", 0),
    "a microsecond after it": (1, "urgent", 1),
    "at the end of the 30 days": (30 * DAY_US, "emergency", 1),
    "a microsecond behind them": (30 * DAY_US + 1, "emergency", 0),
    "elective": (9 * DAY_US, "elective", 0),
    "of unknown priority": (9 * DAY_US, None, 1),
}
"""Why → when the next stay begins after the discharge, how it came about, and the label."""


def test_readmission_is_asked_of_those_who_left_alive(tmp_path: Path) -> None:
    """Labels on both edges of the 30 days; who died in hospital is excluded; an open stay and other classes of visit do not ask."""
    story = Story()
    for why, (after_us, priority, _) in AGAIN.items():
        stay(story, why, T_US - 4 * DAY_US, T_US, id=why)
        if after_us is not None:
            stay(story, why, T_US + after_us, None, priority=priority)
    stay(story, "died", T_US - 4 * DAY_US, T_US, id="died", expired=True)
    stay(story, "open", T_US - 4 * DAY_US, None, id="open")
    story.tell("encounters", "observed", T_US - DAY_US, known_us=T_US, encounter_class="observation", status="finished", id="observed",
               end_time=rfc3339(T_US))  # fmt: skip
    stay(story, "an observation", T_US - 4 * DAY_US, T_US, id="an observation")
    story.tell("encounters", "an observation", T_US + DAY_US, encounter_class="observation", status="finished")
    for patient in [*AGAIN, "died", "open", "observed", "an observation"]:
        story.tell("coverage", patient, T_US - 99 * DAY_US, code="observed", end_time=rfc3339(T_US + 99 * DAY_US))
    made = story.tables("readmission_30d", tmp_path)
    expected = {why: label for why, (*_, label) in AGAIN.items()} | {"died": None, "an observation": 0}
    assert {why: row["label"] for why, row in made["labels"].items()} == expected
    assert made["labels"]["died"]["status"] == "died_in_hospital"
    assert set(made["features"]) == set(expected) - {"died"}
    assert {row["index_time"].timestamp() for row in made["labels"].values()} == {T_US / 1e6}


def test_a_readmission_row_by_hand(tmp_path: Path) -> None:
    """The stay itself in days and its way in, stays before it, and results of its last five days; what is coded at discharge comes late."""
    story = Story()
    story.tell("encounters", "p", T_US - 4 * DAY_US - 1, encounter_class="emergency", status="finished", episode_id="s")
    stay(story, "p", T_US - 100 * DAY_US, T_US - 98 * DAY_US)
    for days, value in [(6, 13.0), (4, 11.0), (1, 10.0)]:
        story.tell("labs", "p", T_US - days * DAY_US, code="718-7", value=value, unit="g/dL")
    story.tell("conditions", "p", T_US - 98 * DAY_US, code="C34.90")
    story.tell("conditions", "p", T_US, code="E11.9")
    made = stay(story, "p", T_US - 4 * DAY_US, T_US, id="p", episode_id="s").tables("readmission_30d", tmp_path)
    row = {
        name: value for name, value in made["features"]["p"].items() if value and name not in ("patient_id", "encounter_id", "index_time")
    }
    assert row == {
        "stay_days_last": 4, "came_through_ed_any": 1, "admissions_count_365d": 1, "admissions_days_since_last": 100,
        "hemoglobin_last_30d": 10, "hemoglobin_days_since_last_30d": 1, "hemoglobin_any_abnormal_5d": 1, "hemoglobin_change_5d": -1,
        "cancer_any": 1,
    }  # fmt: skip


# --- the code sets they stand on -------------------------------------------------------------------------------------------------------

PERSONS = [
    ("sex", "female", "female"), ("sex", "male", "male"), ("sex", "unknown", None),
    ("race", "white", "race.white"), ("race", "2106-3", "race.white"), ("race", "WHITE - RUSSIAN", "race.white"),
    ("race", "black", "race.black"), ("race", "Black or African American", "race.black"), ("race", "BLACK/AFRICAN AMERICAN", "race.black"),
    ("race", "asian", "race.asian"), ("race", "2028-9", "race.asian"), ("race", "ASIAN - CHINESE", "race.asian"),
    ("race", "American Indian or Alaska Native", "race.american_indian"), ("race", "AMERICAN INDIAN/ALASKA NATIVE", "race.american_indian"),
    ("race", "Native Hawaiian or Other Pacific Islander", "race.pacific_islander"), ("race", "2076-8", "race.pacific_islander"),
    ("race", "NATIVE HAWAIIAN OR OTHER PACIFIC ISLANDER", "race.pacific_islander"),
    ("race", "other", "race.other"), ("race", "OTHER", "race.other"), ("race", "2131-1", "race.other"),
    ("race", "Caucasian", "race.white"), ("race", "African American", "race.black"), ("race", "Native American", "race.american_indian"),
    ("race", "native", "race.american_indian"), ("race", "hawaiian", "race.pacific_islander"),
    ("race", "Hispanic", "ethnicity.hispanic"), ("ethnicity", "nonhispanic", "ethnicity.not_hispanic"),
    ("race", "Other/Unknown", None),
    ("race", "UNKNOWN", None), ("race", "PATIENT DECLINED TO ANSWER", None), ("race", "MULTIPLE RACE/ETHNICITY", None),
    ("race", "HISPANIC/LATINO - CUBAN", "ethnicity.hispanic"), ("ethnicity", "Hispanic or Latino", "ethnicity.hispanic"),
    ("ethnicity", "2135-2", "ethnicity.hispanic"), ("ethnicity", "2186-5", "ethnicity.not_hispanic"),
    ("ethnicity", "Not Hispanic or Latino", "ethnicity.not_hispanic"), ("ethnicity", "white", None),
]  # fmt: skip


@pytest.mark.parametrize(("system", "code", "concept"), PERSONS)
def test_what_is_told_of_a_person(system: str, code: str, concept: str | None) -> None:
    """The categories of the OMB by word, name and code of CDC and HL7; the words of MIMIC-IV, eICU and Synthea; nothing is guessed."""
    number = BOOK.concept(kind="person", system=system, code=code)
    assert BOOK.concepts[number].name == (f"person.{concept}" if concept else "other")


CANCERS = [
    ("C50.911", "174.9", "breast"), ("C34.90", "162.9", "lung"), ("C33", "162.0", "other_respiratory"), ("C18.9", "153.9", "colon"),
    ("C20", "154.1", "rectum_anus"), ("C61", "185", "prostate"), ("C90.00", "203.00", "myeloma"), ("C90.10", "203.10", "leukemia"),
    ("C83.30", "202.80", "non_hodgkin"), ("C81.90", "201.90", "hodgkin"), ("C64.9", "189.0", "kidney"), ("C65.9", "189.1", "kidney"),
    ("C66.9", "189.2", "other_urinary"), ("C56.9", "183.0", "ovary"), ("C57.00", "183.2", "other_female_genital"),
    ("C76.0", "195.0", "head_neck"), ("C76.2", "195.2", "other_primary"), ("C45.0", "163.9", "other_respiratory"),
    ("C45.1", "158.8", "other_digestive"), ("C49.A2", "151.9", "stomach"), ("C43.9", "172.9", "melanoma"), ("C97", "238.6", "other"),
]  # fmt: skip


@pytest.mark.parametrize(("icd10", "icd9", "group"), CANCERS)
def test_a_group_of_cancer(icd10: str, icd9: str, group: str) -> None:
    """As the CCS has it, in both code systems; the longest prefix decides."""
    for system, code in (("icd10cm", icd10), ("icd9cm", icd9)):
        number = BOOK.concept(kind="condition", system=system, code=code)
        assert BOOK.concepts[number].name == f"condition.cancer.{group}", code


def quan(ranges: str) -> set[str]:
    """Prefixes from a list such as `C00-C26 238.6`."""
    found = set()
    for word in ranges.replace(".", "").split():
        first, _, last = word.partition("-")
        letter, digits = ("C", first[1:]) if first[0] == "C" else ("", first)
        until = last.removeprefix("C") or digits
        found |= {f"{letter}{n:0{len(digits)}}" for n in range(int(digits), int(until) + 1)}
    return found


@pytest.mark.parametrize(
    ("system", "ranges"),
    [
        ("icd10cm", "C00-C26 C30-C34 C37-C41 C43 C45-C58 C60-C76 C81-C85 C88 C90-C97"),
        ("icd9cm", "140-172 174-195 200-208 238.6"),
    ],
)
def test_the_groups_together_are_the_cancers_of_quan(system: str, ranges: str) -> None:
    """No group has a code that is none of Charlson's cancers, and each of their prefixes leads to a group."""
    table = csv.DictReader(files("features").joinpath("codes", "cancer.csv").read_text(encoding="utf-8").splitlines())
    codes = {row["code"].rstrip("*") for row in table if row["system"] == system and row["concept"].startswith("condition.cancer.")}
    wanted = quan(ranges)
    assert not [code for code in codes if not any(code.startswith(prefix) for prefix in wanted)]
    every = {prefix: BOOK.concept(kind="condition", system=system, code=f"{prefix}9") for prefix in wanted}
    assert [prefix for prefix, number in every.items() if not BOOK.concepts[number].name.startswith("condition.cancer.")] == []


def test_each_group_has_codes_and_a_word_of_its_own() -> None:
    """Thirty groups of the CCS and the rest, all under one topic."""
    groups = [c for c in BOOK.concepts.values() if c.name.startswith("condition.cancer.")]
    assert len(groups) == 31 == len({c.label for c in groups})
    assert {c.topic for c in groups} == {"cancer"}
    assert all({system for system, _ in BOOK.codes[c.number]} == {"icd9cm", "icd10cm"} for c in groups)


# --- against the known answers ---------------------------------------------------------------------------------------------------------


def test_readmissions_of_mimic_are_the_known_ones(tmp_path: Path) -> None:
    """Where observation stays ask and count too, as in the known answers, labels and statuses of real admissions agree with E1.

    As it is shipped, the use case asks of inpatient stays alone: each of them has the same answer, unless an observation stay gave it.
    """
    with gzip.open(DATA / "expected" / "e1_mimic_rows.jsonl.gz", "rt") as lines:
        known = {row["hadm_id"]: row for row in map(json.loads, lines)}
    text = files("features").joinpath("usecases", "readmission_30d.toml").read_text(encoding="utf-8")
    wider = text.replace('classes = ["inpatient"]', 'classes = ["inpatient", "observation"]')
    wider = wider.replace('[outcome]\nconcepts = ["visit.inpatient"]', '[outcome]\nconcepts = ["visit.inpatient", "visit.observation"]')
    (tmp_path / "wider.toml").write_text(wider, encoding="utf-8")
    premonitor("import", "mimic", DATA / "mimic_iv_demo", "--out", tmp_path / "log")
    found = {}
    for name, use_case in {"wider": tmp_path / "wider.toml", "shipped": "readmission_30d"}.items():
        premonitor("labels", tmp_path / "log", "--use-case", use_case, "--out", tmp_path / f"{name}.parquet")
        found[name] = {
            row["encounter_id"]: (row["label"], row["status"]) for row in pq.read_table(tmp_path / f"{name}.parquet").to_pylist()
        }
    expected = {hadm: (row["readm30_label"], row["readm30_status"]) for hadm, row in known.items()}
    assert found["wider"] == expected
    assert set(found["shipped"]) == {hadm for hadm, row in known.items() if "OBSERV" not in row["admission_type"]}
    differ = {hadm for hadm, answer in found["shipped"].items() if answer != expected[hadm]}
    assert all(expected[hadm][0] == 1 for hadm in differ)
