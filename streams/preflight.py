"""What must hold before a worker starts: topics, partition counts, Redis' policy, an active model. Each fault is one sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from features.clock import HOUR_US, TIME_MIN_US
from features.codes import Codebook
from features.errors import InputError
from features.pack import index_times
from models.artifact import Model
from streams import store_redis
from streams.activation import activate
from streams.admit import CONTROLS
from streams.bus import Bus
from streams.settings import Settings
from streams.topics import Names, partition_counts


@dataclass(frozen=True, slots=True)
class Ground:
    """What a worker stands on."""

    partitions: int
    """Of `facts`."""
    feeds: dict[str, str]
    """Topic → feed, of the topics that exist; the controls among them."""


async def prepare(settings: Settings, models: Sequence[Model], book: Codebook, say: Callable[[str], None]) -> Ground:
    """Check everything a worker needs, and make its models active.

    Raises:
        InputError: something is set up wrongly.
        ServiceError: Kafka or Redis is out of reach.
    """
    names = Names(settings.prefix)
    counts = await partition_counts(settings.kafka(), [names.facts, names.controls, *names.feeds])
    for topic in (names.facts, names.controls):
        if topic not in counts:
            remedy = f"premonitor topics --create --kafka {settings.kafka_bootstrap}"
            raise InputError(f"topic {topic} does not exist. Create the topics: {remedy}")
    partitions = counts[names.facts]
    if "score" in settings.stages:
        client = store_redis.connect(settings)
        try:
            await store_redis.check(client, settings, partitions=partitions, codes=book.content_hash, index_times=_words(models))
        finally:
            await client.aclose()
    if "admit" in settings.stages:
        bus = Bus(settings)
        await bus.start()
        try:
            stamp_us = TIME_MIN_US if settings.known_time == "given" else None
            for words in await activate(settings, bus, models, stamp_us=stamp_us):
                say(f"activated: {words}")
        finally:
            await bus.stop()
    feeds = {topic: feed for topic, feed in names.feeds.items() if topic in counts}
    if len({counts[topic] for topic in feeds}) > 1:
        say("feeds have different partition counts: run one worker with stage admit only, so that they stay in order of time")
    return Ground(partitions, {**feeds, names.controls: CONTROLS})


def _words(models: Sequence[Model]) -> str:
    """The index times of the models, for people and to compare."""
    return ", ".join(f"{at}+{offset_us // HOUR_US}h" for at, offset_us in index_times(m.use_case for m in models))
