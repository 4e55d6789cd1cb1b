"""The slow twin of `features.clinic.truth`: many drawn futures of one visit, day after day."""

from __future__ import annotations

import math

import numpy as np

from features.clinic import illness
from features.clinic.illness import Stops
from features.clinic.people import People
from features.clock import DAY_US

DAYS = 60


def risk(people: People, stop: Stops, *, weekday_of_start: int, start_us: int, futures: int, rng: np.random.Generator) -> float:
    """Share of futures in which an emergency visit comes within 60 days of the start of a visit, in a clinic without change.

    Args:
        people: All patients.
        stop: The visit, one row.
        weekday_of_start: Of day 0; Monday is 0.
        start_us: Midnight of day 0.
    """
    who, first_day = int(stop["who"]), int(stop["day"])
    begun = (int(stop["start_us"]) - start_us - first_day * DAY_US) / DAY_US
    came = 0
    for _ in range(futures):
        state = int(stop["state"])
        for ahead in range(DAYS + 1):
            if ahead:
                if rng.random() < _dies(people, who, state):
                    break
                state = _moves(state, float(people.falls_ill_daily[who]), rng.random())
            excited = float(stop["excited"]) * math.exp(-ahead / illness.EXCITED_DAYS)
            log = illness.LEVEL + float(people.log_hazard[who]) + float(illness.OF_STATE[state]) + excited
            log += float(illness.WEEKDAY[(first_day + ahead + weekday_of_start) % 7])
            share = 1 - begun if ahead == 0 else begun if ahead == DAYS else 1.0
            if state != illness.HOSPITAL and rng.exponential() < math.exp(log) * share:
                came += 1
                break
    return came / futures


def _dies(people: People, who: int, state: int) -> float:
    log = illness.DIES + float(illness.DIES_OF_STATE[state]) + illness.DIES_FRAIL * float(people.frailty[who])
    return 1 - math.exp(-math.exp(log + illness.DIES_METASTATIC * bool(people.metastatic[who])))


def _moves(state: int, falls: float, u: float) -> int:
    """The state after a midnight."""
    if state == illness.WELL:
        return illness.ILL if u < falls else illness.WELL
    if state == illness.ILL:
        return illness.WELL if u < illness.BETTER else illness.VERY_ILL if u < illness.BETTER + illness.WORSE else illness.ILL
    if state == illness.VERY_ILL:
        return illness.ILL if u < illness.RECOVERS else illness.HOSPITAL if u < illness.RECOVERS + illness.ADMITTED else illness.VERY_ILL
    return illness.ILL if u < illness.DISCHARGED else illness.HOSPITAL
