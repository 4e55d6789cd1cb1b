"""From an export to a log by the commands: drafts, their TODO mended by a person, counted without writing, imported, features computed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from features.errors import InputError
from features.importers import csv_mapping, csv_suggest
from streams.cli import main

VISITS = """\
PatientID,EncounterID,AdmitTime,DischargeTime,PatientClass,Status,LastUpdated,Clinician
7,e1,2026-04-01 08:00,2026-04-01 11:00,E,Finished,2026-04-01 08:05,Dr A
7,e2,2026-04-20 08:00,2026-04-20 09:00,O,Finished,2026-04-20 08:05,Dr B
8,e3,2026-04-21 08:00,,O,Cancelled,2026-04-10 08:05,Dr B
8,e4,2026-05-13 08:00,,O,in-progress,2026-05-13 08:05,Dr B
"""
LABS = """\
MRN;OrderID;Line;TestCode;ResultValue;Unit;CollectedAt;FiledAt;ResultStatus
7;o1;1;HGB;11,0;g/dL;13.04.2026 07:00;13.04.2026 09:00;F
7;o2;1;HGB;13,5;g/dL;19.04.2026 07:00;19.04.2026 09:00;F
7;o2;1;HGB;10,5;g/dL;19.04.2026 07:00;19.04.2026 12:00;C
7;o3;1;HGB;9,5;g/dL;19.04.2026 07:00;20.04.2026 12:00;F
8;o4;1;ÄLB;31;g/L;12.05.2026 07:00;12.05.2026 12:00;F
8;o5;1;HGB;geronnen;g/dL;12.05.2026 07:00;12.05.2026 12:00;F
8;o6;1;MISC;1;;12.05.2026 07:00;12.05.2026 12:00;F
"""
MENDED = {
    "visits.toml": {'timezone = "TODO".*': 'timezone = "Europe/Berlin"'},
    "labs.toml": {'timezone = "TODO".*': 'timezone = "Europe/Berlin"', r"event_id = \[.*": 'event_id = ["OrderID", "Line"]'},
}
CODES = "local_code,system,code,unit\nHGB,loinc,718-7,g/dL\nÄLB,loinc,1751-7,g/dL\nMISC,,,\n"


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=True)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an export; commands run in it."""
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "visits.csv").write_text(VISITS)
    (tmp_path / "export" / "labs.csv").write_bytes(LABS.encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mend(folder: Path) -> None:
    """What a person does with the drafts."""
    for name, changes in MENDED.items():
        path = folder / "mapping" / name
        text = path.read_text(encoding="utf-8")
        for old, new in changes.items():
            text, n = re.subn(old, new, text)
            assert n == 1, (name, old)
        path.write_text(text, encoding="utf-8")
    (folder / "codes" / "local.csv").write_text(CODES, encoding="utf-8")


def test_from_drafts_to_features(site: Path) -> None:
    drafted = run("import", "csv", "export", "--suggest", "--json")
    assert drafted.exit_code == 0, drafted.output
    assert {draft["path"]: draft["todo"] for draft in json.loads(drafted.stdout)["drafts"]} == {
        "mapping/labs.toml": ["timezone", "event_id"],
        "mapping/visits.toml": ["timezone"],
        "codes/local.csv": ["what each code means"],
    }
    assert (site / "codes/local.csv").read_text().split() == ["local_code,system,code,unit", "HGB,,,", "ÄLB,,,", "MISC,,,"]
    refused = run("import", "csv", "export", "--check")
    assert isinstance(refused.exception, InputError) and "timezone is still TODO" in str(refused.exception)
    mend(site)
    counted = run("import", "csv", "export", "--check", "--json")
    assert not (site / "log").exists()
    written = run("import", "csv", "export", "--out", "log", "--json")
    feeds = json.loads(written.stdout)["feeds"]
    assert feeds == json.loads(counted.stdout)["feeds"]
    labs = {"rows": 7, "facts": 6, "coded": 5, "codes": 3, "codes_known": 2, "rejected": {"not-a-number": 1}, "noted": {}}
    visits = {"rows": 4, "facts": 6, "coded": 6, "codes": 0, "codes_known": 0, "rejected": {}, "noted": {"end-told-later": 2}}
    assert feeds == {"labs": labs, "encounters": visits}
    made = run("features", "log", "--use-case", "ed_60d_any", "--out", "features.parquet")
    assert made.exit_code == 0, made.output
    rows = {row["encounter_id"]: row for row in pq.read_table("features.parquet").to_pylist()}
    assert sorted(rows) == ["e1", "e2", "e4"]
    names = ["ed_visits_count_5d", "ed_visits_count_30d", "hemoglobin_count_5d", "hemoglobin_count_30d", "hemoglobin_last", "albumin_last"]
    assert [rows["e1"][name] for name in names] == [0, 0, 0, 0, None, None]
    assert [rows["e2"][name] for name in names] == [0, 1, 1, 2, 10.5, None]  # o3 was filed after the visit began
    assert rows["e4"]["albumin_last"] == pytest.approx(3.1) and rows["e4"]["hemoglobin_count_30d"] == 0


def test_the_table_says_what_became_of_each_feed(site: Path) -> None:
    run("import", "csv", "export", "--suggest")
    mend(site)
    (site / "export" / "notes.txt").write_text("free,text\n")
    done = run("import", "csv", "export", "--check")
    assert done.stdout.splitlines() == [
        "encounters           4 rows →          6 events",
        "            noted: end told later 2",
        "labs                 7 rows →          6 events   rejected 1: not a number 1   codes known 2 of 3 (83.3% of events)",
        "checked; nothing was written",
    ]
    assert done.stderr == "not read, as no mapping names them: notes.txt\n"


def test_drafts_do_not_overwrite(site: Path) -> None:
    (site / "mapping").mkdir()
    (site / "mapping" / "visits.toml").write_text("mine")
    refused = run("import", "csv", "export", "--suggest")
    assert isinstance(refused.exception, InputError) and "mapping/visits.toml exists already" in str(refused.exception)
    assert [path.name for path in (site / "mapping").iterdir()] == ["visits.toml"] and not (site / "codes").exists()
    (site / "codes").mkdir()
    (site / "codes" / "local.csv").write_text(CODES)
    assert run("import", "csv", "export", "--mapping", "other", "--suggest").exit_code == 0
    assert (site / "codes" / "local.csv").read_text() == CODES


def test_the_codes_of_a_new_site_folder_hold_only_a_header_and_are_drafted(site: Path) -> None:
    (site / "codes").mkdir()
    (site / "codes" / "local.csv").write_text("local_code,system,code,unit\n")
    run("import", "csv", "export", "--suggest")
    assert "HGB,,," in (site / "codes" / "local.csv").read_text()


def test_the_mappings_are_those_of_the_site_folder(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "premonitor.toml").write_text('site = "a"\n')
    assert "wrote mapping/labs.toml" in run("import", "csv", "export", "--suggest").stdout  # as seen from here
    monkeypatch.chdir(site / "export")
    refused = run("import", "csv", ".", "--check")
    assert str(refused.exception).startswith(f"{site}/mapping/labs.toml:9 timezone is still TODO")


@pytest.mark.parametrize("words", [[], ["--check", "--out", "log"], ["--check", "--suggest"], ["--out", "log", "--suggest"]])
def test_one_thing_at_a_time(site: Path, words: list[str]) -> None:
    done = run("import", "csv", "export", *words)
    assert done.exit_code == 2 and "use just one of --out LOG, --check and --suggest" in done.stderr


@pytest.mark.parametrize("words", [["--mapping", "m", "--check"], ["--suggest"]])
def test_mappings_are_for_csv(site: Path, words: list[str]) -> None:
    assert run("import", "eicu", "export", *words).exit_code == 2


def draft(folder: Path, name: str, text: str) -> str:
    """The draft of one table."""
    (folder / "one").mkdir(parents=True, exist_ok=True)
    (folder / "one" / name).write_text(text)
    (found,) = csv_suggest.drafts(folder / "one", folder / "drafts")
    return found.text


TIMES = [
    ("2026-05-13 08:00", '["%Y-%m-%d %H:%M"]'),
    ("2026-05-13T08:00:00Z", '["%Y-%m-%dT%H:%M:%S%z"]'),
    ("05/13/2026 8:05 AM", '["%m/%d/%Y %I:%M %p"]'),
    ("13/05/2026", '["%d/%m/%Y"]'),
    ("05/06/2026", '["TODO"]  # which of %m/%d/%Y, %d/%m/%Y'),
    ("13-MAY-2026", '["%d-%b-%Y"]'),
    ("soon", '["TODO"]  # which of %Y-%m-%d %H:%M:%S'),
]


@pytest.mark.parametrize(("text", "formats"), TIMES)
def test_formats_of_times_are_told_by_samples_or_left_open(tmp_path: Path, text: str, formats: str) -> None:
    found = draft(tmp_path, "diagnoses.csv", f"MRN,DX_ID,ICD10_CODE,DX_DATE\n1,2,C50.9,{text}\n")
    assert f"time_formats = {formats}\n" in found
    assert 'code = "ICD10_CODE"\ncode_system = "icd10cm"\n' in found and 'event_id = ["DX_ID"]' in found


FILES = [
    ("LabResults", "labs"),
    ("lab_results_2024", "labs"),
    ("med_admin", "medication-administrations"),
    ("MedOrders", "medication-orders"),
    ("patients", "persons"),
    ("PatientEncounters", "encounters"),
    ("collaborators", "TODO"),
    ("x", "TODO"),
]


@pytest.mark.parametrize(("name", "feed"), FILES)
def test_the_feed_is_told_by_the_name_of_the_file(tmp_path: Path, name: str, feed: str) -> None:
    assert f'feed = "{feed}"\n' in draft(tmp_path, f"{name}.csv", "A,B\n1,2\n")


def test_what_tells_rows_apart_is_offered_as_their_id(tmp_path: Path) -> None:
    """Times are not, nor is anything where there is but one row."""
    rows = [
        "MRN,NO,LOINC,VAL,DRAWN,FILED",
        '1,7,718-7,"4,1",2026-05-03 08:00,2026-05-03 09:00',
        '1,8,718-7,"3,9",2026-05-04 08:00,2026-05-04 09:00',
    ]
    found = draft(tmp_path / "two", "labs.csv", "\n".join(rows))
    assert 'event_id = ["TODO"]  # different in each row that was looked at: NO, VAL\n' in found
    assert 'value = "VAL"\ndecimal = ","\n' in found
    assert 'event_id = ["TODO"]  # one of MRN, NO,' in draft(tmp_path / "single", "labs.csv", "\n".join(rows[:2]))


def test_two_columns_that_could_be_it_are_left_open(tmp_path: Path) -> None:
    found = draft(
        tmp_path, "labs.csv", "MRN,OLD_MRN,RESULT_ID,LOINC,VALUE,DRAWN,FILED\n1,2,3,718-7,4.1,2026-05-03 08:00,2026-05-03 09:00\n"
    )
    assert 'patient_id = "TODO"  # one of MRN, OLD_MRN\n' in found
    assert 'code_system = "loinc"\nvalue = "VALUE"\n' in found


def test_files_that_differ_in_numbers_only_share_a_mapping(tmp_path: Path) -> None:
    for month in ("2026_01", "2026_02"):
        (tmp_path / f"labs_{month}.csv").write_text("MRN,A\n1,2\n")
    (tmp_path / "labs_2026_03.csv").write_text("MRN,B\n1,2\n")
    found = csv_suggest.drafts(tmp_path, tmp_path / "mapping")
    assert [(d.path.name, re.findall('file = "(.*)"', d.text)) for d in found] == [
        ("labs.toml", ["labs_*_*.csv"]),
        ("labs_2026_03.toml", ["labs_2026_03.csv"]),
    ]


def test_names_and_words_that_need_quotes_are_kept(tmp_path: Path) -> None:
    rows = 'MRN,Visit ID,"Start ""x""",Patient Type,Entered\n1,2,2026-05-03,a=b \\,2026-05-04\n1,2,2026-05-03,E,2026-05-04\n'
    found = draft(tmp_path, "visits.csv", rows)
    path = tmp_path / "visits.toml"
    path.write_text(found.replace('"TODO"', '"UTC"', 1).replace('"TODO"', '"home"'))
    mapping = csv_mapping.load(path).mapping
    assert mapping.event_time == 'Start "x"' and mapping.encounter_class is not None
    assert mapping.encounter_class.words == {"E": "emergency", "a=b \\": "home"}


def test_an_export_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no file \*\.csv"):
        csv_suggest.drafts(tmp_path, tmp_path / "mapping")


def test_the_command_is_one_of_the_data_group() -> None:
    command = main.commands["import"]
    assert isinstance(command, click.Command) and "import csv ~/export --suggest" in (command.help or "")
