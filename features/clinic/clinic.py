"""The clinic: so many patients over a stretch of time, told as the events of a hospital's feeds, with the truth behind them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from features.clinic import faults, findings, illness, people, registration, rows, truth, visits
from features.clinic.draws import Draws, Float, Int
from features.clinic.rows import FACTS_MAX, KIND, Rows
from features.clinic.scenario import Knobs, Scenario
from features.clock import DAY_US, to_us
from features.errors import InputError

PATIENTS_AT_ONCE = 4_000
DEFAULT_KNOBS, DEFAULT_SCENARIO = Knobs(), Scenario()
Told = tuple[str, dict[str, Any]]
"""(feed, event in the JSON form of `features.event`)."""


@dataclass(frozen=True)
class Truth:
    """What is true at each index encounter that took place: the ambulatory visits, by patient and start. Columns of shape (n,)."""

    patient_id: list[str]
    encounter_id: list[str]
    index_us: Int
    risk: Float
    """Of an emergency visit within 60 days: see `features.clinic.truth`."""
    hazard: Float
    """Emergency visits a day at that moment."""
    event: npt.NDArray[np.bool_]
    """Whether one came within 60 days, from what happened, not from what was told."""
    followed: npt.NDArray[np.bool_]
    """Whether the patient stayed for 60 days or died, within the calendar: only then is `event` the whole answer."""
    state: Int
    """0 well, 1 ill, 2 very ill."""
    excited: Float
    """What is left of the last emergency visit, in log hazard."""
    people: people.People
    """Row by row: who the patient of each encounter is."""


@dataclass
class Clinic:
    """A simulated clinic. The same arguments give the same bytes, and more patients do not change the first ones.

    Patients are told about from the first midnight (UTC) at or after `start`: on that day who they are, visits from the third day on.

    Args:
        patients: How many there ever are; at least 2, so that one can be mistaken for another. Those who leave or die are replaced.
        start: Aware, as `end`; at least 3 days before it. All known times lie between them.
        seed: Of all chance, 0 or more.
        knobs: How much trouble the feeds make.
        scenario: What changes in the world behind them.
    Raises:
        InputError: an argument breaks its rule.
    """

    patients: int
    start: datetime
    end: datetime
    seed: int
    knobs: Knobs = DEFAULT_KNOBS
    scenario: Scenario = DEFAULT_SCENARIO

    def __post_init__(self) -> None:
        aware = self.start.tzinfo is not None and self.end.tzinfo is not None
        if self.patients < 2 or self.seed < 0 or not aware or to_us(self.end) - to_us(self.start) < 3 * DAY_US:
            raise InputError(
                "expected 2 patients or more, seed >= 0, 3 zoned days or more; "
                f"got {self.patients}, {self.seed}, {self.start} to {self.end}"
            )
        self.start_us, self.end_us = -(-to_us(self.start) // DAY_US) * DAY_US, to_us(self.end)
        self.days = -(-(self.end_us - self.start_us) // DAY_US)
        self.draws = Draws(self.seed)
        some = people.make(np.arange(2), self.draws, self.scenario, start_us=self.start_us, days=self.days)
        illness.Hazard(some, self.scenario, self.start_us)  # refuses unknown groups at once

    def live(self, numbers: Int, *, keep_hazard: bool = False) -> tuple[people.People, illness.Course]:
        """The patients with these numbers, and what happened to them."""
        who = people.make(numbers, self.draws, self.scenario, start_us=self.start_us, days=self.days)
        return who, illness.live(who, self.scenario, self.draws, start_us=self.start_us, days=self.days, keep_hazard=keep_hazard)

    def events(self) -> Iterator[Told]:
        """All that is told, by known time; at equal known times encounters stand after other facts (S3)."""
        told = np.concatenate([self._told(numbers) for numbers in self._chunks()])
        order = np.lexsort((told["kind"] == KIND["encounter"], told["known_us"]))
        return rows.told(told[order])

    def truths(self) -> Iterator[Truth]:
        """The truth, some patients at a time."""
        for numbers in self._chunks():
            who, course = self.live(numbers)
            day = self._day(who, course)
            _count(day.first)
            visit = day.scene.stops[day.scene.stops["kind"] < illness.DRAW]
            index = (visit["kind"] == illness.AMBULATORY) & (visit["start_us"] < self.end_us)
            yield self._truth(who, course, visit[index], rows.visit_ids(day.first[~day.off][index]))

    def _chunks(self) -> Iterator[Int]:
        for begin in range(0, self.patients, PATIENTS_AT_ONCE):
            yield np.arange(begin, min(begin + PATIENTS_AT_ONCE, self.patients))

    def _day(self, who: people.People, course: illness.Course) -> _Day:
        """The visits, their encounters, and the scene of what is found and done at them."""
        stops = visits.settled(course.stops, self.draws, who.number, start_us=self.start_us)
        number, index = who.number[stops["who"]], visits.place(stops)
        known_us = visits.known(stops, self.draws, self.knobs, number)
        episode = visits.episodes(stops, self.draws, who.number)
        planned, off = visits.booked(stops, self.draws, self.knobs, number)
        scene = findings.Scene(stops, who, number, index, known_us, episode, self.draws, self.knobs)
        visit = stops["kind"] < illness.DRAW
        first, versions = visits.encounters(scene.part(visit), course.registered_us, planned=planned[visit], off=off[visit])
        return _Day(scene.part(~off), first, versions, off[visit])

    def _told(self, numbers: Int) -> Rows:
        """All rows about these patients."""
        who, course = self.live(numbers)
        day = self._day(who, course)
        once, observed, ended = registration.facts(who, course, self.draws, start_us=self.start_us)
        once += [*findings.labs(day.scene), findings.weights(day.scene), *findings.care(day.scene)]
        facts = np.concatenate([day.first, observed, *once])
        facts["fact"] = np.arange(len(facts))
        ended["fact"] += len(day.first)
        _count(facts)
        single = facts[len(day.first) :]
        told = np.concatenate([day.versions, single, ended, faults.cancelled(single, self.draws, self.knobs)])
        told["number"] = facts["number"][told["fact"]]
        told = told[np.lexsort((told["version"], told["fact"]))]
        told = faults.tell(told, self.draws, self.knobs, patients=self.patients)
        gone_us = np.minimum(course.death_us, course.left_us)
        told = faults.merged(
            told, self.draws, self.knobs, registered_us=course.registered_us, gone_us=gone_us, first=int(numbers[0]), end_us=self.end_us
        )
        return faults.broken(told[told["known_us"] < self.end_us], self.draws, self.scenario)

    def _truth(self, who: people.People, course: illness.Course, stops: illness.Stops, ids: list[str]) -> Truth:
        hazard = illness.Hazard(who, self.scenario, self.start_us)
        until_us = stops["start_us"] + truth.HORIZON_DAYS * DAY_US
        death_us, left_us = course.death_us[stops["who"]], course.left_us[stops["who"]]
        return Truth(
            patient_id=[rows.patient_id(n) for n in who.number[stops["who"]].tolist()],
            encounter_id=ids,
            index_us=stops["start_us"],
            risk=truth.true_risk(who, hazard, stops, start_us=self.start_us),
            hazard=truth.hazard_now(hazard, stops),
            event=truth.event_follows(course.stops, stops),
            followed=(until_us <= self.end_us) & (left_us > np.minimum(until_us, death_us)),
            state=stops["state"],
            excited=stops["excited"],
            people=who.at(stops["who"]),
        )


@dataclass(frozen=True)
class _Day:
    """What became of the stops: the scene without what was called off; encounters, first and in all versions; which were called off."""

    scene: findings.Scene
    first: Rows
    versions: Rows
    off: npt.NDArray[np.bool_]


def _count(facts: Rows) -> None:
    """Number the facts of each patient and kind from 1, in place; encounters by start, so that the truth finds them."""
    order = np.lexsort((facts["fact"], facts["event_us"], facts["kind"], facts["patient"]))
    kind, patient = facts["kind"][order], facts["patient"][order]
    begins = np.append(True, (kind[1:] != kind[:-1]) | (patient[1:] != patient[:-1]))
    place = np.arange(len(order))
    facts["number"][order] = 1 + place - np.maximum.accumulate(np.where(begins, place, 0))
    if len(facts) and facts["number"].max() >= FACTS_MAX:
        raise InputError(f"a patient has {FACTS_MAX} facts of one kind: simulate a shorter time or a smaller volume")


def events(
    *, patients: int, start: datetime, end: datetime, seed: int, knobs: Knobs = DEFAULT_KNOBS, scenario: Scenario = DEFAULT_SCENARIO
) -> Iterator[Told]:
    """What a hospital would send: see `Clinic`.

    Example:
        >>> from datetime import UTC
        >>> told = events(patients=2, start=datetime(2026, 1, 1, tzinfo=UTC), end=datetime(2026, 2, 1, tzinfo=UTC), seed=7)
        >>> sorted({event["patient_id"] for _, event in told})
        ['p000000', 'p000001']
    """
    return Clinic(patients, start, end, seed, knobs, scenario).events()
