"""What comes in: two feeds in the order of known time, records that cannot become facts, and one that this version cannot read (S13)."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from features import clinic
from features.codes import codebook
from features.errors import InputError
from features.importers.build import build_log
from features.log import Log
from streams import dead_letters
from streams.backfill import backfill
from tests import logs
from tests.live.services import Kafka, Redis
from tests.live.system import Event, System, record_time_ms, systems

Make = Callable[..., System]
HOUR_S = 3_600
WRONG_INPUT = 2


@pytest.fixture
def make(kafka: Kafka, redis_server: Redis, tmp_path: Path) -> Iterator[Make]:
    yield from systems(kafka, redis_server, tmp_path)


# --- order ------------------------------------------------------------------------------------------------------------------------------


def an_hour(events: int) -> list[Event]:
    """Encounters and labs, all told within an hour, each at an instant of its own, in the order in which a clinic told them."""
    span = datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    year = clinic.events(patients=1_500, start=span[0], end=span[1], seed=21)
    some = [event for event in year if event[0] in ("encounters", "labs")][-events:]
    step = timedelta(seconds=HOUR_S) / len(some)
    return [(feed, {**event, "known_time": (span[1] + n * step).isoformat()}) for n, (feed, event) in enumerate(some)]


def test_a_backlog_of_two_feeds_is_scored_in_the_order_of_known_time(make: Make, tmp_path: Path) -> None:
    """Admission was away for an hour; a log built from the same events and sorted by known time gives the same scores."""
    events = an_hour(20_000)
    assert len(events) == 20_000
    system = make()
    for feed in ("encounters", "labs"):  # one feed after the other: only admission puts them in order
        system.feed(event for event in events if event[0] == feed)
    system.start("--batch", "5000")
    system.wait_done()
    assert system.stop() == [0]
    system.prove()
    build_log(events, tmp_path / "built", book=codebook(), source="an hour")
    built = {made.score_id: value for batch in backfill(Log(tmp_path / "built", codebook()), system.models()) for made, value in batch}
    assert len(built) > 5_000
    assert dict(system.issued()) == built


# --- records that cannot become facts ---------------------------------------------------------------------------------------------------

CANARY = "CANARY-4711"
EACH = 50
GOOD: dict[str, Any] = {
    "id": f"id-{CANARY}", "patient_id": f"patient-{CANARY}", "event_time": "2025-03-01T08:00:00Z", "known_time": "2025-03-01T09:00:00Z",
    "code": "718-7", "value": 11.5, "unit": "g/dL",
}  # fmt: skip
BAD: dict[str, dict[str, Any]] = {
    "bad-value": {"value": f"twelve {CANARY}"},
    "unit": {"unit": f"drops {CANARY}"},
    "absurd-time": {"event_time": "0202-03-01T08:00:00Z"},
    "missing-field": {"id": None},
    "unknown-version": {"schema_version": 2},
    "bad-time": {"event_time": "2025-03-01T08:00:00"},
}
"""Reason → what is wrong; None: the field is left out."""


@cache
def bad_records() -> list[tuple[str, bytes, bytes | None, int]]:
    """Fifty of each of eight kinds."""
    whole = json.dumps(GOOD).encode()
    values = {reason: json.dumps({k: v for k, v in (GOOD | wrong).items() if v is not None}).encode() for reason, wrong in BAD.items()}
    values["not-json"] = whole[:-20]
    values["too-large"] = json.dumps(GOOD | {"facility": CANARY * (10_000_000 // len(CANARY))}).encode()
    return [("labs", value, CANARY.encode(), record_time_ms(GOOD)) for value in values.values() for _ in range(EACH)]


async def large_labs(address: str, topic: str, partitions: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        config = {"max.message.bytes": "12000000", "retention.ms": "-1"}
        await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=config)])
    finally:
        await admin.close()


def test_bad_records_among_good_ones_are_accounted_for(make: Make, kafka: Kafka) -> None:
    """Each becomes a dead letter with its reason, the good ones are scored, and no log tells of a patient; all that a worker writes
    once it reads is JSON lines."""
    system = make(before=lambda prefix: asyncio.run(large_labs(kafka.address, f"{prefix}labs", 4)))
    told = [*logs.events("simulated", patients=20), ("labs", GOOD)]
    records = [(feed, json.dumps(e).encode(), e["patient_id"].encode(), record_time_ms(e)) for feed, e in told]
    rng = np.random.default_rng(4)
    for n in rng.permutation(len(bad_records())):
        records.insert(int(rng.integers(len(records))), bad_records()[n])
    worker = system.start()
    system.put(records)
    system.wait_done()
    assert worker.stop() == 0
    system.prove()
    letters = asyncio.run(dead_letters.read(system.settings)).found.values()
    expected = dict.fromkeys([*BAD, "not-json", "too-large"], EACH)
    assert Counter(found.letter.reason for found in letters) == expected
    assert all(found.letter.feed == "labs" and found.letter.detail for found in letters)
    assert CANARY not in system.log_text()
    first, *lines = system.log_text().splitlines()
    assert first.startswith("activated: ")
    assert "streams.app" in {json.loads(line)["logger"] for line in lines}
    assert CANARY not in "".join(found.letter.detail for found in letters)


# --- a record of another version --------------------------------------------------------------------------------------------------------


def test_an_unreadable_fact_stops_its_partition(make: Make) -> None:
    """Readers are deployed before writers: nothing of that partition goes on, at this start and at the next, and nothing is archived."""
    system = make(partitions=1)
    events = logs.events("simulated", patients=12)
    system.feed(events[:150])
    first = system.start().wait_reading()
    system.wait_done()
    partition, scores = (system.names.facts, 0), system.issued()
    at = system.ends(system.names.facts)[partition]
    system.put([("facts", b"\x09" + b"of a later version" * 8, b"p000001", record_time_ms(events[0][1]))])
    assert first.exit_code(30) == WRONG_INPUT
    system.feed(events[150:])
    second = system.start()
    assert second.exit_code(30) == WRONG_INPUT
    for worker in (first, second):
        assert "a record of facts has format 09, this version reads 01: deploy readers before writers" in worker.said()
    assert system.committed("score", system.names.facts)[partition] <= at
    assert set(system.places().values()) == {at}
    assert system.issued() == scores
    with pytest.raises(InputError, match="deploy readers before writers"):
        system.archived()
