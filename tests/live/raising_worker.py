"""The worker's command with a fault in it, raised at one call: RAISE_AT=3 and RAISE=

error     an error in the scoring step, which its agent catches
end       what no `except Exception` catches in the scoring step: the agent ends
outside   an error where no agent catches one: the agent ends
stuck     as outside, and then the agents never stop
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

from faust.agents.manager import AgentManager

from streams import agents
from streams.batches import Batch, fresh
from streams.cli import run
from streams.steps import FactBatch, ScoreStep


class Broken(Exception):
    """What an error in our code would be."""


class End(BaseException):
    """What ends a task."""


WHAT, AT = os.environ.get("RAISE", ""), int(os.environ.get("RAISE_AT", "0"))
calls, inner = itertools.count(1), ScoreStep.__call__


async def step(self: ScoreStep, batches: Sequence[FactBatch]) -> Any:
    if next(calls) == AT:
        raise End if WHAT == "end" else Broken
    return await inner(self, batches)


def outside(poll: Iterable[Batch]) -> list[Batch]:
    if next(calls) == AT:
        raise Broken
    return fresh(poll)


async def for_ever(self: AgentManager) -> None:
    await asyncio.Event().wait()


if __name__ == "__main__":
    if WHAT == "stuck":
        AgentManager.on_stop = for_ever  # type: ignore[method-assign]
    if WHAT in ("outside", "stuck"):
        agents.fresh = outside  # type: ignore[attr-defined]
    else:
        ScoreStep.__call__ = step  # type: ignore[method-assign]
    run()
