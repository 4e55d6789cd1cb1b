"""Workers that are killed or frozen anywhere: the next one repeats work under the same ids, and nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import logs
from tests.live.services import Kafka, Redis
from tests.live.system import System, systems
from tests.live.worker import pass_time, until

Make = Callable[..., System]
KILLED = 137
STEPS = ("admit.polled:2", "admit.sent:2", "score.polled:3", "score.half_stored:3", "score.stored:3", "score.sent:3")
RANDOM_KILLS = 20 - len(STEPS)
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


def test_kills_at_random_times_are_repeated_work_only(make: Make) -> None:
    """Killed again and again while it works off a backlog: soon after its start, or some batches later."""
    print(f"PREMONITOR_KILL_SEED={SEED}")
    rng, system = np.random.default_rng(SEED), make()
    events = logs.events("simulated", patients=120)
    shares = np.array_split(np.arange(len(events)), RANDOM_KILLS + 1)
    names = (system.names.facts, system.names.scores)
    for share in shares[:-1]:
        system.feed(events[n] for n in share)
        before = system.written(*names)
        worker = system.start("--batch", "50")
        until(lambda: system.written(*names) > before, "it works")  # noqa: B023 (called here)
        pass_time(float(rng.uniform(0.0, 0.3)))
        worker.kill()
    system.feed(events[n] for n in shares[-1])
    system.start("--batch", "50")
    system.wait_done()
    assert system.prove().expected >= 400


def test_a_frozen_worker_that_comes_back_changes_nothing(make: Make) -> None:
    """Of two workers one stands still for longer than its session; the other takes over; the first goes on where it stood."""
    system = make()
    events = logs.events("simulated", patients=120)
    first, second = (system.start("--batch", "50", name=f"worker-{n}").wait_reading() for n in (1, 2))
    half = len(events) // 2
    system.feed(events[:half])
    before = system.written(system.names.scores)
    until(lambda: system.written(system.names.scores) > before, "both work")
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
