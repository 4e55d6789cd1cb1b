"""A real Kafka and a real Redis for tests: started on free ports of 127.0.0.1, killed, frozen and brought back at will.

Every call blocks until the service is ready or gone. In a coroutine whose loop must go on: `await asyncio.to_thread(kafka.restart)`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

ROOT = Path(__file__).resolve().parents[2]
POM = Path(__file__).with_name("pom.xml")
KAFKA_VERSION = "4.1.1"
JARS = ROOT / ".cache" / f"kafka-{KAFKA_VERSION}"
PORTS = range(20_000, 32_000)
"""Below the range from which the system gives ports to outgoing connections: a port stays ours between a kill and the restart."""
_first = os.getpid() * 37 % len(PORTS)  # runs at the same time begin their search at different places
_candidates = itertools.cycle([*PORTS[_first:], *PORTS[:_first]])


class MissingTool(Exception):
    """A program that the live tests need is not there; the text says in one sentence how to get it."""


class ServiceFailed(Exception):
    """A service ended or did not become ready in time; the text carries the end of its log."""


class Service:
    """One child process with a folder, an address and a log.

    Args:
        folder: Where data and log live. Made if missing, kept on stop: a restart finds the data.
    """

    ready_s = 60.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / f"{type(self).__name__.lower()}.log"
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> str:
        """`host:port` for clients; the same before and after a restart."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start and wait until a client is answered."""
        if self._process is not None:
            raise ServiceFailed(f"{self.address} is running already")
        with self._log.open("ab") as log:
            # Its own session: Ctrl-C reaches pytest alone, which then stops its services in order.
            self._process = subprocess.Popen(self._command(), cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        self._await_ready(self._process)

    def stop(self) -> None:
        """Ask it to end (SIGTERM) and wait; kill it when it does not."""
        if self._process is None:
            return
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash or a power cut of the process would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop if running, then start on the same port and data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open, nothing answers. Returns when the last of its threads stands still."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Let a frozen service go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        """Whether a client is answered now. Called until it is true."""
        raise NotImplementedError

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for whichever comes first: the answer, the end of the process, the deadline."""
        deadline_s = time.monotonic() + self.ready_s
        while time.monotonic() < deadline_s:
            try:
                code = process.wait(timeout=0.02)
            except subprocess.TimeoutExpired:
                if self._answers():
                    return
            else:
                self._process = None
                raise ServiceFailed(f"{type(self).__name__} ended with code {code}:\n{self._log_end()}")
        self.kill()
        raise ServiceFailed(f"{type(self).__name__} at {self.address} was not ready after {self.ready_s:.0f} s:\n{self._log_end()}")

    def _log_end(self, lines: int = 20) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


class Kafka(Service):
    """One Kafka node, broker and controller at once (KRaft). Topics are never made by being asked for.

    Args:
        folder: Where data and log live.
        settings: Further broker settings, by their Kafka names; they win over ours.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(folder)
        self._controller_port = free_port()
        self._settings = dict(settings or {})
        self._config = folder / "server.properties"

    def start(self) -> None:
        if not self._config.exists():
            self._format()
        super().start()

    def _format(self) -> None:
        """Write the configuration and prepare the empty data folder, once."""
        (self.folder / "log4j2.properties").write_text(LOGGING)
        self._config.write_text("".join(f"{name}={value}\n" for name, value in self._properties().items()))
        arguments = ["format", "--config", str(self._config), "--cluster-id", "premonitor-live-tests0"]
        done = subprocess.run(self._java("kafka.tools.StorageTool", *arguments), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self._config.unlink()
            raise ServiceFailed(f"Kafka's data folder could not be prepared:\n{done.stdout}{done.stderr}")

    def _properties(self) -> dict[str, str]:
        controller = f"127.0.0.1:{self._controller_port}"
        ours = {
            "node.id": "1",
            "process.roles": "broker,controller",
            "controller.quorum.voters": f"1@{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            # One node: no copies to wait for, and a small offsets topic is made fast.
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            # The killed broker's registration must lapse before the restarted one is let in: 9 s by default.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
        }
        return ours | self._settings

    def _command(self) -> list[str]:
        return self._java("kafka.Kafka", str(self._config))

    def _java(self, main: str, *arguments: str) -> list[str]:
        options = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        logging = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        return [find_tool("java"), *options, logging, "-cp", f"{kafka_jars()}/*", main, *arguments]

    def _answers(self) -> bool:
        if not _connects(self.port):
            return False
        client = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        try:
            return bool(client.list_topics(timeout=2).brokers)
        except KafkaException:
            return False


class Redis(Service):
    """One Redis or Valkey, durable as in production: append-only file, flushed each second, nothing evicted."""

    def _command(self) -> list[str]:
        data = self._data()
        data.mkdir(exist_ok=True)
        # No snapshots and no rewrite of the file: what was acknowledged is in it, so a copy of the folder is a state that was.
        return [
            find_tool("redis-server", "valkey-server"), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(data),
            "--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0",
            "--maxmemory-policy", "noeviction", "--save", "",
        ]  # fmt: skip

    @property
    def url(self) -> str:
        """The address as clients of Redis spell it."""
        return f"redis://{self.address}/0"

    def copy_data(self) -> Path:
        """Copy the data folder as it is now, for `restart_from`."""
        target = Path(tempfile.mkdtemp(prefix="copy-", dir=self.folder))
        return Path(shutil.copytree(self._data(), target, dirs_exist_ok=True))

    def restart_from(self, copy: Path) -> None:
        """Kill it and start it from an older copy: the tail of acknowledged writes is gone, as after a failover."""
        self.kill()
        shutil.rmtree(self._data())
        shutil.copytree(copy, self._data())
        self.start()

    def _data(self) -> Path:
        return self.folder / "data"

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")  # while it loads its file it says -LOADING
        return False


LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""

HOW_TO_GET = {
    "java": "Live tests need Java 17 and Maven: install them (Debian: apt-get install default-jre-headless maven).",
    "mvn": "Live tests need Java 17 and Maven: install them (Debian: apt-get install default-jre-headless maven).",
    "redis-server": "Live tests need redis-server or valkey-server: install one (Debian: apt-get install redis-server).",
}


def find_tool(*names: str) -> str:
    """The path of the first of these programs that is installed."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise MissingTool(HOW_TO_GET[names[0]])


def kafka_jars() -> Path:
    """The folder of the broker's jars; the first call fetches them with Maven (some 45 MB)."""
    if not JARS.exists():
        JARS.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="kafka-", dir=JARS.parent) as folder:
            fetched = Path(folder) / "jars"
            command = [find_tool("mvn"), "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={fetched}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                said = re.search(r"\[ERROR\] (.*)", done.stdout + done.stderr)
                raise MissingTool(f"Maven could not fetch Kafka {KAFKA_VERSION}; run the tests once with a network: {said and said[1]}")
            with contextlib.suppress(OSError):  # another run was faster: its folder is as good
                fetched.rename(JARS)
    return JARS


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on and that was not given before by this process."""
    for port in itertools.islice(_candidates, len(PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise ServiceFailed(f"no free port between {PORTS.start} and {PORTS.stop} on 127.0.0.1")


def _connects(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
