"""A site's own CSV: an odd export is told row by row, counted and refused as the mapping says; and the five commands from draft to log."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from features.codes import codebook
from features.errors import InputError, Rejected
from features.importers import csv_files, csv_mapping
from features.importers.build import END_TOLD, NOTES, FeedCounts, build_log, checked
from features.log import Log

BOOK = codebook()
ROOT = Path(__file__).parents[2]
LABS = """\
mapping_version = 1
feed = "labs"
file = "labs.csv"
timezone = "Europe/Berlin"
time_formats = ["%d.%m.%Y %H:%M", "%d.%m.%Y"]
decimal = ","
patient_id = "PatNr"
event_id = ["Auftrag", "Zeile"]
event_time = "Abnahme"
known_time = "Freigabe"
code = "Test"
code_system = "local"
value = "Wert"
unit = "Einheit"
status = { column = "Status", F = "final", C = "corrected", X = "cancelled" }
"""
HEADER = "PatNr;Auftrag;Zeile;Test;Wert;Einheit;Abnahme;Freigabe;Status"
CODES = "local_code,system,code,unit\nALB,loinc,1751-7,\nHGB,loinc,718-7,g/dL\nÄLB,,1751-7,g/L\nOPEN,,,\n"
ROWS = """\
1;A1;1;ALB;3,1;g/dL;26.10.2025 02:30;26.10.2025 05:00;F
1;A2;1;HGB;<0,2;g/dL;29.03.2026 02:30;29.03.2026 09:00;F
1;A3;1;ALB;3,3;g/dL;15.01.2026;16.01.2026 08:00;F
1;A4;1;HGB;9,5;;14.01.2026 07:00;14.01.2026 09:00;F
1;A5;1;ALB;3,1;;14.01.2026 07:00;14.01.2026 09:00;F
2;B1;1;ALB;3,0;g/dL;10.02.2026 07:00;10.02.2026 09:00;F
2;B1;1;ALB;2,8;g/dL;10.02.2026 07:00;11.02.2026 09:00;C
2;B2;1;ALB;2,9;g/dL;10.02.2026 07:00;10.02.2026 09:00;F
2;B2;1;ALB;NULL;;10.02.2026 07:00;12.02.2026 09:00;X
2;B3;1;HGB;10,1;g/dL;10.02.2026 07:00;10.02.2026 09:00;F
2;B3;1;HGB;10,1;g/dL;10.02.2026 07:00;10.02.2026 09:00;F
2;B4;1;HGB;10,1;g/dL;10.02.2026 07:00;10.02.2026 09:00;F
2;B4;1;HGB;geronnen;g/dL;10.02.2026 07:00;10.02.2026 10:00;C
3;C1;1;ALB;3,1;g/dL;31.02.2026 07:00;01.03.2026 09:00;F
3;C2;1;ALB;hämolytisch;g/dL;10.02.2026 07:00;10.02.2026 09:00;F
3;C3;1;ÄLB;31;;10.02.2026 07:00;10.02.2026 09:00;F
3;C4;1;"Quick; %";88;;10.02.2026 07:00;10.02.2026 09:00;F
;C5;1;ALB;3,1;g/dL;10.02.2026 07:00;10.02.2026 09:00;F
3;C6;1;ALB;3,1;g/dL;10.02.2026 07:00;10.02.2026 09:00;Q
3;C7;1;ALB;1.204,5;g/dL;10.02.2026 07:00;10.02.2026 09:00;F
3;C8;1;ALB;3,1;stones;10.02.2026 07:00;10.02.2026 09:00;F
3;C9;;ALB;3,1;g/dL;10.02.2026 07:00;10.02.2026 09:00;F
3;C10;1;OPEN;1;;10.02.2026 07:00;;F

(22 rows affected)
"""
REJECTED = {
    ("labs", "unit-missing"): 1,
    ("labs", "time-not-readable"): 1,
    ("labs", "not-a-number"): 2,
    ("labs", "patient-missing"): 1,
    ("labs", "status-not-mapped"): 1,
    ("labs", "unit"): 1,
    ("labs", "id-missing"): 1,
    ("labs", "known-time-missing"): 1,
    ("labs", "wrong-number-of-fields"): 1,
}


def site(folder: Path, mappings: dict[str, str], tables: dict[str, bytes | str], codes: str | None = None) -> tuple[Path, Path]:
    """(export, folder of mappings), written."""
    for name, data in tables.items():
        path = folder / "export" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    for name, text in mappings.items():
        path = folder / "mapping" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if codes is not None:
        (folder / "codes").mkdir(exist_ok=True)
        (folder / "codes" / "local.csv").write_text(codes, encoding="utf-8")
    return folder / "export", folder / "mapping"


def tell(folder: Path, mapping: str, rows: str, header: str = HEADER, **more: Any) -> tuple[list[dict[str, Any]], Counter[Any]]:
    """The events of one table, and how many rows were rejected for what."""
    told = list(csv_files.events(*site(folder, {"m.toml": mapping}, {"labs.csv": f"{header}\n{rows}"}, **more), BOOK))
    return [e for feed, e in told if feed != "rejected"], Counter(e["reason"] for feed, e in told if feed == "rejected")


@pytest.fixture
def odd(tmp_path: Path) -> tuple[Path, Path]:
    return site(tmp_path, {"labs.toml": LABS}, {"labs.csv": f"{HEADER}\n{ROWS}".encode("latin-1")}, CODES)


def test_an_odd_export_is_told_row_by_row(odd: tuple[Path, Path]) -> None:
    told = list(csv_files.events(*odd, BOOK))
    assert Counter((e["feed"], e["reason"]) for feed, e in told if feed == "rejected") == REJECTED
    labs = {(e["id"], e["version"]): e for feed, e in told if feed == "labs"}
    shown = {key: (e.get("value"), e.get("comparator"), e.get("unit"), e["status"]) for key, e in labs.items()}
    assert shown == {
        ("A1|1", 1): (3.1, None, "g/dL", "final"),
        ("A2|1", 1): (0.2, "<", "g/dL", "final"),
        ("A3|1", 1): (3.3, None, "g/dL", "final"),
        ("A4|1", 1): (9.5, None, "g/dL", "final"),
        ("B1|1", 1): (3.0, None, "g/dL", "final"),
        ("B1|1", 2): (2.8, None, "g/dL", "corrected"),
        ("B2|1", 1): (2.9, None, "g/dL", "final"),
        ("B2|1", 2): (None, None, None, "cancelled"),
        ("B3|1", 1): (10.1, None, "g/dL", "final"),
        ("B4|1", 1): (10.1, None, "g/dL", "final"),
        ("B4|1", 2): (None, None, None, "corrected"),
        ("C3|1", 1): (31.0, None, "g/L", "final"),
        ("C4|1", 1): (88.0, None, "", "final"),
    }
    assert len([e for feed, e in told if feed == "labs"]) == len(labs) + 1  # B3 is told twice with one version
    times = {key[0]: (e["event_time"], e["known_time"]) for key, e in labs.items() if key[1] == 1}
    assert times["A1|1"] == ("2025-10-26T00:30:00Z", "2025-10-26T04:00:00Z")  # the first 02:30
    assert times["A2|1"] == ("2026-03-29T01:30:00Z", "2026-03-29T07:00:00Z")  # 03:30 on the clock
    assert times["A3|1"] == ("2026-01-15T22:59:59Z", "2026-01-16T07:00:00Z")
    noted = {key: e[NOTES] for key, e in labs.items() if NOTES in e}
    assert noted == {
        ("A1|1", 1): ["repeated-hour"],
        ("A2|1", 1): ["skipped-hour"],
        ("A3|1", 1): ["date-only"],
        ("A4|1", 1): ["unit-from-codes"],
        ("B2|1", 2): ["amended-without-number"],
        ("B3|1", 1): ["repeated-row"],
        ("B4|1", 2): ["amended-without-number"],
        ("C3|1", 1): ["unit-from-codes"],
    }
    assert (labs["C3|1", 1]["code_system"], labs["C3|1", 1]["code"]) == ("loinc", "1751-7")
    assert (labs["C4|1", 1]["code_system"], labs["C4|1", 1]["code"]) == ("local", "Quick; %")


def test_the_log_of_an_odd_export_keeps_the_counts(odd: tuple[Path, Path], tmp_path: Path) -> None:
    counts = build_log(csv_files.events(*odd, BOOK), tmp_path / "log", book=BOOK, source="test")["labs"]
    again: dict[str, FeedCounts] = {}
    assert len(list(checked(csv_files.events(*odd, BOOK), again, book=BOOK))) == counts.facts == 14
    assert counts.rows == 24 == counts.facts + counts.rejected.total()
    assert (counts.codes_known, len(counts.codes), counts.coded) == (2, 3, 13)
    assert again["labs"].as_json() == counts.as_json() == Log(tmp_path / "log", BOOK).about["feeds"]["labs"]
    assert counts.as_json()["noted"]["unit-from-codes"] == 2


VISITS = """\
mapping_version = 1
feed = "encounters"
file = "labs.csv"
timezone = "America/Denver"
patient_id = "P"
event_id = ["V"]
event_time = "IN"
known_time = "TOLD"
end_time = "OUT"
encounter_class = { column = "CLASS", E = "emergency", I = "inpatient" }
expired = { column = "DISPO", died = "true" }
priority = { column = "PRIO", U = "urgent" }
"""
VISIT_HEADER = "P,V,IN,OUT,TOLD,CLASS,DISPO,PRIO"
DAY = "2026-05-03"


def test_the_end_of_a_visit_is_told_when_it_came(tmp_path: Path) -> None:
    rows = f"1,v,{DAY} 08:00,{DAY} 12:00,{DAY} 08:05,I,died,U\n"
    (start, end), rejected = tell(tmp_path, VISITS, rows, VISIT_HEADER)
    assert not rejected
    about = {"id": "v", "patient_id": "1", "event_time": f"{DAY}T14:00:00Z", "encounter_class": "inpatient", "priority": "urgent"}
    assert start == about | {"known_time": f"{DAY}T14:05:00Z", "status": "in-progress", "version": 1}
    ended = {"known_time": f"{DAY}T18:00:00Z", "end_time": f"{DAY}T18:00:00Z", "status": "finished", "version": 2, "expired": True}
    assert end == about | ended | {NOTES: [END_TOLD]}


@pytest.mark.parametrize(("told", "events"), [("11:59", 2), ("12:00", 1), ("12:01", 1)])
def test_a_visit_told_at_its_end_is_told_once(tmp_path: Path, told: str, events: int) -> None:
    found, _ = tell(tmp_path, VISITS, f"1,v,{DAY} 08:00,{DAY} 12:00,{DAY} {told},I,home,\n", VISIT_HEADER)
    assert len(found) == events
    assert found[-1]["version"] == 2 and found[-1]["status"] == "finished" and found[-1]["expired"] is False
    counts: dict[str, FeedCounts] = {}
    list(checked((("encounters", event) for event in found), counts, book=BOOK))
    assert (counts["encounters"].rows, counts["encounters"].facts) == (1, events)


def test_an_open_visit_a_wrong_end_and_an_unknown_class(tmp_path: Path) -> None:
    rows = f"1,v,{DAY} 08:00,,{DAY} 08:05,E,,\n1,w,{DAY} 08:00,{DAY} 07:59,{DAY} 08:05,E,,\n1,x,{DAY} 08:00,,{DAY} 08:05,O,,\n"
    (visit,), rejected = tell(tmp_path, VISITS, rows, VISIT_HEADER)
    assert (visit["status"], visit["version"], "end_time" in visit, "priority" in visit) == ("in-progress", 1, False, False)
    assert rejected == {"end-before-start": 1, "encounter-class-not-mapped": 1}


def test_a_visit_may_be_short_and_a_row_is_rejected_once(tmp_path: Path) -> None:
    rows = f"1,v,{DAY} 08:00,{DAY} 08:00,{DAY} 07:59,E,,\n{'1' * 65},w,{DAY} 08:00,{DAY} 09:00,{DAY} 08:05,E,,\n"
    found, rejected = tell(tmp_path, VISITS, rows, VISIT_HEADER)
    assert len(found) == 4 and not rejected
    counts: dict[str, FeedCounts] = {}
    list(checked((("encounters", event) for event in found), counts, book=BOOK))
    count = counts["encounters"]
    assert (count.rows, count.facts, count.rejected, count.noted) == (2, 2, {"bad-value": 1}, {END_TOLD: 1})


def test_an_assumed_known_time_is_noted_and_comes_after_each_event(tmp_path: Path) -> None:
    mapping = VISITS.replace('"TOLD"', '{ after_event = "90min" }')
    (start, end), _ = tell(tmp_path, mapping, f"1,v,{DAY} 08:00,{DAY} 12:00,,I,,\n", VISIT_HEADER)
    assert (start["known_time"], end["known_time"]) == (f"{DAY}T15:30:00Z", f"{DAY}T19:30:00Z")
    assert start[NOTES] == ["known-time-assumed"]


PLAIN = LABS.replace("Europe/Berlin", "UTC").replace('"local"', '"loinc"')


def lab(order: str, value: str, *, hour: int = 9, status: str = "F") -> str:
    return f"1;{order};1;718-7;{value};g/dL;10.02.2026 07:00;10.02.2026 {hour:02}:00;{status}\n"


def test_rows_of_an_id_amend_each_other_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = lab("A", "9", hour=9) + lab("A", "9", hour=10) + lab("A", "8", hour=11) + lab("A", "9", hour=8) + lab("B", "9")
    found, _ = tell(tmp_path, PLAIN, rows)
    assert [(e["id"][0], e["version"], e.get(NOTES, [])) for e in found] == [
        ("A", 1, []),
        ("A", 1, ["repeated-row"]),
        ("A", 2, []),
        ("A", 3, ["row-order-against-known-time"]),
        ("B", 1, []),
    ]


def test_a_row_without_a_number_takes_that_of_its_id_away(tmp_path: Path) -> None:
    """Whatever its status says: the number before it must not stand. As a first row it is none."""
    found, rejected = tell(tmp_path, PLAIN, lab("A", "9") + lab("A", "clotted", hour=10) + lab("B", "clotted") + lab("B", "9", hour=10))
    assert [(e["id"][0], e["version"], e.get("value")) for e in found] == [("A", 1, 9.0), ("A", 2, None), ("B", 1, 9.0)]
    assert rejected == {"not-a-number": 1}


@pytest.mark.parametrize(("time", "reason"), [("31.12.9999 23:59", "absurd-time"), ("01.01.0001", "absurd-time"), ("01.01.1900 00:00", "")])
def test_times_that_stand_for_never_are_rejected(tmp_path: Path, time: str, reason: str) -> None:
    for mapping in (PLAIN.replace('"UTC"', '"America/Denver"'), PLAIN):
        found, rejected = tell(tmp_path, mapping, lab("A", "9").replace("10.02.2026 07:00", time))
        assert (len(found), rejected) == ((0, {reason: 1}) if reason else (1, {}))


def test_a_version_column_counts_where_there_is_one(tmp_path: Path) -> None:
    mapping, header = PLAIN + 'version = "V"\n', HEADER + ";V"
    rows = [lab("A", value).replace("\n", f";{version}\n") for value, version in (("9", "7"), ("8", "2"), ("?", "2"), ("?", "1"))]
    rows += [lab("B", "9").replace("\n", f";{version}\n") for version in ("", "1.0", "0", "65536", "٣")]
    found, rejected = tell(tmp_path, mapping, "".join(rows), header)
    assert [(e["version"], e.get("value")) for e in found] == [(7, 9.0), (2, 8.0), (2, None)]
    assert rejected == {"not-a-number": 1, "version-missing": 1, "version-not-a-number": 2, "version-out-of-range": 2}


def test_ids_of_several_columns_do_not_run_into_each_other(tmp_path: Path) -> None:
    rows = "".join(
        lab(order, "9").replace(";1;718", f";{line};718") for order, line in (("a|b", "c"), ("a", "b|c"), ("a\\|b", "c"), ("x" * 63, "1"))
    )
    found, _ = tell(tmp_path, PLAIN, rows)
    assert len({e["id"] for e in found}) == 4
    assert {e["version"] for e in found} == {1} and max(len(e["id"]) for e in found) <= 64


NUMBERS = [
    ("4.1", 4.1, None),
    ("<0.2", 0.2, "<"),
    (">= 100", 100.0, ">="),
    ("≤1", 1.0, "<="),
    ("-3", -3.0, None),
    (".5", 0.5, None),
    ("1e3", 1000.0, None),
]


@pytest.mark.parametrize(("text", "value", "comparator"), NUMBERS)
def test_numbers(text: str, value: float, comparator: str | None) -> None:
    assert csv_files.number(text) == (value, comparator)
    assert csv_files.number(text.replace(".", ","), ",") == (value, comparator)


@pytest.mark.parametrize(("text", "decimal"), [("4,1", "."), ("<0,2", "."), ("1204,125", "."), ("4.1", ","), (">=.5", ",")])
def test_the_other_decimal_mark_is_named(text: str, decimal: str) -> None:
    """Who forgot `decimal = ","` is told more than that nothing is a number."""
    with pytest.raises(Rejected, match="other-decimal-mark"):
        csv_files.number(text, decimal)


@pytest.mark.parametrize(
    "text", ["", "<", "4,,1", "1,204", "<12,000", "1,204.5", "1_000", "nan", "inf", "1e999", "0x1", "4.1 mg", "< <1", "٣", "--1"]
)
def test_what_is_no_number(text: str) -> None:
    for decimal in ".,":
        with pytest.raises(Rejected, match="not-a-number"):
            csv_files.number(text.translate(str.maketrans(".,", ",.")) if decimal == "," else text, decimal)


WRONG = [
    (
        'timezone = "Europe/Berlin"\n',
        "",
        ':8 timezone is missing. Times like "2026-11-01 01:30:00" are ambiguous without it. Example: timezone =',
    ),
    ('"Europe/Berlin"', '"TODO"', ":4 timezone is still TODO. Times like"),
    ('"Europe/Berlin"', '"Berlin"', ":4 timezone: Value error, no such time zone"),
    ('"Freigabe"', "{ after_event = 4 }", ":10 known_time: Value error, expected a column"),
    ('known_time = "Freigabe"\n', "", ":9 known_time is missing. No score may read what was not known yet."),
    ('"PatNr"', '"MRN"', ':7 patient_id: labs.csv has no column "MRN". It has: PatNr, Auftrag,'),
    ('"Zeile"]', '"Line"]', ':8 event_id: labs.csv has no column "Line"'),
    ('F = "final"', 'F = "planned"', ':15 status: labs have no "planned"; expected one of preliminary, final'),
    ('F = "final"', 'F = "fine"', ":15 status: Value error, expected { column"),
    ('"labs"', '"labor"', ":2 feed: Input should be 'encounters', 'labs'"),
    ('feed = "labs"\n', "", ":1 feed is missing. One of encounters, labs"),
    ('"labs.csv"', '"lab*.txt"', ":3 file: there is no lab*.txt in"),
    ('"%d.%m.%Y"]', '"%H:%M"]', ":5 time_formats.1: Value error, the format needs year, month and day"),
    ('code = "Test"\n', "", ":2 code is missing. Example: code ="),
    ('unit = "Einheit"', 'end_time = "Abnahme"', ":14 end_time is nothing that labs have"),
    ("mapping_version = 1", "mapping_version = 2", ":1 mapping_version: Input should be 1"),
    ("decimal", "decimals", ":6 decimals: there is no such key; known here: mapping_version"),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG)
def test_a_wrong_mapping_is_named_by_file_and_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert LABS.count(old) == 1
    with pytest.raises(InputError) as caught:
        csv_files.events(*site(tmp_path, {"labs.toml": LABS.replace(old, new)}, {"labs.csv": f"{HEADER}\n"}, CODES), BOOK)
    assert str(caught.value).startswith(f"{tmp_path}/mapping/labs.toml{message}")


def test_every_key_that_can_be_missing_has_an_example() -> None:
    for feed in csv_mapping.event.FEEDS.values():
        required = {name for name, field in feed.model_fields.items() if field.is_required()}
        assert required - {"id"} <= set(csv_mapping.EXAMPLES)


@pytest.mark.parametrize(
    "text", [csv_mapping.__doc__, (ROOT / "features" / "README.md").read_text(encoding="utf-8")], ids=["module", "README"]
)
def test_the_documented_mappings_are_good(tmp_path: Path, text: str) -> None:
    """The block of indented lines that begins with mapping_version."""
    block = text[text.index("    mapping_version") :].split("\n\n")[0]
    (tmp_path / "m.toml").write_text("\n".join(line.removeprefix("    ") for line in block.splitlines()))
    mapping = csv_mapping.load(tmp_path / "m.toml").mapping
    assert (mapping.feed, mapping.timezone, mapping.code_system) == ("labs", "America/Denver", csv_mapping.Cell(constant="local"))


CODE_FAULTS = [
    (None, ':12 code_system = "local" needs'),
    ("code,LOINC\n", ":1 needs the columns local_code,system,code,unit"),
    ("local_code,system,code,unit\nA,,1-1,\nA,,1-2,\n", ":3 gives the code of an earlier line another meaning"),
]


@pytest.mark.parametrize(("codes", "message"), CODE_FAULTS)
def test_wrong_local_codes_are_named_by_file_and_line(tmp_path: Path, codes: str | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        tell(tmp_path, LABS, "", codes=codes)
    assert message in str(caught.value)
