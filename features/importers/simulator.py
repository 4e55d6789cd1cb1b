"""Simulated feeds in which facts come late, twice, corrected, taken back, in conflict and under the wrong patient, on purpose.

They prove the pipeline; the clinic behind them is only plausible. One hidden number per patient, the frailty, drives emergency
visits, hospital stays, death, low hemoglobin and albumin and falling weight, so that a model has something to find.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import count
from typing import Any, TypeVar

import numpy as np

from features import event
from features.clinic.scenario import Trouble as Knobs
from features.clock import DAY_US, MINUTE_US, SECOND_US, rfc3339, to_us
from features.errors import InputError

T = TypeVar("T")
Fact = dict[str, Any]
"""One version of a fact: the fields of its event, times as numbers under the names in `TIMES`, None where not given."""
TIMES = {"event_us": "event_time", "known_us": "known_time", "end_us": "end_time"}
LETTER = dict(zip(event.KINDS, "elwoackrdtm", strict=True))  # the first of the ids of each kind
HOUR_US, YEAR_US = 60 * MINUTE_US, 365 * DAY_US
EDGE_SHARE, EDGE_DAYS = 0.08, (0, 5, 30, 90)
"""So many facts are stamped exactly so many days before an encounter of the same patient."""
LABS = (  # code, share of visits, unit, another unit and its factor, mean at frailty 1, change per unit of frailty, spread, limits
    ("718-7", 0.7, "g/dL", "g/dL", 1.0, 13.6, -1.1, 1.1, 4, 25),
    ("4544-3", 0.7, "%", "%", 1.0, 40.8, -3.3, 3.2, 10, 70),
    ("1751-7", 0.5, "g/dL", "g/L", 10.0, 4.2, -0.3, 0.35, 1.5, 5.0),
    ("1975-2", 0.5, "mg/dL", "umol/L", 17.1, 0.6, 0.15, 0.3, 0.3, 1.8),
)
MEDICATIONS = ("308136", "314076", "197361", "860975", "1049221", "312615")
CANCERS, CONDITIONS = ("C509", "C3490", "C189", "C61", "C9000"), ("I10", "E119", "J449", "N189", "I509", "F329")
AT_VISITS = (  # kind, code system, codes, chance of one more
    ("medication_order", "rxnorm", MEDICATIONS, 0.5),
    ("medication_administration", "rxnorm", MEDICATIONS, 0.5),
    ("condition", "icd10cm", CONDITIONS, 0.1),
)


DEFAULT_KNOBS = Knobs()


def events(
    *, patients: int, start: datetime, end: datetime, seed: int, knobs: Knobs = DEFAULT_KNOBS
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a hospital would send about `patients` with known times in [start, end), in the order of known_time.

    At equal known times encounters stand after other facts, as in a log built from history (S3). Persons, coverage and old
    conditions are told on the first day, visits begin on the third. Nobody is merged.

    Args:
        patients: How many; at least 2, so that one can be mistaken for another.
        start: Aware, as `end`; at least 3 days before it.
        seed: Of all random numbers, 0 or more: the same arguments give the same bytes.
        knobs: How much trouble to make.
    Returns:
        Pairs of feed name and event, the event in the JSON form of `features.event`, `known_time` always given.
    Raises:
        InputError: An argument (or a knob, when it is made) breaks its rule.
    Example:
        >>> from datetime import UTC
        >>> told = events(patients=2, start=datetime(2026, 1, 1, tzinfo=UTC), end=datetime(2026, 2, 1, tzinfo=UTC), seed=7)
        >>> sorted({event["patient_id"] for _, event in told})
        ['p000000', 'p000001']
    """
    if patients < 2 or seed < 0 or start.tzinfo is None or end.tzinfo is None or to_us(end) - to_us(start) < 3 * DAY_US:
        raise InputError(f"expected 2 patients or more, seed >= 0, 3 zoned days or more; got {patients}, {seed}, {start} to {end}")
    clinic = _Clinic(patients, -(-to_us(start) // SECOND_US) * SECOND_US, to_us(end), knobs)
    for number in range(patients):
        clinic.live(number, seed)
    told = sorted(clinic.told, key=lambda fact: (fact["known_us"], fact["kind"] == "encounter"))
    return ((event.FEED_OF_KIND[fact["kind"]], _event(fact)) for fact in told)


def _event(fact: Fact) -> dict[str, Any]:
    """The fact in the form of the contract."""
    return {TIMES.get(name, name): rfc3339(x) if name in TIMES else x for name, x in fact.items() if x is not None}


class _Draws:
    """Random numbers, drawn in blocks because single draws are slow. Spans of time are whole seconds."""

    def __init__(self, *key: int) -> None:
        rng = np.random.default_rng(key)
        self.uniform: Callable[[], float] = (x for _ in count() for x in rng.random(256).tolist()).__next__

    def chance(self, share: float) -> bool:
        return self.uniform() < share

    def pick(self, choices: Sequence[T]) -> T:
        return choices[int(self.uniform() * len(choices))]

    def span_us(self, low_us: int, high_us: int) -> int:
        return int(low_us + self.uniform() * (high_us - low_us)) // SECOND_US * SECOND_US

    def exponential_us(self, mean_us: float) -> int:
        return int(-mean_us * math.log1p(-self.uniform())) // SECOND_US * SECOND_US

    def normal(self) -> float:
        return math.sqrt(-2 * math.log1p(-self.uniform())) * math.cos(math.tau * self.uniform())


class _Clinic:
    """Lets patients live one after the other: `care` draws what happens, `trouble` how it is told, so that knobs hardly touch the care."""

    def __init__(self, patients: int, start_us: int, end_us: int, knobs: Knobs) -> None:
        self.patients, self.start_us, self.first_us, self.end_us, self.knobs = patients, start_us, start_us + 2 * DAY_US, end_us, knobs
        self.told: list[Fact] = []
        self._ids: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(1))

    def live(self, patient: int, seed: int) -> None:
        """Registration on the first day, visits until the end or death, death."""
        self.patient, self.care, self.trouble = patient, _Draws(seed, patient, 0), _Draws(seed, patient, 1)
        care, start_us = self.care, self.start_us
        self.frailty = (care.exponential_us(DAY_US) + care.exponential_us(DAY_US)) / (2 * DAY_US)
        self.weight_kg = 78 + 12 * care.normal() - 3 * self.frailty
        self.death_us = self.first_us + min(care.exponential_us(YEAR_US / (0.04 * self.frailty + 1e-3)), 100 * YEAR_US)
        known_us = start_us + care.span_us(0, 20 * HOUR_US)
        birth_us = (start_us - care.span_us(30 * YEAR_US, 95 * YEAR_US)) // DAY_US * DAY_US
        self.fact("person", "birth", "birth", birth_us, known_us)
        self.fact("person", "sex", care.pick(("female", "male")), known_us, known_us)
        self.fact("person", "race", care.pick(("white", "white", "white", "black", "asian", "other")), known_us, known_us)
        for code in ("observed", care.pick(("medicaid", "commercial")))[: 1 + care.chance(0.8)]:
            until_us = known_us + care.span_us(0, YEAR_US) if care.chance(0.15) else None
            self.fact("coverage", "coverage", code, known_us - care.span_us(30 * DAY_US, 900 * DAY_US), known_us, end_us=until_us)
        for codes in [CANCERS] * care.chance(1 / 3) + [CONDITIONS] * int(2 * self.frailty * care.uniform()):
            self.fact("condition", "icd10cm", care.pick(codes), known_us, known_us + care.span_us(0, HOUR_US))
        rates = (3.5 + 1.5 * self.frailty, 0.6 * self.frailty, 0.25 * self.frailty)
        at_us = self.first_us
        while (at_us := at_us + care.exponential_us(YEAR_US / sum(rates))) < min(self.end_us, self.death_us):
            which = care.uniform() * sum(rates) - rates[0]
            self.visit("ambulatory" if which < 0 else "emergency" if which < rates[1] else "inpatient", at_us)
        if self.death_us < self.end_us:
            if care.chance(0.5):
                self.visit("inpatient", self.death_us - care.span_us(HOUR_US, 9 * DAY_US), self.death_us)
            known_us = self.death_us + care.span_us(HOUR_US, 5 * DAY_US)
            self.tell([self.new("death") | {"event_us": self.death_us, "known_us": known_us, "status": "final"}])

    def new(self, kind: str) -> Fact:
        """The beginning of a fact with a new id."""
        return {"kind": kind, "id": f"{LETTER[kind]}{next(self._ids[kind]):06d}", "patient_id": f"p{self.patient:06d}", "version": 1}

    def fact(self, kind: str, code_system: str, code: str, event_us: int, known_us: int, **fields: Any) -> None:
        """Tell a fact with a code; a medication order may be cancelled."""
        fields |= {"event_us": event_us, "known_us": known_us, "status": "final"}
        told = [self.new(kind) | {"code_system": code_system, "code": code} | fields]
        if kind == "medication_order" and self.trouble.chance(self.knobs.cancelled):
            told.append(self.later(told[0], 3 * DAY_US) | {"version": 2, "status": "cancelled"})
        self.tell(told)

    def visit(self, encounter_class: str, start_us: int, end_us: int | None = None, episode: str | None = None) -> None:
        """One visit and what is found and done at it; some have an emergency visit before them, at once or days ago."""
        care, clinic = self.care, encounter_class == "ambulatory"
        start_us -= start_us % (15 * MINUTE_US) if clinic else 0  # so that starts are often equal
        if start_us < self.first_us:
            return
        shortest, longest = {"ambulatory": (20, 60), "emergency": (120, 720)}.get(encounter_class, (1500, 11_000))
        end_us = min(end_us or start_us + care.span_us(shortest * MINUTE_US, longest * MINUTE_US), self.death_us)
        priority = None if clinic else care.pick(("emergency", "urgent"))
        visit = self.new("encounter") | {"encounter_class": encounter_class, "priority": priority}
        visit["episode_id"] = episode = episode or ("s" + visit["id"] if care.chance(0.9) else None)
        if encounter_class == "inpatient" and care.chance(0.5):
            self.visit("emergency", start_us - care.span_us(HOUR_US, 9 * HOUR_US), start_us, episode)
        if clinic and care.chance(EDGE_SHARE):
            self.visit("emergency", start_us - care.pick(EDGE_DAYS) * DAY_US)
        known_us = start_us + care.span_us(MINUTE_US, 10 * MINUTE_US) + self.late_us()
        if not self.attended(visit, start_us, end_us, known_us):
            return
        drawn_us = start_us + (care.span_us(-3 * DAY_US, 0) if care.chance(0.4) else care.span_us(-HOUR_US, 2 * HOUR_US))
        for code, share, unit, si_unit, factor, mean, slope, spread, low, high in LABS:
            if care.chance(share):
                value = mean + slope * (self.frailty - 1) + spread * care.normal()
                comparator = "<" if value < low else ">" if value > high else None
                unit, by = (si_unit, factor) if care.chance(0.15) else (unit, 1.0)
                told = {"episode_id": episode, "unit": unit, "comparator": comparator, "value": round(min(max(value, low), high) * by, 1)}
                self.measured("lab", code, drawn_us, start_us, known_us, told)
        if care.chance(0.8):
            kg = round(max(self.weight_kg - 2 * self.frailty * (start_us - self.first_us) / YEAR_US + care.normal(), 35.0), 1)
            told = {"episode_id": episode, "value": kg, "unit": "kg"}
            self.measured("vital", "29463-7", start_us + 10 * MINUTE_US, start_us, known_us, told)
        for kind, system, codes, more in AT_VISITS:
            while care.chance(more if not clinic else more / 2):
                at_us = start_us + care.span_us(0, 15 * MINUTE_US)
                self.fact(kind, system, care.pick(codes), at_us, at_us + care.span_us(0, 10 * MINUTE_US), episode_id=episode)

    def late_us(self) -> int:
        return DAY_US + MINUTE_US + self.trouble.exponential_us(9 * DAY_US) if self.trouble.chance(self.knobs.late) else 0

    def attended(self, visit: Fact, start_us: int, end_us: int, known_us: int) -> bool:
        """Tell a visit in its versions; whether it took place."""
        trouble, knobs, told, off = self.trouble, self.knobs, list[Fact](), False

        def tell(status: str, event_us: int, known_us: int, **fields: Any) -> None:
            told.append({**visit, "version": len(told) + 1, "status": status, "event_us": event_us, "known_us": known_us, **fields})

        if visit["encounter_class"] == "ambulatory" and trouble.chance(knobs.booked):
            lead_us = min(trouble.span_us(DAY_US, 60 * DAY_US), start_us - self.start_us - DAY_US)
            slot_us = start_us + trouble.pick((0, 0, 5, 15)) * MINUTE_US  # some come early
            moved, off = trouble.chance(knobs.rescheduled), trouble.chance(knobs.cancelled)
            tell("planned", slot_us + moved * trouble.pick((-50, -9, 3, 170)) * HOUR_US, start_us - lead_us)
            if moved:
                tell("planned", slot_us, start_us - lead_us * trouble.pick((5, 7, 9)) // 10)
            if off:
                tell("cancelled", slot_us, start_us + lead_us * trouble.pick((-4, -2, 1)) // 10)
        if not off:
            ahead_us = trouble.span_us(MINUTE_US, 20 * MINUTE_US) if trouble.chance(knobs.future_clock) else 0
            tell("in-progress", known_us + ahead_us if ahead_us else start_us, known_us)
            filed_us = max(end_us + trouble.span_us(5 * MINUTE_US, 120 * MINUTE_US), known_us + MINUTE_US)
            tell("finished", start_us, filed_us, end_us=end_us, expired=end_us == self.death_us)
        self.tell(told)
        return not off

    def measured(self, kind: str, code: str, event_us: int, visit_us: int, visit_known_us: int, fields: Fact) -> None:
        """Tell a result, some twice for one instant: there the ordinal says which is last, not the id."""
        care, trouble, knobs, fields = self.care, self.trouble, self.knobs, dict(fields)
        if care.chance(EDGE_SHARE):  # mostly exactly on the edge, else a microsecond beside it
            event_us, fields["episode_id"] = visit_us - care.pick(EDGE_DAYS) * DAY_US + care.pick((0, 0, 0, -1, 1)), None
        if care.chance(0.01):  # resulted without a number
            fields = {"episode_id": fields["episode_id"]}
        for ordinal in care.pick(((0, 1), (1, 0))) if care.chance(EDGE_SHARE) else (0,):
            twin = {"value": round(fields["value"] + ordinal, 1)} if "value" in fields else {}
            known_us = event_us // SECOND_US * SECOND_US + care.span_us(15 * MINUTE_US, 220 * MINUTE_US)
            before = event_us < visit_known_us < event_us + DAY_US
            known_us = visit_known_us if before and trouble.chance(EDGE_SHARE) else known_us  # filed in the second of the visit
            late_us = self.late_us()
            known_us = visit_known_us + 30 * DAY_US if late_us and before and trouble.chance(0.1) else known_us + late_us
            ahead_us = trouble.pick((MINUTE_US, HOUR_US, DAY_US, 400 * DAY_US)) if trouble.chance(knobs.future_clock) else 0
            if event_us >= self.start_us:
                self.fact(kind, "loinc", code, known_us + ahead_us if ahead_us else event_us, known_us, ordinal=ordinal, **fields | twin)

    def tell(self, told: list[Fact]) -> None:
        """Tell the versions of one fact, after all that can happen to a fact has happened to it."""
        draws, knobs, last = self.trouble, self.knobs, told[-1]
        clinical = last["kind"] not in ("person", "coverage", "death")
        if last["status"] != "cancelled" and draws.chance(knobs.corrected):
            status = {"encounter": last["status"], "lab": "corrected", "vital": "corrected"}.get(last["kind"], "amended")
            told.append(self.altered(self.later(last, 5 * DAY_US)) | {"status": status, "version": last["version"] + 1})
        if draws.chance(knobs.retracted):
            told.append(self.taken_back(told[-1]))
        if len(told) > 1 and draws.chance(knobs.lower_version_late):
            told[0]["known_us"] = self.later(told[1], 6 * HOUR_US)["known_us"]
        if clinical and draws.chance(knobs.wrong_patient):
            other = (self.patient + 1 + int(draws.uniform() * (self.patients - 1))) % self.patients
            wrong = told[0] | {"patient_id": f"p{other:06d}"}
            delay_us, more = draws.span_us(10 * MINUTE_US, 20 * HOUR_US), draws.pick((0, 1))
            told = [fact | {"known_us": fact["known_us"] + delay_us, "version": fact["version"] + more} for fact in told]
            told += [wrong, self.taken_back(wrong)][: draws.pick((1, 2))]  # half of them are taken back there
        claims = [fact for fact in told if clinical and fact.get("status", "entered-in-error") != "entered-in-error"]
        told += [self.altered(self.later(fact, 2 * DAY_US)) for fact in claims if draws.chance(knobs.conflicting)]
        told += [self.later(fact, 2 * DAY_US * draws.pick((0, 1))) for fact in told if draws.chance(knobs.duplicated)]
        self.told += [fact for fact in told if fact["known_us"] < self.end_us]

    def later(self, fact: Fact, most_us: int) -> Fact:
        """The same content, known up to `most_us` later."""
        return fact | {"known_us": fact["known_us"] + (self.trouble.span_us(MINUTE_US, most_us) if most_us else 0)}

    def altered(self, fact: Fact) -> Fact:
        """Other content: mostly another value where there is one, sometimes another class of visit, an earlier time else."""
        if "value" in fact and self.trouble.chance(0.8):
            return fact | {"value": round(fact["value"] * self.trouble.pick((0.6, 0.8, 1.25, 1.4)), 2), "comparator": None}
        if "encounter_class" in fact and self.trouble.chance(0.3):
            return fact | {"encounter_class": "virtual" if fact["encounter_class"] == "observation" else "observation"}
        unit_us = DAY_US if fact["kind"] == "person" else MINUTE_US
        return fact | {"event_us": fact["event_us"] - self.trouble.pick(range(1, 60)) * unit_us}

    def taken_back(self, fact: Fact) -> Fact:
        """The next version, which says that the fact was never true: by its status or on the feed of retractions."""
        fact = self.later(fact, 10 * DAY_US) | {"version": fact["version"] + 1, "status": "entered-in-error"}
        if self.trouble.chance(0.5):
            return fact
        kept = {name: fact[name] for name in ("id", "patient_id", "version", "known_us")}
        return {"kind": "retraction", "target_kind": fact["kind"], **kept, "event_us": fact["known_us"]}
