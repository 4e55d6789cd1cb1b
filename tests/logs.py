"""Logs for tests: of real patients (licensed samples) and of invented ones."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from features.clock import DAY_US
from features.codes import codebook
from features.importers import eicu, mimic, simulator
from features.importers.build import build_log
from features.log import Log

DATA = Path(os.environ.get("PREMONITOR_DATA", Path(__file__).parent / "data"))
KINDS = ("mimic", "eicu", "simulated")


def events(kind: str, *, patients: int = 60, seed: int = 5) -> list[simulator.Told]:
    """The events of a source, in the order in which it tells them."""
    if kind == "mimic":
        return list(mimic.events(DATA / "mimic_iv_demo"))
    if kind == "eicu":
        return list(eicu.events(DATA / "eicu_demo_labs"))
    span = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 7, 1, tzinfo=UTC)
    return list(simulator.events(patients=patients, start=span[0], end=span[1], seed=seed))


def build(kind: str, out: Path, *, patients: int = 60, seed: int = 5) -> Log:
    """A log of a source, with a tick each day."""
    book = codebook()
    build_log(events(kind, patients=patients, seed=seed), out, book=book, source=kind, tick_us=DAY_US)
    return Log(out, book)
