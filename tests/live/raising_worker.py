"""The worker's command with a fault in it: its scoring step raises at one of its calls. RAISE_AT=3 RAISE=error, or RAISE=end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from streams.cli import run
from streams.steps import FactBatch, ScoreStep


class Broken(Exception):
    """What an error in the code of a step would be."""


class End(BaseException):
    """What no `except Exception` catches: the agent itself ends."""


FAULT = {"error": Broken, "end": End}[os.environ["RAISE"]]
inner, calls = ScoreStep.__call__, iter(range(1, 1_000_000))


async def call(step: ScoreStep, batches: Sequence[FactBatch]) -> Any:
    if next(calls) == int(os.environ["RAISE_AT"]):
        raise FAULT
    return await inner(step, batches)


if __name__ == "__main__":
    ScoreStep.__call__ = call  # type: ignore[method-assign]
    run()
