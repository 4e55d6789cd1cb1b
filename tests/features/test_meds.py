"""The importer of MEDS: one clock, what codes mean, visits, static rows, and what is rejected."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from features import codes, fact
from features.decode import decode
from features.errors import InputError
from features.importers import ONE_CLOCK, meds, synthea
from streams.cli import main
from tests.logs import DATA, ask

SCHEMA = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("time", pa.timestamp("us")),
        ("code", pa.string()),
        ("numeric_value", pa.float32()),
        ("text_value", pa.large_string()),
    ]
)
QUESTION = """
name = "test"
features = [
  { name = "hb", concepts = ["hemoglobin"], aggregates = ["count", "last"], days = [30] },
  { name = "bilirubin", concepts = ["bilirubin"], aggregates = ["any_abnormal", "last"], days = [30] },
  { name = "female", concepts = ["person.female"], aggregates = ["any"] },
  { name = "age", concepts = ["person.birth"], aggregates = ["days_since_last"] },
  { name = "ed", concepts = ["visit.emergency"], aggregates = ["count"], days = [90] },
]
[index]
classes = ["ambulatory", "emergency", "inpatient"]
[outcome]
concepts = ["visit.emergency"]
horizon_days = 60
"""
BIRTH = datetime(1950, 3, 1, tzinfo=UTC)
T = datetime(2024, 5, 3, 9, 0, tzinfo=UTC)
Line = tuple[Any, ...]


def data_set(folder: Path, *lines: Line, schema: pa.Schema = SCHEMA, name: str = "data/train/0.parquet") -> Path:
    """A data set of these rows, (subject, time, code, number, text, ...); what is left out is null."""
    columns = [[line[i] if i < len(line) else None for line in lines] for i in range(len(schema))]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    naive = [[x.astimezone(UTC).replace(tzinfo=None) if isinstance(x, datetime) else x for x in column] for column in columns]
    pq.write_table(pa.table(naive, schema=schema), path)
    return folder


def told(src: Path, **arguments: Any) -> tuple[dict[tuple[str, str, int], dict[str, Any]], Counter[tuple[str, str]]]:
    """Events by (feed, id, version), each of them a fact that passes the contract, and how many rows were rejected for what."""
    every = list(meds.events(src, **arguments))
    events = {(feed, e["id"], e.get("version", 1)): e for feed, e in every if feed != "rejected"}
    refused = Counter((e["feed"], e["reason"]) for feed, e in every if feed == "rejected")
    assert len(events) + refused.total() == len(every), "an id and version is told once"
    for (feed, _, version), event in events.items():
        decoded = decode(feed, json.dumps(event, allow_nan=False).encode())
        fact.convert(decoded, feed=feed, told=0, stamp="given", book=codes.codebook())
        assert event["known_time"] == event["end_time" if version == 2 else "event_time"], "one clock"
    return events, refused


def test_a_patient_of_all_kinds_of_rows(tmp_path: Path) -> None:
    """What each code becomes; a window of the stay has what was stamped before it, not what was stamped at it."""
    lines: list[Line] = [
        (7, None, "GENDER//F"),
        (7, None, "RACE//WHITE"),
        (7, BIRTH, "MEDS_BIRTH"),
        (7, T - timedelta(days=2), "LAB//51222//g/dL", 9.5),
        (7, T - timedelta(days=1), "ED_REGISTRATION"),
        (7, T - timedelta(hours=1), "ED_OUT"),
        (7, T, "LAB//RESULT//51222//g/dL", 8.0),
        (7, T, "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM"),
        (7, T + timedelta(hours=1), "DIAGNOSIS//ICD//10//E119"),
        (7, T + timedelta(hours=2), "RxNorm/860975"),
        (7, T + timedelta(days=4), "HOSPITAL_DISCHARGE//HOME"),
        (7, T + timedelta(days=70), "MEDS_DEATH"),
    ]
    src = data_set(tmp_path, *lines)
    found, refused = told(src)
    assert not refused
    assert Counter(key[0] for key in found) == Counter(
        {"persons": 3, "labs": 2, "encounters": 4, "conditions": 1, "medication-orders": 1, "coverage": 2, "deaths": 1}
    )
    assert found["encounters", "7|5", 2]["end_time"] == "2024-05-03T08:00:00Z"
    assert found["encounters", "7|8", 1]["encounter_class"] == "inpatient" and found["encounters", "7|8", 2]["status"] == "finished"
    assert (found["conditions", "7|9", 1]["code_system"], found["conditions", "7|9", 1]["code"]) == ("icd10cm", "E119")
    assert found["persons", "7|1", 1] | {"code": "female"} == found["persons", "7|1", 1]
    assert found["persons", "7|1", 1]["event_time"] == "1950-03-01T00:00:00Z", "the first row with a time"
    assert found["coverage", "observed-7", 1]["event_time"] == "2024-05-01T09:00:00Z", "the first that is not the birth"
    row = ask(meds.events(src), QUESTION, tmp_path)["7|8"]
    assert (row["hb_count_30d"], row["hb_last_30d"], row["female_any"], row["ed_count_90d"]) == (1, 9.5, 1, 1)
    assert row["age_days_since_last"] == (T - BIRTH) / timedelta(days=1)
    assert row["status"] == "no_event", "followed until the death, 70 days later"


def test_of_two_results_at_one_time_the_later_row_is_the_last(tmp_path: Path) -> None:
    """Also where the file is not in the order of time."""
    at = T - timedelta(days=1)
    lines = [(7, T, "Visit/OP"), (7, at, "LAB//51222//g/dL", 11.0), (7, at, "LAB//51222//g/dL", 9.0), (7, at, "LAB//51222//g/dL", 10.0)]
    row = ask(meds.events(data_set(tmp_path, *lines)), QUESTION, tmp_path)["7|1"]
    assert (row["hb_count_30d"], row["hb_last_30d"]) == (3, 10.0)


def test_a_32_bit_number_means_the_decimal_it_was(tmp_path: Path) -> None:
    """1.2 is not above a limit of 1.2, though the nearest 32-bit number is; 1.3 is."""
    for value, abnormal in ((1.2, 0), (1.3, 1)):
        lines = [(7, T - timedelta(days=1), "LAB//50885//mg/dL", value), (7, T, "Visit/OP")]
        folder = tmp_path / str(value)
        row = ask(meds.events(data_set(folder, *lines)), QUESTION, folder)["7|2"]
        assert (row["bilirubin_last_30d"], row["bilirubin_any_abnormal_30d"]) == (value, abnormal)


def test_rows_that_cannot_be_told_are_counted(tmp_path: Path) -> None:
    """Null time, unknown code, no code, no patient, an end without a start, absurd numbers and times; NaN and a text are no number."""
    lines: list[Line] = [
        (None, T, "LAB//51222//g/dL", 9.5),
        (6, None, "GENDER//M"),
        (7, None, "LAB//51222//g/dL", 9.5),
        (7, None, "ED_REGISTRATION"),
        (7, None, "MEDS_BIRTH"),
        (7, None, "MEDS_DEATH"),
        (7, None, "EYE_COLOR//GREEN"),
        (7, T, "INFUSION//221828", 1.0),
        (7, T, None),
        (7, T, ""),
        (7, T, "LOINC//"),
        (7, T, "GENDER//"),
        (7, T, "ED_OUT"),
        (7, T, "LAB//51222//g/dL", float("inf")),
        (7, T, "LAB//51222//g/dL", float("nan")),
        (7, T, "LAB//51222//g/dL", None, "hemolysed"),
        (7, datetime(1899, 12, 31, tzinfo=UTC), "LAB//51222//g/dL", 9.5),
        (7, datetime(9999, 12, 31, tzinfo=UTC), "HOSPITAL_DISCHARGE"),
        (7, T + timedelta(days=1), "LOINC//2345-7//mg/dL", 90.0),
    ]
    found, refused = told(data_set(tmp_path, *lines))
    assert refused == {
        ("meds", "patient-missing"): 1,
        ("persons", "never-seen"): 1,
        ("labs", "time-missing"): 1,
        ("encounters", "time-missing"): 1,
        ("persons", "time-missing"): 1,
        ("deaths", "time-missing"): 1,
        ("meds", "code-unknown"): 2,
        ("meds", "code-missing"): 2,
        ("labs", "code-missing"): 1,
        ("persons", "code-missing"): 1,
        ("encounters", "end-without-start"): 1,
        ("labs", "bad-value"): 1,
        ("labs", "absurd-time"): 1,
        ("encounters", "absurd-time"): 1,
    }
    assert [("value" in event) for (feed, *_), event in found.items() if feed == "labs"] == [False, False, True]
    assert found["coverage", "observed-7", 2]["end_time"] == "2024-05-04T09:00:00Z"


def test_a_value_without_its_unit_is_rejected_where_features_read_it(tmp_path: Path) -> None:
    """A column `unit` gives it, a third part of the code is stronger; a code that nobody reads needs none."""
    with_unit = SCHEMA.append(pa.field("unit", pa.string()))
    lines = [(7, T, "LOINC//718-7", 9.5, None, "g/dL"), (7, T, "LOINC/718-7//g/dL", 95.0, None, "g/L"), (7, T, "LOINC//2345-7", 90.0)]
    found, _ = told(data_set(tmp_path / "with", *lines, schema=with_unit))
    assert [event.get("unit") for (feed, *_), event in found.items() if feed == "labs"] == ["g/dL", "g/dL", ""]
    data_set(tmp_path / "without", (7, T, "LOINC//718-7", 9.5))
    done = CliRunner().invoke(main, ["import", "meds", str(tmp_path / "without"), "--out", str(tmp_path / "log"), "--json"])
    labs = json.loads(done.stdout)["feeds"]["labs"]
    assert (labs["rows"], labs["facts"], labs["rejected"]) == (1, 0, {"unit": 1})


def test_visits_open_and_close(tmp_path: Path) -> None:
    """An end closes the visit of its kind that began last; at one instant the order of the file holds; what has no end goes on."""
    hour = timedelta(hours=1)
    starts = [(7, T, "HOSPITAL_ADMISSION"), (7, T + hour, "ED_REGISTRATION"), (7, T + 2 * hour, "HOSPITAL_ADMISSION//URGENT")]
    ends = [(7, T + 3 * hour, "HOSPITAL_DISCHARGE"), (7, T + 3 * hour, "HOSPITAL_ADMISSION"), (7, T + 3 * hour, "HOSPITAL_DISCHARGE")]
    found, refused = told(data_set(tmp_path, *starts, *ends))
    assert not refused
    assert {key[1] for key in found if key[0] == "encounters" and key[2] == 2} == {"7|3", "7|5"}
    assert found["encounters", "7|2", 1]["encounter_class"] == "emergency"
    assert found["encounters", "7|5", 2]["end_time"] == found["encounters", "7|5", 2]["event_time"]


def test_other_prefixes_can_be_given(tmp_path: Path) -> None:
    """The longest prefix that fits wins."""
    lines = [(7, T, "HGB//X"), (7, T, "HGB//SPECIAL//Y"), (7, T, "IN"), (7, T + timedelta(hours=1), "OUT")]
    prefixes = {"HGB//": ("labs", "ours"), "HGB//SPECIAL//": ("conditions", "special")}
    found, refused = told(data_set(tmp_path, *lines), codes=prefixes, visits={"IN": ("observation", "OUT")})
    assert not refused and found["encounters", "7|3", 2]["encounter_class"] == "observation"
    assert (found["labs", "7|1", 1]["code"], found["conditions", "7|2", 1]["code"]) == ("X", "Y")


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_shards_and_batches_do_not_matter(tmp_path: Path, batch_rows: int) -> None:
    """Several files, types as other tools write them, a subject that spans batches; what is not data is not read."""
    kinds = {"time": pa.timestamp("ns", tz="America/Denver"), "code": pa.dictionary(pa.int32(), pa.string()), "numeric_value": pa.float64()}
    schema = pa.schema([(field.name, kinds.get(field.name, field.type)) for field in SCHEMA])
    denver = T.astimezone(timezone(timedelta(hours=-6)))
    data_set(tmp_path, (7, T, "Visit/OP"), (7, T, "LAB//51222//g/dL", 9.5), (8, T, "Visit/OP"))
    data_set(tmp_path, (9, denver, "Visit/OP"), (9, denver, "LAB//51222//g/dL", 9.5), schema=schema, name="data/held_out/0.parquet")
    data_set(tmp_path, (1, T, "Visit/OP"), name="metadata/codes.parquet")
    found, refused = told(tmp_path, batch_rows=batch_rows)
    assert not refused and {event["patient_id"] for event in found.values()} == {"7", "8", "9"}
    assert {event["event_time"] for event in found.values()} == {"2024-05-03T09:00:00Z"}
    assert found["labs", "7|2", 1] | {"id": "9|2", "patient_id": "9"} == found["labs", "9|2", 1]
    alone, _ = told(tmp_path / "data/held_out/0.parquet")
    assert alone == {key: event for key, event in found.items() if event["patient_id"] == "9"}


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """No file, a column, its type, a damaged file, and a data set whose subjects lie apart; no subject is named."""
    with pytest.raises(InputError, match=r"has no \.parquet file: give the folder of a MEDS data set"):
        list(meds.events(tmp_path))
    data_set(tmp_path / "a", (T, "x"), schema=pa.schema([SCHEMA.field("time"), SCHEMA.field("code")]))
    with pytest.raises(InputError, match="column subject_id is missing"):
        list(meds.events(tmp_path / "a"))
    texts = pa.schema([("subject_id", pa.int64()), ("time", pa.string()), ("code", pa.string())])
    data_set(tmp_path / "b", (7, "2024-05-03", "x"), schema=texts)
    with pytest.raises(InputError, match="column time is missing or not of the type"):
        list(meds.events(tmp_path / "b"))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"c\.parquet cannot be read \(ArrowInvalid\)"):
        list(meds.events(tmp_path / "c.parquet"))
    data_set(tmp_path / "d", (7001, T, "Visit/OP"), (8, T, "Visit/OP"), (7001, T, "Visit/OP"))
    with pytest.raises(InputError, match="the rows of a subject lie apart") as error:
        list(meds.events(tmp_path / "d"))
    assert "7001" not in str(error.value)


def test_synthea_told_as_meds_gives_the_same_rows(tmp_path: Path) -> None:
    """The sample written as a MEDS data set: equal counts, last values, sex and age at each emergency visit."""
    every = [(feed, e) for feed, e in synthea.events(DATA / "synthea") if feed in ("labs", "encounters", "persons")]
    subjects = {patient: n for n, patient in enumerate(sorted({e["patient_id"] for _, e in every}), 1)}
    lines: list[Line] = []
    for feed, e in every:
        subject, moment = subjects[e["patient_id"]], datetime.fromisoformat(e["event_time"])
        if feed == "labs":
            lines.append((subject, moment, f"LOINC//{e['code']}//{e.get('unit', '')}", e.get("value")))
        elif e.get("code_system") == "sex":
            lines.append((subject, None, f"GENDER//{e['code'][0].upper()}"))
        elif e.get("code_system") == "birth":
            lines.append((subject, moment, "MEDS_BIRTH"))
        elif e.get("encounter_class") == "emergency" and "end_time" in e:
            lines.append((subject, datetime.fromisoformat(e["end_time"]), "ED_OUT"))
        elif feed == "encounters" and "end_time" not in e:
            lines.append((subject, moment, "ED_REGISTRATION" if e["encounter_class"] == "emergency" else "Visit/OP"))
    lines.sort(key=lambda line: line[0])
    question = QUESTION.replace('"ambulatory", "emergency", "inpatient"', '"emergency"')  # alone: here every other visit is ambulatory
    names = ("hb_count_30d", "hb_last_30d", "bilirubin_last_30d", "female_any", "age_days_since_last", "ed_count_90d")

    def answers(told: Any, folder: str) -> dict[tuple[str, datetime], list[Any]]:
        found = ask(told, question, tmp_path / folder).values()
        return {(row["patient_id"], row["index_time"]): [row[name] for name in names] for row in found}

    expected = answers(synthea.events(DATA / "synthea"), "synthea")
    got = answers(meds.events(data_set(tmp_path / "meds", *lines)), "meds")
    assert got == {(str(subjects[patient]), moment): row for (patient, moment), row in expected.items()} and len(got) > 20


def test_the_command_says_that_there_is_one_clock(tmp_path: Path) -> None:
    """On stderr, apart from the table, and in the log's own description."""
    src = data_set(tmp_path / "set", (7, T, "Visit/OP"))
    done = CliRunner().invoke(main, ["import", "meds", str(src), "--out", str(tmp_path / "log")])
    assert done.exit_code == 0 and ONE_CLOCK in done.stderr and ONE_CLOCK not in done.stdout
    assert json.loads((tmp_path / "log" / "log.json").read_text())["source"] == f"meds set, {ONE_CLOCK}"
