"""The true risk of an index encounter: exact, by the hazard integrated over the illness that may come.

`risk` is the chance that an emergency visit follows within the horizon, `(t, t + horizon]`, given all that decides it at t: the patient,
the state of illness, what is left of the last emergency visit, and the calendar with its drift. Death ends the chance; leaving does
not. Only the first emergency visit counts, so that what one would change behind it need not be known, and the forward equation of the
four states is exact: no chance is drawn here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.clinic import illness
from features.clinic.draws import Float
from features.clinic.illness import EXCITED_DAYS, HOSPITAL, ILL, VERY_ILL, WELL, Hazard, Stops, dies_daily
from features.clinic.people import People
from features.clock import DAY_US

HORIZON_DAYS = 60


def true_risk(people: People, hazard: Hazard, stops: Stops, *, start_us: int, horizon_days: int = HORIZON_DAYS) -> Float:
    """The risk at the start of each ambulatory stop, shape (n,). Twin: `tests/oracle/clinic.py`, many drawn futures.

    Args:
        people: All patients.
        hazard: Of the same.
        stops: Ambulatory, shape (n,).
        start_us: Midnight of day 0.
        horizon_days: Length of the time at risk.
    """
    who = stops["who"]
    begun = (stops["start_us"] - start_us - stops["day"] * DAY_US) / DAY_US
    falls = people.falls_ill_daily[who]
    lives = np.stack([1 - dies_daily(people, who, state) for state in range(4)])
    at = np.zeros((4, len(stops)))  # chance to be in each state without an emergency visit since t, alive
    at[stops["state"], np.arange(len(stops))] = 1.0
    came = np.zeros(len(stops))
    excited = stops["excited"].copy()
    for ahead in range(horizon_days + 1):
        if ahead:
            at = _next(at * lives, falls)
            excited *= np.exp(-1 / EXCITED_DAYS)
        share = 1 - begun if ahead == 0 else begun if ahead == horizon_days else 1.0
        for state in (WELL, ILL, VERY_ILL):
            comes = at[state] * -np.expm1(-hazard.daily(who, stops["day"] + ahead, state, excited) * share)
            came += comes
            at[state] -= comes
    return came


def hazard_now(hazard: Hazard, stops: Stops) -> Float:
    """Events a day at the start of each ambulatory stop, shape (n,)."""
    return hazard.daily(stops["who"], stops["day"], stops["state"], stops["excited"])


def event_follows(stops: Stops, index: Stops, *, horizon_days: int = HORIZON_DAYS) -> npt.NDArray[np.bool_]:
    """Whether an emergency visit began in `(t, t + horizon]` of each index stop, among all that happened; shape (n,)."""
    came = stops[stops["kind"] == illness.EMERGENCY]
    came = came[np.lexsort((came["start_us"], came["who"]))]
    found = np.zeros(len(index), bool)
    begin, end = (np.searchsorted(came["who"], index["who"], side=side) for side in ("left", "right"))
    for nth in range(int((end - begin).max(initial=0))):
        at = begin + nth
        there = at < end
        since_us = came["start_us"][at[there]] - index["start_us"][there]
        found[there] |= (since_us > 0) & (since_us <= horizon_days * DAY_US)
    return found


def _next(at: Float, falls: Float) -> Float:
    """One midnight of the chain in `illness`."""
    well, ill, very, stay = at
    after = np.empty_like(at)
    after[WELL] = well * (1 - falls) + ill * illness.BETTER
    after[ILL] = well * falls + ill * (1 - illness.BETTER - illness.WORSE) + very * illness.RECOVERS + stay * illness.DISCHARGED
    after[VERY_ILL] = ill * illness.WORSE + very * (1 - illness.RECOVERS - illness.ADMITTED)
    after[HOSPITAL] = very * illness.ADMITTED + stay * (1 - illness.DISCHARGED)
    return after
