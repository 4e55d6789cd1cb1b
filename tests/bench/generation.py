"""A new generation for each run: topics and keys under a prefix of its own, and the shipped worker started on them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from features.codes import codebook
from features.log import Log
from models.artifact import Model
from streams import topics
from streams.archive import archive
from streams.issued import issued
from streams.settings import Settings
from streams.topics import Names
from streams.verify import conservation, verify


@dataclass
class Generation:
    """Everything under one prefix."""

    settings: Settings
    folder: Path
    model_file: Path
    partitions: int
    worker: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        asyncio.run(topics.create(self.settings.kafka(), self.prefix, partitions=self.partitions))

    @property
    def prefix(self) -> str:
        """Before the name of each topic and key."""
        return self.settings.prefix

    @property
    def names(self) -> Names:
        """Its topics."""
        return Names(self.prefix)

    @property
    def all_topics(self) -> list[str]:
        """Names of all its topics."""
        return [self.prefix + topic.name for topic in topics.TOPICS]

    def start(self, *flags: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start the worker by the installed command; `settings` go into its environment."""
        told = self.settings
        command = [
            str(Path(sys.executable).with_name("premonitor")), "worker", "--model", str(self.model_file), "--kafka", told.kafka_bootstrap,
            "--redis", told.redis_url, "--prefix", self.prefix, "--known-time", told.known_time, *flags,
        ]  # fmt: skip
        environment = {f"PREMONITOR_{name.upper()}": value for name, value in settings.items()}
        with (self.folder / "worker.log").open("ab") as log:
            self.worker = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
        return self.worker

    def stop(self) -> None:
        """Ask the worker to end and wait for it.

        Raises:
            RuntimeError: it ended badly.
        """
        if self.worker is not None:
            worker, self.worker = self.worker, None
            worker.send_signal(signal.SIGTERM)
            if code := worker.wait(60):
                raise RuntimeError(f"the worker ended with code {code}\n{self.log_text()}")

    def log_text(self) -> str:
        """The end of what the worker said."""
        path = self.folder / "worker.log"
        return path.read_text(errors="replace")[-4_000:] if path.exists() else ""

    def archived(self) -> Log:
        """The log of `facts` as it is now."""
        out = self.folder / "log"
        asyncio.run(archive(self.settings, out, codebook(), lambda n: None))
        return Log(out, codebook())

    def proof(self, model: Model, issued: list[tuple[str, bytes]], *, fed: bool) -> tuple[int, str]:
        """`premonitor verify` on the archive and, where feeds were read, its conservation lines: (how much is wrong, in words)."""
        log = self.archived()
        found = verify(log, [model], issued)
        broken = sum(not line.holds for line in conservation(log)) if fed else 0
        words = f"verify: {found.sentence()}" + (f"; conservation broken in {broken} feeds" if broken else "")
        return found.missing + found.extra + found.different + broken, words

    def issued(self) -> list[tuple[str, bytes]]:
        """(score id, bytes) of all score records on the topic, each different one once."""
        return asyncio.run(issued(self.settings))
