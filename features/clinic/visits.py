"""From stops to encounters: when they were planned, begun and finished, and who was told so when.

A visit is told in versions: planned where it was booked, in progress, finished. Some visits stand exactly 5, 30 or 90 days after an
earlier stop, to the second, so that facts lie on the edges of windows.
"""

from __future__ import annotations

import numpy as np

from features.clinic import rows
from features.clinic.draws import Draws, Int, Mask
from features.clinic.findings import EDGE_DAYS, Scene
from features.clinic.illness import AMBULATORY, EMERGENCY, INPATIENT, Stops
from features.clinic.rows import CLASSES, PRIORITIES, STATUS, Rows
from features.clinic.scenario import Knobs
from features.clock import DAY_US, HOUR_US, MINUTE_US

SNAPPED, TWICE, WITHOUT_EPISODE = 0.5, 0.03, 0.1
"""Shares: of visits so many days after another stop, those at its time of day; of visits, those with a second one at the same start."""
SLOTS = 4
"""Episodes that may begin on a day: two ambulatory ones, an emergency visit, a hospital stay."""


def settled(stops: Stops, draws: Draws, who: Int, *, start_us: int) -> Stops:
    """The stops that take place, ambulatory ones at their final start and with an end; who went to the emergency department does not
    come to the clinic later that day. `who`: patient numbers of all people."""
    stops, clinic = stops.copy(), stops["kind"] == AMBULATORY
    _snap(stops, clinic, draws, who, start_us)
    visit = stops[clinic]
    visit = visit[visit["start_us"] < visit["end_us"]]  # until now the end was the start of the day's emergency visit
    visit["end_us"] = visit["start_us"] + draws.span_us(20 * MINUTE_US, 60 * MINUTE_US, "visit length", who[visit["who"]], visit["day"])
    second = visit[draws.chance(TWICE, "second visit", who[visit["who"]], visit["day"])]
    second["slot"] = 1
    every = np.concatenate([stops[~clinic], visit, second])
    return every[np.lexsort((every["slot"], every["kind"], every["start_us"], every["who"]))]


def _snap(stops: Stops, clinic: Mask, draws: Draws, who: Int, start_us: int) -> None:
    """Move visits to the time of day of a stop exactly so many days before, which itself was not moved. In place."""
    wants = clinic & draws.chance(SNAPPED, "edge", who[stops["who"]], stops["day"])
    source = (stops["kind"] == EMERGENCY) | (clinic & ~wants)
    key = stops["who"] * 10**6 + stops["day"]
    at, time_us = key[source], (stops["start_us"] - start_us - stops["day"] * DAY_US)[source]
    order = np.argsort(at, kind="stable")
    at, time_us = at[order], time_us[order]
    if not len(at):
        return
    for days in EDGE_DAYS:
        there = np.minimum(np.searchsorted(at, key - days), len(at) - 1)
        hit = wants & (at[there] == key - days) & (stops["day"] >= days)
        stops["start_us"][hit] = (start_us + stops["day"] * DAY_US + time_us[there])[hit]


def episodes(stops: Stops, draws: Draws, who: Int) -> Int:
    """Which episode a stop belongs to, -1 for none: a hospital stay to that of the emergency visit it came from."""
    came = stops["from_day"] >= 0
    day = np.where(came, stops["from_day"], stops["day"])
    kind = np.where(came, EMERGENCY, stops["kind"])
    slot = np.where(kind == AMBULATORY, stops["slot"], np.where(kind == EMERGENCY, 2, 3))
    number = day * SLOTS + slot
    none = draws.chance(WITHOUT_EPISODE, "episode", who[stops["who"]], number) | (stops["kind"] > INPATIENT)
    return np.where(none, -1, number)


def place(stops: Stops) -> Int:
    """A number that tells the stops of a patient apart."""
    index: Int = stops["day"] * SLOTS + stops["slot"] + 10**6 * stops["kind"]
    return index


def known(stops: Stops, draws: Draws, knobs: Knobs, number: Int) -> Int:
    """When the begin of each stop was told."""
    index = place(stops)
    late_us = DAY_US + MINUTE_US + (draws.exponential(9 * DAY_US, "late visit by", number, index)).astype(np.int64) // 10**6 * 10**6
    late = draws.chance(knobs.late, "late visit", number, index)
    return stops["start_us"] + draws.span_us(MINUTE_US, 10 * MINUTE_US, "visit known", number, index) + np.where(late, late_us, 0)


def booked(stops: Stops, draws: Draws, knobs: Knobs, number: Int) -> tuple[Mask, Mask]:
    """(booked before, and of these cancelled: it does not take place)."""
    index = place(stops)
    is_booked = (stops["kind"] == AMBULATORY) & draws.chance(knobs.booked, "booked", number, index)
    return is_booked, is_booked & draws.chance(knobs.cancelled, "called off", number, index)


def encounters(scene: Scene, registered_us: Int, *, planned: Mask, off: Mask) -> tuple[Rows, Rows]:
    """The encounter of each visit, shape (n,), by which facts are counted; and all versions that are told of it.

    Versions name their encounter in `fact`, a place in the first table. One that was called off has no version but its bookings.

    Args:
        scene: The visits.
        registered_us: When each of the people was registered: no booking is told before.
        planned: Which were booked ahead; `off`: which of them were called off.
    """
    stops, draws, number, index = scene.stops, scene.draws, scene.number, scene.index
    amiss = (stops["slot"] == 1) & draws.chance(scene.knobs.second, "told as emergency", number, index)
    kind = np.where(amiss, EMERGENCY, stops["kind"])
    urgency = np.array([PRIORITIES.index("emergency"), PRIORITIES.index("urgent")])[draws.pick((1, 1), "urgency", number, index)]
    first = rows.new(
        "encounter",
        number,
        event_us=stops["start_us"],
        known_us=scene.known_us,
        status="in-progress",
        episode=scene.episode,
        encounter_class=np.array([CLASSES.index(c) for c in ("ambulatory", "emergency", "inpatient")])[kind],
        priority=np.where(kind == AMBULATORY, 0, urgency),
        site=scene.people.site[stops["who"]],
    )
    first["fact"] = np.arange(len(first))
    knobs = scene.knobs
    told = _bookings(first, registered_us[stops["who"]], draws, knobs, index, planned, off)
    before = sum((np.bincount(part["fact"], minlength=len(first)) for part in told), np.zeros(len(first), np.int64))
    begun = first[~off].copy()
    begun["version"] += before[~off]
    ahead = draws.chance(knobs.future_clock, "clock ahead", number, index)[~off]
    ahead_us = draws.span_us(MINUTE_US, 20 * MINUTE_US, "clock ahead by", number, index)[~off]
    begun["event_us"][ahead] = (begun["known_us"] + ahead_us)[ahead]
    done = first[~off].copy()
    done["version"] += before[~off] + 1
    done["status"], done["end_us"], done["expired"] = STATUS["finished"], stops["end_us"][~off], stops["expired"][~off]
    filed_us = stops["end_us"] + draws.span_us(5 * MINUTE_US, 120 * MINUTE_US, "filed", number, index)
    done["known_us"] = np.maximum(filed_us[~off], done["known_us"] + MINUTE_US)
    return first, np.concatenate([*told, begun, done])


def _bookings(first: Rows, registered_us: Int, draws: Draws, knobs: Knobs, index: Int, planned: Mask, off: Mask) -> list[Rows]:
    """What was told of booked visits before they began: planned, moved, called off."""
    slot, number = first[planned].copy(), first["patient"][planned]
    index, off = index[planned], off[planned]
    lead_us = draws.span_us(DAY_US, 60 * DAY_US, "lead", number, index)
    lead_us = np.minimum(lead_us, slot["event_us"] - registered_us[planned] - HOUR_US)
    start_us = slot["event_us"]
    early_us = np.array([0, 0, 5, 15])[draws.pick((1, 1, 1, 1), "early", number, index)] * MINUTE_US  # some come before their time
    slot["status"], slot["event_us"], slot["known_us"] = STATUS["planned"], start_us + early_us, start_us - lead_us
    moved = draws.chance(knobs.rescheduled, "moved", number, index)
    again = slot[moved].copy()
    again["version"] += 1
    again["known_us"] = (start_us - lead_us * np.array([5, 7, 9])[draws.pick((1, 1, 1), "moved when", number, index)] // 10)[moved]
    by_us = np.array([-50, -9, 3, 170])[draws.pick((1, 1, 1, 1), "moved by", number, index)] * HOUR_US
    slot["event_us"] += np.where(moved, by_us, 0)
    gone = slot[off].copy()
    gone["version"] += 1 + moved[off]
    gone["status"], gone["event_us"] = STATUS["cancelled"], start_us[off]
    gone["known_us"] = (start_us + lead_us * np.array([-4, -2, 1])[draws.pick((1, 1, 1), "called off when", number, index)] // 10)[off]
    return [slot, again, gone]
