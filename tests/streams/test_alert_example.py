"""The worked example of the fourteen rules, told to the real step: its alert column, and row 12, the merge."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from features.clock import MINUTE_US, rfc3339
from models.score import activation
from tests.streams.test_alert import Bench, at, model, use_case


def worked_example(*of_c: tuple[str, str, str]) -> Bench:
    """Rows 1 to 11 with a tick each minute between them; of patient C (known, class, id) of encounters."""
    first, second = model(use_case()), model(use_case(), 2)
    bench = Bench([first, second])
    bench.log.pop()  # the second model is activated later
    rows: list[tuple[str, Callable[..., None], list[Any]]] = [
        ("05-01T08:00:00", bench.hb, [13.0, "L1", 1, at("04-30T08:00:00")]),
        ("05-03T09:00:00", bench.visit, [at("05-03T09:00:00"), "E1"]),
        ("05-03T09:00:02", bench.hb, [9.8, "L2", 1, at("05-03T07:30:00")]),
        ("05-03T09:00:02", bench.hb, [9.8, "L2", 1, at("05-03T07:30:00")]),
        ("05-03T09:00:02", bench.hb, [9.0, "L4", 1, at("05-03T09:00:00")]),
        ("05-03T09:05:00", bench.hb, [12.9, "L2", 2, at("05-03T07:30:00")]),
        ("05-03T09:09:00", bench.hb, [9.5, "L3", 1, at("05-02T08:00:00")]),
        ("05-10T14:00:00", bench.control, ["activate", {**activation(second, number=0), "id": 2}]),
        ("05-12T09:00:00", bench.visit, [at("05-12T09:00:00"), "E2"]),
        ("05-12T11:00:00", bench.visit, [at("05-03T08:00:00"), "E1", 2]),
        ("05-20T10:00:00", bench.hb, [None, "L3", 2, at("05-02T08:00:00")]),
        ("06-03T10:00:00", bench.hb, [8.0, "L5", 1, at("05-02T08:00:00")]),
        ("06-03T11:00:00", bench.control, []),
    ]
    for known, encounter_class, source in of_c:
        about = {"id": source, "encounter_class": encounter_class}
        rows.append((known, partial(bench.tell, "encounters", patient="C", **about), [at(known)]))
    rows.sort(key=lambda row: row[0])
    minute_us = at("05-01T08:00:00")
    for known, tell, content in rows:
        while minute_us + MINUTE_US <= at(known):
            minute_us += MINUTE_US
            bench.control(minute_us)
        tell(at(known), *content)
    return bench


ALERTS = [
    ("05-03T09:00:02", "opened", True, ["E1"], 0.22),
    ("05-03T09:05:00", "withdrawing", False, [], None),
    ("05-03T09:09:00", "reopened", False, ["E1"], 0.22),
    ("05-12T09:00:00", "updated", False, ["E1", "E2"], 0.22),
    ("05-12T11:00:00", "updated", False, ["E1", "E2"], 0.22),
    ("05-20T10:00:00", "updated", False, ["E2"], 0.22),
]
"""The alert column: known time, transition, whether it notifies, support and the greatest risk."""


@pytest.mark.parametrize("size", [2_000, 50_000])
def test_the_worked_example(size: int) -> None:
    """Its alert column, row by row, each record caused by the score record of its row, whatever the batches."""
    bench = worked_example()
    found = bench.alerts(range(0, len(bench.log), size))
    assert len(bench.log) > 40_000
    assert [(a.known_time, a.transition, a.notify, a.support) for a in found] == [(rfc3339(at(k)), *rest[:3]) for k, *rest in ALERTS]
    assert [a.risk for a in found] == [risk if risk is None else pytest.approx(risk, abs=1e-12) for *_, risk in ALERTS]
    assert [a.sequence for a in found] == list(range(6))
    assert len({a.alert_id for a in found}) == 1
    assert all(a.score_id and a.use_case == "ed" and a.patient_id == "P" and not a.reason for a in found)
