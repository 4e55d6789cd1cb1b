"""Merges (S9) under crashes and in logs from history: what is issued follows from the log alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from features import clinic
from features.clock import DAY_US, TIME_MIN_US, rfc3339
from features.codes import codebook
from features.importers.build import build_log
from features.log import Log, LogWriter
from models import score
from models.artifact import Model
from models.score import activation
from streams.admit import CONTROLS, Command, Row
from streams.alert import Alert
from streams.archive import Merge
from streams.backfill import backfill
from streams.driver import Crash, Driver, Topics
from streams.store import MemoryStore
from streams.verify import conservation, verify
from tests.stand_in import any_visit, stand_in
from tests.streams.test_equalities import driven
from tests.streams.test_faults import STEPS

PARTITIONS = 3
SEEDS = 60


@cache
def model() -> Model:
    return stand_in(any_visit())


def events(seed: int, patients: int = 18) -> list[tuple[str, dict[str, Any]]]:
    """A small clinic in which some are told under two names, one of them under three."""
    span = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 4, 1, tzinfo=UTC)
    knobs = clinic.Knobs(late=0.2, corrected=0.1, retracted=0.05, duplicated=0.05, booked=0.0, conflicting=0.02, edges=0.1, second=0.5)
    told = list(clinic.events(patients=patients, start=span[0], end=span[1], seed=seed, knobs=knobs))
    names = sorted({event["patient_id"] for _, event in told})
    rng = np.random.default_rng(seed)
    merges = [(names[0], names[1], 40), (names[1], names[2], 60), (names[3], names[4], int(rng.integers(20, 80)))]
    for n, (source, target, day) in enumerate(merges):
        when = rfc3339(int(span[0].timestamp()) * 1_000_000 + day * DAY_US)
        event = {"id": f"merge-{n}", "patient_id": target, "from_patient_id": source, "event_time": when, "known_time": when}
        told.append(("merges", event))
        if n == 2:  # this one was a mistake
            later = rfc3339(int(span[0].timestamp()) * 1_000_000 + (day + 6) * DAY_US)
            told.append(("merges", {**event, "version": 2, "status": "entered-in-error", "event_time": later, "known_time": later}))
    return sorted(told, key=lambda pair: pair[1]["known_time"])


def rows_of(told: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, int, Row]]:
    """Feed rows, the activation first and a tick each twenty events."""
    out: list[tuple[str, int, Row]] = [
        (CONTROLS, 0, (None, msgspec.json.encode(Command("activate", TIME_MIN_US, activation(model(), number=0)))))
    ]
    for n, (feed, event) in enumerate(told):
        out.append((feed, sum(map(ord, event["patient_id"])) % PARTITIONS, (None, msgspec.json.encode(event))))
        if n % 20 == 19:
            stamp_us = int(datetime.fromisoformat(event["known_time"].replace("Z", "+00:00")).timestamp()) * 1_000_000
            out.append((CONTROLS, 0, (None, msgspec.json.encode(Command("tick", stamp_us)))))
    return out


def archived(topics: Topics, out: Path) -> Log:
    """The log of `facts` in memory."""
    merged = Merge(PARTITIONS)
    with LogWriter(out, codebook(), "test") as writer:
        for partition in range(PARTITIONS):
            for record in topics.read(("facts", partition), 0, 2**40):
                merged.add(record.partition, record.key, record.value, record.timestamp * 1000)
        for patient, value in merged.rest():
            if patient is None:
                writer.control(value)
            else:
                writer.fact(patient, value)
        feeds = {topic: len(log) for (topic, _), log in topics.logs.items()}
        rows = {feed: sum(len(log) for (topic, _), log in topics.logs.items() if topic == feed) for feed in feeds if feed in _FEEDS}
        writer.close(feeds={feed: {"rows": n, "rejected": {}} for feed, n in rows.items()})
    return Log(out, codebook())


_FEEDS = ("encounters", "labs", "merges")


@dataclass
class Life:
    """One seed: topics and stores survive, workers crash."""

    seed: int
    topics: Topics = field(default_factory=Topics)
    stores: tuple[MemoryStore, MemoryStore] = field(default_factory=lambda: (MemoryStore(), MemoryStore()))
    crash_next: str = ""
    crashes: int = 0

    def started(self) -> Driver:
        return Driver(
            [model()], codebook(), self.topics, store=self.stores[0], alert_store=self.stores[1], partitions=PARTITIONS, at=self._step
        )

    def _step(self, name: str) -> None:
        if self.crash_next == name:
            self.crash_next = ""
            raise Crash(name)

    async def run(self) -> None:
        rng, told, worker = np.random.default_rng(self.seed), 0, self.started()
        rows = rows_of(events(seed=self.seed % 5))
        while told < len(rows):
            for topic, partition, row in rows[told : told + 40]:
                self.topics.append(topic, partition, [row], 0)
            told += 40
            self.crash_next = str(rng.choice(STEPS)) if rng.random() < 0.4 else ""
            try:
                worker.admit(int(rng.choice([5, 50, 500])))
                for partition in rng.permutation(PARTITIONS).tolist():
                    await worker.score(partition, int(rng.choice([1, 10, 100])))
            except Crash:
                self.crashes += 1
                worker = self.started()
        self.crash_next = ""
        while True:
            await worker.drain(batch=int(rng.choice([3, 50, 500])))
            if not any([await worker.idle_check(p) for p in range(PARTITIONS)]):
                return


@pytest.mark.timeout(300)
def test_any_order_and_any_crash_gives_what_the_log_gives(tmp_path: Path) -> None:
    """S9 and S14: issued = backfill of the archive; feeds add up; alerts are those of one quiet worker over the same facts."""
    crashes = moved = 0
    for seed in range(SEEDS):
        life = Life(seed)
        asyncio.run(life.run())
        log = archived(life.topics, tmp_path / str(seed))
        issued = [(score.decode(value).score_id, value) for value in life.topics.values("scores")]
        found = verify(log, [model()], issued)
        assert found.equal, f"seed {seed}: {found.sentence()}"
        assert all(line.holds for line in conservation(log)), f"seed {seed}"
        quiet = Topics(logs={k: list(v) for k, v in life.topics.logs.items() if k[0] == "facts"})
        asyncio.run(Driver([model()], codebook(), quiet, partitions=PARTITIONS).drain(batch=500))
        assert set(quiet.values("alerts")) == set(life.topics.values("alerts")), f"seed {seed}"
        crashes += life.crashes
        moved += sum(msgspec.json.decode(value, type=Alert).reason == "moved" for value in set(life.topics.values("alerts")))
    print(f"seeds 0 to {SEEDS - 1}: {crashes} crashes, {moved} alerts moved")
    assert crashes > SEEDS / 2
    assert moved, "no merge met an open alert"


@pytest.mark.parametrize(("partitions", "batch"), [(1, 1), (4, 7), (64, 2_000)])
def test_a_log_from_history_with_merges_is_one_log(tmp_path: Path, partitions: int, batch: int) -> None:
    """The importer carries merges out as the worker does: the log replays and backfills to the same bytes."""
    build_log(events(seed=3), tmp_path / "log", book=codebook(), source="merged", tick_us=DAY_US)
    log = Log(tmp_path / "log", codebook())
    expected = {made.score_id: value for chunk in backfill(log, [model()]) for made, value in chunk}
    issued, _ = driven(log, model(), partitions=partitions, batch=batch)
    assert issued == expected
    assert all(line.holds for line in conservation(log))
    revised = [s for s in map(score.decode, expected.values()) if s.revision > 0]
    assert revised


def test_after_the_merge_the_answers_are_those_of_one_person(tmp_path: Path) -> None:
    """The last answer to each visit that is still open equals that of a source which had told everything under one name at once."""
    compared = 0
    for seed in range(9):
        told = events(seed)
        target = {event["from_patient_id"]: event["patient_id"] for feed, event in told if feed == "merges" and event["id"] != "merge-2"}
        as_one = [(feed, {**event, "patient_id": _end_of(event["patient_id"], target)}) for feed, event in told if feed != "merges"]
        last: list[dict[tuple[str, str], str]] = []
        for name, some in (("two", told), ("one", as_one)):
            build_log(some, tmp_path / f"{name}{seed}", book=codebook(), source=name, tick_us=DAY_US)
            log = Log(tmp_path / f"{name}{seed}", codebook())
            made = [one for chunk in backfill(log, [model()]) for one, _ in chunk if one.patient_id not in target]
            since = rfc3339(log.known_until_us - 28 * DAY_US)
            made.sort(key=lambda s: s.revision)
            open_ = {(s.patient_id, s.encounter_id): s for s in made if s.index_time > since}
            last.append({key: s.row_digest for key, s in open_.items() if s.status != "withdrawn"})
        assert last[0] == last[1], f"seed {seed}"
        compared += sum(patient in target.values() for patient, _ in last[0])
    assert compared > 4, "no merged patient had an open visit"


def _end_of(patient: str, target: dict[str, str]) -> str:
    while patient in target:
        patient = target[patient]
    return patient


def test_no_answer_is_given_under_a_name_that_went_over(tmp_path: Path) -> None:
    """Although sources go on telling visits under it."""
    later = 0
    for seed in range(6):
        told = events(seed)
        build_log(told, tmp_path / str(seed), book=codebook(), source="merged", tick_us=DAY_US)
        when = {event["from_patient_id"]: event["known_time"] for feed, event in told if feed == "merges" and event["id"] != "merge-2"}
        made = [one for chunk in backfill(Log(tmp_path / str(seed), codebook()), [model()]) for one, _ in chunk]
        assert not [s for s in made if s.patient_id in when and s.known_time >= when[s.patient_id]]
        assert any(s.patient_id in when for s in made)
        later += sum(feed == "encounters" and e["known_time"] > when.get(e["patient_id"], "9") for feed, e in told)
    assert later > 5, "no visit was told under a name that went over"
