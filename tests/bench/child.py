"""What the measured programs have in common: how they tell the bench that they begin and that they are done."""

from __future__ import annotations

import json
import time

from features.memory import keep_freed
from streams import collector
from streams.settings import Settings


class Teller:
    """Prints the two marks of `tests.bench.measure.of_child`. `begin` may be called at every event: the first call counts."""

    def __init__(self) -> None:
        self._begun = False

    def begin(self) -> None:
        if not self._begun:
            self._begun = True
            _mark(0)

    def end(self, done: int) -> None:
        _mark(done)


def _mark(done: int) -> None:
    print(json.dumps({"done": done, "cpu_s": time.process_time()}), flush=True)


def keep_memory_as_the_worker() -> None:
    """How our worker keeps freed memory and how rarely it collects in a backlog, for the peers too: they keep more objects alive."""
    keep_freed()
    collector.start()
    collector.pace("", Settings().batch_records_max)
