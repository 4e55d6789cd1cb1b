"""One code path on real services: what was scored live is what a backfill, a replay in a process and a replay into `facts` give (S14)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from features.log import Log
from models import score
from streams.backfill import backfill
from streams.replay import replay_into_facts
from tests import logs
from tests.live import clinic
from tests.live.services import Kafka, Redis
from tests.live.system import System, systems
from tests.live.worker import until
from tests.streams import test_merge_faults

Make = Callable[..., System]


@pytest.fixture
def make(kafka: Kafka, redis_server: Redis, tmp_path: Path) -> Iterator[Make]:
    yield from systems(kafka, redis_server, tmp_path)


def equal_everywhere(system: System, make: Make) -> dict[str, bytes]:
    """The scores of a system that is done, by id: proved, and the same from a backfill and from every replay."""
    assert system.prove().equal
    issued, log = dict(system.issued()), system.archived()
    assert issued == {made.score_id: value for batch in backfill(log, system.models()) for made, value in batch}
    assert issued == system.replayed(log, 1)[0] == system.replayed(log, 64)[0]
    assert issued == into_facts(log, make(partitions=3))
    return issued


def into_facts(log: Log, again: System) -> dict[str, bytes]:
    """The scores of a log that is replayed into `facts` of another system, whose worker only scores."""
    asyncio.run(replay_into_facts(log, again.models(), again.settings, progress=lambda n: None))
    again.start("--stage", "score")
    again.wait_done(["score"])
    again.kill()
    return dict(again.issued())


@pytest.mark.parametrize("kind", logs.KINDS)
def test_history_through_the_feeds_is_scored_as_everywhere(kind: str, make: Make) -> None:
    """Real patients of two sources and invented ones: the same (id, bytes) on every way that a log can take."""
    system = make()
    told = system.feed(event for event in logs.events(kind, patients=40) if event[0] != "rejected")
    system.start()
    system.wait_done()
    assert system.stop() == [0]
    issued = equal_everywhere(system, make)
    assert told > 900
    assert len(issued) >= 50


def test_patients_who_are_merged_are_scored_as_everywhere(make: Make) -> None:
    """S9 on real services, with a worker that is killed while facts go from one name to the other."""
    system = make()
    told = test_merge_faults.events(seed=3, patients=30)
    when = next(n for n, (feed, _) in enumerate(told) if feed == "merges")
    system.feed(told[: when + 1])
    worker = system.start(env={"PREMONITOR_CRASH_AT": "score.sent:2"})
    until(lambda: not worker.running, "the worker was killed")
    system.feed(told[when + 1 :])
    system.start()
    system.wait_done()
    assert system.stop() == [0]
    issued = [score.decode(value) for value in equal_everywhere(system, make).values()]
    assert len(issued) >= 50
    gone = {event["from_patient_id"]: event["patient_id"] for feed, event in told if feed == "merges"}
    assert any(one.patient_id in gone.values() and one.revision > 0 for one in issued)


def test_a_log_from_history_is_replayed_into_facts_as_it_is_backfilled(make: Make, tmp_path: Path) -> None:
    """A log that was imported and never live has stamps of its own, on `facts` too."""
    log, again = logs.build("eicu", tmp_path / "built"), make(partitions=3)
    assert into_facts(log, again) == {made.score_id: value for batch in backfill(log, again.models()) for made, value in batch}


def test_a_live_run_is_scored_as_everywhere(make: Make) -> None:
    """Known time is the broker's, ticks bring booked visits, alerts are raised: and every replay gives the same again."""
    system = make(known_time="append")
    system.feed(clinic.past())
    system.start(env={"PREMONITOR_TICK_EVERY_S": "0.2"}).wait_reading()
    system.feed(clinic.visits(range(30)))
    told = list(clinic.bookings(range(30, 40), due_in_s=4.0))
    due = {event["id"]: datetime.fromisoformat(event["event_time"]) - clinic.TOLERANCE for _, event in told}
    system.feed(told)
    until(lambda: due.keys() <= {s.encounter_id for s in system.scores()}, "ticks bring what was booked", every_s=0.3)
    system.finish()
    equal_everywhere(system, make)
    for one in system.scores():
        if one.encounter_id in due and one.revision == 0:
            waited = datetime.fromisoformat(one.known_time) - due[one.encounter_id]
            assert timedelta(0) <= waited < timedelta(seconds=5), "scored when it became due, by a tick"
    assert len(system.values(system.names.alerts)) >= 3
