"""The one task that every row of the bench does: events, use case, model.

Two years of events of 5,000 patients in the order in which they became known: a fifth are encounters, the rest laboratory results of
four kinds. One result in twenty becomes known days after its draw, so that it changes answers that were given meanwhile. Each
encounter asks for 46 numbers of what was known then and for a logistic score of them; a later fact that changes the 46 numbers within
30 days asks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from features import usecase
from features.clock import DAY_US, MINUTE_US, SECOND_US, TIME_MIN_US
from features.codes import Codebook, codebook
from models import artifact
from models.artifact import Column, Model
from models.score import activation
from streams.admit import CONTROLS, Admission, Command, Row
from streams.bus import partitioner
from tests.stand_in import sealed

PARTITIONS = 4
WINDOWS_DAYS = (5, 30, 90)
LABS = (
    ("albumin", "1751-7", "g/dL", 3.5, 5.0),
    ("bilirubin", "1975-2", "mg/dL", 0.1, 1.2),
    ("hematocrit", "4544-3", "%", 36.0, 50.0),
    ("hemoglobin", "718-7", "g/dL", 12.0, 17.0),
)
"""Concept, LOINC code, unit, and the band in which most values lie."""
CLASSES = ("emergency", "inpatient", "ambulatory")
BEGIN_US = 1_672_531_200 * SECOND_US
"""2023-01-01T00:00:00Z."""
THRESHOLD = 0.33
"""Of the model: about a tenth of the encounters are flagged, as its use case asks for."""

USE_CASE = """\
name = "bench"
title = "The task of the bench"

[index]
classes = ["ambulatory", "emergency", "inpatient"]

[outcome]
concepts = ["visit.emergency"]
horizon_days = 60
"""
LAB_COLUMNS = """
[[features]]
name = "{0}"
concepts = ["{0}"]
aggregates = ["count", "any_abnormal", "last"]
days = [5, 30, 90]

[[features]]
name = "{0}"
concepts = ["{0}"]
aggregates = ["days_since_last"]
days = [90]
"""
VISIT_COLUMNS = """
[[features]]
name = "{0}"
concepts = ["{1}"]
aggregates = ["count"]
days = [5, 30, 90]
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One feed record. `event_us` and `known_us` are also in the value."""

    feed: str
    patient: bytes
    event_us: int
    known_us: int
    value: bytes


def definition() -> str:
    """The use case as TOML: 46 columns."""
    labs = [LAB_COLUMNS.format(concept) for concept, *_ in LABS]
    visits = [VISIT_COLUMNS.format(*stem) for stem in (("ed_visits", "visit.emergency"), ("visits", "visit.*"))]
    return USE_CASE + "".join(labs + visits)


def model(book: Codebook | None = None) -> Model:
    """A stand-in: coefficients from a seed, with means and scales of the size that the columns have."""
    use_case = usecase.parse(definition(), source="bench.toml", book=book or codebook())
    rng = np.random.default_rng(11)
    columns = []
    for feature in use_case.features:
        mean, scale, nullable = 0.5, 1.0, False
        if feature.aggregate == "last":
            low, high = next((low, high) for concept, *_, low, high in LABS if feature.name.startswith(concept))
            mean, scale, nullable = (low + high) / 2, (high - low) / 2, True
        elif feature.aggregate == "days_since_last":
            mean, scale, nullable = 30.0, 25.0, True
        drawn = float(rng.normal(0, 0.12)), float(rng.normal(0, 0.1)) if nullable else 0.0
        columns.append(Column(feature.name, *drawn, fill=mean, mean=mean, scale=scale, missing_rate=0.5 if nullable else 0.0))
    return Model(sealed(use_case, columns, intercept=-1.8, threshold=THRESHOLD), use_case)


def save_model(folder: Path) -> Path:
    """The model as a file for a worker."""
    path = folder / "model.json"
    artifact.save(model().artifact, path)
    return path


def events(n: int = 200_000, *, patients: int | None = None, days: int = 730, late: float = 0.05, seed: int = 7) -> list[Event]:
    """The events in known-time order; no two of them have the same event time.

    Args:
        n: How many.
        patients: Among so many people, unevenly. Default: 40 events each.
        days: Over so long a time.
        late: Share of results that become known 2 to 20 days after the draw.
        seed: Equal seeds, equal bytes.
    """
    rng = np.random.default_rng(seed)
    people = patients or max(1, n // 40)
    weight = rng.gamma(2.0, 1.0, people)
    owner = rng.choice(people, n, p=weight / weight.sum())
    event_us = BEGIN_US + rng.permutation(np.sort(rng.choice(days * DAY_US // 1000, n, replace=False))) * 1000
    is_visit = rng.random(n) < 0.2
    usual_us = np.where(is_visit, rng.integers(0, 10 * MINUTE_US, n), rng.integers(10 * MINUTE_US, DAY_US, n))
    is_late = ~is_visit & (rng.random(n) < late)
    known_us = event_us + np.where(is_late, rng.integers(2 * DAY_US, 20 * DAY_US, n), usual_us)
    kind, visit = rng.integers(0, len(LABS), n), rng.choice(len(CLASSES), n, p=(0.3, 0.2, 0.5))
    noise = rng.standard_normal(n)
    order = np.lexsort((is_visit, known_us))  # at one instant the visit is told last
    texts = [np.datetime_as_string(t.astype("M8[us]"), unit="us").tolist() for t in (event_us, known_us)]
    columns = (owner, event_us, known_us, is_visit, kind, visit, noise)
    made = []
    for number, (i, who, event, known, a_visit, lab, cls, z) in enumerate(
        zip(order.tolist(), *(c[order].tolist() for c in columns), strict=True)
    ):
        patient = f"p{who:06d}"
        body: dict[str, object] = {"schema_version": 1, "id": f"{number:010d}", "patient_id": patient, "version": 1}
        body |= {"event_time": texts[0][i] + "Z", "known_time": texts[1][i] + "Z"}
        if a_visit:
            body |= {"kind": "encounter", "encounter_class": CLASSES[cls], "status": "in-progress", "facility": "hospital-a"}
        else:
            _, code, unit, low, high = LABS[lab]
            value = round(max((low + high) / 2 + (high - low) / 2 * 1.1 * z, 0.05), 3)
            body |= {"kind": "lab", "code": code, "code_system": "loinc", "value": value, "unit": unit, "status": "final"}
        feed = "encounters" if a_visit else "labs"
        made.append(Event(feed, patient.encode(), event, known, msgspec.json.encode(body)))
    return made


def controls(told: Sequence[Event], scored_by: Model) -> list[Event]:
    """The model's activation and a tick each day: what a log that is imported from history holds beside its facts."""
    start = Command("activate", TIME_MIN_US, activation(scored_by, number=0))
    commands = [start, *(Command("tick", us) for us in range(BEGIN_US + DAY_US, told[-1].known_us, DAY_US))]
    return [Event(CONTROLS, b"", c.stamp_us or 0, c.stamp_us or 0, msgspec.json.encode(c)) for c in commands]


@dataclass(frozen=True, slots=True)
class Record:
    """What the steps read of a Kafka record."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def fact_rows(told: Sequence[Event], scored_by: Model, *, partitions: int = PARTITIONS) -> dict[int, list[Row]]:
    """The rows of `facts` by partition, as admission writes them in known-time order, controls among them."""
    topics = {name: name for name in (CONTROLS, "encounters", "labs")}
    admission = Admission(topics, partitions=partitions, partition_of=partitioner(partitions), stamp="given", book=scored_by.use_case.book)
    every = sorted([*controls(told, scored_by), *told], key=lambda e: (e.known_us, e.feed == "encounters"))
    rows: dict[int, list[Row]] = {p: [] for p in range(partitions)}
    offset = dict.fromkeys(topics, 0)
    for begin in range(0, len(every), 2_000):
        groups = []
        for topic in topics:
            some = [e for e in every[begin : begin + 2_000] if e.feed == topic]
            records = [Record(topic, 0, offset[topic] + j, e.known_us // 1000, e.patient, e.value) for j, e in enumerate(some)]
            offset[topic] += len(records)
            groups.append((topic, *admission.read(records)))
        admitted = admission(groups)
        if admitted.dead_letters:
            raise ValueError(f"the bench makes events that are refused: {admitted.dead_letters[0]}")
        for partition, more in admitted.facts.items():
            rows[partition] += more
    return rows
