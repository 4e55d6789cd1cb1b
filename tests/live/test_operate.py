"""The operating commands on real services: what they print, their exit codes, and that nothing issued changes by using them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import logs
from tests.live.services import Kafka, Redis, free_port
from tests.live.system import System, systems
from tests.live.worker import until

pytestmark = pytest.mark.slow
"""`make faults` runs these; `make test` has their like in one thread (tests/streams/test_faults.py)."""

Make = Callable[..., System]
HB = {
    "kind": "lab", "id": "X1", "patient_id": "MRN-4711", "code": "718-7", "value": 9.0, "unit": "g/dL",
    "event_time": "2025-03-01T08:00:00Z", "known_time": "2025-03-01T09:00:00Z",
}  # fmt: skip
NOW_MS = 1_780_000_000_000


@pytest.fixture
def make(kafka: Kafka, redis_server: Redis, tmp_path: Path) -> Iterator[Make]:
    yield from systems(kafka, redis_server, tmp_path)


@dataclass
class Operator:
    """Runs the installed command."""

    kafka: str
    redis: str
    prefix: str

    def __call__(self, *words: str, redis: bool = False, code: int = 0) -> str:
        """stdout of a command, which must end with this exit code."""
        where = ["--kafka", self.kafka, "--prefix", self.prefix, *(["--redis", self.redis] if redis else [])]
        command = [str(Path(sys.executable).with_name("premonitor")), *words, *where]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        assert "MRN" not in done.stdout + done.stderr or "--show-payload" in words
        assert "Traceback" not in done.stderr
        return done.stdout

    def json(self, *words: str, redis: bool = False, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", redis=redis, code=code))


def bad(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in {**HB, **changes}.items() if v is not None}).encode()


def refuse(system: System, *values: bytes) -> None:
    system.put(("labs", value, b"MRN-4711", NOW_MS) for value in values)


def test_dead_letters_are_listed_explained_and_retried(make: Make) -> None:
    """What a mended worker takes becomes a fact, what it refuses again a dead letter of its own; the line of S13 adds up all along."""
    system = make(partitions=2)
    operator = Operator(system.kafka, system.redis, system.prefix)
    system.feed(logs.events("simulated", patients=10))
    refuse(system, bad(known_time=None), bad(id="X2", unit="furlong"), b"{", b"x" * 70_000)
    system.start()
    system.wait_done()
    listed = operator.json("dead-letters", "list")["dead_letters"]
    assert {row["reason"]: row["count"] for row in listed} == {"missing-field": 1, "unit": 1, "not-json": 1, "too-large": 1}
    (letter,) = operator.json("dead-letters", "list", "--reason", "missing-field")["letters"]
    assert "rule    known_time is required" in operator("dead-letters", "explain", letter["where"])
    assert '"patient_id": "MRN-4711"' in operator("dead-letters", "explain", letter["id"], "--show-payload")
    assert operator.json("dead-letters", "retry", "--reason", "unit")["sent"] == 1
    assert operator.json("dead-letters", "retry", "--reason", "too-large")["not_kept"] == 1
    system.wait_done()
    assert "MRN" not in operator("dead-letters", "list", "--reason", "unit")
    (row,) = operator.json("dead-letters", "list", "--reason", "unit")["dead_letters"]
    assert (row["count"], row["retried"]) == (2, 1)
    system.prove()
    system.stop()
    system.known_time = "append"  # as after an upgrade: now the record is taken
    system.start()
    done = [operator.json("dead-letters", "retry", letter["id"]) for _ in range(2)]
    assert [(d["sent"], d["before"]) for d in done] == [(1, 0), (0, 1)]
    system.wait_done()
    assert [r["count"] for r in operator.json("dead-letters", "list", "--reason", "missing-field")["dead_letters"]] == [1]
    system.prove()


def test_a_changed_bit_is_found_and_a_dropped_partition_made_anew(make: Make) -> None:
    """A live worker finds the gap by itself; scores and alerts are the same bytes, and the state is that of the log again."""
    system = make(partitions=2)
    operator = Operator(system.kafka, system.redis, system.prefix)
    system.feed(logs.events("simulated", patients=20))
    system.start()
    system.wait_done()
    issued, alerts = set(system.issued()), set(system.values(system.names.alerts))
    check = ("rebuild", "--check", "--model", str(system.model))
    assert all(p["good"] for p in operator.json(*check, redis=True)["partitions"])
    (name, *_) = sorted(system.state.keys(f"{system.prefix}f:{{1}}:h:*"))
    system.state.setrange(name, 70, bytes([system.state.getrange(name, 70, 70)[0] ^ 1]))
    found = operator.json(*check, redis=True, code=1)["partitions"]
    assert [(p["partition"], p["different"]) for p in found if not p["good"]] == [(1, 1)]
    assert operator.json("rebuild", "--partition", "1", redis=True)["facts"] == system.ends(system.names.facts)[system.names.facts, 1]
    until(lambda: system.left() == 0 and system.places()[1] > 0, "the partition is read again")
    assert all(p["good"] for p in operator.json(*check, redis=True)["partitions"])
    system.stop()
    assert operator.json("rebuild", "--all", redis=True)["partitions"] == [0, 1]
    assert system.state.keys(f"{system.prefix}[fa]:*") == []
    system.start()
    system.wait_done()
    assert all(p["good"] for p in operator.json(*check, redis=True)["partitions"])
    assert (set(system.issued()), set(system.values(system.names.alerts))) == (issued, alerts)
    system.prove()


def test_doctor_and_status_say_how_it_stands(make: Make) -> None:
    """Before the topics, with a worker, with a wrong setting, and with nobody there."""
    system = make(partitions=2)
    operator = Operator(system.kafka, system.redis, system.prefix)
    model = ("--model", str(system.model))
    assert "✗" not in operator("doctor", *model, redis=True)
    system.feed(logs.events("simulated", patients=10))
    refuse(system, b"{")
    lags = {row["name"]: row["lag"] for row in operator.json("status")["feeds"]}
    assert lags[f"{system.prefix}labs"] > 10
    system.start()
    system.wait_done()
    told = operator.json("status")
    assert {row["lag"] for row in told["feeds"]} == {0}
    assert {row["name"].removeprefix(system.prefix): row["lag"] for row in told["topics"]} == {
        "controls": 0, "facts": 0, "scores": None, "alerts": None,
    }  # fmt: skip
    assert (told["models"][0]["role"], told["dead_letters"][0]["reason"]) == ("champion", "not-json")
    assert f"{system.prefix}scores" in operator("status")
    assert "state and facts agree in 2 partitions" in operator("doctor", *model, redis=True)
    system.stop()
    system.state.set(f"{system.prefix}f:{{1}}:place", 10**9)
    system.state.hset(f"{system.prefix}about", "partitions", 7)
    text = operator("doctor", *model, redis=True, code=1)
    assert "✗ facts has 2 partitions, state was written with 7" in text
    assert "✗ state is ahead of facts in partition 1 (state at 1,000,000,000, log ends at" in text
    operator.prefix = "nothing-here."
    assert "✗ topics missing: nothing-here.controls, nothing-here.facts" in operator("doctor", redis=True, code=1)
    operator("status", code=2)


def test_a_service_out_of_reach_is_exit_3() -> None:
    """A supervisor knows from it that trying again may help; doctor names both services."""
    operator = Operator(f"127.0.0.1:{free_port()}", f"redis://127.0.0.1:{free_port()}/0", "")
    assert operator("doctor", redis=True, code=3).count("not reachable") == 2
    for words in (["status"], ["dead-letters", "list"], ["dead-letters", "retry", "--reason", "unit"], ["rebuild", "--all"]):
        operator(*words, code=3)
