"""A worker process as a test sees it: its port, its log, its end; killed, frozen and thawed at will."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

T = TypeVar("T")
PATIENCE_S = 90.0


def until(answer: Callable[[], T], what: str, *, patience_s: float = PATIENCE_S, every_s: float = 0.05) -> T:
    """The first true answer; asked again and again, but not for ever."""
    never, deadline_s = threading.Event(), time.monotonic() + patience_s
    while not (found := answer()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{what}: not after {patience_s:.0f} s")
        never.wait(every_s)
    return found


def pass_time(span_s: float) -> None:
    """Let so much time go by: for the length of a fault, never for something to happen."""
    threading.Event().wait(span_s)


@dataclass
class Worker:
    """One run of a worker's command. Its log is shared with the runs of that name before it."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    log_from: int
    """Where in the log this run begins."""

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        """What this run wrote to its log."""
        return self.log.read_bytes()[self.log_from :].decode(errors="replace")

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of its health port; status 0 where nobody answers."""
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()
        except (URLError, OSError):
            return 0, ""

    def metric(self, name: str) -> float:
        """A metric by its name with labels, as /metrics spells it; 0.0 where it is not told yet."""
        lines = (line.rpartition(" ") for line in self.get("/metrics")[1].splitlines())
        return float(next((value for found, _, value in lines if found == name), 0.0))

    def counted(self, intake: str, what: str) -> float:
        """A counter of one of its intakes."""
        return self.metric(f'premonitor_intake{{intake="{intake}",what="{what}"}}')

    def wait_reading(self) -> Worker:
        """Until it has its partitions and nothing is failing."""
        until(lambda: not self.running or self.get("/readyz")[0] == 200, f"{self.name} is ready")
        assert self.running, f"{self.name} ended with {self.process.returncode}:\n{self.said()[-4000:]}"
        return self

    def exit_code(self, patience_s: float = PATIENCE_S) -> int:
        """Wait for its end."""
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {patience_s:.0f} s:\n{self.said()[-4000:]}") from None

    def stop(self) -> int:
        """Ask it to end, as an orchestrator does."""
        self.process.send_signal(signal.SIGTERM)
        return self.exit_code(40)

    def kill(self) -> None:
        """End it here and now."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)
