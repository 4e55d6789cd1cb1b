"""Large logs for the bench: the events of the task (`tests.bench.task`), many more of them, made with numpy and written by LogWriter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features import codes, fact
from features.clock import DAY_US, MINUTE_US
from features.log import LogWriter, buckets_for
from tests.bench.task import BEGIN_US, CLASSES, LABS

FACTS_OF_A_PATIENT = 50
LATE = 0.05
"""Share of results that become known 2 to 20 days after the draw."""
DAYS = 730
PIECE = 100_000


@dataclass(frozen=True, slots=True)
class Invented:
    """Facts in known-time order. Shapes (n,)."""

    patient: np.ndarray[Any, Any]
    event_us: np.ndarray[Any, Any]
    known_us: np.ndarray[Any, Any]
    kind: np.ndarray[Any, Any]
    """Of a result its number in `LABS`, of a visit that in `CLASSES` and as many as there are results."""
    value: np.ndarray[Any, Any]


def invent(n: int, *, seed: int) -> Invented:
    """n facts of n / 50 patients in two years, a fifth of them visits; no two have the same event time.

    Args:
        n: How many.
        seed: Equal seeds, equal facts.
    """
    rng = np.random.default_rng(seed)
    people = max(n // FACTS_OF_A_PATIENT, 1)
    weight = rng.gamma(2.0, 1.0, people)
    patient = np.searchsorted(np.cumsum(weight / weight.sum()), rng.random(n)).clip(max=people - 1)
    step_us = 1_000 if n < 10_000_000 else 100
    event_us = BEGIN_US + rng.permutation(np.sort(rng.integers(0, DAYS * DAY_US // step_us - n, n)) + np.arange(n)) * step_us
    visit = rng.random(n) < 0.2
    usual_us = np.where(visit, rng.integers(0, 10 * MINUTE_US, n), rng.integers(10 * MINUTE_US, DAY_US, n))
    late = ~visit & (rng.random(n) < LATE)
    known_us = event_us + np.where(late, rng.integers(2 * DAY_US, 20 * DAY_US, n), usual_us)
    kind = np.where(visit, len(LABS) + rng.choice(len(CLASSES), n, p=(0.3, 0.2, 0.5)), rng.integers(0, len(LABS), n))
    low, high = (np.array([lab[column] for lab in LABS])[kind % len(LABS)] for column in (3, 4))
    value = np.maximum((low + high) / 2 + (high - low) / 2 * 1.1 * rng.standard_normal(n), 0.05).round(3)
    order = np.lexsort((visit, known_us))  # at one instant the visit is told last
    return Invented(*(column[order] for column in (patient, event_us, known_us, kind, np.where(visit, np.nan, value))))


def values(told: Invented, begin: int, book: codes.Codebook) -> Iterator[tuple[str, bytes]]:
    """(patient, value of `facts`) of a piece, as `features.fact.convert` makes them from events."""
    piece = slice(begin, begin + PIECE)
    labs = [book.concept(kind="lab", system="loinc", code=code) for _, code, *_ in LABS]
    concept = np.array([*labs, *(codes.VISIT_CONCEPTS[cls] for cls in CLASSES)])
    kinds = told.kind[piece].tolist()
    heads = np.zeros(len(kinds), fact.HEAD)
    names = [f"{'E' if kind >= len(LABS) else 'L'}{number:09d}" for number, kind in enumerate(kinds, begin)]
    feeds = ["encounter" if kind >= len(LABS) else "lab" for kind in kinds]
    ids = b"".join(map(fact.fact_id, feeds, names))
    heads["id_hi"], heads["id_lo"] = np.frombuffer(ids, "<u8").reshape(-1, 2).T
    heads["event_us"], heads["stamp_us"], heads["value"] = told.event_us[piece], told.known_us[piece], told.value[piece]
    heads["episode"] = [fact.episode_of(feed, name, None) for feed, name in zip(feeds, names, strict=True)]
    heads["version"], heads["concept"] = 1, concept[told.kind[piece]]
    heads["status"] = np.where(told.kind[piece] >= len(LABS), fact.STATUS["in-progress"], fact.STATUS["final"])
    raw = heads.tobytes()
    stories = zip(feeds, kinds, told.patient[piece].tolist(), told.known_us[piece].tolist(), told.value[piece].tolist(), names, strict=True)
    for n, (feed, kind, patient, known_us, value, name) in enumerate(stories):
        if feed == "lab":
            _, code, unit, *_ = LABS[kind]
            tail = fact.Told("lab", "loinc", code, value, None, unit, known_us, None, "", "labs", begin + n + 1)
        else:
            tail = fact.Told("encounter", "", "", None, None, "", known_us, None, "hospital-a", "encounters", begin + n + 1)
        yield f"p{patient:07d}", fact.join(raw[64 * n : 64 * n + 64], name.encode(), tail)


def write(out: Path, n: int, *, seed: int, book: codes.Codebook) -> None:
    """A log of n facts with a tick each day."""
    told = invent(n, seed=seed)
    ticks = np.arange(BEGIN_US + DAY_US, int(told.known_us[-1]), DAY_US)
    before = np.searchsorted(told.known_us, ticks).tolist()  # facts before each tick
    with LogWriter(out, book, f"invented, seed {seed}", buckets=buckets_for(n)) as writer:
        tick = 0
        for begin in range(0, n, PIECE):
            for number, (patient, value) in enumerate(values(told, begin, book), begin):
                while tick < len(before) and before[tick] <= number:
                    stamp_us = int(ticks[tick])
                    tick += 1
                    writer.control(fact.control(name="tick", number=tick, stamp_us=stamp_us, payload={}))
                writer.fact(patient, value)
        writer.close(feeds={})


def events(n: int, *, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """As many facts as events for an importer, in no order, a piece at a time: (feed, event in JSON form)."""
    for begin in range(0, n, PIECE):
        told = invent(min(PIECE, n - begin), seed=seed + begin)
        some = np.random.default_rng(seed + begin).permutation(len(told.kind))
        who = (told.patient[some] + begin // FACTS_OF_A_PATIENT).tolist()
        texts = [np.datetime_as_string(t[some].astype("M8[us]"), unit="us").tolist() for t in (told.event_us, told.known_us)]
        columns = ((some + begin).tolist(), told.kind[some].tolist(), who, told.value[some].tolist(), *texts)
        for number, kind, patient, value, event_time, known_time in zip(*columns, strict=True):
            event: dict[str, Any] = {"patient_id": f"p{patient:07d}", "event_time": event_time + "Z", "known_time": known_time + "Z"}
            if kind >= len(LABS):
                event |= {"id": f"E{number:09d}", "encounter_class": CLASSES[kind - len(LABS)], "status": "in-progress"}
                yield "encounters", event | {"facility": "hospital-a"}
            else:
                _, code, unit, *_ = LABS[kind]
                yield "labs", event | {"id": f"L{number:09d}", "code": code, "code_system": "loinc", "value": value, "unit": unit}
