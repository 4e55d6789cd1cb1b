"""The importers tell what E1, E1b and E7 count: every row of the expected files is computed anew from the events alone.

PREMONITOR_DATA names a folder with mimic_iv_demo, eicu_demo_labs and expected; without it the sample in tests/data is read.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from features import codes, fact
from features.decode import decode
from features.errors import InputError
from features.importers import eicu, mimic

DATA = Path(os.environ.get("PREMONITOR_DATA", Path(__file__).parents[1] / "data"))
Told = list[tuple[str, dict[str, Any]]]
WINDOWS = (5, 30, 90)
ABSENT = {"id": "", "patient_id": "", "version": 1, "event_time": None, "known_time": None, "end_time": None}
LABS = {"hemoglobin": "Hgb", "hematocrit": "Hct", "albumin": "albumin", "bilirubin": "total bilirubin"}


def table(told: Told, feed: str) -> pd.DataFrame:
    """The events of one feed, times as timestamps, in the order told."""
    events = [{**ABSENT, **event} for name, event in told if name == feed]
    frame = pd.DataFrame(events) if events else pd.DataFrame(columns=list(ABSENT))
    for column in ("event_time", "known_time", "end_time"):
        frame[column] = pd.to_datetime(frame[column], utc=True)
    return frame


def by_patient(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The events of each patient; of one who has none, no rows."""
    return defaultdict(lambda: frame.iloc[:0], {str(patient): part for patient, part in frame.groupby("patient_id")})


def ruling(frame: pd.DataFrame) -> pd.DataFrame:
    """The last version of each id."""
    return frame.sort_values("version", kind="stable").groupby("id").tail(1)


def before(frame: pd.DataFrame, t: Any, days: int) -> pd.DataFrame:
    """Events in the closed-open window [t - days, t)."""
    inside = (frame.event_time >= t - pd.Timedelta(days=days)) & (frame.event_time < t)
    found: pd.DataFrame = frame[inside]
    return found


def last(frame: pd.DataFrame) -> Any:
    """The row that is greatest by (event_time, ordinal), or None."""
    return None if frame.empty else frame.sort_values(["event_time", "ordinal"]).iloc[-1]


def by_id(frame: pd.DataFrame) -> dict[str, Any]:
    """Each event by its id, as a tuple with names."""
    return {str(event.id): event for event in frame.itertuples()}


def rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / "expected" / name, "rt") as lines:
        return [json.loads(line) for line in lines]


def summary(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / "expected" / name).read_text())
    return found


def sums(expected: dict[str, int], got: list[dict[str, Any]]) -> None:
    """The totals of the summary, for the columns that were computed anew."""
    names = [name for name in expected if name in got[0]]
    assert names
    assert {name: expected[name] for name in names} == {name: sum(row[name] for row in got) for name in names}


def tell(importer: Any, folder: Path, tables: dict[str, str]) -> tuple[dict[tuple[str, str, int], dict[str, Any]], Counter[Any]]:
    """Write tables as plain .csv and import them: events by (feed, id, version), and how many rows were rejected for what."""
    for name, text in tables.items():
        path = folder / f"{name}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    told = list(importer.events(folder))
    events = {(feed, e["id"], e.get("version", 1)): e for feed, e in told if feed != "rejected"}
    return events, Counter((e["feed"], e["reason"]) for feed, e in told if feed == "rejected")


@pytest.fixture(scope="module")
def mimic_told() -> Told:
    return list(mimic.events(DATA / "mimic_iv_demo"))


@pytest.fixture(scope="module")
def eicu_told() -> Told:
    return list(eicu.events(DATA / "eicu_demo_labs"))


@pytest.fixture(params=["mimic_told", "eicu_told"])
def told(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_every_event_passes_the_contract_and_becomes_a_fact(told: Told) -> None:
    book = codes.codebook()
    for feed, event in told:
        if feed != "rejected":
            decoded = decode(feed, json.dumps(event, allow_nan=False).encode())
            fact.convert(decoded, feed=feed, told=0, stamp="given", book=book)


def test_an_id_and_version_is_told_once_in_its_feed(told: Told) -> None:
    counts = Counter((feed, e["id"], e.get("version", 1)) for feed, e in told if feed != "rejected")
    assert not [key for key, n in counts.items() if n > 1]


def test_nothing_is_told_before_it_happened(told: Told) -> None:
    """Ends, deaths and diagnoses are known when they come about, stays told at both ends; only a laboratory's clock may run ahead."""
    for feed, event in told:
        if feed not in ("rejected", "labs"):
            known = pd.Timestamp(event["known_time"])
            assert known >= pd.Timestamp(event["event_time"])
            assert "end_time" not in event or known >= pd.Timestamp(event["end_time"])
            assert event.get("version", 1) == 1 or event.get("end_time") or event.get("code_system") == "birth"
            assert "expired" not in event or event["status"] == "finished"
    visits = table(told, "encounters")
    first, second = visits[visits.version == 1], visits[visits.version == 2]
    assert (first.known_time == first.event_time).all() and first.end_time.isna().all() and first.status.eq("in-progress").all()
    assert (second.known_time == second.end_time).all() and second.status.eq("finished").all()


@pytest.mark.parametrize("importer", [mimic, eicu], ids=["mimic", "eicu"])
def test_a_missing_table_is_named_with_the_remedy(importer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(admissions|patient)\.csv\.gz is missing .*give the folder"):
        list(importer.events(tmp_path))


def test_mimic_visits(mimic_told: Told) -> None:
    visits = ruling(table(mimic_told, "encounters"))
    arrived, admitted = visits[visits.encounter_class == "emergency"], visits[visits.encounter_class != "emergency"]
    expected = summary("e1_mimic_summary.json")
    assert (len(admitted), len(arrived)) == (expected["rows"], expected["ed_visits"])
    assert (~arrived.episode_id.isin(admitted.id)).sum() == expected["ed_visits_no_admission"]
    assert visits.expired.eq(True).sum() == expected["readm30_status"].get("died_in_hospital", 0)
    emergency, stays = by_patient(arrived), by_patient(admitted)
    vitals = table(mimic_told, "vitals")
    registered = by_patient(vitals[vitals.code == "ed_registration"])
    index = by_id(visits)
    got = []
    for row in rows("e1_mimic_rows.jsonl.gz"):
        t, subject = index[row["hadm_id"]].event_time, row["subject_id"]
        assert t == pd.Timestamp(row["t"], tz="UTC")
        answer: dict[str, int] = {}
        for days in WINDOWS:
            seen = before(emergency[subject], t, days)
            answer[f"ed_count_{days}d"] = len(seen)
            answer[f"ed_count_not_own_{days}d"] = (seen.episode_id != row["hadm_id"]).sum()
            answer[f"edreg_count_{days}d"] = len(before(registered[subject], t, days))
            answer[f"prior_admissions_{days}d"] = len(before(stays[subject], t, days))
        assert answer == {name: row[name] for name in answer}
        got.append(answer)
    sums(expected["sums"], got)


def test_mimic_microbiology_by_event_time_and_as_known(mimic_told: Told) -> None:
    labs = table(mimic_told, "labs")
    cultures = by_patient(labs[labs.code == "microbiology"])
    got = []
    for row in rows("e1_mimic_rows.jsonl.gz"):
        t = pd.Timestamp(row["t"], tz="UTC")
        own = cultures[row["subject_id"]]
        answer: dict[str, Any] = {}
        for view, seen in (("event", own), ("known", own[own.known_time <= t])):
            for days in WINDOWS:
                inside = before(seen, t, days)
                answer[f"micro_{view}_count_{days}d"] = len(inside)
                answer[f"micro_{view}_specimens_{days}d"] = inside.episode_id.nunique()
                answer[f"micro_{view}_any_positive_{days}d"] = bool((inside.value == 1).any())
            newest = last(seen[seen.event_time < t])
            assert row[f"micro_{view}_last_id"] == (None if newest is None else newest.id)
            assert row[f"micro_{view}_last_positive"] == (None if newest is None else newest.value == 1)
        assert answer == {name: row[name] for name in answer}
        got.append(answer)
    sums(summary("e1_mimic_summary.json")["sums"], got)


def test_mimic_results_that_were_never_filed_come_after_all_else(mimic_told: Told) -> None:
    everything = pd.concat([table(mimic_told, feed).assign(feed=feed) for feed in {name for name, _ in mimic_told} - {"rejected"}])
    gap = everything.known_time - everything.event_time
    never = (everything.feed == "labs") & (gap >= pd.Timedelta(days=mimic.NEVER_DAYS))
    assert never.sum() == summary("e1_mimic_summary.json")["micro_null_storetime"]
    end = everything[~never].groupby("patient_id").known_time.max()
    late = everything[never]
    assert (late.known_time.array >= end[late.patient_id].array + pd.Timedelta(days=mimic.NEVER_DAYS)).all()


def test_mimic_weights(mimic_told: Told) -> None:
    vitals = table(mimic_told, "vitals")
    weights = by_patient(vitals[vitals.code == "29463-7"])
    got = []
    for row in rows("e1_mimic_rows.jsonl.gz"):
        t = pd.Timestamp(row["t"], tz="UTC")
        own = weights[row["subject_id"]]
        answer = {f"weight_count_{days}d": len(before(own, t, days)) for days in WINDOWS}
        assert answer == {name: row[name] for name in answer}
        newest = last(own[own.event_time < t])
        assert row["weight_last"] == (None if newest is None else pytest.approx(newest.value))
        if newest is not None:
            assert row["weight_days_since_last"] == pytest.approx((t - newest.event_time) / pd.Timedelta(days=1), abs=1e-5)
        got.append(answer)
    sums(summary("e1_mimic_summary.json")["sums"], got)


def test_mimic_follow_up_and_outcomes(mimic_told: Told) -> None:
    """Emergency visit in (t, t + 60 d] that is not the index's own; readmission in (discharge, discharge + 30 d] by priority."""
    visits = ruling(table(mimic_told, "encounters"))
    coverage = ruling(table(mimic_told, "coverage"))
    end = coverage[coverage.code == "observed"].set_index("patient_id").end_time
    dead = set(table(mimic_told, "deaths").patient_id)
    index = by_id(visits)
    people = by_patient(visits)

    def status(start: Any, days: int, found: Any, patient: str) -> str:
        until = start + pd.Timedelta(days=days)
        if ((found > start) & (found <= until)).any():
            return "event"
        return "no_event" if end[patient] >= until else "death" if patient in dead else "censored"

    for row in rows("e1_mimic_rows.jsonl.gz"):
        stay, own = index[row["hadm_id"]], people[row["subject_id"]]
        emergency = own[(own.encounter_class == "emergency") & (own.episode_id != row["hadm_id"])]
        assert end[row["subject_id"]] == pd.Timestamp(row["follow_up_end"], tz="UTC")
        planned = row["admission_type"] in ("ELECTIVE", "SURGICAL SAME DAY ADMISSION")
        assert (stay.priority == "elective", stay.encounter_class == "observation") == (planned, "OBSERV" in row["admission_type"])
        assert row["ed60_status"] == status(stay.event_time, 60, emergency.event_time, stay.patient_id)
        if stay.expired is True:
            assert row["readm30_status"] == "died_in_hospital"
            continue
        again = own[(own.encounter_class != "emergency") & (own.priority != "elective")]
        assert row["readm30_status"] == status(stay.end_time, 30, again.event_time, stay.patient_id)
        strict = again[again.priority.isin(["emergency", "urgent"])]
        in_time = (strict.event_time > stay.end_time) & (strict.event_time <= stay.end_time + pd.Timedelta(days=30))
        assert (row["readm30_strict_types_label"] == 1) == in_time.any()


def test_mimic_diagnoses_keep_their_zeros_and_are_known_at_discharge(mimic_told: Told) -> None:
    """Metastatic cancer by Quan's prefixes, per admission, as in E7."""
    conditions = table(mimic_told, "conditions")
    quan = {"icd9cm": r"(?:19[678]|1990|1991)", "icd10cm": r"C(?:77|78|79|80)"}
    hits = {system: conditions.code_system.eq(system) & conditions.code.str.match(prefix) for system, prefix in quan.items()}
    metastatic = set(conditions.episode_id[hits["icd9cm"] | hits["icd10cm"]])
    expected = pd.read_csv(DATA / "expected" / "e7_charlson.csv", dtype=str)
    assert metastatic == set(expected.hadm_id[expected.metacanc == "1"])
    assert conditions.code.str.startswith("0").any()
    visits = ruling(table(mimic_told, "encounters")).set_index("id")
    assert (conditions.known_time == visits.end_time[conditions.episode_id].array).all()


def test_mimic_odd_rows(tmp_path: Path) -> None:
    """One patient in plain .csv under hosp: an edregtime without an ED row, no storetime, labevents, words that look like nothing."""
    tables = {
        "patients": "subject_id,gender,anchor_age,anchor_year,dod\n7,F,60,2150,\n8,M,50,2150,\n",
        "admissions": "subject_id,hadm_id,admittime,dischtime,admission_type,insurance,race,edregtime,edouttime,hospital_expire_flag\n"
        "7,20,2150-01-02 10:00:00,,EU OBSERVATION,None,NA,2150-01-02 11:00:00,2150-01-02 12:00:00,0\n",
        "transfers": "subject_id,hadm_id,transfer_id,eventtype,intime,outtime\n7,20,31,admit,2150-01-02 10:00:00,\n",
        "omr": "subject_id,chartdate,seq_num,result_name,result_value\n7,2150-01-01,1,Weight (Lbs),\n7,2150-01-01,2,Weight (Lbs),nan\n",
        "microbiologyevents": "microevent_id,subject_id,micro_specimen_id,chartdate,charttime,storetime,org_name\n"
        "1,7,9,2150-01-03 00:00:00,,,None\n",
        "diagnoses_icd": "subject_id,hadm_id,seq_num,icd_code,icd_version\n7,21,1,0030,9\n",
        "labevents": "labevent_id,subject_id,hadm_id,itemid,charttime,storetime,valuenum,valueuom\n"
        "1,7,,51222,2150-01-03 05:00:00,2150-01-03 06:00:00,9.5,g/dL\n2,7,20,51222,2150-01-03 05:00:00,,,g/dL\n",
    }
    found, refused = tell(mimic, tmp_path, {f"hosp/{name}": text for name, text in tables.items()})
    assert refused == {
        ("persons", "never-seen"): 1,
        ("vitals", "value-missing"): 1,
        ("vitals", "bad-value"): 1,
        ("conditions", "unknown-stay"): 1,
        ("labs", "value-missing"): 1,
    }
    assert found["encounters", "edreg-20", 2]["end_time"] == "2150-01-02T12:00:00Z"
    assert found["encounters", "20", 1]["encounter_class"] == "observation" and ("encounters", "20", 2) not in found
    culture = found["labs", "1", 1]
    assert (culture["event_time"], culture["known_time"]) == ("2150-01-03T23:59:59Z", "2160-01-01T23:59:59Z")
    assert culture["value"] == 1.0, "an organism of the name None did grow"
    assert found["labs", "lab-1", 1]["known_time"] == "2150-01-03T06:00:00Z"
    assert found["persons", "race-20", 1]["code"] == "NA" and found["coverage", "insurance-20", 1]["code"] == "none"
    with pytest.raises(InputError, match=r"omr\.csv, column chartdate: a time is not written like"):
        tell(mimic, tmp_path, {"hosp/omr": "subject_id,chartdate,seq_num,result_name,result_value\n7,1/2/2150,1,Weight (Lbs),150\n"})
    with pytest.raises(InputError, match=r"omr\.csv cannot be read: expected CSV with the columns subject_id"):
        tell(mimic, tmp_path, {"hosp/omr": "subject_id,chartdate\n7,2150-01-01\n"})


def test_eicu_counts_and_every_row_is_an_event_or_rejected(eicu_told: Told) -> None:
    expected = summary("e1b_eicu_summary.json")
    visits = ruling(table(eicu_told, "encounters"))
    assert (len(visits), visits.episode_id.nunique()) == (expected["unit_stays"], expected["hospital_stays"])
    assert visits.patient_id.nunique() == expected["patients"]
    labs = table(eicu_told, "labs")
    four = labs[labs.code.isin(LABS.values())]
    assert len(four) == expected["lab_rows_four_labs"]
    lag = (four.known_time - four.event_time).dt.total_seconds() / 60
    found = (lag.median(), lag.max(), (lag < 0).sum())
    assert found == (expected["median_lag_minutes"], expected["max_lag_minutes"], expected["revised_before_result"])
    counts = Counter(event["feed"] if feed == "rejected" else feed for feed, event in eicu_told)
    read = pd.read_csv(DATA / "eicu_demo_labs" / "lab.csv.gz", dtype=str, keep_default_na=False)
    missing = read.labresult == ""
    assert counts["labs"] == len(read)
    assert eicu_told.count(("rejected", {"feed": "labs", "reason": "value-missing"})) == missing.sum()
    assert missing[read.labname.isin(LABS.values())].sum() == expected["null_results_dropped"]


def test_eicu_labs_by_event_time_and_as_known(eicu_told: Told) -> None:
    labs = table(eicu_told, "labs")
    by_lab = {name: by_patient(labs[labs.code == code]) for name, code in LABS.items()}
    visits = by_id(ruling(table(eicu_told, "encounters")))
    got = []
    for row in rows("e1b_eicu_rows.jsonl.gz"):
        stay = visits[row["patientunitstayid"]]
        t = stay.event_time if row["index"] == "unit_admit" else stay.end_time
        answer: dict[str, Any] = {}
        for name, people in by_lab.items():
            own = people[row["uniquepid"]]
            for view, seen in (("event", own), ("known", own[own.known_time <= t])):
                for days in WINDOWS:
                    answer[f"{name}_{view}_count_{days}d"] = len(before(seen, t, days))
                newest = last(before(seen, t, 365))
                assert row[f"{name}_{view}_last"] == (None if newest is None else newest.value)
                if newest is not None:
                    assert row[f"{name}_{view}_minutes_since_last"] == (t - newest.event_time) / pd.Timedelta(minutes=1)
        assert answer == {name: row[name] for name in answer}
        got.append(answer)
    sums(summary("e1b_eicu_summary.json")["sums"], got)


def test_eicu_stays_are_too_far_apart_for_a_window(eicu_told: Told) -> None:
    """From the last that happens in one hospital stay to the first of the next there is more than a year and a half."""
    feeds = ("encounters", "coverage", "labs", "conditions", "medication-orders", "deaths")
    everything = pd.concat([table(eicu_told, feed) for feed in feeds])
    latest = everything[["event_time", "known_time", "end_time"]].max(axis=1)
    spans = everything.assign(latest=latest).groupby(["patient_id", "episode_id"]).agg(start=("event_time", "min"), end=("latest", "max"))
    spans = spans.sort_values(["patient_id", "start"])
    gap = spans.start - spans.groupby("patient_id").end.shift()
    assert (gap.dropna() > pd.Timedelta(days=550)).all() and gap.notna().any()


def test_eicu_deaths_end_the_story(eicu_told: Told) -> None:
    """One death a person, no later stay after it, and `expired` only on the unit stay in which it happened."""
    deaths = table(eicu_told, "deaths")
    visits = ruling(table(eicu_told, "encounters"))
    assert deaths.patient_id.is_unique
    when = deaths.set_index("patient_id").event_time
    after = visits[visits.patient_id.isin(when.index)]
    assert (after.event_time < when[after.patient_id].array).all()
    expired = visits[visits.expired.eq(True)]
    assert (expired.end_time.array == when[expired.patient_id].array).all()


def test_eicu_odd_rows(tmp_path: Path) -> None:
    """Plain .csv; results and drugs that cannot be told; a stay without a time; two stays of one year in order of age."""
    head = (
        "patientunitstayid,patienthealthsystemstayid,uniquepid,gender,age,ethnicity,hospitaladmitoffset,hospitaldischargeyear,"
        "hospitaldischargeoffset,hospitaldischargestatus,unitdischargeoffset,unitdischargestatus\n"
    )
    stays = "1,10,p,Male,> 89,None,-60,2014,500,Expired,300,Alive\n2,11,p,,70,,0,2014,500,Alive,300,Alive\n3,12,q,,,,,2014,,,,\n"
    stays += "4,13,r,Female,50,Asian,0,2014,500,Expired,300,Expired\n"
    tables = {
        "patient": head + stays,
        "lab": "labid,patientunitstayid,labresultoffset,labname,labresult,labmeasurenamesystem,labresultrevisedoffset\n"
        "1,1,10,Hgb,9.5,g/dL,5\n2,1,10,Hgb,,g/dL,5\n3,1,10,Hgb,<2,g/dL,5\n4,1,x,Hgb,9,g/dL,5\n5,3,10,Hgb,9,g/dL,5\n",
        "diagnosis": f"diagnosisid,patientunitstayid,diagnosisoffset,diagnosisstring\n1,2,-5,{'d' * 200}\n",
        "medication": "medicationid,patientunitstayid,drugorderoffset,drugname\n1,2,7,None\n2,2,7,\n",
    }
    found, refused = tell(eicu, tmp_path, tables)
    assert refused == {
        ("encounters", "bad-time"): 1,
        ("labs", "value-missing"): 1,
        ("labs", "bad-value"): 1,
        ("labs", "bad-time"): 1,
        ("labs", "unknown-stay"): 1,
        ("medication-orders", "code-missing"): 1,
    }
    assert found["encounters", "2", 1]["event_time"] == "2000-01-01T00:00:00Z"
    assert found["encounters", "1", 1]["event_time"] == "2002-01-01T01:00:00Z"
    result = found["labs", "1", 1]
    assert (result["event_time"], result["known_time"]) == ("2002-01-01T01:10:00Z", "2002-01-01T01:05:00Z")
    assert found["deaths", "10", 1]["event_time"] == "2002-01-01T09:20:00Z" and not found["encounters", "1", 2]["expired"]
    assert found["deaths", "13", 1]["event_time"] == "2000-01-01T05:00:00Z" and found["encounters", "4", 2]["expired"]
    assert [found["persons", "birth-p", n]["event_time"][:4] for n in (1, 2)] == ["1930", "1912"]
    assert found["persons", "race-10", 1]["code"] == "None" and ("persons", "race-11", 1) not in found
    assert len(found["conditions", "1", 1]["code"]) == 128
    assert found["medication-orders", "1", 1]["code"] == "None"
