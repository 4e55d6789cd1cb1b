"""Reads a topic from its beginning to its end, without a group: scores, controls, dead letters, rebuilds, archives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from features.errors import InputError, ServiceError
from streams.settings import Settings
from streams.topics import partition_counts, unreachable


@asynccontextmanager
async def consumer(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without a group.

    Raises:
        ServiceError: Kafka is out of reach or stopped answering.
    """
    client = AIOKafkaConsumer(**settings.kafka(), enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=100)
    try:
        await client.start()
    except KafkaError as error:
        await client.stop()
        raise unreachable(settings.kafka(), error) from None
    try:
        yield client
    except KafkaError as error:
        raise ServiceError(f"Kafka answers {type(error).__name__}: {error}") from None
    finally:
        await client.stop()


async def read_partition(settings: Settings, topic: str, partition: int, *, until: int | None = None) -> AsyncIterator[list[Any]]:
    """Records of one partition in pieces, from its beginning to `until` (exclusive; None: its end now)."""
    async with consumer(settings) as client:
        async for records in _pieces(client, [TopicPartition(topic, partition)], until):
            yield records


async def read_topic(settings: Settings, topic: str) -> AsyncIterator[list[Any]]:
    """Records of a whole topic in pieces, each piece of one partition, each partition in order, to its end now.

    Raises:
        InputError: there is no such topic.
    """
    partitions = (await partition_counts(settings.kafka(), [topic])).get(topic, 0)
    if not partitions:
        raise InputError(f"there is no topic '{topic}' on this Kafka. Is the --prefix right? premonitor topics --kafka HOST:PORT")
    async with consumer(settings) as client:
        async for records in _pieces(client, [TopicPartition(topic, p) for p in range(partitions)], None):
            yield records


async def _pieces(client: AIOKafkaConsumer, tps: list[TopicPartition], until: int | None) -> AsyncIterator[list[Any]]:
    client.assign(tps)
    await client.seek_to_beginning(*tps)
    end = await client.end_offsets(tps)
    if until is not None:
        end = {tp: min(until, offset) for tp, offset in end.items()}
    left = {tp for tp in tps if end[tp] > 0 and (await client.position(tp)) < end[tp]}
    client.pause(*(set(tps) - left))
    while left:
        for tp, records in (await client.getmany(timeout_ms=500, max_records=10_000)).items():
            wanted = [r for r in records if r.offset < end[tp]]
            if wanted:
                yield wanted
        for tp in list(left):
            if await client.position(tp) >= end[tp]:
                left.discard(tp)
                client.pause(tp)


@dataclass(frozen=True, slots=True)
class Reach:
    """From where to where a partition holds records. `last_ms`: the time of its last record, where it was asked for."""

    begin: int
    end: int
    last_ms: int | None = None


async def reach(settings: Settings, topics: Collection[str], *, dated: Collection[str] = ()) -> dict[str, dict[int, Reach]]:
    """Topic → partition → its reach; a topic that does not exist is missing. Of the topics in `dated` the last records are read."""
    counts = await partition_counts(settings.kafka(), list(topics))
    tps = [TopicPartition(topic, p) for topic, n in counts.items() for p in range(n)]
    if not tps:
        return {}
    async with consumer(settings) as client:
        begin, end = await client.beginning_offsets(tps), await client.end_offsets(tps)
        last = await _last_times(client, {tp: (begin[tp], end[tp]) for tp in tps if tp.topic in dated and end[tp] > begin[tp]})
    return {topic: {tp.partition: Reach(begin[tp], end[tp], last.get(tp)) for tp in tps if tp.topic == topic} for topic in counts}


async def _last_times(client: AIOKafkaConsumer, ranges: dict[TopicPartition, tuple[int, int]]) -> dict[TopicPartition, int]:
    """Time of the last record of each partition, as far as it came within some seconds: a marker of a transaction may stand last."""
    last: dict[TopicPartition, int] = {}
    if not ranges:
        return last
    client.assign(list(ranges))
    for tp, (begin, end) in ranges.items():
        client.seek(tp, max(begin, end - 2))
    left = set(ranges)
    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            while left:
                for tp, records in (await client.getmany(timeout_ms=200)).items():
                    last[tp] = records[-1].timestamp
                left = {tp for tp in left if await client.position(tp) < ranges[tp][1]}
    return last
