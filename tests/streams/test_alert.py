"""Alerts: the fold of score records, ticks, deaths and outcomes (S12), driven through the real step with stores in memory."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import codes, decode, fact, usecase
from features.clock import DAY_US, MINUTE_US, SECOND_US, rfc3339, to_us
from features.usecase import UseCase
from models import score
from models.artifact import Artifact, Column, Model, version_of
from models.score import Score, activation
from streams.alert import Alert
from streams.alert_desk import AlertDesk
from streams.driver import Batch, Record
from streams.steps import Outputs, ScoreStep
from streams.store import MemoryStore

CHECKED = settings(max_examples=100, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
BOOK = codes.codebook()
T_US = to_us(datetime.fromisoformat("2026-05-03T09:00:00+00:00"))
ED = {"encounter_class": "emergency"}
HOUR_US, DRAWN_US = 60 * MINUTE_US, T_US - DAY_US


def us(text: str) -> int:
    return to_us(datetime.fromisoformat(text))


def at(text: str) -> int:
    return us(f"2026-{text}Z")


def logit(risk: float) -> float:
    return math.log(risk / (1 - risk))


@cache
def use_case(name: str = "ed", *, header: str = "", outcome: str = "", concept: str = "visit.emergency") -> UseCase:
    text = f"""
        name = "{name}"
        {header}
        features = [
          {{name = "hemoglobin", concepts = ["hemoglobin"], aggregates = ["any_abnormal"], days = [30]}},
          {{name = "ed_visits", concepts = ["visit.emergency"], aggregates = ["count"], days = [30]}},
        ]
        index = {{classes = ["ambulatory"]}}
        outcome = {{concepts = ["{concept}"], horizon_days = 60 {outcome}}}
    """
    return usecase.parse(text, source="test.toml", book=BOOK)


def model(case: UseCase, number: int = 1) -> Model:
    """Risks .10, .22 with an abnormal result, .27 with an emergency visit too; threshold .20. `number` tells copies apart."""
    weights = (logit(0.22) - logit(0.10), logit(0.27) - logit(0.22))
    columns = [Column(name, weight, 0.0, 0.0, 0.0, 1.0, 0.0) for name, weight in zip(case.feature_names, weights, strict=True)]
    about = case.definition.model_dump(mode="json"), case.content_hash
    made = Artifact(1, "", "by hand", *about, 0.20, "", logit(0.10), columns, {"number": number})
    return Model(msgspec.structs.replace(made, version=version_of(made)), case)


@dataclass
class Bench:
    """One partition of `facts` and a worker over it."""

    models: Sequence[Model] = field(default_factory=lambda: [model(use_case())])
    log: list[Record] = field(default_factory=list)
    stores: tuple[MemoryStore, MemoryStore] = field(default_factory=lambda: (MemoryStore(), MemoryStore()))

    def __post_init__(self) -> None:
        self.restart()
        if not self.log:
            for n, m in enumerate(self.models):
                self.control(T_US - 3 * DAY_US, "activate", {**activation(m, number=0), "id": n + 1})

    def restart(self) -> None:
        desk = AlertDesk(self.stores[1], [m.use_case for m in self.models])
        self.step = ScoreStep(self.stores[0], self.models, rebuild=None, alerts=desk)  # type: ignore[arg-type]

    def control(self, stamp_us: int, name: str = "tick", payload: dict[str, Any] | None = None) -> None:
        value = fact.control(name=name, number=len(self.log) + 1, stamp_us=stamp_us, payload=payload or {})
        self.log.append(Record("facts", 0, len(self.log), 0, None, value))

    def tell(self, feed: str, known_us: int, event_us: int, patient: str = "P", **fields: Any) -> None:
        """A fact, known at the append time of its record."""
        event = {"patient_id": patient, "event_time": rfc3339(event_us), **fields}
        _, value = fact.convert(decode.decode(feed, msgspec.json.encode(event)), feed=feed, told=1, stamp="append", book=BOOK)
        self.log.append(Record("facts", 0, len(self.log), known_us // 1000, patient.encode(), value))

    def visit(self, known_us: int, event_us: int, source: str = "E1", version: int = 1, **fields: Any) -> None:
        self.tell("encounters", known_us, event_us, id=source, version=version, **{"encounter_class": "ambulatory", **fields})

    def hb(self, us: int, value: float | None, source: str = "L", version: int = 1, drawn_us: int = DRAWN_US, patient: str = "P") -> None:
        about = {"value": value, "unit": "g/dL"} if value is not None else {"status": "entered-in-error"}
        self.tell("labs", us, drawn_us, patient, id=source, version=version, code="718-7", **about)

    def run(self, begin: int, end: int, *, commit: bool = True) -> Outputs:
        """One batch."""
        (outputs,) = asyncio.run(self.step([Batch(0, begin, end, self.log[begin:end])]))
        assert isinstance(outputs, Outputs), repr(outputs)
        if commit:
            self.step.committed(0, end)
        return outputs

    def alerts(self, cuts: Iterable[int] = ()) -> list[Alert]:
        """All alert records of the log, told to a new worker in batches."""
        fresh, begin, made = Bench(self.models, self.log), 0, []
        for cut in [*sorted(cuts), len(self.log)]:
            made += [msgspec.json.decode(value, type=Alert) for _, value in fresh.run(begin, cut).alerts]
            begin = cut
        return made

    def brief(self) -> list[tuple[str, bool]]:
        return [(a.transition, a.notify) for a in self.alerts()]


Step = tuple[int, str, str, bool, tuple[str, ...], str]
"""(place, patient, transition, notify, support, reason)"""


def expected(bench: Bench, scores: dict[int, list[Score]], case: UseCase) -> list[Step]:
    """S12 by a loop over every place for every patient: each control is a tick for everybody."""
    made: list[Step] = []
    for patient in sorted({r.key for r in bench.log if r.key}):
        first_us, support, members, spent = dict[str, int](), dict[str, Score](), set[str](), set[str]()
        status, since_us, told_risk, known_us = "none", 0, 0.0, -(2**62)
        dead, outcomes_us = False, list[int]()
        for record in (r for r in bench.log if r.key in (None, patient)):
            (head,), ticked, touched, place = fact.heads([record.value]), record.key is None, False, record.offset
            known_us = max(known_us, int(head["stamp_us"]) if ticked else record.timestamp * 1000)

            def say(transition: str, *, notify: bool = False, reason: str = "", place: int = place, support: Any = support) -> str:
                made.append((place, patient.decode(), transition, notify, tuple(sorted(support)), reason))  # noqa: B023 (called at once)
                return transition

            at_us = [us(s.index_time) for s in support.values()]
            died, last_us = head["concept"] == codes.DEATH, max(at_us, default=2**62)
            happened = head["concept"] in case.outcome_concepts and any(0 < head["event_us"] - t <= 60 * DAY_US for t in at_us)
            dead |= died
            outcomes_us += [int(head["event_us"])] * (head["concept"] in case.outcome_concepts)
            if status != "none" and (died or happened or (ticked and known_us > last_us + 60 * DAY_US)):
                say("closed", reason="death" if died else "outcome" if happened else "expired")
                spent, members, status = spent | members, set(), "none"
                support.clear()
            for one in (s for s in scores.get(place, []) if s.patient_id == patient.decode()):
                late_us = first_us.setdefault(one.encounter_id, us(one.known_time)) - us(one.index_time)
                over = dead or any(0 < t - us(one.index_time) <= 60 * DAY_US for t in outcomes_us)  # nothing is left to warn of
                fresh = late_us <= case.definition.fresh_for_hours * HOUR_US and not over
                if fresh and one.flagged and one.encounter_id not in spent:
                    support[one.encounter_id], touched = one, True
                    members.add(one.encounter_id)
                else:
                    touched |= support.pop(one.encounter_id, None) is not None
            risk = max((s.risk or 0.0 for s in support.values()), default=0.0)
            rises = status == "none" or risk >= told_risk + case.definition.notify_rise
            if support and (touched or status == "withdrawing"):
                say({"none": "opened", "open": "updated", "withdrawing": "reopened"}[status], notify=rises)
                status, told_risk = "open", risk if rises else told_risk
            elif status == "open" and not support:
                status, since_us = say("withdrawing"), known_us
            elif status == "withdrawing" and ticked and known_us - since_us >= case.definition.settle_minutes * MINUTE_US:
                say("withdrawn")
                status = "none"
    return sorted(made, key=lambda step: step[0])


def tell(content: bytes, bench: Bench, now_us: int) -> int:
    """One more record, chosen by the bytes; returns its known time."""
    drawn = iter(content)

    def of(options: Sequence[Any]) -> Any:
        return options[next(drawn) % len(options)]

    now_us += of([0, 0, SECOND_US, *[4 * MINUTE_US, 5 * MINUTE_US, 10 * MINUTE_US] * 4, DAY_US, 20 * DAY_US, 61 * DAY_US])
    patient, source, n = of("PPPPQ"), of("1112"), len(bench.log)
    version = 1 + sum(r.key == patient.encode() for r in bench.log) if of("yyyn") == "y" else 1
    match of("tttttthhhhhhhhvvveed"):
        case "t":
            bench.control(now_us)
        case "h":
            bench.hb(now_us, of([9.0, 13.0, 13.0, None]), f"L{source}{patient}", version, T_US - of([DAY_US, 0]), patient=patient)
        case "v":
            start_us = of([now_us, now_us, T_US, now_us - 72 * HOUR_US, now_us - 73 * HOUR_US, now_us + DAY_US])
            bench.visit(now_us, start_us, f"E{source}{patient}", version, patient=patient)
        case "e":
            start_us = of([now_us, T_US, T_US + DAY_US, T_US - DAY_US])
            bench.visit(now_us, start_us, f"D{n}", patient=patient, **ED)
        case "d":
            bench.tell("deaths", now_us, now_us, patient, id=f"X{n}")
    return now_us


@st.composite
def benches(draw: st.DrawFn) -> Bench:
    bench, now_us = Bench(), T_US
    bench.hb(T_US - HOUR_US, 9.0, "L1P")
    bench.visit(T_US, T_US, "E1P")
    for content in draw(st.lists(st.binary(min_size=8, max_size=8), max_size=30)):
        now_us = tell(content, bench, now_us)
    return bench


@CHECKED
@given(benches(), st.data())
def test_s12_the_fold_agrees_with_a_loop_over_all_ticks(bench: Bench, data: st.DataObject) -> None:
    """Ticks reach those who wait for one; batches, repeated delivery and restarts change no alert."""
    alone, found, scores = Bench(bench.models, bench.log), [], {}
    for place in range(len(bench.log)):
        outputs = alone.run(place, place + 1)
        scores[place] = [score.decode(value) for _, value in outputs.scores]
        told = [msgspec.json.decode(value, type=Alert) for _, value in outputs.alerts]
        found += [(place, a.patient_id, a.transition, a.notify, tuple(sorted(a.support)), a.reason) for a in told]
    assert found == expected(bench, scores, bench.models[0].use_case)
    whole = bench.alerts()
    assert [(a.patient_id, a.transition, a.notify, a.reason) for a in whole] == [(*step[1:4], step[5]) for step in found]
    assert bench.alerts(data.draw(st.sets(st.integers(0, len(bench.log))))) == whole
    again, place, done, made = Bench(bench.models, bench.log), 0, 0, set[bytes]()
    while place < len(bench.log):
        end, commit = data.draw(st.integers(place + 1, len(bench.log))), data.draw(st.booleans())
        made |= {value for _, value in again.run(place, end, commit=commit).alerts}
        place, done = end, end if commit else done
        if data.draw(st.booleans()):
            again.restart()
            place = done  # what was not committed is told again
    assert made == {msgspec.json.encode(a) for a in whole}


def opened(*cases: UseCase) -> Bench:
    """An alert that was opened at T_US by visit E1 and an abnormal result of the hour before."""
    bench = Bench([model(case) for case in cases or (use_case(),)])
    bench.hb(T_US - HOUR_US, 9.0)
    bench.visit(T_US, T_US, "E1")
    return bench


@pytest.mark.parametrize(("after_us", "last"), [(10 * MINUTE_US - 1, "withdrawing"), (10 * MINUTE_US, "withdrawn")])
def test_an_alert_settles_before_it_is_withdrawn(after_us: int, last: str) -> None:
    """At the first tick at least ten minutes after its support was gone."""
    bench = opened()
    bench.hb(T_US + HOUR_US, 13.0, version=2)
    bench.control(T_US + HOUR_US + after_us)
    assert bench.brief() == [("opened", True), ("withdrawing", False)] + [("withdrawn", False)] * (last == "withdrawn")


@pytest.mark.parametrize(("ticks", "back"), [([5], ("reopened", False)), ([], ("reopened", False)), ([10], ("opened", True))])
def test_support_that_returns_while_it_settles_is_silent(ticks: list[int], back: tuple[str, bool]) -> None:
    """After it was withdrawn it is a new alert, with an id of its own, that notifies."""
    bench = opened()
    bench.hb(T_US + HOUR_US, 13.0, version=2)
    for minutes in ticks:
        bench.control(T_US + HOUR_US + minutes * MINUTE_US)
    bench.hb(T_US + 2 * HOUR_US, 9.0, version=3)
    assert bench.brief()[-1] == back
    assert len({a.alert_id for a in bench.alerts()}) == 1 + back[1]


def test_a_rise_notifies_at_the_stated_step() -> None:
    """From .22 to .27: a step of exactly the difference notifies, one a bit larger does not; so does the way back."""
    low, high = (float(a.risk or 0.0) for a in rise(0.5).alerts()[:2])
    step = next(s for s in (high - low, math.nextafter(high - low, 0), math.nextafter(high - low, 1)) if low + s == high)
    assert [rise(s).brief()[1] for s in (step, step * 1.001, step * 0.999)] == [("updated", notify) for notify in (True, False, True)]
    assert rise(step).brief()[2:] == [("updated", False), ("updated", False)], "down and up again is no rise over what was told"


def rise(step: float) -> Bench:
    bench = opened(use_case(header=f"notify_rise = {step!r}"))
    for version, days in ((1, 3), (2, 40), (3, 3)):
        bench.visit(T_US + HOUR_US, T_US - days * DAY_US, "ED", version, **ED)
    return bench


def test_several_visits_at_one_place_give_one_update() -> None:
    """A result that changes two visits is told once; those of a shadow give no alert."""
    bench = Bench([model(use_case()), model(use_case(), 2)])
    bench.visit(T_US, T_US, "E1")
    bench.visit(T_US, T_US, "E2")
    bench.hb(T_US + HOUR_US, 9.0)
    bench.hb(T_US + 2 * HOUR_US, 13.0, version=2)
    assert [(a.transition, a.support) for a in bench.alerts()] == [("opened", ["E1", "E2"]), ("withdrawing", [])]


NOT_THE_OUTCOME: dict[str, tuple[dict[str, str], int, dict[str, Any]]] = {
    "of another use case": ({"name": "admitted", "concept": "visit.inpatient"}, DAY_US, {}),
    "only planned": ({}, DAY_US, {"status": "planned"}),
    "at the index time": ({}, 0, {}),
    "of the index visit": ({}, HOUR_US, {"episode_id": "E1"}),
    "in the gap": ({"outcome": ", gap_days = 5"}, 5 * DAY_US, {}),
    "after the time at risk": ({}, 60 * DAY_US + SECOND_US, {}),
    "of another priority": ({"outcome": ', priorities = ["emergency"]'}, DAY_US, {"priority": "elective"}),
    "in conflict with one long ago": ({}, DAY_US, {"source": "before"}),
}


@pytest.mark.parametrize("what", NOT_THE_OUTCOME)
def test_what_would_not_make_the_label_closes_no_alert(what: str) -> None:
    """The outcome itself closes an alert: an event in the time at risk, as the use case counts it, and nothing else."""
    case, after_us, fields = NOT_THE_OUTCOME[what]
    bench = opened(use_case(**case), *[use_case()] * ("name" in case))
    bench.visit(T_US - DAY_US, T_US - 90 * DAY_US, "before", **ED)
    bench.visit(T_US + DAY_US, T_US + after_us, **{"source": "ED", **ED, **fields})
    assert [a.reason for a in bench.alerts() if a.use_case == bench.models[0].use_case.name and a.transition == "closed"] == []


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("reason", "after_us"), [("outcome", SECOND_US), ("outcome", 60 * DAY_US), ("death", 0), ("death", DAY_US)])
def test_death_and_outcome_close_an_alert(reason: str, after_us: int, version: int) -> None:
    """On both edges of the time at risk, and whichever version is told first."""
    bench = opened()
    feed, fields = ("deaths", {}) if reason == "death" else ("encounters", ED)
    bench.tell(feed, T_US + 60 * DAY_US, T_US + after_us, id="X", version=version, **fields)
    assert [(a.transition, a.reason) for a in bench.alerts()] == [("opened", ""), ("closed", reason)]


def test_a_closed_alert_does_not_reopen() -> None:
    """Revisions of its visits are silent; a visit that it never had opens another."""
    bench = opened()
    bench.visit(T_US + DAY_US, T_US + DAY_US, "ED", **ED)
    bench.hb(T_US + 2 * DAY_US, 13.0, version=2)
    bench.hb(T_US + 3 * DAY_US, 9.0, version=3)
    assert bench.brief() == [("opened", True), ("closed", False)]
    bench.visit(T_US + 3 * DAY_US, T_US + 3 * DAY_US, "E2")
    assert [(a.transition, a.support) for a in bench.alerts()][2:] == [("opened", ["E2"])]


@pytest.mark.parametrize(("beside_us", "expired"), [(0, False), (1, True)])
def test_an_alert_expires_behind_its_time_at_risk(beside_us: int, expired: bool) -> None:
    """An event at its end would still count, so at its end the alert is open."""
    bench = opened()
    bench.visit(T_US, T_US - HOUR_US, "E0")  # its own time at risk is over: the tick reaches the patient
    bench.control(T_US + 60 * DAY_US + beside_us)
    assert [a.reason for a in bench.alerts() if a.reason] == ["expired"] * expired


def test_alerts_of_two_patients_have_two_ids() -> None:
    """Also where a source told one visit under both, at the same known time."""
    bench = opened()
    bench.hb(T_US, 9.0, patient="Q")
    bench.visit(T_US, T_US, "E1", patient="Q")
    assert len({a.alert_id for a in bench.alerts()}) == len(bench.alerts()) == 2
