"""The services that the live tests stand on: they answer, survive a kill, freeze and thaw, and go back to an older copy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis import Redis as Client
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as RedisTimeout
from redis.retry import Retry

from tests.live import conftest, services
from tests.live.services import Kafka, MissingTool, Redis, Service, ServiceFailed


async def make_topic(kafka: Kafka, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def produce(kafka: Kafka, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka.address, acks="all") as producer:
        await producer.send_and_wait(topic, value)


async def values(kafka: Kafka, topic: str, count: int) -> list[bytes]:
    """The first `count` values of the topic's only partition."""
    async with AIOKafkaConsumer(bootstrap_servers=kafka.address, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        return [(await asyncio.wait_for(consumer.getone(), timeout=20)).value for _ in range(count)]


def client(redis_server: Redis) -> Client:
    return Client.from_url(redis_server.url, socket_timeout=0.5, retry=Retry(NoBackoff(), 0), decode_responses=True)


def test_what_is_acknowledged_by_kafka_survives_a_kill(kafka: Kafka) -> None:
    """Same address, same data, after SIGKILL and after an orderly restart."""

    async def scenario() -> list[bytes]:
        await make_topic(kafka, "services.kill")
        await produce(kafka, "services.kill", b"before")
        await asyncio.to_thread(kafka.kill)
        await asyncio.to_thread(kafka.start)
        await produce(kafka, "services.kill", b"after kill")
        await asyncio.to_thread(kafka.restart)
        return await values(kafka, "services.kill", count=2)

    assert asyncio.run(scenario()) == [b"before", b"after kill"]


def test_a_frozen_kafka_answers_after_the_thaw(kafka: Kafka) -> None:
    """A request sent into the freeze waits; nothing is lost."""

    async def scenario() -> list[bytes]:
        await make_topic(kafka, "services.pause")
        async with AIOKafkaProducer(bootstrap_servers=kafka.address, acks="all") as producer:
            await producer.send_and_wait("services.pause", b"warm")
            kafka.pause()
            sent = asyncio.ensure_future(producer.send_and_wait("services.pause", b"cold"))
            finished, _ = await asyncio.wait([sent], timeout=0.5)
            assert not finished
            kafka.resume()
            await asyncio.wait_for(sent, timeout=20)
        return await values(kafka, "services.pause", count=2)

    assert asyncio.run(scenario()) == [b"warm", b"cold"]


def test_what_is_acknowledged_by_redis_survives_a_kill(redis_server: Redis) -> None:
    """The append-only file holds every acknowledged write when only the process dies."""
    client(redis_server).set("services:kill", "kept")
    redis_server.kill()
    redis_server.start()
    assert client(redis_server).get("services:kill") == "kept"


def test_a_frozen_redis_answers_after_the_thaw(redis_server: Redis) -> None:
    redis_server.pause()
    with pytest.raises(RedisTimeout):
        client(redis_server).ping()
    redis_server.resume()
    assert client(redis_server).ping()


def test_an_older_copy_forgets_what_came_after_it(redis_server: Redis) -> None:
    """What a failover that lost the tail looks like to a client."""
    client(redis_server).set("services:copy", "old")
    copy = redis_server.copy_data()
    client(redis_server).set("services:copy", "new")
    redis_server.restart_from(copy)
    assert client(redis_server).get("services:copy") == "old"


def test_redis_is_set_as_in_production(redis_server: Redis) -> None:
    expected = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
    assert expected == client(redis_server).config_get(*expected)


class Ending(Service):
    """A service that says something and ends."""

    def _command(self) -> list[str]:
        return ["sh", "-c", "echo the disk is full; exit 3"]

    def _answers(self) -> bool:
        return False


class Silent(Ending):
    """A service that runs and never answers."""

    ready_s = 0.2

    def _command(self) -> list[str]:
        return ["sleep", "60"]


def test_a_service_that_ends_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match=r"Ending ended with code 3:\nthe disk is full"):
        Ending(tmp_path).start()


def test_a_service_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match=r"Silent at 127\.0\.0\.1:\d+ was not ready after 0 s"):
        Silent(tmp_path).start()


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_program_skips_here_and_fails_on_ci(
    ci: str, outcome: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skipping on CI would hide that nothing was tried."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(outcome, match="apt-get install redis-server"):
        next(conftest._running(Redis(tmp_path)))


def test_a_missing_program_is_told_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(services, "JARS", tmp_path / "jars")
    with pytest.raises(MissingTool, match="Java 17 and Maven"):
        services.kafka_jars()
    with pytest.raises(MissingTool, match="Java 17 and Maven"):
        Kafka(tmp_path).start()
