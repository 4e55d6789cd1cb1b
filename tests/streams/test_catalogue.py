"""`premonitor catalogue`: what columns say, for people, and the same as one JSON document."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from features import usecase
from features.catalog import AGGREGATES, COUNTS, OF_VALUES, WORDS
from features.codes import codebook
from streams.cli import main

BOOK = codebook()
SHIPPED = sorted(p.name.removesuffix(".toml") for p in files("features").joinpath("usecases").iterdir() if p.name.endswith(".toml"))


def catalogue(*words: str) -> str:
    """What the command prints; it must succeed and say nothing on stderr."""
    done = CliRunner().invoke(main, ["catalogue", *words])
    assert done.exit_code == 0, done.output
    assert not done.stderr
    return done.stdout


def document(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(catalogue(*words, "--json"))
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_every_column_is_told_once(name: str) -> None:
    """In the order of the matrix, in both forms; with words, topic, and each concept that it reads listed with its codes."""
    case, told, text = usecase.load(name, BOOK), document("--use-case", name), catalogue("--use-case", name)
    assert [column["name"] for column in told["features"]] == case.feature_names
    lines = text.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("column "))
    assert [line.split()[0] for line in lines[begin + 1 : begin + 1 + len(case.features)]] == case.feature_names
    listed = {concept["name"] for concept in told["concepts"]}
    assert {concept for column in told["features"] for concept in column["concepts"]} <= listed
    assert all(column["says"] and column["topic"] for column in told["features"])
    assert all(column["null_possible"] == (column["aggregate"] not in COUNTS) for column in told["features"])
    assert (told["content_hash"], told["codes_hash"], told["format"]) == (case.content_hash, BOOK.content_hash, 1)
    assert not any(line != line.rstrip() for line in lines)


def test_the_words_of_some_columns() -> None:
    """What they count, of what, in which window and unit."""
    told = {column["name"]: column for column in document("--use-case", "ed_60d_oncology")["features"]}
    assert told["hemoglobin_count_30d"] == {
        "name": "hemoglobin_count_30d", "says": "hemoglobin: how many, in the last 30 days", "concepts": ["hemoglobin"],
        "aggregate": "count", "unit": "", "window_days": 30, "episode": "any", "topic": "hemoglobin", "null_possible": False, "leak": False,
    }  # fmt: skip
    assert told["albumin_any_abnormal_5d"]["says"] == "albumin: 1 if one is outside the limits of normal, else 0, in the last 5 days"
    assert told["ed_visits_count_90d"]["says"] == "emergency visit: how many, in the last 90 days, the index visit left out"
    assert told["medicaid_any"]["says"] == "Medicaid: 1 if there is one, else 0, in the whole past"
    units = {"albumin_last": "g/dL", "albumin_days_since_last": "days", "weight_percent_change_90d": "%", "weight_slope_90d": "kg per day"}
    assert {name: told[name]["unit"] for name in units} == units
    assert told["albumin_last"]["window_days"] is None and told["albumin_last"]["null_possible"]


def test_who_is_asked_and_what_is_awaited() -> None:
    """Index, cohort and outcome, and the concepts of the cohort with their codes."""
    oncology, readmission = document("--use-case", "ed_60d_oncology"), document("--use-case", "readmission_30d")
    assert oncology["cohort"] == [
        {"reason": "no_cancer_known", "says": "cancer (33 concepts): 1 if there is one, else 0, in the whole past: at least 1"}
    ]
    assert (oncology["index"], oncology["outcome"]) == ("ambulatory visits, at the start", "emergency visit, within 60 days")
    assert readmission["index"] == "inpatient visits, at the end, unless the patient died"
    assert readmission["outcome"] == "hospital stay, told as emergency or urgent or unknown, within 30 days"
    lung = next(concept for concept in oncology["concepts"] if concept["name"] == "condition.cancer.lung")
    assert {(code["system"], code["code"]) for code in lung["codes"]} == {("icd9cm", "162*"), ("icd10cm", "C34*")}
    orders = next(concept for concept in oncology["concepts"] if concept["name"] == "medication.order")
    assert orders["every_code"] and not orders["codes"]


def test_without_a_use_case_everything_there_is() -> None:
    """All aggregates, and all concepts but `other` with how many codes of which system they have."""
    told, text = document(), catalogue()
    assert [a["name"] for a in told["aggregates"]] == list(AGGREGATES) == list(WORDS)
    assert {c["name"] for c in told["concepts"]} == set(BOOK.by_name) - {"other"}
    assert sum(len(c["codes"]) for c in told["concepts"]) == sum(map(len, BOOK.codes.values()))
    assert "1 loinc · 1 eicu · 4 mimic" in next(line for line in text.splitlines() if line.startswith("hemoglobin "))
    for name in (*AGGREGATES, *(c["name"] for c in told["concepts"])):
        assert any(line.split()[:1] == [name] for line in text.splitlines()), name
    every = [c for c in told["concepts"] if not c["codes"]]
    assert all(c["every_code"] for c in every), "a concept that no code leads to is one that an event's kind decides"


def test_an_own_file_and_what_it_may_ask(tmp_path: Path) -> None:
    """Limits on both sides, nulls that exclude, an offset, a gap, priorities, another unit, and a column that looks ahead."""
    path = tmp_path / "own.toml"
    path.write_text(
        'name = "own"\n[index]\nclasses = ["emergency", "inpatient"]\noffset_hours = 4.5\n'
        '[outcome]\nconcepts = ["death"]\nhorizon_days = 7\ngap_days = 2\n'
        '[[cohort]]\nreason = "minor"\nconcepts = ["person.birth"]\naggregate = "days_since_first"\nat_least = 6575\nat_most = 40000\n'
        '[[cohort]]\nreason = "unseen"\nconcepts = ["weight"]\naggregate = "last"\ndays = 9\nmissing = "keep"\nat_most = 200\n'
        '[[features]]\nname = "w"\nconcepts = ["weight"]\naggregates = ["mean"]\ndays = [3]\nunit = "g"\nepisode = "own"\nleak = true\n'
    )
    told, text = document("--use-case", str(path)), catalogue("--use-case", str(path))
    assert told["index"] == "emergency, inpatient visits, at the start, 4.5 h later"
    assert told["outcome"] == "death, within 7 days, from 2 days on"
    minor, unseen = (rule["says"] for rule in told["cohort"])
    assert minor == "birth: days since the first, in the whole past: at least 6575 and at most 40000 (null excludes)"
    assert unseen == "weight: last value, in the last 9 days: at most 200"
    (column,) = told["features"]
    assert (column["says"], column["unit"]) == ("weight: mean of the values, in the last 3 days, of the index visit only", "g")
    assert "(looks ahead)" in next(line for line in text.splitlines() if line.startswith("w_mean_3d"))


def test_a_use_case_that_is_not_there_is_refused() -> None:
    """With the names of those that are shipped."""
    done = CliRunner().invoke(main, ["catalogue", "--use-case", "ed_61d"])
    assert done.exit_code != 0
    assert all(name in str(done.exception) for name in SHIPPED)


def test_the_lists_of_aggregates_agree() -> None:
    """What has words is what there is; counts have no unit of the values."""
    assert set(OF_VALUES) <= set(AGGREGATES)
    assert not set(OF_VALUES) & set(COUNTS)
