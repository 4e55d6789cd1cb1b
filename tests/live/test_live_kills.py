"""Workers that are killed or frozen anywhere: the next one repeats work under the same ids, and nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import logs
from tests.live import clinic
from tests.live.services import Kafka, Redis
from tests.live.system import Event, System, systems
from tests.live.worker import pass_time, until

pytestmark = pytest.mark.slow
"""`make faults` runs these; `make test` has their like in one thread (tests/streams/test_faults.py)."""

Make = Callable[..., System]
KILLED = 137
STEPS = ("admit.polled:2", "admit.sent:2", "score.polled:3", "score.half_stored:3", "score.stored:3", "score.sent:3")
KILLS, LIVE_KILLS = 10, 4
"""With those at the steps: twenty."""
SEED = int(os.environ.get("PREMONITOR_KILL_SEED", "1"))
PAUSE_S = 15.0


@pytest.fixture
def make(kafka: Kafka, redis_server: Redis, tmp_path: Path) -> Iterator[Make]:
    yield from systems(kafka, redis_server, tmp_path)


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_each_step_is_repeated_work_only(step: str, make: Make) -> None:
    """The process ends at the n-th pass of a named step, with work done before it and work left behind it."""
    system = make(partitions=3)
    events = logs.events("simulated", patients=12)
    system.feed(events[:100])
    worker = system.start("--batch", "50", env={"PREMONITOR_CRASH_AT": step})
    until(lambda: system.written(system.names.facts) > 100 or not worker.running, "it works")
    system.feed(events[100:])
    assert worker.exit_code() == KILLED
    left = system.left()
    assert left is not None
    assert left > 0, "it was killed when all was done"
    system.start("--batch", "50")
    system.wait_done()
    assert system.prove().expected >= 40


def killed(system: System, portions: Iterable[Iterable[Event]], rng: np.random.Generator, **env: str) -> int:
    """Each portion is told to a worker that is killed soon after it began to work; returns how many left something undone."""
    undone, names = 0, (system.names.facts, system.names.scores)
    for portion in portions:
        system.feed(portion)
        before = system.written(*names)
        worker = system.start("--batch", "50", env=env)
        until(lambda: system.written(*names) > before, "it works")  # noqa: B023 (called here)
        pass_time(float(rng.uniform(0.0, 0.25)))
        worker.kill()
        undone += system.left() != 0
    return undone


def test_kills_at_random_times_are_repeated_work_only(make: Make) -> None:
    """Killed again and again while it works off a backlog: with the first batch that it writes, or some batches later."""
    print(f"PREMONITOR_KILL_SEED={SEED}")
    system, events = make(), logs.events("simulated", patients=120)
    portions = [[events[n] for n in share] for share in np.array_split(np.arange(len(events)), KILLS + 1)]
    undone = killed(system, portions[:-1], np.random.default_rng(SEED))
    system.feed(portions[-1])
    system.start("--batch", "50")
    system.wait_done()
    assert system.prove().expected >= 400
    assert undone >= KILLS / 2, "most kills came when all was done"


def test_kills_of_a_live_worker_are_repeated_work_only(make: Make) -> None:
    """Time goes on meanwhile: what it would have brought while nobody ran is brought by the next worker's ticks."""
    print(f"PREMONITOR_KILL_SEED={SEED}")
    system, past = make(known_time="append"), clinic.past()
    shares = np.array_split(np.arange(len(past)), LIVE_KILLS)
    ahead = [list(range(n * 10, n * 10 + 10)) for n in range(LIVE_KILLS)]
    portions = (
        [*(past[n] for n in share), *clinic.visits(some[:5]), *clinic.bookings(some[5:], due_in_s=3.0)]
        for share, some in zip(shares, ahead, strict=True)
    )
    killed(system, portions, np.random.default_rng(SEED), PREMONITOR_TICK_EVERY_S="0.1")
    system.start(env={"PREMONITOR_TICK_EVERY_S": "0.1"})
    booked = {f"now{n}" for some in ahead for n in some[5:]}
    until(lambda: booked <= {s.encounter_id for s in system.scores()}, "ticks bring what was booked", every_s=0.3)
    system.finish()
    system.prove()


def test_a_frozen_worker_that_comes_back_changes_nothing(make: Make) -> None:
    """Of two workers one stands still for longer than its session; the other takes over; the first goes on where it stood."""
    system = make()
    events = logs.events("simulated", patients=120)
    first, second = (system.start("--batch", "50", name=f"worker-{n}").wait_reading() for n in (1, 2))
    half = len(events) // 2
    system.feed(events[:half])
    until(lambda: system.written(system.names.scores) > 0, "both work")
    first.pause()
    system.feed(events[half:])
    pass_time(PAUSE_S)
    system.wait_done()
    first.resume()
    until(lambda: first.get("/readyz")[0] == 200, "it goes on")
    system.feed(logs.events("simulated", patients=12, seed=6))
    system.wait_done()
    assert first.running
    assert second.running
    assert system.stop() == [0, 0]
    system.prove()
