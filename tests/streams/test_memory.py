"""What a batch leaves behind is freed at once: the worker's collector runs rarely, and a cycle would keep arrays until its next round."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from types import FunctionType

import msgspec
import pytest

from features import usecase
from features.clock import TIME_MIN_US
from features.codes import codebook
from models.artifact import Model
from models.score import activation
from streams.admit import CONTROLS, Command
from streams.driver import Driver, Topics
from tests import logs
from tests.stand_in import stand_in

OURS = ("features.", "models.", "streams.")


@pytest.fixture
def garbage() -> Iterator[list[object]]:
    """What the collector finds, which does not run by itself meanwhile."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def of_ours(found: list[object]) -> Counter[str]:
    """Objects of our classes and closures of our functions."""
    named = (item if isinstance(item, FunctionType) else type(item) for item in found)
    return Counter(item.__qualname__ for item in named if item.__module__.startswith(OURS))


def fed(model: Model) -> Topics:
    """Feeds with all that can happen in a clinic, a merge and bad records included."""
    topics = Topics()
    start = Command("activate", TIME_MIN_US, activation(model, number=0))
    topics.append(CONTROLS, 0, [(None, msgspec.json.encode(start))], 0)
    for n, (feed, event) in enumerate(logs.events("clinic")):
        topics.append(feed, n % 4, [(None, msgspec.json.encode(event if n % 50 else {**event, "version": 0}))], 0)
    return topics


@pytest.mark.parametrize("name", ["ed_60d_oncology", "ed_60d_any", "readmission_30d"])
def test_the_steps_leave_no_cycles(name: str, garbage: list[object]) -> None:
    """From a feed record to scores and alerts: reference counts free everything."""
    model = stand_in(usecase.load(name, codebook()))
    driver = Driver([model], codebook(), fed(model))
    asyncio.run(driver.drain(batch=500))
    assert driver.issued() and driver.topics.values("alerts") and driver.topics.values("dead-letters")
    gc.collect()
    assert not of_ours(garbage)
