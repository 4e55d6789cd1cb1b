"""Replay: a log driven through the live steps again, in one process or into `facts` under a prefix of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

from features import fact
from features.clock import SECOND_US, TIME_MIN_US
from features.codes import Codebook
from features.errors import InputError
from features.log import Log, Record
from features.merge import settled
from models.artifact import Model
from models.score import activation
from streams.admit import Row
from streams.bus import Ack, Bus, partitioner
from streams.driver import Driver, Topics
from streams.settings import Settings
from streams.topics import Names, partition_counts, topic_ends

PIECE = 2_000
REAL = 1.0
"""Speed at which a day takes a day; 0.0: as fast as it goes."""


def parse_speed(text: str) -> float:
    """`max`, `real` or `x60` as a factor; 0.0 is max.

    Example:
        >>> parse_speed("x60"), parse_speed("real"), parse_speed("max")
        (60.0, 1.0, 0.0)
    """
    if text == "max":
        return 0.0
    if text == "real":
        return REAL
    try:
        factor = float(text.removeprefix("x"))
    except ValueError:
        factor = 0.0
    if not text.startswith("x") or not 0 < factor < 1e9:
        raise InputError(f"--speed '{text}': expected max, real, or xN such as x60 (an hour a minute)")
    return factor


def activations(log: Log, models: Sequence[Model]) -> list[bytes]:
    """Controls to put before a log that activates nothing by itself."""
    if any(b'"model_version"' in value for value in log.controls.value):
        return []
    roles = [(m, "shadow" if n else "champion", n) for n, m in enumerate(models)]
    return [
        fact.control(name="activate", number=n, stamp_us=TIME_MIN_US, payload=activation(m, number=n, role=role)) for m, role, n in roles
    ]


async def paced(records: Iterator[Record], speed: float, sleep: Callable[[float], Awaitable[None]]) -> AsyncIterator[list[Record]]:
    """Records in pieces, at `speed` times the pace at which they became known."""
    piece: list[Record] = []
    begun_us: int | None = None
    begun_s = time.monotonic()
    for record in records:
        if speed > 0.0:
            begun_us = record.stamp_us if begun_us is None else begun_us
            wait_s = (record.stamp_us - begun_us) / SECOND_US / speed - (time.monotonic() - begun_s)
            if wait_s > 0.05:
                if piece:
                    yield piece
                    piece = []
                await sleep(wait_s)
        piece.append(record)
        if len(piece) >= PIECE:
            yield piece
            piece = []
    if piece:
        yield piece


def rows(piece: Sequence[Record], partitions: int, partition_of: Callable[[bytes], int]) -> dict[int, list[Row]]:
    """Records of a log as rows of the partitions of `facts`; controls go into all."""
    out: dict[int, list[Row]] = {p: [] for p in range(partitions)}
    for record in piece:
        if record.patient_id is None:
            for p in range(partitions):
                out[p].append((None, record.value))
        else:
            key = record.patient_id.encode()
            out[partition_of(key)].append((key, settled(record.value)))
    return out


async def replay_in_process(
    log: Log, models: Sequence[Model], book: Codebook, *, speed: float = 0.0, partitions: int = 4, progress: Callable[[int], None]
) -> Topics:
    """Drive a log through the steps in this process; returns the topics with scores and alerts."""
    topics = Topics()
    driver = Driver(models, book, topics, partitions=partitions)
    for partition in range(partitions):
        topics.append("facts", partition, [(None, value) for value in activations(log, models)], 0)
    n = 0
    async for piece in paced(log.records(), speed, asyncio.sleep):
        for partition, some in rows(piece, partitions, driver.partition_of).items():
            topics.append("facts", partition, some, 0)
            while await driver.score(partition):
                pass
        n += len(piece)
        progress(n)
    return topics


async def replay_into_facts(
    log: Log, models: Sequence[Model], settings: Settings, *, speed: float = 0.0, progress: Callable[[int], None]
) -> int:
    """Write a log into `facts` under a prefix of its own; returns how many records.

    Raises:
        InputError: the prefix is in use, or its topics do not exist.
    """
    names = Names(settings.prefix)
    counts = await partition_counts(settings.kafka(), [names.facts])
    if names.facts not in counts:
        remedy = f"premonitor topics --create --prefix {settings.prefix or 'replay.try1.'} --kafka {settings.kafka_bootstrap}"
        raise InputError(f"topic {names.facts} does not exist. A replay needs a prefix of its own: {remedy}")
    if any((await topic_ends(settings.kafka(), names.facts)).values()):
        raise InputError(f"replay refused: prefix '{settings.prefix}' holds facts already. Use another, such as --prefix replay.try1.")
    bus, partition_of, n = Bus(settings), partitioner(counts[names.facts]), 0
    await bus.start()
    try:
        for partition in range(counts[names.facts]):
            for ack in await bus.send(names.facts, partition, [(None, value) for value in activations(log, models)]):
                await ack
        async for piece in paced(log.records(), speed, asyncio.sleep):
            acks: list[Ack] = []
            for partition, some in rows(piece, counts[names.facts], partition_of).items():
                acks += await bus.send(names.facts, partition, some)
            for ack in acks:
                await ack
            n += len(piece)
            progress(n)
    finally:
        await bus.stop()
    return n
