"""Backfill: the score records of a whole log in one process, by the same functions that score live."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from features.cohort import chunks
from features.history import NEVER
from features.log import Log
from models.artifact import Model
from models.score import Desk, Score, activation


def activations_of(log_activations: Sequence[dict[str, Any]], models: Sequence[Model]) -> list[dict[str, Any]]:
    """The log's own activations, or the given models from its beginning where it has none."""
    if log_activations:
        return list(log_activations)
    return [{**activation(m, number=n, role="shadow" if n else "champion"), "place": -1} for n, m in enumerate(models)]


def backfill(log: Log, models: Sequence[Model]) -> Iterator[list[tuple[Score, bytes]]]:
    """Every score record of a log with its bytes, some patients at a time."""
    desk = Desk(models)
    for chunk in chunks(log, desk.use_cases):
        patients = len(chunk.patients)
        issued = desk.issue(
            chunk.histories,
            [patient.encode() for patient in chunk.patients],
            [activations_of(chunk.activations, models)],
            owner=np.zeros(patients, np.int64),
            since=np.zeros(patients, np.int64),
            until=np.full(patients, NEVER),
        )
        yield [(i.score, i.value) for i in issued if i.told]
