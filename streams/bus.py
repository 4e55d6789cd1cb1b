"""The bus: one idempotent producer, hand-built batches, and the futures of their acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import murmur2

from features.errors import InputError, ServiceError
from streams.admit import Row
from streams.settings import Settings
from streams.topics import unreachable

BATCH_BYTES = 512 * 1024
"""One partition's outputs of a poll are one record batch: at 16 KiB throughput falls by a quarter."""

Ack = asyncio.Future[object]


def partitioner(partitions: int) -> Callable[[bytes], int]:
    """Partition of a patient: murmur2(patient) mod partitions, as Kafka's own clients compute it; remembered for those seen of late."""

    @lru_cache(maxsize=200_000)
    def partition_of(patient: bytes) -> int:
        return int(murmur2(patient) & 0x7FFFFFFF) % partitions

    return partition_of


class Bus:
    """Writes to Kafka. Nothing counts as written before its acknowledgement was awaited."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect.

        Raises:
            ServiceError: Kafka is out of reach.
        """
        producer = AIOKafkaProducer(
            **self._settings.kafka(),
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=BATCH_BYTES,
            compression_type="snappy",  # halves the log; zstd takes a fifth more off it and twice the time
            request_timeout_ms=30_000,
        )
        try:
            await producer.start()
        except KafkaError as error:
            await producer.stop()
            raise unreachable(self._settings.kafka(), error) from None
        self._producer = producer

    async def stop(self) -> None:
        """Flush and close; bounded, because a broker that is gone never answers."""
        if self._producer is not None:
            with suppress(TimeoutError, KafkaError):
                await asyncio.wait_for(self._producer.stop(), 5)
            self._producer = None

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has."""
        return len(await self._connected().partitions_for(topic))

    def _connected(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise ServiceError("the bus is not started")
        return self._producer

    async def send(self, topic: str, partition: int, rows: Sequence[Row], *, timestamp_ms: int | None = None) -> list[Ack]:
        """Put rows into one partition, in order; returns the futures of their acknowledgements."""
        producer, acks, batch = self._connected(), [], None
        for key, value in rows:
            if batch is None or batch.append(key=key, value=value, timestamp=timestamp_ms) is None:
                if batch is not None:
                    acks.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
                if batch.append(key=key, value=value, timestamp=timestamp_ms) is None:
                    raise InputError(f"a record of {len(value)} bytes for {topic} is larger than a batch of {BATCH_BYTES}")
        if batch is not None:
            acks.append(await producer.send_batch(batch, topic, partition=partition))
        return acks

    async def send_one(self, topic: str, value: bytes, *, partition: int | None = None, key: bytes | None = None) -> int:
        """Put one record and wait until it is acknowledged; returns its offset."""
        try:
            return int((await self._connected().send_and_wait(topic, value=value, key=key, partition=partition)).offset)
        except MessageSizeTooLargeError:
            raise InputError(f"a record of {len(value)} bytes is larger than {topic} takes") from None
        except KafkaError as error:
            raise ServiceError(f"Kafka did not take a record for {topic}: {type(error).__name__}") from None
