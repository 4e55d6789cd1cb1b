"""What the demo stands on where there is no Kafka and no Redis: a broker inside this process and a Redis beside it or in Python.

The broker is librdkafka's mock cluster, and its limits are the demo's: topics appear by being asked for and have 4 partitions, of which
it keeps some 5 MiB each; one consumer a group; one record batch a fetch; no append time. Everything listens on 127.0.0.1.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from typing import Any, Protocol

import confluent_kafka
import msgspec
from confluent_kafka.admin import AdminClient

from features.errors import ServiceError
from streams.settings import Settings

LINGER_MS = 200
"""The mock gives one record batch a fetch: what is fed together must be one batch."""
SESSION_S, SESSION_LEAST_S = 4, 6
"""Of the worker's consumers: a killed worker's place is free again after it. Kafka allows no less than the second."""
READY_S = 20.0
QUIET = {"log_level": 0}


class Closing(Protocol):
    """Something that was started."""

    def close(self) -> None:
        """End it and wait until it is gone."""


# --- broker -------------------------------------------------------------------------------------------------------------------------


class MockBroker:
    """librdkafka's mock cluster: lives as long as this object."""

    def __init__(self) -> None:
        self._owner: Any = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored", **QUIET})
        broker = next(iter(self._owner.list_topics(timeout=10).brokers.values()))
        self.address = f"{broker.host}:{broker.port}"

    def close(self) -> None:
        self._owner = None


def client(settings: Settings) -> dict[str, Any]:
    """Configuration of a librdkafka client from our settings."""
    ours = settings.kafka()
    options: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_bootstrap,
        "security.protocol": "SSL" if settings.kafka_tls else "PLAINTEXT",
    }
    if settings.kafka_ca_file:
        options["ssl.ca.location"] = str(settings.kafka_ca_file)
    if settings.kafka_user:
        options["security.protocol"] = ours["security_protocol"]
        options |= {
            "sasl.mechanism": ours["sasl_mechanism"],
            "sasl.username": settings.kafka_user,
            "sasl.password": ours["sasl_plain_password"],
        }
    return {**options, **QUIET}


class Feeder:
    """Writes to the feeds. What is sent together arrives together, each partition's share as one batch."""

    def __init__(self, settings: Settings) -> None:
        self._prefix, self._failed = settings.prefix, 0
        options = {"linger.ms": LINGER_MS, "enable.idempotence": True, "batch.size": 4_000_000}
        self._producer = confluent_kafka.Producer({**client(settings), **options})

    def _told(self, error: object, _: object) -> None:
        self._failed += error is not None

    def send(self, events: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Put (feed, event) on the feeds, keyed by patient; without a patient on partition 0.

        Raises:
            ServiceError: the broker did not take them.
        """
        for feed, event in events:
            patient = event.get("patient_id")
            where = {"key": patient.encode()} if patient else {"partition": 0}
            self._producer.produce(self._prefix + feed, msgspec.json.encode(event), on_delivery=self._told, **where)
        if self._producer.flush(10) or self._failed:
            raise ServiceError("the broker did not take what was fed")

    def close(self) -> None:
        self._producer.flush(1)


class Tail:
    """Reads topics as they grow, without a group."""

    def __init__(self, settings: Settings, partitions: Mapping[str, int]) -> None:
        self._consumer = confluent_kafka.Consumer(
            {**client(settings), "group.id": "unused", "enable.auto.commit": False, "fetch.wait.max.ms": 20, "fetch.error.backoff.ms": 50}
        )
        start = confluent_kafka.OFFSET_BEGINNING
        self._consumer.assign([confluent_kafka.TopicPartition(t, p, start) for t, n in partitions.items() for p in range(n)])

    def read(self, wait_s: float) -> list[tuple[str, bytes | None, bytes]]:
        """(topic, key, value) of what came within `wait_s`."""
        came: list[Any] = self._consumer.consume(2_000, wait_s)
        return [(r.topic(), r.key(), r.value()) for r in came if r.error() is None]

    def close(self) -> None:
        self._consumer.close()


def delete_topics(settings: Settings, topics: Sequence[str]) -> None:
    """Take our topics off a real broker again, as far as it lets us."""
    admin = AdminClient(client(settings))
    with suppress(confluent_kafka.KafkaException):
        for done in admin.delete_topics(list(topics), operation_timeout=10).values():
            done.result(15)


# --- Redis --------------------------------------------------------------------------------------------------------------------------


class RedisServer:
    """A redis-server or valkey-server of the PATH, on a free port, its folder ours."""

    def __init__(self, program: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._log = (folder / "redis.log").open("ab")
        for _ in range(3):  # another process may take the port first
            self.port = free_port()
            command = [program, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder), "--save", "", "--appendonly", "no"]
            self._process = Child([*command, "--maxmemory-policy", "noeviction"], self._log)
            if self._answers():
                break
        else:
            raise ServiceError(f"{program} does not start: see {folder / 'redis.log'}")
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def _answers(self) -> bool:
        end_s = time.monotonic() + READY_S
        while time.monotonic() < end_s and self._process.running:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            time.sleep(0.05)
        return False

    def close(self) -> None:
        self._process.close()
        self._log.close()


class PythonRedis:
    """fakeredis on a port: a Redis in this process, for a machine that has none."""

    def __init__(self) -> None:
        from fakeredis import TcpFakeServer
        from fakeredis._commands import command
        from fakeredis._socket import FakeSocket

        @command(name="INFO", fixed=(), repeat=(bytes,))  # type: ignore[untyped-decorator,unused-ignore]
        def info(self: object, *sections: bytes) -> bytes:
            return b"# Memory\r\nmaxmemory_policy:noeviction\r\n"

        socket_class: Any = FakeSocket
        socket_class.info = info  # it has no such command, and the worker asks whether anything may be evicted
        self._server = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._thread = threading.Thread(target=self._server.serve_forever, name="redis", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def redis_program() -> str | None:
    """The path of a Redis on this machine."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- processes ----------------------------------------------------------------------------------------------------------------------

_children: list[Child] = []


def end_children() -> None:
    """End what an interrupt left running, the last that was started first."""
    while _children:
        _children.pop().close()


class Child:
    """A process of ours in a session of its own: Ctrl-C reaches the demo alone, which then ends its children in order."""

    def __init__(self, command: Sequence[str], log: BufferedWriter) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        _children.append(self)
        self._log = Path(log.name)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def code(self) -> int | None:
        """Exit code, once it ended."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: as a power cut would."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit code; after some seconds SIGKILL."""
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(25)
        self.kill()
        return -signal.SIGKILL

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def close(self) -> None:
        if self.running:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(3)
                return
            self.kill()


def worker(
    settings: Settings, models: Sequence[Path], log: BufferedWriter, *, scratch: Path, session_s: int, forget: Sequence[str]
) -> Child:
    """`premonitor worker` as a process of its own.

    Args:
        settings: Where Kafka and Redis are, and the prefix.
        models: Their files; the first of a use case is champion.
        log: Where its words go.
        scratch: For its temporary files: what a killed worker leaves behind is removed with it.
        session_s: After which its place is free when it is killed.
        forget: Environment variables that are not passed on.
    """
    unset = [word for name in forget for word in ("-u", name)]
    environment = ["env", *unset, f"TMPDIR={scratch}", f"PREMONITOR_SESSION_TIMEOUT_S={session_s}", "PREMONITOR_SITE=none"]
    command = [sys.executable, "-P", "-c", "from streams.cli import run; run()", "worker", "--known-time", "given"]
    command += [word for model in models for word in ("--model", str(model))]
    flags = ["--kafka", settings.kafka_bootstrap, "--redis", settings.redis_url, "--prefix", settings.prefix, "--name", "demo"]
    return Child([*environment, *command, *flags], log)
