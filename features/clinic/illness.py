"""Day by day: who is well, ill, very ill or in hospital, who comes to the emergency department, who dies or leaves.

At each midnight a patient moves between four states by a Markov chain. During a day the hazard of an emergency visit is constant:

    log hazard = level + slope · (patient + state + 0.9 · exp(−days since the last emergency visit / 14) − middle) + weekday + change

The first arrival of a day counts, at its exact time; in hospital there is none. Ambulatory visits and laboratory draws come more
often to the sick (informative visits), but never depend on what is still to come, so that the true risk at a visit is that of the state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.clinic.draws import Draws, Float, Int, Mask
from features.clinic.people import People
from features.clinic.scenario import Change, Scenario
from features.clock import DAY_US, HOUR_US, MINUTE_US, NEVER_US, SECOND_US

WELL, ILL, VERY_ILL, HOSPITAL = range(4)
AMBULATORY, EMERGENCY, INPATIENT, DRAW = range(4)
"""Kinds of stop; a draw is a laboratory panel without a visit."""
STOP = np.dtype(
    [
        ("who", "i8"),  # index among the people
        ("day", "i8"),
        ("kind", "i8"),
        ("state", "i8"),
        ("excited", "f8"),  # log hazard that is left from the last emergency visit
        ("lost_kg", "f8"),  # weight lost to illness
        ("start_us", "i8"),
        ("end_us", "i8"),
        ("from_day", "i8"),  # inpatient: day of the emergency visit that it came from, -1: none
        ("slot", "i8"),  # 1: the second visit of a day
        ("expired", "?"),
    ]
)
Stops = npt.NDArray[np.void]

LEVEL, MIDDLE = -7.15, 0.75
"""Log hazard a day of the plainest patient, and the log hazard beyond it about which `slope` turns: where the events are."""
OF_STATE = np.array([0.0, 0.64, 1.18, 0.0])
EXCITED, EXCITED_DAYS = 0.9, 14.0
WEEKDAY = np.array([0.10, 0.03, 0.0, 0.0, 0.03, -0.06, -0.10])
"""Log hazard from Monday to Sunday."""
WORSE, BETTER, RECOVERS, ADMITTED, DISCHARGED = 0.02, 0.04, 0.05, 0.01, 0.20
"""Chances a day: ill → very ill, ill → well, very ill → ill, very ill → hospital, hospital → ill."""
ADMITTED_FROM_ED = np.array([0.25, 0.40, 0.55, 0.0])
LEAVES_DAILY = 1 / 900
DIES, DIES_OF_STATE, DIES_FRAIL, DIES_METASTATIC = -10.4, np.array([0.0, 1.2, 2.6, 5.0]), 0.6, 0.9
VISIT_WEEKDAY = np.array([1.3, 1.35, 1.35, 1.35, 1.25, 0.25, 0.15])
VISITS_OF_STATE = np.array([0.0, 0.45, 0.6, 0.0])
DRAWS_DAILY = np.array([0.008, 0.04, 0.08, 0.5])
KG_LOST_DAILY, KG_BACK_DAYS = np.array([0.0, 0.10, 0.22, 0.15]), 60.0
FIRST_DAY = 2
"""Nobody visits before the third day: the first is for registration."""


class Hazard:
    """The true hazard of an emergency visit, for all patients, states and days.

    Args:
        people: The patients.
        scenario: Drift, slope and bias.
        start_us: Midnight of day 0.
    """

    def __init__(self, people: People, scenario: Scenario, start_us: int) -> None:
        self.log_hazard, self.weekday_of_start = people.log_hazard, (start_us // DAY_US + 3) % 7
        n = len(people.number)

        def of(changes: tuple[Change, ...]) -> list[tuple[float, int, Mask]]:
            """(value, first day, for whom) of each."""
            masks = (people.group(c.group) if c.group else np.ones(n, bool) for c in changes)
            return [(c.value, -((start_us - c.from_us) // DAY_US), mask) for c, mask in zip(changes, masks, strict=True)]

        self.drifts = of((*scenario.drift, *(Change(factor, group=group) for group, factor in scenario.bias)))
        self.slopes = of(scenario.slope)

    def daily(self, who: Int | slice, day: Int | int, state: Int | int, excited: Float) -> Float:
        """Events a day of patients `who`, each on its own day or all on one; shape (n,).

        Args:
            who: Indices among the people.
            day: From 0 at the start of the calendar.
            state: WELL, ILL or VERY_ILL.
            excited: What is left of the last emergency visit, in log hazard.
        """
        beyond = self.log_hazard[who] + OF_STATE[state] + excited - MIDDLE
        for slope, first_day, mask in self.slopes:
            beyond = np.where(mask[who] & (day >= first_day), slope * beyond, beyond)
        log = LEVEL + MIDDLE + beyond + WEEKDAY[(day + self.weekday_of_start) % 7]
        for factor, first_day, mask in self.drifts:
            log = log + np.log(factor) * (mask[who] & (day >= first_day))
        hazard: Float = np.exp(log)
        return hazard


@dataclass(frozen=True)
class Course:
    """What happened. Columns of shape (n,) for n people."""

    stops: Stops
    """In order of patient and start."""
    registered_us: Int
    death_us: Int
    left_us: Int
    """`NEVER_US`: not within the calendar."""
    hazard: npt.NDArray[np.float32] | None
    """Shape (days, n): events a day; NaN where the patient is not at risk of one (not there, in hospital). Only where asked for."""


def dies_daily(people: People, who: Int | slice, state: Int | int) -> Float:
    """Chance to die at a midnight, of the state before it."""
    log = DIES + DIES_OF_STATE[state] + DIES_FRAIL * people.frailty[who] + DIES_METASTATIC * people.metastatic[who]
    return 1 - np.exp(-np.exp(log))


class _Life:
    """The patients on one day after the other."""

    def __init__(self, people: People, hazard: Hazard, draws: Draws, start_us: int) -> None:
        self.people, self.of, self.draws, self.start_us = people, hazard, draws, start_us
        number, n = people.number, len(people.number)
        self.registered_us = start_us + people.enrol_day * DAY_US + draws.span_us(0, 20 * HOUR_US, "registered", number)
        self.death_us, self.left_us = np.full(n, NEVER_US), np.full(n, NEVER_US)
        share = 18 * people.falls_ill_daily
        sick = draws.chance(share / (1 + share), "illness at first", number)
        self.state = np.where(sick, np.where(draws.chance(0.3, "very ill at first", number), VERY_ILL, ILL), WELL)
        self.excited, self.lost_kg = np.zeros(n), np.zeros(n)
        self.admitted = np.zeros(n, bool)
        self.stay_us, self.stay_from = np.zeros(n, np.int64), np.full(n, -1)
        self.stops: list[Stops] = []

    def day(self, day: int) -> tuple[Mask, Float]:
        """Midnight, then the day. Returns who was at risk, and the hazard."""
        here = self.midnight(day)
        here &= (self.people.enrol_day < day) & (day >= FIRST_DAY)
        active = here & (self.state != HOSPITAL)
        hazard = self.of.daily(slice(None), day, self.state, self.excited)
        number, day_us = self.people.number, self.start_us + day * DAY_US
        ready = self.draws.exponential(1.0, "emergency", number, day)
        comes = active & (ready < hazard)
        emergency_us = np.full(len(number), NEVER_US)
        emergency_us[comes] = day_us + (ready[comes] / hazard[comes] * DAY_US).astype(np.int64) // SECOND_US * SECOND_US
        stay_us = self.draws.span_us(2 * HOUR_US, 12 * HOUR_US, "emergency stay", number[comes], day)
        self.visits(day, here, active, emergency_us)
        self.add(comes, day, EMERGENCY, emergency_us[comes], emergency_us[comes] + stay_us)
        self.admitted = comes & self.draws.chance(ADMITTED_FROM_ED[self.state], "admitted", number, day)
        self.stay_us[self.admitted] = self.stops[-1]["end_us"][self.admitted[comes]]
        self.stay_from[self.admitted] = day
        self.excited[comes] = EXCITED
        return active, hazard

    def visits(self, day: int, here: Mask, active: Mask, emergency_us: Int) -> None:
        """Ambulatory visits on the quarters of an hour from 8 to 17, and draws without a visit."""
        number, day_us, draws = self.people.number, self.start_us + day * DAY_US, self.draws
        weekday = (day + self.of.weekday_of_start) % 7
        again = 1 + 0.8 * self.excited / EXCITED
        rate = self.people.visits_daily * VISIT_WEEKDAY[weekday] * np.exp(VISITS_OF_STATE[self.state]) * again
        visits = active & draws.chance(1 - np.exp(-rate), "visit", number, day)
        quarter = 32 + np.floor(36 * draws.uniform("quarter", number[visits], day)).astype(np.int64)
        self.add(visits, day, AMBULATORY, day_us + quarter * 15 * MINUTE_US, emergency_us[visits])
        drawn = here & draws.chance(DRAWS_DAILY[self.state], "draw", number, day)
        drawn_us = day_us + draws.span_us(6 * HOUR_US, 16 * HOUR_US, "drawn", number[drawn], day)
        self.add(drawn, day, DRAW, drawn_us, emergency_us[drawn])

    def midnight(self, day: int) -> Mask:
        """Death, leaving, the next state. Returns who is there."""
        people, number, day_us, draws = self.people, self.people.number, self.start_us + day * DAY_US, self.draws
        here = (people.enrol_day <= day) & (self.death_us == NEVER_US) & (self.left_us == NEVER_US)
        older = here & (people.enrol_day < day)
        end = draws.uniform("end", number, day)
        dies = older & (end < dies_daily(people, slice(None), self.state))
        leaves = older & ~dies & (end >= 1 - LEAVES_DAILY)
        gone = dies | leaves
        at_us = day_us + draws.span_us(0, 20 * HOUR_US, "end of day", number[gone], day)
        self.death_us[dies], self.left_us[leaves] = at_us[dies[gone]], at_us[leaves[gone]]
        self.close(gone & (self.stay_us > 0), np.minimum(self.death_us, self.left_us), dies)
        before, stays_on = self.state, older & ~gone
        self.state = np.where(stays_on, np.where(self.admitted, HOSPITAL, self.moved(day)), before)
        home = stays_on & (before == HOSPITAL) & (self.state != HOSPITAL)
        self.close(home, day_us - draws.span_us(6 * HOUR_US, 11 * HOUR_US, "home", number, day), dies)
        direct = stays_on & (before != HOSPITAL) & (self.state == HOSPITAL) & ~self.admitted
        self.stay_us[direct] = day_us + draws.span_us(6 * HOUR_US, 11 * HOUR_US, "ward", number[direct], day)
        self.stay_from[direct] = -1
        self.excited *= np.exp(-1 / EXCITED_DAYS)
        self.lost_kg = self.lost_kg * np.exp(-1 / KG_BACK_DAYS) + KG_LOST_DAILY[self.state]
        there: Mask = here & ~gone
        return there

    def moved(self, day: int) -> Int:
        """The next state by the chain."""
        u = self.draws.uniform("illness", self.people.number, day)
        of_well = np.where(u < self.people.falls_ill_daily, ILL, WELL)
        of_ill = np.where(u < BETTER, WELL, np.where(u >= 1 - WORSE, VERY_ILL, ILL))
        of_very = np.where(u < RECOVERS, ILL, np.where(u >= 1 - ADMITTED, HOSPITAL, VERY_ILL))
        of_stay = np.where(u < DISCHARGED, ILL, HOSPITAL)
        return np.choose(self.state, [of_well, of_ill, of_very, of_stay])

    def add(self, who: Mask, day: int, kind: int, start_us: Int, end_us: Int) -> None:
        """Remember stops of `who`; the times are those of them."""
        stops = np.zeros(int(who.sum()), STOP)
        stops["who"], stops["day"], stops["kind"] = np.flatnonzero(who), day, kind
        stops["start_us"], stops["end_us"], stops["from_day"] = start_us, end_us, -1
        for name in ("state", "excited", "lost_kg"):
            stops[name] = getattr(self, name)[who]
        self.stops.append(stops)

    def close(self, who: Mask, end_us: Int, expired: Mask) -> None:
        """The hospital stays of `who` end; one that would end before it began, or began too early, does not count."""
        counts = who & (end_us > self.stay_us) & (self.stay_us >= self.start_us + FIRST_DAY * DAY_US)
        self.add(counts, 0, INPATIENT, self.stay_us[counts], end_us[counts])
        stops = self.stops[-1]
        stops["day"] = (stops["start_us"] - self.start_us) // DAY_US
        stops["from_day"], stops["expired"], stops["state"] = self.stay_from[counts], expired[counts], HOSPITAL
        self.stay_us[who] = 0


def live(people: People, scenario: Scenario, draws: Draws, *, start_us: int, days: int, keep_hazard: bool = False) -> Course:
    """Let the patients live.

    Args:
        people: Who.
        scenario: What changes in the world.
        draws: Chance.
        start_us: Midnight of the first day.
        days: Length of the calendar.
        keep_hazard: Whether the hazard of every patient on every day is wanted.
    """
    life = _Life(people, Hazard(people, scenario, start_us), draws, start_us)
    kept = np.full((days, len(people.number)), np.nan, np.float32) if keep_hazard else None
    for day in range(days):
        active, hazard = life.day(day)
        if kept is not None:
            kept[day, active] = hazard[active]
    n = len(people.number)
    life.close(life.stay_us > 0, np.full(n, start_us + (days + 1) * DAY_US), np.zeros(n, bool))
    stops = np.concatenate(life.stops)
    gone_us = np.minimum(life.death_us, life.left_us)[stops["who"]]
    cut = (stops["kind"] == EMERGENCY) & (stops["end_us"] > gone_us)
    stops["expired"] |= cut & (life.death_us[stops["who"]] == gone_us)
    stops["end_us"][cut] = gone_us[cut]
    order = np.lexsort((stops["kind"], stops["start_us"], stops["who"]))
    return Course(stops[order], life.registered_us, life.death_us, life.left_us, kept)
