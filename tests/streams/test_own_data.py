"""A site's own data: an odd export, `init`, `import csv`, `train`, and what it scores; every step by the command line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from streams.cli import main
from tests import logs

BERLIN = ZoneInfo("Europe/Berlin")
LOCAL_CODES = {"718-7": ("HB", "g/dL"), "4544-3": ("HKT", "%"), "1751-7": ("ALB", "g/dL"), "1975-2": ("BILI", "mg/dL")}
STATES = {"final": "F", "corrected": "K", "amended": "K", "entered-in-error": "S", "cancelled": "S", "preliminary": "V"}
CLASSES = {"ambulatory": "AMB", "emergency": "NOT", "inpatient": "STAT"}
MAPPINGS = {
    "encounters": """\
mapping_version = 1
feed = "encounters"
file = "besuche.csv"
timezone = "Europe/Berlin"
time_formats = ["%d.%m.%Y %H:%M:%S"]
patient_id = "PATNR"
event_id = ["FALL"]
version = "STAND"
event_time = "BEGINN"
end_time = "ENDE"
known_time = "ERFASST"
encounter_class = { column = "ART", AMB = "ambulatory", NOT = "emergency", STAT = "inpatient" }

[status]
column = "STATUS"
laufend = "in-progress"
beendet = "finished"
storniert = "cancelled"
falsch = "entered-in-error"
geplant = "planned"
""",
    "labs": """\
mapping_version = 1
feed = "labs"
file = "labor.csv"
timezone = "Europe/Berlin"
time_formats = ["%d.%m.%Y %H:%M:%S"]
decimal = ","
patient_id = "PATNR"
event_id = ["AUFTRAG"]
version = "STAND"
event_time = "ABNAHME"
known_time = "FREIGABE"
code = "TEST"
code_system = "local"
value = "WERT"
unit = "EINHEIT"
status = { column = "STATUS", F = "final", K = "corrected", S = "entered-in-error", V = "preliminary" }
""",
}


def local(time: str) -> str:
    """An instant as the export writes it: the clock on the wall, which in autumn shows one hour twice."""
    return datetime.fromisoformat(time.replace("Z", "+00:00")).astimezone(BERLIN).strftime("%d.%m.%Y %H:%M:%S")


def read_back(time: str) -> str:
    """What can be told from it: the first of the two hours, whole seconds."""
    wall = datetime.strptime(local(time), "%d.%m.%Y %H:%M:%S").replace(tzinfo=BERLIN)
    return wall.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def told() -> list[tuple[str, dict[str, Any]]]:
    """Visits and results of invented patients, as the export can say them."""
    out = []
    for feed, event in logs.events("simulated", patients=260, seed=8):
        one = dict(event)
        if feed == "encounters" and one["encounter_class"] in CLASSES:
            one = {k: one[k] for k in ("id", "patient_id", "event_time", "known_time", "encounter_class") if k in one} | {
                "version": one.get("version", 1), "status": one.get("status", "in-progress"),
            }  # fmt: skip
        elif feed == "labs" and one["code"] in LOCAL_CODES and one.get("value") is not None:
            one = {k: one[k] for k in ("id", "patient_id", "event_time", "known_time", "code", "value", "unit") if k in one} | {
                "version": one.get("version", 1), "status": one.get("status", "final"), "code_system": "loinc",
            }  # fmt: skip
        else:
            continue
        out.append((feed, one | {"event_time": read_back(one["event_time"]), "known_time": read_back(one["known_time"])}))
    return out


def write_export(folder: Path, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Semicolons, Latin-1, decimal commas, local codes and local time."""
    visits, results = ["PATNR;FALL;STAND;ART;STATUS;BEGINN;ENDE;ERFASST"], ["PATNR;AUFTRAG;STAND;TEST;WERT;EINHEIT;STATUS;ABNAHME;FREIGABE"]
    words = {"in-progress": "laufend", "finished": "beendet", "cancelled": "storniert", "entered-in-error": "falsch", "planned": "geplant"}
    for feed, e in events:
        begin, known = local(e["event_time"]), local(e["known_time"])
        if feed == "encounters":
            row = (CLASSES[e["encounter_class"]], words[e["status"]], begin, "", known)
            visits.append(";".join((e["patient_id"], e["id"], str(e["version"]), *row)))
        else:
            code, unit = LOCAL_CODES[e["code"]]
            row = (code, str(e["value"]).replace(".", ","), unit if e["unit"] == unit else e["unit"], STATES[e["status"]], begin, known)
            results.append(";".join((e["patient_id"], e["id"], str(e["version"]), *row)))
    results.append("p000001;kaputt;1;HB;hämolytisch;g/dL;F;01.03.2025 08:00:00;01.03.2025 09:00:00")
    results.append("p000001;wann;1;HB;9,1;g/dL;F;irgendwann;01.03.2025 09:00:00")
    folder.mkdir()
    (folder / "besuche.csv").write_text("\n".join(visits) + "\n", encoding="latin-1")
    (folder / "labor.csv").write_text("\n".join(results) + "\n", encoding="latin-1")


def run(*words: str | Path) -> dict[str, Any]:
    """A command that succeeds, and its JSON document."""
    done = CliRunner().invoke(main, [*map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_from_an_export_to_proved_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of the import, features equal to those of the same events told directly, a model, and scores that verify."""
    events = told()
    write_export(tmp_path / "export", events)
    assert CliRunner().invoke(main, ["init", str(tmp_path / "clinic"), "--use-case", "ed_60d_any"]).exit_code == 0
    monkeypatch.chdir(tmp_path / "clinic")
    for name, text in MAPPINGS.items():
        Path("mapping", f"{name}.toml").write_text(text, encoding="utf-8")
    lines = [f"{code},loinc,{loinc},{unit}" for loinc, (code, unit) in LOCAL_CODES.items()]
    Path("codes", "local.csv").write_text("\n".join(["local_code,system,code,unit", *lines]) + "\n", encoding="utf-8")

    feeds = run("import", "csv", tmp_path / "export", "--out", "log")["feeds"]
    rows = Counter(feed for feed, _ in events)
    assert (feeds["encounters"]["rows"], feeds["labs"]["rows"]) == (rows["encounters"], rows["labs"] + 2)
    assert sum(feeds["labs"]["rejected"].values()) == 2 - (feeds["labs"]["facts"] - rows["labs"])

    direct = tmp_path / "direct.jsonl"
    direct.write_text("".join(json.dumps({"feed": feed, "event": event}) + "\n" for feed, event in events), encoding="utf-8")
    run("import", "events", direct, "--out", tmp_path / "direct")
    for log in ("log", tmp_path / "direct"):
        run("features", log, "--out", tmp_path / f"{Path(log).name}.parquet")
    mine, theirs = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("log", "direct"))
    assert mine.num_rows > 500
    assert mine.equals(theirs)

    made = run("train", "log", "--out", "models/v1")
    assert made["training"]["encounters"] > 150
    run("backfill", "log", "--model", "models/v1", "--out", "scores.parquet")
    proof = run("verify", "log", "--model", "models/v1", "--scores", "scores.parquet")
    assert (proof["missing"], proof["extra"], proof["different"]) == (0, 0, 0)
    assert proof["expected"] > 500
