"""Logs for tests: of real patients (licensed samples) and of invented ones."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from features import clinic, tables, usecase
from features.clinic.scenario import Change, Outage
from features.clock import DAY_US, to_us
from features.codes import codebook
from features.importers import eicu, mimic, synthea
from features.importers.build import Events, build_log
from features.log import Log

DATA = Path(os.environ.get("PREMONITOR_DATA", Path(__file__).parent / "data"))
KINDS = ("mimic", "eicu", "synthea", "simulated", "clinic")

EDGES = clinic.Knobs(edges=0.1, second=0.5)
SPARSE = clinic.Scenario(volume=0.3)
"""`simulated`: the stable clinic with facts on all edges, and with few visits so that it may have many patients."""
_MIDDLE_US = to_us(datetime(2025, 4, 1, tzinfo=UTC))
EVERY_KNOB = clinic.Knobs(
    late=0.1, corrected=0.05, retracted=0.03, duplicated=0.05, conflicting=0.02, wrong_patient=0.01, edges=0.1, second=0.5,
    missing=0.1, merges=0.2,
)  # fmt: skip
EVERY_CHANGE = clinic.Scenario(
    sites=2, volume=1.2, drift=(Change(1.5, _MIDDLE_US),), slope=(Change(0.8, _MIDDLE_US),), case_mix=(Change(0.5, _MIDDLE_US),),
    bias=(("female", 1.3),), silent=(Outage("vitals", _MIDDLE_US, _MIDDLE_US + 7 * DAY_US),),
    half_lost=(Outage("labs", _MIDDLE_US, _MIDDLE_US + 7 * DAY_US),), unit_change=(Change(1.0, _MIDDLE_US),),
)  # fmt: skip
"""`clinic`: with all that can happen in it, and with all its faults."""


def events(kind: str, *, patients: int = 60, seed: int = 5) -> list[tuple[str, dict[str, Any]]]:
    """The events of a source, in the order in which it tells them."""
    if kind == "mimic":
        return list(mimic.events(DATA / "mimic_iv_demo"))
    if kind == "eicu":
        return list(eicu.events(DATA / "eicu_demo_labs"))
    if kind == "synthea":
        return list(synthea.events(DATA / "synthea"))
    span = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 7, 1, tzinfo=UTC)
    patients, knobs, world = (min(patients, 40), EVERY_KNOB, EVERY_CHANGE) if kind == "clinic" else (patients, EDGES, SPARSE)
    return list(clinic.events(patients=patients, start=span[0], end=span[1], seed=seed, knobs=knobs, scenario=world))


def build(kind: str, out: Path, *, patients: int = 60, seed: int = 5) -> Log:
    """A log of a source, with a tick each day."""
    book = codebook()
    build_log(events(kind, patients=patients, seed=seed), out, book=book, source=kind, tick_us=DAY_US)
    return Log(out, book)


def ask(told: Events, question: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Features and label of each index encounter of a use case in TOML, by the encounter's id; the log is made in `folder`."""
    book = codebook()
    build_log(told, folder / "log", book=book, source="test", tick_us=DAY_US)
    log, use_case = Log(folder / "log", book), usecase.parse(question, source="test.toml", book=book)
    found: dict[str, dict[str, Any]] = {}
    for write in (tables.features_table, tables.labels_table):
        write(log, use_case, folder / "table.parquet", lambda n: None)
        for row in pq.read_table(folder / "table.parquet").to_pylist():
            found.setdefault(row["encounter_id"], {}).update(row)
    return found
