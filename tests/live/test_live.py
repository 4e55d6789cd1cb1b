"""One code path on real services: what was scored live is what a backfill, a replay in a process and a replay into `facts` give (S14)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from features.importers import simulator
from features.log import Log
from streams.backfill import backfill
from streams.replay import replay_into_facts
from tests import logs
from tests.live.services import Kafka, Redis
from tests.live.system import Event, System, systems
from tests.live.worker import until

Make = Callable[..., System]
BOOKED_S = 4.0
"""A visit is due five minutes before it begins; those booked here become due so soon after they were told."""


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


def moved(now: datetime) -> list[Event]:
    """Half a year of an invented clinic that ends now, in the order in which it was told."""
    return list(simulator.events(patients=30, start=now - timedelta(days=180), end=now, seed=8))


def visit(number: int, status: str, begin: datetime, now: datetime) -> Event:
    """A visit told now of one of the clinic's patients."""
    about: dict[str, Any] = {"id": f"now{number}", "patient_id": f"p{number % 30:06d}", "status": status, "encounter_class": "ambulatory"}
    return "encounters", {**about, "event_time": begin.isoformat(), "known_time": now.isoformat()}


def test_a_live_run_is_scored_as_everywhere(make: Make) -> None:
    """Known time is the broker's, ticks bring booked visits, alerts are raised: and every replay gives the same again."""
    system = make(known_time="append")
    now = datetime.now(UTC)
    system.feed(moved(now))
    worker = system.start(env={"PREMONITOR_TICK_EVERY_S": "0.2"}).wait_reading()
    now = datetime.now(UTC)
    system.feed(visit(n, "in-progress", now - timedelta(minutes=n), now) for n in range(30))
    now = datetime.now(UTC)
    booked = {f"now{n}": now + timedelta(minutes=5, seconds=BOOKED_S) for n in range(30, 40)}
    system.feed(visit(int(name[3:]), "planned", begin, now) for name, begin in booked.items())
    until(lambda: booked.keys() <= {s.encounter_id for s in system.scores()}, "ticks bring what was booked", every_s=0.3)
    assert worker.stop() == 0
    system.start("--stage", "score")  # a last tick may stand on `facts` unread
    system.wait_done(["score"])
    system.kill()
    equal_everywhere(system, make)
    for score in system.scores():
        if score.encounter_id in booked and score.revision == 0:
            waited = datetime.fromisoformat(score.known_time) - (booked[score.encounter_id] - timedelta(minutes=5))
            assert timedelta(0) <= waited < timedelta(seconds=5), "scored when it became due, by a tick"
    assert len(system.values(system.names.alerts)) >= 3
