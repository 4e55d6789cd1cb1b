"""Which broker and which Redis the demo runs on: embedded ones, or those that were named, from which it takes its traces away again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_settings import SettingsConfigDict

from features.clock import SystemClock
from features.errors import ServiceError
from streams import demo, store_redis, topics
from streams.settings import Settings, load

PARTITIONS = 4
"""Of all topics: the embedded broker makes them so."""
FAKE = "fake"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for. Kafka or Redis None: embedded; Redis `fake`: the one in Python."""

    seconds: float
    speed: float | None
    kill: bool
    keep: Path | None
    kafka: str | None
    redis: str | None
    log: Path | None = None
    """A site's own history, instead of the samples and invented patients."""
    models: tuple[Path, ...] = ()
    """For that log; without one the demo trains its own."""

    @property
    def real_redis(self) -> str | None:
        return None if self.redis == FAKE else self.redis


class _Apart(Settings):
    """Settings that PREMONITOR_* variables of the environment do not touch: they are meant for other workers."""

    model_config = SettingsConfigDict(env_prefix="PREMONITOR_DEMO_ONLY_")


def foreign_settings(wish: Wish) -> list[str]:
    """Environment variables that the demo's worker must not see: all but those about services that are not the demo's."""
    kept = ("kafka_",) * (wish.kafka is not None) + ("redis_",) * (wish.real_redis is not None)
    return [f"PREMONITOR_{name.upper()}" for name in Settings.model_fields if not name.startswith(kept)]


def services(wish: Wish, scratch: Path, stack: ExitStack, tell: Callable[[str], None]) -> Settings:
    """Start what is embedded, check what is not, and make the topics; `stack` ends it all.

    Raises:
        PremonitorError: a service that was named does not answer, or one of ours does not start.
    """
    named = [service for service, real in (("kafka_", wish.kafka), ("redis_", wish.real_redis)) if real is not None]
    prefix = f"demo.{SystemClock().now_us() // 1_000_000:x}." if named else ""
    asked = load() if named else _Apart()
    fields: dict[str, Any] = {name: getattr(asked, name) for name in Settings.model_fields if name.startswith(tuple(named))}
    fields["kafka_bootstrap"] = wish.kafka or _broker(stack, tell)
    fields["redis_url"] = wish.real_redis or _redis(wish, scratch, stack, tell)
    settings = _Apart(**{**fields, "prefix": prefix})
    if wish.kafka is not None:
        asyncio.run(topics.create(settings.kafka(), prefix, partitions=PARTITIONS))
        tell(f"✓ Kafka at {wish.kafka}: topics {prefix}*")
        if wish.keep is None:
            stack.callback(demo.delete_topics, settings, [prefix + t.name for t in topics.TOPICS])
    if wish.real_redis is not None:
        asyncio.run(_look(settings))
        tell(f"✓ Redis at {wish.real_redis.rpartition('@')[2]}: keys {prefix}*")
        if wish.keep is None:
            stack.callback(lambda: asyncio.run(_forget(settings)))
    return settings


def _broker(stack: ExitStack, tell: Callable[[str], None]) -> str:
    broker = demo.MockBroker()
    stack.callback(broker.close)
    tell(f"✓ a broker in this process (librdkafka's mock) on {broker.address}")
    return broker.address


def _redis(wish: Wish, scratch: Path, stack: ExitStack, tell: Callable[[str], None]) -> str:
    program = demo.redis_program()
    if wish.redis is None and program is not None:
        server = demo.RedisServer(program, scratch / "redis")
        stack.callback(server.close)
        tell(f"✓ {program} on 127.0.0.1:{server.port}, data in {scratch}")
        return server.url
    fake = demo.PythonRedis()
    stack.callback(fake.close)
    why = "asked for" if wish.redis == FAKE else "no redis-server on the PATH"
    tell(f"✓ a Redis in Python (fakeredis) on 127.0.0.1:{fake.port}: {why}")
    return fake.url


async def _look(settings: Settings) -> None:
    connection = store_redis.connect(settings)
    try:
        await store_redis.about(connection, settings)
    finally:
        await connection.aclose()


async def _forget(settings: Settings) -> None:
    """Drop our keys, as far as Redis still answers."""
    connection = store_redis.connect(settings)
    try:
        with suppress(ServiceError):
            async with store_redis.service_errors(settings):
                for kind in "fa":
                    store = store_redis.RedisStore(connection, prefix=settings.prefix, kind=kind)
                    for partition in range(PARTITIONS):
                        await store.forget(partition)
                await connection.delete(f"{settings.prefix}about")
    finally:
        await connection.aclose()
