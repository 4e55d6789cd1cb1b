"""The importer of Synthea at its edges; that all of E2 holds is in tests/known_answers."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from features import codes, fact
from features.decode import decode
from features.errors import InputError
from features.importers import ONE_CLOCK, synthea
from streams.cli import main
from tests.logs import DATA, ask

HEADS = {
    "patients": "Id,BIRTHDATE,DEATHDATE,RACE,ETHNICITY,GENDER",
    "encounters": "Id,START,STOP,PATIENT,ENCOUNTERCLASS",
    "observations": "DATE,PATIENT,ENCOUNTER,CATEGORY,CODE,DESCRIPTION,VALUE,UNITS,TYPE",
    "conditions": "START,STOP,PATIENT,ENCOUNTER,SYSTEM,CODE",
    "medications": "START,STOP,PATIENT,ENCOUNTER,CODE",
    "payers": "Id,NAME",
    "payer_transitions": "PATIENT,MEMBERID,START_DATE,END_DATE,PAYER",
}
NEEDED = ("patients", "encounters", "observations", "conditions", "medications")
QUESTION = """
name = "test"
features = [
  { name = "hb", concepts = ["hemoglobin"], aggregates = ["count", "last", "last_ordinal"], days = [30] },
  { name = "ed", concepts = ["visit.emergency"], aggregates = ["count"], days = [30] },
]
[index]
classes = ["ambulatory", "emergency"]
[outcome]
concepts = ["visit.emergency"]
horizon_days = 60
"""
P = "p,1950-03-01,,white,nonhispanic,F"


def export(folder: Path, **tables: list[str]) -> Path:
    """A csv folder with these rows; tables that are needed and not named are empty."""
    for name in {*NEEDED, *tables}:
        (folder / f"{name}.csv").write_text("\n".join([HEADS[name], *tables.get(name, []), ""]))
    return folder


def visit(name: str, start: str, stop: str, kind: str = "ambulatory", patient: str = "p") -> str:
    return f"{name},{start},{stop},{patient},{kind}"


def hemoglobin(date: str, value: str, encounter: str = "a") -> str:
    return f"{date},p,{encounter},laboratory,718-7,Hemoglobin,{value},g/dL,numeric"


def told(folder: Path) -> tuple[dict[tuple[str, str, int], dict[str, Any]], Counter[tuple[str, str]]]:
    """Events by (feed, id, version), and how many rows were rejected for what."""
    every = list(synthea.events(folder))
    events = {(feed, e["id"], e.get("version", 1)): e for feed, e in every if feed != "rejected"}
    refused = Counter((e["feed"], e["reason"]) for feed, e in every if feed == "rejected")
    assert len(events) + refused.total() == len(every), "an id and version is told once"
    return events, refused


def test_every_event_of_the_sample_becomes_a_fact_and_is_known_when_it_was() -> None:
    """All rows pass the contract; the one clock: known at the time itself, what lasts at both ends, persons at the first encounter."""
    found, refused = told(DATA / "synthea")
    book = codes.codebook()
    for (feed, _, version), event in found.items():
        decoded = decode(feed, json.dumps(event, allow_nan=False).encode())
        fact.convert(decoded, feed=feed, told=0, stamp="given", book=book)
        if feed != "persons":
            assert event["known_time"] == event["end_time" if version == 2 else "event_time"]
        assert event["known_time"] >= event["event_time"]
    assert set(refused) == {("labs", "no-encounter")}


@pytest.mark.parametrize(("date", "seen_at_a", "seen_at_b"), [("T08:59:59Z", 1, 1), ("T09:00:00Z", 0, 1), ("T09:00:01Z", 0, 1)])
def test_an_observation_exactly_at_the_start_is_not_before_it(tmp_path: Path, date: str, seen_at_a: int, seen_at_b: int) -> None:
    """A second before the start of a it counts there; at the start and later only at the next encounter."""
    visits = [visit("a", "2024-05-03T09:00:00Z", "2024-05-03T09:30:00Z"), visit("b", "2024-05-03T09:00:02Z", "2024-05-03T09:40:00Z")]
    src = export(tmp_path, patients=[P], encounters=visits, observations=[hemoglobin(f"2024-05-03{date}", "9.5")])
    rows = ask(synthea.events(src), QUESTION, tmp_path)
    assert (rows["a"]["hb_count_30d"], rows["b"]["hb_count_30d"]) == (seen_at_a, seen_at_b)


def test_of_two_results_at_one_time_the_later_row_of_the_file_is_the_last(tmp_path: Path) -> None:
    """Neither the value nor the id decides; a row in between that is rejected leaves its number free."""
    at = "2024-05-03T09:00:00Z"
    visits = [visit("a", at, "2024-05-03T09:30:00Z"), visit("b", "2024-05-04T09:00:00Z", "2024-05-04T09:30:00Z")]
    results = [hemoglobin(at, "9.5", "b"), hemoglobin(at, "11.0", "a"), hemoglobin(at, "", "a"), hemoglobin(at, "10.0", "a")]
    row = ask(synthea.events(export(tmp_path, patients=[P], encounters=visits, observations=results)), QUESTION, tmp_path)["b"]
    assert (row["hb_count_30d"], row["hb_last_30d"], row["hb_last_ordinal_30d"]) == (3, 10.0, 4)


def test_two_encounters_with_one_start_do_not_see_each_other(tmp_path: Path) -> None:
    """An emergency visit at the same second is neither before the other encounter nor after it."""
    at = "2024-05-03T09:00:00Z"
    visits = [visit("a", at, "2024-05-03T09:30:00Z"), visit("e", at, "2024-05-03T11:00:00Z", "emergency")]
    visits.append(visit("z", "2024-08-01T09:00:00Z", "2024-08-01T09:30:00Z"))
    rows = ask(synthea.events(export(tmp_path, patients=[P], encounters=visits)), QUESTION, tmp_path)
    assert [rows[name]["ed_count_30d"] for name in "ae"] == [0, 0]
    assert [rows[name]["status"] for name in "aez"] == ["no_event", "no_event", "censored"]


def test_follow_up_ends_with_the_greatest_start_of_all_patients(tmp_path: Path) -> None:
    """60 days before it is followed to the end, a second later is censored; the stop of that encounter is behind the end."""
    visits = [visit("in", "2024-05-01T09:00:00Z", "2024-05-01T09:30:00Z"), visit("out", "2024-05-01T09:00:01Z", "2024-05-01T09:30:00Z")]
    visits.append(visit("last", "2024-06-30T09:00:00Z", "2024-07-09T09:00:00Z", "inpatient", patient="q"))
    src = export(tmp_path, patients=[P, P.replace("p,", "q,", 1)], encounters=visits)
    rows = ask(synthea.events(src), QUESTION, tmp_path)
    assert [rows[name]["status"] for name in ("in", "out")] == ["no_event", "censored"]


def test_a_death_ends_follow_up_at_the_end_of_its_day(tmp_path: Path) -> None:
    """Encounters on the day of death and after it are told and asked; no label of theirs is 0."""
    visits = [visit("before", "2024-01-01T09:00:00Z", "2024-01-01T09:30:00Z"), visit("day", "2024-04-01T20:00:00Z", "2024-04-01T21:00:00Z")]
    visits += [visit("after", "2024-04-09T09:00:00Z", "2024-04-09T09:30:00Z"), visit("z", "2024-12-01T09:00:00Z", "", patient="q")]
    src = export(tmp_path, patients=["p,1950-03-01,2024-04-01,white,,F"], encounters=visits)
    found, _ = told(src)
    assert found["deaths", "p", 1]["event_time"] == found["coverage", "observed-p", 2]["end_time"] == "2024-04-01T23:59:59Z"
    rows = ask(synthea.events(src), QUESTION, tmp_path)
    assert [rows[name]["status"] for name in ("before", "day", "after")] == ["no_event", "death", "death"]


def test_who_was_seen_only_after_the_death_was_never_followed(tmp_path: Path) -> None:
    visits = [visit("after", "2024-04-09T09:00:00Z", "2024-04-09T09:30:00Z"), visit("z", "2024-12-01T09:00:00Z", "", patient="q")]
    src = export(tmp_path, patients=["p,1950-03-01,2024-04-01,white,,F"], encounters=visits)
    found, refused = told(src)
    assert not [key for key in found if key[0] == "coverage"] and not refused
    assert ask(synthea.events(src), QUESTION, tmp_path)["after"]["status"] == "death"


def test_rows_that_cannot_be_told_are_counted(tmp_path: Path) -> None:
    """Each for its reason, without an end of the data by a time that cannot be read."""
    at = "2024-05-03T09:00:00Z"
    tables = {
        "patients": [P, "q,1950-03-01,,white,,F", "r,soon,never,,,"],
        "encounters": [
            visit("a", at, ""),
            visit("b", at, "", "ferry"),
            visit("c", "2024-05-04 09:00:00", ""),
            visit("d", "", ""),
            visit("e", at, "2024-05-03T08:00:00Z"),
            visit("f", at, "later"),
            visit("g", at, at, "hospice", patient="r"),
        ],
        "observations": [
            f"{at},p,,,QALY,QALY,3.4,a,numeric",
            "2024-05-03,p,a,laboratory,718-7,Hemoglobin,9.5,g/dL,numeric",
            hemoglobin(at, "low"),
            hemoglobin(at, ""),
            hemoglobin(at, "inf"),
            f'{at},p,a,survey,5778-6,"Color, of urine",Brown,,text',
            f"{at},p,a,vital-signs,29463-7,Weight,70.1,kg,numeric",
            f"{at},p,a,vital-signs,29463-7,Weight,70.1,kg,numeric",
        ],
        "conditions": ["2024-05-03,,p,a,SNOMED-CT,44054006", "soon,,p,a,SNOMED-CT,44054006", "2024-05-03,,p,,ICD-10,E11"],
        "medications": [f"{at},,p,a,860975", f"{at},,p,a,860975"],
    }
    found, refused = told(export(tmp_path, **tables))
    assert refused == {
        ("encounters", "class-unknown"): 1,
        ("encounters", "bad-time"): 3,
        ("encounters", "end-before-start"): 1,
        ("persons", "never-seen"): 1,
        ("persons", "bad-time"): 1,
        ("deaths", "bad-time"): 1,
        ("labs", "no-encounter"): 1,
        ("labs", "bad-time"): 1,
        ("labs", "bad-value"): 2,
        ("labs", "value-missing"): 1,
        ("conditions", "bad-time"): 1,
    }
    assert ("encounters", "a", 2) not in found, "it goes on"
    assert found["encounters", "g", 2]["encounter_class"] == "home" and found["coverage", "observed-r", 2]["end_time"] == at
    assert "value" not in found["labs", "a|5778-6|1", 1]
    assert [found["vitals", f"a|29463-7|{n}", 1]["ordinal"] for n in (1, 2)] == [7, 8]
    assert found["conditions", "a|44054006|1", 1]["event_time"] == "2024-05-03T23:59:59Z"
    assert (found["conditions", "p|E11|1", 1]["code_system"], found["conditions", "a|44054006|1", 1]["code_system"]) == ("ICD-10", "snomed")
    assert ("medication-orders", "a|860975|2", 1) in found
    for name in ("birth", "sex", "race", "ethnicity"):
        person = found["persons", f"{name}-p", 1]
        assert (person["event_time"], person["known_time"]) == ("1950-03-01T00:00:00Z", at), "the first encounter sees them"


def test_cover_by_the_names_of_the_payers(tmp_path: Path) -> None:
    """Two covers for Dual Eligible, none for who has none; an end is told at the end; a payer that nobody names is rejected."""
    payers = ["1,Medicare", "2,Dual Eligible", "3,NO_INSURANCE", "4,Humana"]
    spans = ["2020-01-01T05:00:00Z,2021-01-01T05:00:00Z,4", "2021-01-01T05:00:00Z,2022-01-01T05:00:00Z,4", "2022-01-01,,2"]
    spans += ["2023-01-01,2024-01-01,3", "2023-01-01,2024-01-01,9", "soon,,1", "2023-01-01,2022-01-01,1"]
    rows = [f"p,m,{span}" for span in spans]
    visits = [visit("a", "2024-05-03T09:00:00Z", "")]
    found, refused = told(export(tmp_path, patients=[P], encounters=visits, payers=payers, payer_transitions=rows))
    reasons = ("not-insured", "payer-unknown", "bad-time", "end-before-start")
    assert refused == {("coverage", reason): 1 for reason in reasons}
    covers = sorted(key[1:] for key in found if key[0] == "coverage" and "observed" not in key[1])
    assert covers == [*((f"p|commercial|{n}", version) for n in (1, 2) for version in (1, 2)), ("p|medicaid|1", 1), ("p|medicare|1", 1)]
    assert found["coverage", "p|commercial|1", 2]["known_time"] == "2021-01-01T05:00:00Z"


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A table, a column, a row with too few fields, a damaged archive; and nothing of a row is said."""
    with pytest.raises(InputError, match=r"encounters\.csv is missing .*give the folder output/csv"):
        list(synthea.events(tmp_path))
    export(tmp_path, patients=[P], encounters=[visit("a", "2024-05-03T09:00:00Z", ""), "secret"])
    with pytest.raises(InputError, match=r"encounters\.csv, line 3: 1 columns, expected 5") as error:
        list(synthea.events(tmp_path))
    assert "secret" not in str(error.value)
    (tmp_path / "encounters.csv").write_text("Id,START\n")
    with pytest.raises(InputError, match=r"encounters\.csv has no column STOP"):
        list(synthea.events(tmp_path))
    (tmp_path / "encounters.csv.gz").write_bytes(gzip.compress(b"Id,START,STOP,PATIENT,ENCOUNTERCLASS\n")[:-9])
    with pytest.raises(InputError, match=r"encounters\.csv\.gz cannot be read \(EOFError\)"):
        list(synthea.events(tmp_path))


def test_the_command_says_that_there_is_one_clock(tmp_path: Path) -> None:
    """On stderr, apart from the table, and in the log's own description."""
    src = export(tmp_path, patients=[P], encounters=[visit("a", "2024-05-03T09:00:00Z", "")])
    done = CliRunner().invoke(main, ["import", "synthea", str(src), "--out", str(tmp_path / "log"), "--json"])
    assert done.exit_code == 0 and ONE_CLOCK in done.stderr and json.loads(done.stdout)["feeds"]["encounters"]["facts"] == 1
    assert ONE_CLOCK in json.loads((tmp_path / "log" / "log.json").read_text())["source"]
