"""What is found and done at a stop: laboratory panels, weight, orders, doses, diagnoses.

Laboratory values and weight hang on frailty and on the illness of that day, so that a model has something to find; panels are drawn
more often from the sick.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.clinic import rows
from features.clinic.draws import Draws, Float, Int, Mask
from features.clinic.illness import AMBULATORY, DRAW, Stops
from features.clinic.people import CANCERS, CONDITIONS, People
from features.clinic.rows import CODE, COMPARATORS, DOSES, MEDICATIONS, UNITS, Rows
from features.clinic.scenario import Knobs
from features.clock import DAY_US, HOUR_US, MINUTE_US, SECOND_US

EDGE_SHARE = 0.08
EDGE_DAYS, BESIDE_US = (5, 30, 90), np.array([0, 0, 0, -1, 1])
"""Windows of so many days end at a visit: facts lie on their edges or a microsecond beside them."""
PANEL_OF_STATE = np.array([0.65, 0.90, 0.95, 0.95])
"""Chance of a panel at an ambulatory visit; at others `PANEL`."""
PANEL, WEIGHED, NO_NUMBER, OTHER_UNIT, LATE_DAYS = 0.95, 0.8, 0.01, 0.15, 9


@dataclass(frozen=True)
class Analyte:
    """How a laboratory value comes about: mean + slopes · what is true + spread, at last rounded to a tenth."""

    code: str
    panel: int
    """Drawn together with the others of its panel."""
    unit: str
    other_unit: str
    factor: float
    mean: float
    of_frailty: float
    of_state: tuple[float, float, float, float]
    own: float
    """Spread between patients that nothing explains."""
    spread: float
    limits: tuple[float, float]
    """What the laboratory measures."""
    exponent: bool = False
    """The value is the exponential of that."""


ANALYTES = (
    Analyte("718-7", 0, "g/dL", "g/dL", 1.0, 12.9, -0.85, (0, -0.5, -1.0, -1.1), 0.10, 0.25, (5, 19)),
    Analyte("4544-3", 0, "%", "%", 1.0, 38.6, -2.55, (0, -1.5, -3.0, -3.3), 0.35, 0.75, (15, 58)),
    Analyte("1751-7", 1, "g/dL", "g/L", 10.0, 4.0, -0.26, (0, -0.15, -0.35, -0.40), 0.04, 0.07, (1.5, 5.0)),
    Analyte("1975-2", 1, "mg/dL", "umol/L", 17.1, -0.65, 0.08, (0, 0.75, 1.25, 1.10), 0.06, 0.12, (0.4, 2.5), exponent=True),
)
PANELS = (0.92, 0.88)
"""Chance of blood count and chemistry, where blood is drawn."""


@dataclass(frozen=True)
class Scene:
    """Stops that took place and what goes with them; columns of shape (n,)."""

    stops: Stops
    people: People
    number: Int
    """Patient of each."""
    index: Int
    """Tells the stops of a patient apart."""
    known_us: Int
    """When the stop itself was told."""
    episode: Int
    draws: Draws
    knobs: Knobs

    def part(self, mask: Mask | Int) -> Scene:
        """Some of the stops."""
        columns = (self.number[mask], self.index[mask], self.known_us[mask], self.episode[mask])
        return Scene(self.stops[mask], self.people, *columns, self.draws, self.knobs)

    def chance(self, share: Float | float, purpose: str) -> Mask:
        return self.draws.chance(share, purpose, self.number, self.index)

    def span_us(self, low_us: int, high_us: int, purpose: str) -> Int:
        return self.draws.span_us(low_us, high_us, purpose, self.number, self.index)


def labs(scene: Scene) -> list[Rows]:
    """Results of the panels drawn at the stops."""
    kind, state = scene.stops["kind"], scene.stops["state"]
    share = np.where(kind == AMBULATORY, PANEL_OF_STATE[state], np.where(kind == DRAW, 1.0, PANEL))
    drawn = scene.part(scene.chance(share, "panel") & ~scene.chance(scene.knobs.missing, "panel missing"))
    time_us = _drawn_us(drawn)
    found = []
    for analyte in ANALYTES:
        has = drawn.chance(PANELS[analyte.panel], f"panel {analyte.panel}")
        found += _results(drawn.part(has), analyte, time_us[has])
    return found


def _drawn_us(scene: Scene) -> Int:
    """When blood was drawn: some exactly at the start of the visit or a microsecond beside it, most in the hours before."""
    start_us = scene.stops["start_us"]
    clinic = scene.stops["kind"] == AMBULATORY
    how = scene.draws.uniform("drawn when", scene.number, scene.index)
    beside = BESIDE_US[scene.draws.pick((1,) * 5, "drawn beside", scene.number, scene.index)]
    early, after = scene.span_us(-4 * HOUR_US, -MINUTE_US, "drawn before"), scene.span_us(0, 90 * MINUTE_US, "drawn after")
    offset_us = np.where(how < 0.15, beside, np.where(clinic & (how < 0.8), early, after))
    return np.where(scene.stops["kind"] == DRAW, start_us, np.minimum(start_us + offset_us, scene.stops["end_us"]))


def _results(scene: Scene, analyte: Analyte, drawn_us: Int) -> list[Rows]:
    """One analyte of panels; a few have a second result at the same instant: the ordinal says which is last, not the id."""
    who, draws = scene.stops["who"], scene.draws
    value = analyte.mean + analyte.of_frailty * scene.people.frailty[who] + np.array(analyte.of_state)[scene.stops["state"]]
    value += analyte.own * draws.normal(f"own {analyte.code}", scene.number) + analyte.spread * draws.normal(
        f"value {analyte.code}", scene.number, scene.index
    )
    if analyte.code in ("718-7", "4544-3"):
        value += np.where(scene.people.sex[who] == 1, 0.02, -0.02) * analyte.mean
    if analyte.exponent:
        value = np.exp(value)
    low, high = analyte.limits
    comparator = np.where(value < low, COMPARATORS.index("<"), np.where(value > high, COMPARATORS.index(">"), 0))
    other = scene.chance(OTHER_UNIT if analyte.factor != 1 else 0.0, f"unit {analyte.code}")
    shown = np.round(value.clip(low, high) * np.where(other, analyte.factor, 1.0), 1)
    unit = np.where(other, UNITS.index(analyte.other_unit), UNITS.index(analyte.unit))
    result = _measured(scene, "lab", analyte.code, drawn_us, shown, unit, comparator)
    swapped = scene.chance(0.5, f"swapped {analyte.code}")
    twice = scene.chance(EDGE_SHARE, f"twice {analyte.code}")
    result["ordinal"] = twice & swapped
    again = result[twice].copy()
    again["ordinal"] = 1 - again["ordinal"]
    again["value"] = np.round(again["value"] + 0.1, 1)
    apart = scene.chance(scene.knobs.second, f"apart {analyte.code}")
    again["known_us"] += np.where(apart, scene.span_us(MINUTE_US, 3 * DAY_US, f"apart by {analyte.code}"), 0)[twice]
    return [result, again]


def weights(scene: Scene) -> Rows:
    """Weight, ten minutes into a visit: less with illness, slowly less with frailty."""
    share = np.where(scene.stops["kind"] == DRAW, 0.0, WEIGHED)
    scene = scene.part(scene.chance(share, "weighed") & ~scene.chance(scene.knobs.missing, "weight missing"))
    who, draws = scene.stops["who"], scene.draws
    people = scene.people
    own = 74 + 12 * draws.normal("weight", scene.number) + 8 * (people.sex[who] == 1) - 2 * people.frailty[who]
    wasting = 0.008 * np.exp(0.5 * people.frailty[who]) * np.minimum(scene.stops["day"] - people.enrol_day[who], 365)
    kg = own - scene.stops["lost_kg"] - wasting + 0.4 * draws.normal("scales", scene.number, scene.index)
    time_us = np.minimum(scene.stops["start_us"] + 10 * MINUTE_US, scene.stops["end_us"])
    unit, none = np.full(len(kg), UNITS.index("kg")), np.zeros(len(kg), np.int64)
    return _measured(scene, "vital", "29463-7", time_us, np.round(kg.clip(35, 200), 1), unit, none)


def _measured(scene: Scene, kind: str, code: str, event_us: Int, value: Float, unit: Int, comparator: Int) -> Rows:
    """Results with the times at which they were filed: some in the second in which the visit was told, some late."""
    knobs, about = scene.knobs, f"of {code}"
    event_us, episode = _on_edges(scene, event_us, about)
    known_us = event_us // SECOND_US * SECOND_US + scene.span_us(15 * MINUTE_US, 220 * MINUTE_US, "filed " + about)
    before = (event_us < scene.known_us) & (scene.known_us < event_us + DAY_US)
    known_us = np.where(before & scene.chance(EDGE_SHARE, "filed with the visit " + about), scene.known_us, known_us)
    late = scene.chance(knobs.late, "late " + about)
    mean_us = scene.draws.exponential(LATE_DAYS * DAY_US, "late by " + about, scene.number, scene.index)
    late_us = np.where(late, DAY_US + MINUTE_US + mean_us.astype(np.int64) // SECOND_US * SECOND_US, 0)
    month = late & before & scene.chance(0.1, "a month late " + about)
    known_us = np.where(month, scene.known_us + 30 * DAY_US, known_us + late_us)
    ahead = scene.chance(knobs.future_clock, "clock ahead " + about)
    by_us = np.array([MINUTE_US, HOUR_US, DAY_US, 400 * DAY_US])[scene.draws.pick((1,) * 4, "clock by " + about, scene.number, scene.index)]
    number = scene.chance(1 - NO_NUMBER, "number " + about)
    return rows.new(
        kind,
        scene.number,
        event_us=np.where(ahead, known_us + by_us, event_us),
        known_us=known_us,
        code=CODE["loinc", code],
        episode=episode,
        value=np.where(number, value, np.nan),
        unit=np.where(number, unit, 0),
        comparator=np.where(number, comparator, 0),
        site=scene.people.site[scene.stops["who"]],
    )


def _on_edges(scene: Scene, event_us: Int, about: str) -> tuple[Int, Int]:
    """(times, episodes) of results: some belong to no visit and lie exactly so many days before the one at which they were found."""
    days = np.array(EDGE_DAYS)[scene.draws.pick((1,) * len(EDGE_DAYS), "edge at " + about, scene.number, scene.index)]
    beside = BESIDE_US[scene.draws.pick((1,) * len(BESIDE_US), "edge beside " + about, scene.number, scene.index)]
    there = scene.stops["day"] - days > scene.people.enrol_day[scene.stops["who"]]
    edge = there & (scene.stops["kind"] != DRAW) & scene.chance(scene.knobs.edges, "edge " + about)
    return np.where(edge, scene.stops["start_us"] - days * DAY_US + beside, event_us), np.where(edge, -1, scene.episode)


def care(scene: Scene) -> list[Rows]:
    """Orders, doses and diagnoses at visits."""
    scene = scene.part(scene.stops["kind"] != DRAW)
    clinic, sick = scene.stops["kind"] == AMBULATORY, scene.stops["state"] > 0
    treated = scene.people.treated[scene.stops["who"]]
    shares = {
        "medication_order": np.where(clinic, np.where(sick, 0.40, 0.25), 0.50),
        "medication_administration": np.where(clinic, np.where(treated, 0.60, 0.02), 0.50),
        "condition": np.where(clinic, 0.05, 0.10),
    }
    return [_done(scene, kind, share) for kind, share in shares.items()]


def _done(scene: Scene, kind: str, share: Float) -> Rows:
    """So many of a kind that `share` is the chance of each next one."""
    u = scene.draws.uniform(f"how many {kind}", scene.number, scene.index)
    many = np.floor(np.log1p(-u) / np.log(share)).clip(max=5).astype(np.int64)
    nth = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    every = scene.part(np.repeat(np.arange(len(many)), many))
    index = every.index * 8 + nth
    at_us = every.stops["start_us"] + scene.draws.span_us(0, 15 * MINUTE_US, f"when {kind}", every.number, index)
    at_us = np.minimum(at_us, every.stops["end_us"])
    known_us = at_us + scene.draws.span_us(0, 10 * MINUTE_US, f"known {kind}", every.number, index)
    if kind == "condition":
        k = scene.draws.pick((1,) * len(CONDITIONS), kind, every.number, index)
        has = every.people.conditions[every.stops["who"], k]
        cancer = np.array([CODE["icd10cm", row[0]] for row in CANCERS])[every.people.cancer[every.stops["who"]]]
        code = np.where(has, np.array([CODE["icd10cm", row[0]] for row in CONDITIONS])[k], cancer)
    else:
        codes = MEDICATIONS if kind == "medication_order" else DOSES
        code = np.array([CODE["rxnorm", c] for c in codes])[scene.draws.pick((1,) * len(codes), kind, every.number, index)]
    return rows.new(kind, every.number, event_us=at_us, known_us=known_us, code=code, episode=every.episode)
