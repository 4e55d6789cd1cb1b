"""Nobody is offered for a call of whom it is known that it is too late: the dead, and those who came already (S12)."""

from __future__ import annotations

from features.clock import DAY_US, HOUR_US
from tests.streams.test_alert import ED, T_US, Bench, model, opened, use_case


def test_a_visit_told_late_of_a_dead_patient_opens_no_alert() -> None:
    """Open, death, then a visit from before the death: closed, and nothing after it."""
    bench = opened()
    bench.tell("deaths", T_US + 2 * DAY_US, T_US + DAY_US, id="X")
    bench.visit(T_US + 3 * DAY_US, T_US + HOUR_US, "E2")
    assert [a.transition for a in bench.alerts()] == ["opened", "closed"]


def test_a_death_that_is_known_already_opens_no_alert() -> None:
    """Death first, the visit with its abnormal result later."""
    bench = Bench([model(use_case())])
    bench.tell("deaths", T_US - HOUR_US, T_US - 2 * HOUR_US, id="X")
    bench.hb(T_US - HOUR_US, 9.0)
    bench.visit(T_US, T_US, "E1")
    assert bench.alerts() == []


def test_an_outcome_that_is_known_already_opens_no_alert() -> None:
    """A late result flags a visit after which the patient has come to the emergency department already."""
    bench = Bench([model(use_case())])
    bench.visit(T_US, T_US, "E1")
    bench.visit(T_US + DAY_US, T_US + DAY_US, "ED", **ED)
    bench.hb(T_US + 2 * DAY_US, 9.0)
    assert [a for a in bench.alerts() if "E1" in a.support] == []
