"""Merges (S9): two names, one person. Whatever the order of work and the crashes, what is issued follows from the log alone."""

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

from features import fact, history
from features.clock import DAY_US, MINUTE_US, TIME_MIN_US, rfc3339
from features.codes import codebook
from features.importers import simulator
from features.importers.build import build_log
from features.log import Log, LogWriter
from features.merge import moves
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
from tests.streams.test_alert import Bench, at
from tests.streams.test_alert_example import worked_example
from tests.streams.test_equalities import driven
from tests.streams.test_faults import STEPS

PARTITIONS = 3
SEEDS = 60
HOUR_US = 60 * MINUTE_US


def merge(bench: Bench, known: str, source: str, target: str, name: str = "m1") -> None:
    """Tell that `source` is `target`."""
    bench.tell("merges", at(known), at(known), target, id=name, from_patient_id=source)
    bench.log[-1].key = source.encode()


def carry(bench: Bench) -> int:
    """Let the worker carry out what is in the log: what it sends on is appended. Returns how many records."""
    fresh = Bench(bench.models, bench.log)
    sent = fresh.run(0, len(bench.log)).sent_on
    for key, value in sent:
        bench.log.append(type(bench.log[0])("facts", 0, len(bench.log), bench.log[-1].timestamp, key, value))
    return len(sent)


def scores(bench: Bench) -> list[score.Score]:
    """All that is issued over the log as it stands."""
    return [score.decode(value) for _, value in Bench(bench.models, bench.log).run(0, len(bench.log)).scores]


def brief(made: Sequence[score.Score]) -> list[tuple[str, str, int, float | None]]:
    return [(s.patient_id, s.encounter_id, s.revision, s.risk and round(s.risk, 2)) for s in made]


def test_row_12_of_the_worked_example() -> None:
    """C is P: an emergency visit and a result come over with an encounter that C was scored at; E2 is revised once, the alert told once."""
    bench = worked_example(("05-09T10:00:00", "emergency", "ED1"), ("05-28T09:00:00", "ambulatory", "E9"))
    told = len(bench.log)
    merge(bench, "06-05T09:00:00", "C", "P")
    assert carry(bench) >= 3
    made = [s for s in scores(bench) if s.known_time >= rfc3339(at("06-05T08:00:00"))]
    assert brief(made) == [("P", "E9", 1, 0.27), ("P", "E2", 1, 0.27)] or brief(made) == [("P", "E2", 1, 0.27), ("P", "E9", 1, 0.27)]
    assert {s.trigger for s in made} == {made[0].trigger}, "the end of the merge caused both"
    assert {s.model_version for s in made if s.encounter_id == "E9"} == {
        s.model_version for s in scores(bench) if s.encounter_id == "E9" and s.revision == 0
    }
    alerts = bench.alerts([told])
    last = [a for a in alerts if a.known_time >= rfc3339(at("06-05T08:00:00")) and a.patient_id == "P"]
    assert [(a.transition, a.support) for a in last] == [("updated", ["E2", "E9"])]


def clinic(bench: Bench | None = None) -> Bench:
    """P1 with a flagged visit E1; P2 with one result and a visit E2 on the day after."""
    bench = bench or Bench()
    bench.hb(at("05-02T08:00:00"), 9.0, "L1", 1, at("05-02T07:00:00"), "P1")
    bench.tell("encounters", at("05-03T09:00:00"), at("05-03T09:00:00"), "P1", id="E1", encounter_class="ambulatory")
    bench.tell("encounters", at("05-04T09:00:00"), at("05-04T09:00:00"), "P2", id="E2", encounter_class="ambulatory")
    return bench


def test_without_an_end_nothing_takes_effect() -> None:
    """What has arrived of a packet waits: the other patient's answers are as before until the end stands in the log."""
    bench = clinic()
    merge(bench, "05-05T09:00:00", "P1", "P2")
    before = brief(scores(bench))
    carry(bench)
    whole = bench.log
    for cut in range(len(clinic().log) + 1, len(whole)):
        bench.log = whole[:cut]
        assert brief(scores(bench)) == before, f"after {cut} records"
    bench.log = whole
    assert brief(scores(bench)) == [*before, ("P2", "E2", 1, 0.22)], "E1 keeps its answer, E2 sees the result of the other name"


def test_from_the_redirect_on_the_first_patient_issues_nothing() -> None:
    """Later facts of the first name count for the second one, and are told there under one revision."""
    bench = clinic()
    merge(bench, "05-05T09:00:00", "P1", "P2")
    carry(bench)
    before = len(scores(bench))
    bench.tell("encounters", at("05-06T09:00:00"), at("05-06T09:00:00"), "P1", id="E3", encounter_class="ambulatory")
    assert len(scores(bench)) == before
    n = len(bench.log)
    fresh = Bench(bench.models, bench.log)
    fresh.run(0, n - 1)
    for key, value in fresh.run(n - 1, n).sent_on:
        bench.log.append(type(bench.log[0])("facts", 0, len(bench.log), bench.log[-1].timestamp, key, value))
    assert brief(scores(bench)[before:]) == [("P2", "E3", 0, 0.22)]
    bench.hb(at("05-06T10:00:00"), None, "L1", 2, at("05-02T07:00:00"), "P1")  # taken back under the first name
    n = len(bench.log)
    fresh = Bench(bench.models, bench.log)
    fresh.run(0, n - 1)
    for key, value in fresh.run(n - 1, n).sent_on:
        bench.log.append(type(bench.log[0])("facts", 0, len(bench.log), bench.log[-1].timestamp, key, value))
    assert {s.encounter_id: s.risk and round(s.risk, 2) for s in scores(bench)[before:]} == {"E1": 0.1, "E2": 0.1, "E3": 0.1}
    assert {s.patient_id for s in scores(bench)[before:]} == {"P2"}


def test_the_open_alert_moves_with_its_patient() -> None:
    """It closes under the first name as moved, and opens under the second with the same encounter."""
    bench = clinic()
    merge(bench, "05-05T09:00:00", "P1", "P2")
    carry(bench)
    alerts = bench.alerts()
    assert [(a.patient_id, a.transition, a.reason, a.support) for a in alerts] == [
        ("P1", "opened", "", ["E1"]),
        ("P1", "closed", "moved", ["E1"]),
        ("P2", "opened", "", ["E1", "E2"]),
    ]


def test_a_visit_that_was_due_before_keeps_its_model_and_its_count() -> None:
    """A model that was activated between the visit and the merge does not serve it."""
    from tests.streams.test_alert import model, use_case

    first, second = model(use_case()), model(use_case(), 2)
    bench = Bench([first, second])
    bench.log.pop()
    clinic(bench)
    bench.control(at("05-04T12:00:00"), "activate", {**activation(second, number=0), "id": 2})
    merge(bench, "05-05T09:00:00", "P1", "P2")
    carry(bench)
    bench.hb(at("05-05T10:00:00"), None, "L1", 2, at("05-02T07:00:00"), "P2")
    last = {s.encounter_id: s for s in scores(bench) if s.patient_id == "P2"}
    assert (last["E1"].revision, last["E1"].model_version) == (1, first.version)


def test_a_circle_of_merges_ends() -> None:
    """P1 is P2, and then P2 is P1: the second one is without effect, and nothing is sent round for ever."""
    bench = clinic()
    merge(bench, "05-05T09:00:00", "P1", "P2")
    carry(bench)
    merge(bench, "05-06T09:00:00", "P2", "P1", "m2")
    for _ in range(5):
        n = len(bench.log)
        fresh = Bench(bench.models, bench.log)
        fresh.run(0, n - 1)
        if not fresh.run(n - 1, n).sent_on:
            break
    else:
        pytest.fail("records go round")
    bench.tell("encounters", at("05-07T09:00:00"), at("05-07T09:00:00"), "P2", id="E4", encounter_class="ambulatory")
    assert "E4" in {s.encounter_id for s in scores(bench)}, "the second patient is still scored"


# --- in the Driver, with crashes --------------------------------------------------------------------------------------------------------


@cache
def model() -> Model:
    return stand_in(any_visit())


def events(seed: int, patients: int = 18) -> list[tuple[str, dict[str, Any]]]:
    """A small clinic in which some are told under two names, one of them under three."""
    span = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 4, 1, tzinfo=UTC)
    knobs = simulator.Knobs(late=0.2, corrected=0.1, retracted=0.05, duplicated=0.05, booked=0.0, conflicting=0.02)
    told = list(simulator.events(patients=patients, start=span[0], end=span[1], seed=seed, knobs=knobs))
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


def test_a_history_says_where_its_patient_went() -> None:
    """`moves` reads the redirect and the name of the other one."""
    bench = clinic()
    merge(bench, "05-05T09:00:00", "P1", "P2")
    assert fact.key_of(msgspec.convert({"kind": "lab", "patient_id": "x"}, type=_Lab)) == "x"
    bench.step.desk  # noqa: B018 (the bench has a worker)
    bench.run(0, len(bench.log))
    stored = bench.stores[0].partitions[0].histories
    ((_, move),) = moves(history.read([stored[b"P1"]]))
    assert (move.target, move.place) == ("P2", len(bench.log) - 1)
    assert not moves(history.read([stored[b"P2"]]))


class _Lab(msgspec.Struct):
    kind: str
    patient_id: str


# --- undone -----------------------------------------------------------------------------------------------------------------------------


def undo(bench: Bench, known: str, source: str, target: str, name: str = "m1") -> None:
    """Tell that `source` is not `target` after all, and let the worker carry it out."""
    about = {"id": name, "from_patient_id": source, "version": 2, "status": "entered-in-error"}
    bench.tell("merges", at(known), at(known), target, **about)
    bench.log[-1].key = source.encode()
    send_on(bench)


def send_on(bench: Bench) -> None:
    """Append what the last record of the log sends on."""
    n = len(bench.log)
    fresh = Bench(bench.models, bench.log)
    fresh.run(0, n - 1)
    for key, value in fresh.run(n - 1, n).sent_on:
        bench.log.append(type(bench.log[0])("facts", 0, len(bench.log), bench.log[-1].timestamp, key, value))


def undone() -> Bench:
    """P1 became P2 on 5 May and is P1 again from 8 May; under P1 a visit E3 was told meanwhile."""
    bench = clinic()
    merge(bench, "05-05T09:00:00", "P1", "P2")
    carry(bench)
    bench.tell("encounters", at("05-06T09:00:00"), at("05-06T09:00:00"), "P1", id="E3", encounter_class="ambulatory")
    send_on(bench)
    undo(bench, "05-08T09:00:00", "P1", "P2")
    return bench


def test_an_undone_merge_carries_back_in_one_step() -> None:
    """P2's own visit loses what P1 had brought, P1's visits are withdrawn there, and P1 is asked for them again."""
    bench = undone()
    made = [s for s in scores(bench) if s.known_time >= rfc3339(at("05-08T00:00:00"))]
    assert sorted((s.patient_id, s.encounter_id, s.revision, s.status, s.risk and round(s.risk, 2)) for s in made) == [
        ("P1", "E3", 0, "scored", 0.22),
        ("P2", "E1", 1, "withdrawn", None),
        ("P2", "E2", 2, "scored", 0.1),
        ("P2", "E3", 1, "withdrawn", None),
    ]
    bench.hb(at("05-09T08:00:00"), None, "L1", 2, at("05-02T07:00:00"), "P1")
    assert sorted(brief(scores(bench)[-2:])) == [("P1", "E1", 1, 0.1), ("P1", "E3", 1, 0.1)]


def test_alerts_go_back_with_an_undone_merge() -> None:
    """P1's alert opens again for the visits that support it, P2's loses its support."""
    told = [(a.patient_id, a.transition, a.reason, a.support) for a in undone().alerts()]
    assert told[:4] == [
        ("P1", "opened", "", ["E1"]),
        ("P1", "closed", "moved", ["E1"]),
        ("P2", "opened", "", ["E1", "E2"]),
        ("P2", "updated", "", ["E1", "E2", "E3"]),
    ]
    assert told[4:] == [("P1", "opened", "", ["E1", "E3"]), ("P2", "withdrawing", "", [])]


def test_the_same_two_are_merged_again_under_a_new_id() -> None:
    """After an undone merge another one brings everything once more."""
    bench = undone()
    merge(bench, "05-10T09:00:00", "P1", "P2", "m2")
    send_on(bench)
    last = {s.encounter_id: (s.status, s.risk and round(s.risk, 2)) for s in scores(bench) if s.patient_id == "P2"}
    assert last == {"E1": ("withdrawn", None), "E2": ("scored", 0.22), "E3": ("withdrawn", None)}, "E1 and E3 keep their answers of P1"
    bench.hb(at("05-11T08:00:00"), None, "L1", 2, at("05-02T07:00:00"), "P2")
    last = {s.encounter_id: (s.status, s.risk and round(s.risk, 2)) for s in scores(bench) if s.patient_id == "P2"}
    assert last == {"E1": ("scored", 0.1), "E2": ("scored", 0.1), "E3": ("scored", 0.1)}


def test_batches_do_not_matter_to_an_undone_merge() -> None:
    """Record by record, or all at once: the same scores."""
    bench = undone()
    whole, fresh = {s.score_id: s for s in scores(bench)}, Bench(bench.models, bench.log)
    by_one = [score.decode(v) for n in range(len(bench.log)) for _, v in fresh.run(n, n + 1).scores]
    assert {s.score_id: s for s in by_one} == whole
    assert len(by_one) == len(whole)
