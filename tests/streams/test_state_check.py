"""The stored state against the log: whatever changed in Redis is found, and a partition is dropped as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakeredis
import numpy as np
import pytest

from features import codes
from features.clock import ALWAYS_US
from features.errors import CheckFailed, InputError
from features.pack import Packer
from streams import state_check
from streams.bus import partitioner
from streams.driver import Record
from streams.reader import Reach
from streams.replay import activations, rows
from streams.settings import Settings
from streams.store import Write, encode_state
from streams.store_redis import RedisStore
from tests import logs
from tests.stand_in import any_visit, stand_in

SETTINGS = Settings(kafka_bootstrap="kafka:9092")
ONE = 0
PLACE = 170
"""Up to here the state is stored; a visit is booked then, and some records are left."""


@dataclass
class Stored:
    """Partition 0 of a log, stored in a Redis in Python."""

    client: Any
    records: list[Record]
    place: int

    def check(self, monkeypatch: pytest.MonkeyPatch) -> state_check.Found:
        async def read(*_: object, until: int) -> AsyncIterator[list[Record]]:
            for begin in range(0, until, 300):
                yield self.records[begin : min(begin + 300, until)]

        monkeypatch.setattr(state_check, "read_partition", read)
        return self.run(lambda store: state_check._check_partition(SETTINGS, store, [any_visit()], ONE))

    def run(self, work: Callable[[RedisStore], Awaitable[Any]]) -> Any:
        async def in_loop() -> Any:
            client = fakeredis.FakeAsyncRedis(server=self.client)
            try:
                return await work(RedisStore(client, prefix=""))
            finally:
                await client.aclose()

        return asyncio.run(in_loop())

    @property
    def raw(self) -> Any:
        return fakeredis.FakeRedis(server=self.client)

    def histories(self) -> list[bytes]:
        return sorted(self.raw.keys("f:{0}:h:*"))


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """Facts of invented patients, stored batch by batch as a worker does."""
    models = [stand_in(any_visit())]
    log = logs.build("simulated", tmp_path / "log", patients=8)
    told = [*((None, value) for value in activations(log, models)), *rows(list(log.records()), 1, partitioner(1))[ONE]]
    records = [Record("facts", ONE, offset, 0, key, value) for offset, (key, value) in enumerate(told)]
    made = Stored(fakeredis.FakeServer(), records, 0)
    made.run(lambda store: _store(store, made, PLACE))
    return made


async def _store(store: RedisStore, stored: Stored, until: int) -> None:
    loaded = await store.load(ONE)
    packer = Packer([any_visit()], loaded.state, exact_from=loaded.place)
    for begin in range(stored.place, until, 70):
        some = stored.records[begin : min(begin + 70, until)]
        places, stamps = np.array([r.offset for r in some], np.int64), np.zeros(len(some), np.int64)
        packed = packer.pack([r.key for r in some], [r.value for r in some], places, stamps)
        write = Write(ONE, begin, begin + len(some), packed.patients, encode_state(packer.state), packed.booked)
        assert isinstance((await store.apply([write]))[0], dict)
    stored.place = until


def test_a_right_state_is_found_right_also_while_the_worker_goes_on(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added after the place was read stands at later places and is not compared."""
    found = stored.check(monkeypatch)
    assert found == state_check.Found(ONE, PLACE, 8)
    assert found.good
    load = RedisStore.load

    async def load_then_go_on(store: RedisStore, partition: int) -> Any:
        loaded = await load(store, partition)
        monkeypatch.setattr(RedisStore, "load", load)
        await _store(store, stored, len(stored.records))
        return loaded

    monkeypatch.setattr(RedisStore, "load", load_then_go_on)
    assert stored.check(monkeypatch) == state_check.Found(ONE, PLACE, 8)
    assert stored.check(monkeypatch) == state_check.Found(ONE, len(stored.records), 8)


def test_ticks_that_a_new_start_repeats_are_no_difference(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """They change no answer; a tick that is lost is a difference, because it makes a booked visit due."""
    (name, at, tick) = next((h, i, v[i : i + 64]) for h in stored.histories() for v in [stored.raw.get(h)] for i in ticks(v))
    history = stored.raw.get(name)
    late = tick[:48] + (PLACE - 1).to_bytes(4, "little") + tick[52:]
    for value, good in ((history + late, True), (history + late + late, True), (history[:at] + history[at + 64 :], False)):
        stored.raw.set(name, value)
        stored.raw.hset("f:{0}:lengths", name.rpartition(b":h:")[2], len(value))
        assert stored.check(monkeypatch).good == good


def ticks(history: bytes) -> list[int]:
    return [i for i in range(0, len(history), 64) if int.from_bytes(history[i + 58 : i + 60], "little") == codes.TICK]


def flip(raw: Any, name: bytes, at: int) -> None:
    value = bytearray(raw.get(name))
    value[at] ^= 1
    raw.set(name, bytes(value))


DAMAGE: list[tuple[str, Callable[[Any, bytes], Any], str]] = [
    ("a changed bit", lambda raw, h: flip(raw, h, 70), "1 different"),
    ("the last bit", lambda raw, h: flip(raw, h, -1), "1 different"),
    ("a record less", lambda raw, h: raw.set(h, raw.get(h)[:-64]), "1 different"),
    ("a record twice", lambda raw, h: raw.append(h, raw.get(h)[-64:]), "1 different"),
    ("half a record more", lambda raw, h: raw.append(h, b"x" * 32), "1 different"),
    ("a history gone", lambda raw, h: raw.delete(h), "1 missing"),
    ("a foreign history", lambda raw, h: (raw.set("f:{0}:h:zz", raw.get(h)), raw.hset("f:{0}:lengths", "zz", 64)), "1 extra"),
    ("a wrong length", lambda raw, h: raw.hset("f:{0}:lengths", h.rpartition(b":h:")[2], 64), "1 with a wrong length or index time"),
    ("all lengths gone", lambda raw, h: raw.delete("f:{0}:lengths"), "8 with a wrong length or index time"),
    ("all index times gone", lambda raw, h: raw.delete("f:{0}:newest"), "6 with a wrong length or index time"),
    ("a booking lost", lambda raw, h: raw.delete("f:{0}:booked"), "the partition's own state differs"),
    ("a booking too many", lambda raw, h: raw.zadd("f:{0}:booked", {f"{2**60}:zz": 2**60}), "the partition's own state differs"),
]


@pytest.mark.parametrize(("harm", "words"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_each_damage_is_found(harm: Callable[[Any, bytes], Any], words: str, stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever changed in the stored state, the sentence counts it and names no patient."""
    harm(stored.raw, stored.histories()[3])
    found = stored.check(monkeypatch)
    assert not found.good
    assert found.sentence() == f"partition 0: of 8 histories {words}"


def test_a_log_that_lost_its_beginning_cannot_tell(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison says so rather than calling the state wrong."""
    stored.records = stored.records[5:]
    with pytest.raises(CheckFailed, match="the log on Kafka begins at 5"):
        stored.check(monkeypatch)


def test_a_partition_is_dropped_as_a_whole(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also histories that a worker adds while the keys are being listed, and those whose length was lost; other partitions stay."""
    stored.raw.set("f:{00}:place", 7)
    stored.raw.hdel("f:{0}:lengths", stored.histories()[2].rpartition(b":h:")[2])
    scan_iter = fakeredis.FakeAsyncRedis.scan_iter

    async def scan_then_add(client: Any, **about: Any) -> AsyncIterator[bytes]:
        async for key in scan_iter(client, **about):
            yield key
        await client.set("f:{0}:h:new", b"x" * 64)
        await client.hset("f:{0}:lengths", "new", 64)

    monkeypatch.setattr(fakeredis.FakeAsyncRedis, "scan_iter", scan_then_add)
    stored.run(lambda store: store.forget(ONE))
    assert stored.raw.keys("*") == [b"f:{00}:place"]


def test_nothing_is_dropped_that_could_not_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Kafka has forgotten the beginning of facts, Redis holds the only copy."""

    async def reach(*_: object) -> dict[str, dict[int, Reach]]:
        return {"facts": {0: Reach(0, 9), 1: Reach(3, 9)}}

    monkeypatch.setattr(state_check, "reach", reach)
    with pytest.raises(CheckFailed, match="begins at 3 in partition 1"):
        asyncio.run(state_check.drop(SETTINGS, [], lambda words: None))
    with pytest.raises(InputError, match="no partition 2: it has 2"):
        asyncio.run(state_check.drop(SETTINGS, [2], lambda words: None))


def test_a_patient_without_index_times_has_none_stored() -> None:
    """`ALWAYS_US` and nothing are the same thing."""
    assert state_check.difference((bytes(64), 64, None), bytes(64), ALWAYS_US, 1) == ""
    assert state_check.difference((b"", 0, None), b"", ALWAYS_US, 1) == ""
    assert state_check.difference((bytes(64), 64, 5), bytes(64), ALWAYS_US, 1) == "beside"
