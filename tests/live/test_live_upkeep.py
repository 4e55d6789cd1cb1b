"""A worker that nothing happens to: it answers probes, mends histories that are damaged, and stops when it is asked to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import logs
from tests.live.services import Kafka, Redis
from tests.live.system import System, systems
from tests.live.worker import until

pytestmark = pytest.mark.slow
"""`make faults` runs these; `make test` has their like in one thread (tests/streams/test_faults.py)."""

Make = Callable[..., System]
STOP_S = 20.0
RECORD_BYTES = 64


@pytest.fixture
def make(kafka: Kafka, redis_server: Redis, tmp_path: Path) -> Iterator[Make]:
    yield from systems(kafka, redis_server, tmp_path)


def test_it_answers_probes_and_stops_when_asked_amid_its_work(make: Make) -> None:
    """/livez and /readyz are true of a worker that reads; SIGTERM ends it in order, with code 0, and the next one finishes."""
    system = make()
    worker = system.start("--batch", "50").wait_reading()
    assert worker.get("/livez") == (200, "ok\n")
    assert worker.get("/readyz") == (200, "ok\n")
    assert worker.get("/other")[0] == 404
    events = logs.events("simulated", patients=120)
    half = len(events) // 2
    system.feed(events[:half])
    until(lambda: system.written(system.names.scores) > 50, "it works")
    system.feed_behind(worker, events[half:])
    begun_s = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - begun_s < STOP_S
    assert worker.get("/livez")[0] == 0
    left = system.left()
    assert left, "it was stopped when all was done"
    system.start()
    system.wait_done()
    system.prove()


def test_damaged_histories_are_found_and_made_anew(make: Make) -> None:
    """One key is deleted, another loses its last record: the idle check mends both, and what follows is scored on whole histories."""
    system = make()
    events = logs.events("simulated", patients=40)
    half = len(events) // 2
    system.feed(events[:half])
    worker = system.start()
    system.wait_done()
    keys = sorted(system.state.keys(f"{system.prefix}f:*:h:*"))
    whole = {key: system.state.get(key) for key in keys}
    gone, short = keys[3], keys[-3]
    assert system.state.delete(gone) == 1
    system.state.set(short, whole[short][:-RECORD_BYTES])
    until(lambda: worker.metric("premonitor_histories_rebuilt_total") == 2, "both are rebuilt")
    assert {key: system.state.get(key) for key in keys} == whole
    damaged = {key.rpartition(b":")[2].decode() for key in (gone, short)}
    assert {e["patient_id"] for _, e in events[half:]} >= damaged, "nothing new is told of them"
    system.feed(events[half:])
    system.wait_done()
    assert worker.stop() == 0
    system.prove()
