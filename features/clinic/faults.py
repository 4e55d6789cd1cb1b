"""How the feeds tell what happened: late, twice, corrected, taken back, in conflict, under the wrong patient, or not at all.

Chance here hangs on the fact, never on the care, so that a knob changes what is told and not what is true.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.clinic import rows
from features.clinic.draws import Draws, Float, Int, Mask
from features.clinic.rows import CLASSES, CODE, KIND, STATUS, Rows
from features.clinic.scenario import Knobs, Scenario
from features.clock import DAY_US, HOUR_US, MINUTE_US, SECOND_US
from features.event import FEED_OF_KIND

ABOUT_PERSONS = [KIND[kind] for kind in ("person", "coverage", "death")]
CORRECTED = {"encounter": None, "lab": "corrected", "vital": "corrected"}
"""The status of a corrected version where it is not `amended`; None: that of the version before."""
_PRIME = np.uint64(0x100000001B3)


@dataclass(frozen=True)
class _Trouble:
    """Chance for rows."""

    draws: Draws
    knobs: Knobs

    def hit(self, told: Rows, knob: str) -> Mask:
        return self.draws.chance(getattr(self.knobs, knob), "fault " + knob, told["owner"], _index(told))

    def uniform(self, told: Rows, purpose: str) -> Float:
        return self.draws.uniform("fault " + purpose, told["owner"], _index(told))

    def later(self, told: Rows, most_us: int, purpose: str, share: float = 1.0) -> Rows:
        """Copies that are known up to `most_us` later, all or a share of them."""
        told = told.copy()
        told["key"] = told["key"] * _PRIME + np.uint64(1)
        span_us = (MINUTE_US + self.uniform(told, purpose) * (most_us - MINUTE_US)).astype(np.int64) // SECOND_US * SECOND_US
        told["known_us"] += np.where(self.uniform(told, purpose + " at all") < share, span_us, 0)
        return told

    def altered(self, told: Rows) -> Rows:
        """Other content: mostly another value where there is one, sometimes another class of visit, an earlier time else. In place."""
        how, by = self.uniform(told, "altered how"), self.uniform(told, "altered by")
        value = ~np.isnan(told["value"]) & (how < 0.8)
        factor = np.array([0.85, 0.95, 1.05, 1.15])[(4 * by).astype(np.int64)]
        told["value"][value] = np.round(told["value"] * factor, 2)[value]
        told["comparator"][value] = 0
        other_class = (told["encounter_class"] > 0) & (how < 0.3)
        observed, virtual = CLASSES.index("observation"), CLASSES.index("virtual")
        told["encounter_class"][other_class] = np.where(told["encounter_class"] == observed, virtual, observed)[other_class]
        unit_us = np.where(told["kind"] == KIND["person"], DAY_US, MINUTE_US)
        told["event_us"] -= np.where(value | other_class, 0, (1 + np.floor(59 * by).astype(np.int64)) * unit_us)
        return told

    def taken_back(self, told: Rows) -> Rows:
        """The next version, which says that the fact was never true: by its status, or on the feed of retractions."""
        told = self.later(told, 10 * DAY_US, "taken back when")
        told["version"] += 1
        told["status"] = STATUS["entered-in-error"]
        feed = self.uniform(told, "taken back how") < 0.5
        some = told[feed]
        back = rows.new("retraction", some["patient"], event_us=some["known_us"], known_us=some["known_us"])
        for name in ("fact", "key", "number", "owner", "version"):
            back[name] = some[name]
        back["status"], back["target"] = 0, some["kind"]
        told[feed] = back
        return told


def _index(told: Rows) -> Int:
    index: Int = told["key"].astype(np.int64)
    return index


def tell(told: Rows, draws: Draws, knobs: Knobs, *, patients: int) -> Rows:
    """All that is sent about facts.

    Args:
        told: Their versions, sorted by fact and version.
        draws: Chance.
        knobs: How much trouble.
        patients: How many there are: a fact may be filed under the neighbour.
    """
    trouble = _Trouble(draws, knobs)
    told["key"] = (told["kind"].astype(np.uint64) << np.uint64(40)) | (told["number"] << 16 | told["version"]).astype(np.uint64)
    told = _revised(told, trouble)
    told = _misfiled(told, trouble, patients)
    clinical = ~np.isin(told["kind"], ABOUT_PERSONS)
    claims = told[clinical & (told["status"] != STATUS["entered-in-error"]) & (told["status"] > 0)]
    claims = claims[trouble.hit(claims, "conflicting")]
    told = np.concatenate([told, trouble.altered(trouble.later(claims, 2 * DAY_US, "conflict when"))])
    again = told[trouble.hit(told, "duplicated")]
    return np.concatenate([told, trouble.later(again, 2 * DAY_US, "again when", share=0.5)])


def cancelled(told: Rows, draws: Draws, knobs: Knobs) -> Rows:
    """Second versions of some medication orders, which call them off."""
    orders: Rows = told[told["kind"] == KIND["medication_order"]]
    orders = orders[draws.chance(knobs.cancelled, "fault cancelled", orders["owner"], orders["number"])]
    orders["version"], orders["status"] = 2, STATUS["cancelled"]
    orders["known_us"] += draws.span_us(MINUTE_US, 3 * DAY_US, "fault cancelled when", orders["owner"], orders["number"])
    return orders


def _revised(told: Rows, trouble: _Trouble) -> Rows:
    """Corrections, retractions, and first versions that come after the second."""
    last = told[np.append(told["fact"][1:] != told["fact"][:-1], True)]
    fixed = last[trouble.hit(last, "corrected") & (last["status"] != STATUS["cancelled"])]
    fixed = trouble.altered(trouble.later(fixed, 5 * DAY_US, "corrected when"))
    fixed["version"] += 1
    for kind, number in KIND.items():
        of_kind, status = fixed["kind"] == number, CORRECTED.get(kind, "amended")
        if status is not None:
            fixed["status"][of_kind] = STATUS[status]
    told = _by_fact(np.concatenate([told, fixed]))
    last = told[np.append(told["fact"][1:] != told["fact"][:-1], True)]
    told = _by_fact(np.concatenate([told, trouble.taken_back(last[trouble.hit(last, "retracted")])]))
    first = np.flatnonzero(np.append(True, told["fact"][1:] != told["fact"][:-1])[:-1] & (told["fact"][1:] == told["fact"][:-1]))
    first = first[trouble.hit(told[first], "lower_version_late")]
    told["known_us"][first] = trouble.later(told[first + 1], 6 * HOUR_US, "lower when")["known_us"]
    return told


def _by_fact(told: Rows) -> Rows:
    order = np.lexsort((told["version"], told["fact"]))
    return told[order]


def _misfiled(told: Rows, trouble: _Trouble, patients: int) -> Rows:
    """Facts that are first told under the patient with the neighbouring number; half of them are taken back there."""
    begins = np.append(True, told["fact"][1:] != told["fact"][:-1])
    wrong = told[begins & ~np.isin(told["kind"], ABOUT_PERSONS)]
    wrong = wrong[trouble.hit(wrong, "wrong_patient")]
    neighbour = wrong["patient"] ^ 1
    home = wrong["patient"].copy()
    wrong["patient"] = np.where(neighbour < patients, neighbour, home - 1)
    back = wrong[trouble.uniform(wrong, "wrong and back") < 0.5]
    at = np.searchsorted(wrong["fact"], told["fact"]) if len(wrong) else np.zeros(len(told), np.int64)
    mine = np.zeros(len(told), bool)
    if len(wrong):
        at = np.minimum(at, len(wrong) - 1)
        mine = wrong["fact"][at] == told["fact"]
        delay_us = (10 * MINUTE_US + trouble.uniform(wrong, "wrong for") * 20 * HOUR_US).astype(np.int64) // SECOND_US * SECOND_US
        told["known_us"] += np.where(mine, delay_us[at], 0)
        told["version"] += mine & (trouble.uniform(wrong, "wrong version") < 0.5)[at]
    return np.concatenate([told, wrong, trouble.taken_back(back)])


def merged(told: Rows, draws: Draws, knobs: Knobs, *, registered_us: Int, gone_us: Int, first: int, end_us: int) -> Rows:
    """Visits told under a second id, and the merges that say so.

    Args:
        told: All rows of the patients `first`, `first` + 1, …
        draws: Chance.
        knobs: Share of patients with a second id.
        registered_us: When each patient was registered, shape (n,); `gone_us`: when they died or left.
        first: Number of the first of these patients.
        end_us: End of the calendar.
    """
    number = first + np.arange(len(registered_us))
    two = draws.chance(knobs.merges, "merge", number)
    until_us = np.minimum(gone_us, end_us)
    found_us = registered_us + (until_us - registered_us) // 10 * (3 + draws.pick((1,) * 5, "merge when", number))
    of = np.clip(told["owner"] - first, 0, len(number) - 1)
    care = ~np.isin(told["kind"], ABOUT_PERSONS) & ~np.isin(told["target"], ABOUT_PERSONS) & (told["patient"] == told["owner"])
    half = draws.chance(0.5, "merge visit", told["owner"], told["episode"] + 1) & (told["episode"] >= 0)
    told["second_id"] = two[of] & care & half & (told["known_us"] < found_us[of])
    merge = rows.new("merge", number[two], event_us=found_us[two], known_us=found_us[two])
    merge["number"], merge["status"] = 1, 0
    return np.concatenate([told, merge])


def broken(told: Rows, draws: Draws, scenario: Scenario) -> Rows:
    """What is left of the rows when feeds fell silent or lost half, with hemoglobin in another unit where a site changed it."""
    for change in scenario.unit_change:
        grams = (told["code"] == CODE["loinc", "718-7"]) & (told["site"] == change.value) & (told["known_us"] >= change.from_us)
        told["value"][grams] = np.round(told["value"][grams] * 10, 1)
    lost = np.zeros(len(told), bool)
    for outages, share in ((scenario.silent, 1.0), (scenario.half_lost, 0.5)):
        for outage in outages:
            of_feed = told["kind"] == next(KIND[kind] for kind, feed in FEED_OF_KIND.items() if feed == outage.feed)
            during = (told["known_us"] >= outage.from_us) & (told["known_us"] < outage.until_us)
            index = _index(told) + told["known_us"]
            lost |= of_feed & during & draws.chance(share, "lost", told["owner"], index)
    return told[~lost]
