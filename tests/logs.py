"""Logs for tests: of real patients (licensed samples) and of invented ones."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from features import tables, usecase
from features.clock import DAY_US
from features.codes import codebook
from features.importers import eicu, mimic, simulator, synthea
from features.importers.build import Events, build_log
from features.log import Log

DATA = Path(os.environ.get("PREMONITOR_DATA", Path(__file__).parent / "data"))
KINDS = ("mimic", "eicu", "synthea", "simulated")


def events(kind: str, *, patients: int = 60, seed: int = 5) -> list[tuple[str, dict[str, Any]]]:
    """The events of a source, in the order in which it tells them."""
    if kind == "mimic":
        return list(mimic.events(DATA / "mimic_iv_demo"))
    if kind == "eicu":
        return list(eicu.events(DATA / "eicu_demo_labs"))
    if kind == "synthea":
        return list(synthea.events(DATA / "synthea"))
    span = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 7, 1, tzinfo=UTC)
    return list(simulator.events(patients=patients, start=span[0], end=span[1], seed=seed))


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
