"""The topics on one screen: names, keys, settings; and the one place that creates them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaClient, AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaConnectionError, KafkaError, TopicAlreadyExistsError

from features.errors import InputError, ServiceError
from features.event import FEEDS

FOREVER = {"retention.ms": "-1", "retention.bytes": "-1"}
PARTITIONS = 64
"""Of `facts`, chosen once: growth is a new generation."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. `partitions` None: as many as `facts` has."""

    name: str
    what: str
    key: str
    partitions: int | None = None
    config: dict[str, str] = field(default_factory=dict)


_FEED_CONFIG = {"message.timestamp.after.max.ms": "60000", **FOREVER}
TOPICS: tuple[Topic, ...] = (
    *(Topic(feed, "a hospital's events", "any", None, _FEED_CONFIG) for feed in FEEDS),
    Topic(
        "controls",
        "ticks and activations, before they are copied into facts",
        "none",
        1,
        {"message.timestamp.type": "LogAppendTime", **FOREVER},
    ),
    Topic("facts", "THE LOG: facts and controls in order", "patient", None, {"message.timestamp.type": "LogAppendTime", **FOREVER}),
    Topic("scores", "score records", "patient", None, FOREVER),
    Topic("alerts", "what happened to each alert", "patient", None, FOREVER),
    Topic("dead-letters", "feed records that could not become facts", "position", None, FOREVER),
)


@dataclass(frozen=True, slots=True)
class Names:
    """Topic names of one generation: `{prefix}{noun}`.

    Example:
        >>> Names("prod.").facts
        'prod.facts'
    """

    prefix: str = ""

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix) or len(self.prefix) > PREFIX_LENGTH_MAX:
            raise InputError(
                f"topic prefix '{self.prefix}': lower-case words joined by hyphens, each ending in a dot, such as prod. or replay.try1."
            )

    @property
    def facts(self) -> str:
        return f"{self.prefix}facts"

    @property
    def scores(self) -> str:
        return f"{self.prefix}scores"

    @property
    def alerts(self) -> str:
        return f"{self.prefix}alerts"

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}dead-letters"

    @property
    def controls(self) -> str:
        return f"{self.prefix}controls"

    @property
    def feeds(self) -> dict[str, str]:
        """Topic → feed."""
        return {f"{self.prefix}{feed}": feed for feed in FEEDS}


VISIBLE_WITHIN_S = 15
PREFIX_LENGTH_MAX = 200
"""Kafka takes 249 characters for a topic."""
_PREFIX = re.compile(r"([a-z0-9]+(-[a-z0-9]+)*\.)*")


async def create(client_settings: dict[str, object], prefix: str, *, partitions: int, replication: int = 1) -> list[str]:
    """Create the topics that are missing; returns their names.

    Raises:
        ServiceError: Kafka is out of reach.
    """
    names = Names(prefix)
    admin = AIOKafkaAdminClient(**client_settings)
    try:
        await admin.start()
        existing = set(await admin.list_topics())
        wanted = [
            NewTopic(names.prefix + t.name, t.partitions or partitions, replication, topic_configs=t.config)
            for t in TOPICS
            if names.prefix + t.name not in existing
        ]
        if wanted:
            answer = await admin.create_topics(wanted)
            _check(answer.topic_errors)
            await _await_topics(admin, {t.name for t in wanted})
        return [t.name for t in wanted]
    except KafkaConnectionError as error:
        raise unreachable(client_settings, error) from None
    finally:
        await admin.close()


async def _await_topics(admin: AIOKafkaAdminClient, wanted: set[str]) -> None:
    """Until the broker tells of the topics: it acknowledges them a moment before it does."""
    try:
        async with asyncio.timeout(VISIBLE_WITHIN_S):
            while not wanted <= set(await admin.list_topics()):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise ServiceError(f"Kafka took the topics, but does not tell of them after {VISIBLE_WITHIN_S} s. Try again") from None


def _check(errors: Sequence[tuple[object, ...]]) -> None:
    for name, code, *words in errors:
        if code not in (0, TopicAlreadyExistsError.errno):
            raise ServiceError(f"Kafka did not create topic {name}: error {code} {words[0] if words else ''}")


async def partition_counts(client_settings: dict[str, object], names: Sequence[str]) -> dict[str, int]:
    """How many partitions each topic has; a topic that does not exist is missing from the answer."""
    client = AIOKafkaClient(**client_settings)
    try:
        await client.bootstrap()
        counts: dict[str, int] = {}
        for name in names:
            found = client.cluster.partitions_for_topic(name)
            if found is None:
                await client.add_topic(name)
                found = client.cluster.partitions_for_topic(name)
            if found:
                counts[name] = len(found)
        return counts
    except KafkaConnectionError as error:
        raise unreachable(client_settings, error) from None
    except KafkaError as error:
        raise ServiceError(f"Kafka answers {type(error).__name__}: {error}") from None
    finally:
        await client.close()


async def described(client_settings: dict[str, object], names: Sequence[str]) -> dict[str, tuple[int, dict[str, str]]]:
    """Partitions and settings of the topics that exist; the settings are empty where they may not be looked at."""
    admin = AIOKafkaAdminClient(**client_settings)
    try:
        await admin.start()
        counts = {t["topic"]: len(t["partitions"]) for t in await admin.describe_topics() if t["topic"] in names}
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in counts]) if counts else []
        found = {name: entries for answer in answers for error, _, _, name, entries in answer.resources if not error}
        return {name: (n, {entry[0]: entry[1] for entry in found.get(name, ())}) for name, n in counts.items()}
    except KafkaError as error:
        raise unreachable(client_settings, error) from None
    finally:
        await admin.close()


async def committed(client_settings: dict[str, object], prefix: str, stage: str) -> dict[Any, int]:
    """Topic partition → place up to which a stage has committed, of all partitions that it reads."""
    names = Names(prefix)
    counts = await partition_counts(client_settings, [names.facts] if stage == "score" else [*names.feeds, names.controls])
    wanted = [TopicPartition(topic, p) for topic, n in counts.items() for p in range(n)]
    admin = AIOKafkaAdminClient(**client_settings)
    try:
        await admin.start()
        for attempt in range(50):  # a broker that has just started has no coordinator yet
            try:
                offsets = await admin.list_consumer_group_offsets(f"{prefix}premonitor-{stage}", partitions=wanted) if wanted else {}
                if len(offsets) == len(wanted):  # while the group is being loaded the answer is empty, and no error
                    return {tp: max(o.offset, 0) for tp, o in offsets.items()}
            except KafkaError as error:
                if not error.retriable or attempt == 49:
                    raise
            await asyncio.sleep(0.2)
        raise ServiceError(f"Kafka at {client_settings.get('bootstrap_servers')} does not tell what stage {stage} has read")
    except KafkaError as error:
        raise unreachable(client_settings, error) from None
    finally:
        await admin.close()


async def topic_ends(client_settings: dict[str, object], topic: str) -> dict[int, int]:
    """Partition → offset of the next record of an existing topic."""
    consumer = AIOKafkaConsumer(**client_settings, enable_auto_commit=False)
    try:
        await consumer.start()
        count = (await partition_counts(client_settings, [topic])).get(topic, 0)
        ends = await consumer.end_offsets([TopicPartition(topic, p) for p in range(count)])
        return {tp.partition: end for tp, end in ends.items()}
    except KafkaConnectionError as error:
        raise unreachable(client_settings, error) from None
    finally:
        await consumer.stop()


def unreachable(client_settings: dict[str, object], error: Exception) -> ServiceError:
    """The sentence for a broker that does not answer."""
    where = client_settings.get("bootstrap_servers")
    return ServiceError(
        f"{where} not reachable ({type(error).__name__}). Is it the broker's advertised listener? premonitor doctor --kafka {where}"
    )
