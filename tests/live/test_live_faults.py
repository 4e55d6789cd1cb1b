"""Redis and Kafka that go away, come back or forget, and steps that raise: nothing is skipped, and what was lost is read again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import logs
from tests.live.services import Kafka, Redis
from tests.live.system import BOTH, Event, System, systems
from tests.live.worker import Worker, pass_time, until

pytestmark = pytest.mark.slow
"""`make faults` runs these; `make test` has their like in one thread (tests/streams/test_faults.py)."""

Make = Callable[..., System]
OUT_OF_SERVICE = 3
RAISING = Path(__file__).with_name("raising_worker.py")


@pytest.fixture
def make(kafka: Kafka, redis_server: Redis, tmp_path: Path) -> Iterator[Make]:
    try:
        yield from systems(kafka, redis_server, tmp_path)
    finally:
        for service in (kafka, redis_server):
            service.resume()
        if redis_server._process is None:
            redis_server.start()


def told(patients: int = 60, seed: int = 5) -> list[Event]:
    return logs.events("simulated", patients=patients, seed=seed)


def under_load(system: System, *, env: dict[str, str] | None = None) -> Worker:
    """A worker amid a backlog: it has scored some, and has most before it."""
    events = told(150)
    system.feed(events[: len(events) // 4])
    worker = system.start("--batch", "50", env=env)
    until(lambda: system.written(system.names.scores) > 50, "it works")
    system.feed_behind(worker, events[len(events) // 4 :])
    return worker


def still_busy(system: System) -> bool:
    left = system.left()
    return left is None or left > 0


# --- Redis ------------------------------------------------------------------------------------------------------------------------------


def test_redis_killed_under_load_and_back(make: Make, redis_server: Redis) -> None:
    """Two seconds without Redis: the worker waits, tries again and goes on."""
    system = make()
    worker = under_load(system)
    redis_server.kill()
    pass_time(2.0)
    assert worker.running
    redis_server.start()
    system.wait_done()
    assert worker.stop() == 0
    system.prove()
    assert "failed (1 of 8)" in worker.said(), "Redis went away when nothing was to be done"


def test_redis_forgets_its_tail_under_load(make: Make, redis_server: Redis) -> None:
    """A failover that lost acknowledged writes, in the middle of the work: found by the next write, and read again."""
    system = make()
    worker = under_load(system)
    worker.pause()
    copy, before = redis_server.copy_data(), system.written(system.names.scores)
    worker.resume()
    until(lambda: system.written(system.names.scores) > before + 50, "it works on")
    worker.pause()
    system.feed(told(60, seed=6))
    redis_server.restart_from(copy)
    worker.resume()
    system.wait_done()
    assert worker.stop() == 0
    system.prove()
    assert "the store is at" in worker.said(), "Redis had forgotten nothing"


def forgetting(system: System, redis_server: Redis, **env: str) -> Worker:
    """A worker that has done two portions, and a Redis that forgot the second one while nothing was to be done."""
    system.feed(told()[:400])
    worker = system.start(env=env)
    system.wait_done()
    copy = redis_server.copy_data()
    system.feed(told()[400:1000])
    system.wait_done()
    redis_server.restart_from(copy)
    assert sum(system.places().values()) < system.written(system.names.facts)
    return worker


def test_redis_forgets_its_tail_while_idle(make: Make, redis_server: Redis) -> None:
    """Without traffic nobody writes: the idle check finds the loss, and what comes afterwards is scored on whole histories."""
    system = make()
    worker = forgetting(system, redis_server)
    system.wait_done()
    until(lambda: worker.counted("score", "idle_gap"), "it tells of what it found")
    system.prove()
    system.feed(told()[1000:])
    system.wait_done()
    assert worker.stop() == 0
    system.prove()


def test_redis_forgets_its_tail_before_the_next_write(make: Make, redis_server: Redis) -> None:
    """The write itself finds the loss, where no idle check came before it."""
    system = make()
    worker = forgetting(system, redis_server, PREMONITOR_IDLE_CHECK_S="60")
    system.feed(told()[1000:])
    system.wait_done()
    assert worker.stop() == 0
    system.prove()
    assert "the store is at" in worker.said()
    assert "without traffic" not in worker.said()


def test_redis_away_for_good_ends_the_worker(make: Make, redis_server: Redis) -> None:
    """It gives up within its bounds and says so; the next start finishes."""
    system = make()
    worker = under_load(system, env={"PREMONITOR_ATTEMPTS_MAX": "3"})
    redis_server.kill()
    assert worker.exit_code(30) == OUT_OF_SERVICE
    assert "3 times in a row; nothing was skipped, the next start goes on there. Next: premonitor doctor" in worker.said()
    redis_server.start()
    assert still_busy(system)
    system.start()
    system.wait_done()
    system.prove()


def test_an_idle_worker_does_not_outlive_redis(make: Make, redis_server: Redis) -> None:
    """With nothing to do it asks all the same: it is no longer ready, and ends when the answer does not come."""
    system = make()
    system.feed(told()[:400])
    worker = system.start(env={"PREMONITOR_ATTEMPTS_MAX": "3", "PREMONITOR_IDLE_CHECK_S": "0.5"})
    system.wait_done()
    redis_server.kill()
    until(lambda: worker.get("/readyz")[0] == 503, "it says that it is not ready")
    assert worker.exit_code(30) == OUT_OF_SERVICE
    assert "in 3 idle checks in a row; nothing was skipped" in worker.said()
    redis_server.start()
    system.start()
    system.feed(told()[400:])
    system.wait_done()
    system.prove()


# --- Kafka ------------------------------------------------------------------------------------------------------------------------------


def test_a_frozen_broker_is_waited_for(make: Make, kafka: Kafka) -> None:
    """Eight seconds without an answer, longer than a session: afterwards the same worker goes on."""
    system = make()
    worker = under_load(system)
    kafka.pause()
    pass_time(8.0)
    kafka.resume()
    system.wait_done()
    assert worker.stop() == 0
    system.prove()


@pytest.mark.parametrize("stage", BOTH)
def test_an_idle_worker_does_not_outlive_kafka(stage: str, make: Make, kafka: Kafka) -> None:
    """A consumer without a broker waits for ever, and a stage that has nothing to write would never notice."""
    system = make()
    system.feed(told()[:400])
    system.start()
    system.wait_done()
    assert system.stop() == [0]
    quick = {"PREMONITOR_ATTEMPTS_MAX": "2", "PREMONITOR_IDLE_CHECK_S": "0.5", "PREMONITOR_PATIENCE_S": "1"}
    worker = system.start("--stage", stage, env=quick)
    worker.wait_reading()
    kafka.pause()
    try:
        assert worker.exit_code(60) == OUT_OF_SERVICE
    finally:
        kafka.resume()
    assert "TimeoutError in 2 idle checks in a row" in worker.said()


# --- steps that raise -------------------------------------------------------------------------------------------------------------------


def start_raising(system: System, what: str, **env: str) -> Worker:
    system.feed(told(20))
    return system.start("--batch", "50", launcher=[sys.executable, str(RAISING)], env={"RAISE": what, "RAISE_AT": "3", **env})


def test_an_exception_in_a_step_is_told_and_tried_again(make: Make) -> None:
    system = make(partitions=3)
    worker = start_raising(system, "error")
    system.wait_done()
    until(lambda: worker.counted("score", "retried"), "it tells of what it tried again")
    assert worker.stop() == 0
    system.prove()
    assert "failed (1 of 8): Broken" in worker.said()


@pytest.mark.parametrize("what", ["end", "outside"])
def test_an_agent_that_dies_ends_the_worker(what: str, make: Make) -> None:
    """A dead agent would leave its channel to nobody: the process ends with a code that is not 0, and the next start finishes."""
    system = make(partitions=3)
    worker = start_raising(system, what)
    assert worker.exit_code(30) != 0
    assert still_busy(system)
    system.start()
    system.wait_done()
    system.prove()


def test_a_stop_that_hangs_is_cut_off(make: Make) -> None:
    """Wherever it hangs, here before our services are asked to stop: the process ends and says why, and the next start finishes."""
    system = make(partitions=3)
    worker = start_raising(system, "stuck", PREMONITOR_STOP_WITHIN_S="2")
    assert worker.exit_code(30) != 0
    assert "the stop took more than 2 s and was cut off: " in worker.said()
    system.start()
    system.wait_done()
    system.prove()
