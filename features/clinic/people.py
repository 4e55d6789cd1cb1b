"""Who the patients are: frailty, sex, race, cover, cancer and comorbidities, site, and when each one enrols.

Frailty is a standard normal number that nobody sees; comorbidities, metastases, laboratory values and weight all hang on it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from features.clinic.draws import Draws, Float, Int, Mask
from features.clinic.scenario import Scenario
from features.clock import DAY_US
from features.errors import InputError

SEXES, SEX_SHARES = ("female", "male"), (0.53, 0.47)
RACES, RACE_SHARES = ("white", "black", "asian", "other"), (0.86, 0.04, 0.04, 0.06)
ETHNICITIES, ETHNICITY_SHARES = ("hispanic", "not-hispanic"), (0.08, 0.92)
COVERS, COVER_SHARES = ("medicaid", "medicare", "commercial"), (0.12, 0.48, 0.40)
ATTRIBUTES = {"sex": SEXES, "race": RACES, "ethnicity": ETHNICITIES, "cover": COVERS}
CANCERS = (  # ICD-10-CM, share, log hazard, share with metastases at mean frailty
    ("C50911", 0.20, -0.10, 0.15),
    ("C61", 0.13, -0.10, 0.15),
    ("C3490", 0.11, 0.25, 0.45),
    ("C8580", 0.09, 0.05, 0.00),
    ("C9000", 0.08, 0.10, 0.00),
    ("C189", 0.08, 0.05, 0.30),
    ("C259", 0.05, 0.30, 0.50),
    ("C569", 0.05, 0.10, 0.35),
    ("C439", 0.06, -0.10, 0.20),
    ("C679", 0.05, 0.05, 0.15),
    ("C9200", 0.04, 0.25, 0.00),
    ("C76", 0.06, 0.05, 0.30),
)
METASTASES = ("C787", "C7951", "C7931")
CONDITIONS = (  # ICD-10-CM, share at mean frailty, log hazard
    ("I10", 0.40, 0.00),
    ("E119", 0.15, 0.06),
    ("J449", 0.12, 0.14),
    ("I509", 0.07, 0.18),
    ("N183", 0.09, 0.12),
    ("I252", 0.05, 0.10),
    ("I639", 0.04, 0.10),
    ("K7460", 0.03, 0.15),
    ("F329", 0.15, 0.00),
)
FRAILTY, METASTATIC, MEDICAID, TREATED, AGE_DECADE = 0.51, 0.25, 0.20, 0.20, 0.03
"""Log hazard per unit: of frailty, and of each of the others."""
GONE_DAILY = 1 / 900 + 1 / 3000
"""About what share leaves or dies on a day: so many enrol, which keeps the panel as large as it was."""
VISITS_DAILY, VISITS_SPREAD = 0.053, 0.45


@dataclass(frozen=True)
class People:
    """Columns of shape (n,)."""

    number: Int
    enrol_day: Int
    """Day of the calendar, from 0."""
    frailty: Float
    sex: Int
    race: Int
    ethnicity: Int
    cover: Int
    cancer: Int
    site: Int
    """From 1."""
    age_days: Int
    """At the start of the calendar."""
    metastatic: Mask
    treated: Mask
    """Gets chemotherapy at visits."""
    conditions: Mask
    """Shape (n, kinds): whether they have each of `CONDITIONS`."""
    log_hazard: Float
    """Of an emergency visit, a day, of a patient who is well and was not there lately; without weekday and change."""
    visits_daily: Float
    """Ambulatory visits on a weekday while well."""
    falls_ill_daily: Float
    """Chance of an episode of illness to begin."""

    def at(self, who: Int) -> People:
        """The people at these places, again and again if need be."""
        return People(**{name.name: getattr(self, name.name)[who] for name in fields(self)})

    def words(self, attribute: str) -> list[str]:
        """The word of each for sex, race, ethnicity or cover."""
        return [ATTRIBUTES[attribute][k] for k in getattr(self, attribute).tolist()]

    def group(self, word: str) -> Mask:
        """Who belongs to a group: a word for sex, race, ethnicity or cover, or `site-1` and so on.

        Raises:
            InputError: there is no such group.
        """
        member: Mask
        for attribute, codes in ATTRIBUTES.items():
            if word in codes:
                member = getattr(self, attribute) == codes.index(word)
                return member
        if word.startswith("site-") and word[5:].isdigit():
            member = self.site == int(word[5:])
            return member
        raise InputError(f"group {word} is not known; expected one of {', '.join(groups())}, site-1 …")


def groups() -> tuple[str, ...]:
    """The words for groups of patients, without the sites."""
    return tuple(word for codes in ATTRIBUTES.values() for word in codes)


def make(numbers: Int, draws: Draws, scenario: Scenario, *, start_us: int, days: int) -> People:
    """The patients with these numbers: who one is depends on the number, the seed and the calendar alone.

    Most are there on the first day; as many as leave or die enrol later, evenly over the calendar.

    Args:
        numbers: Patient numbers, shape (n,).
        draws: Chance.
        scenario: Sites, case mix and bias.
        start_us: Midnight of the first day.
        days: Length of the calendar.
    """
    n = len(numbers)
    gone = GONE_DAILY * days
    enrol_day = np.floor((draws.uniform("enrol", numbers) * (1 + 1 / gone) - 1 / gone) * (days - 1)).clip(min=0).astype(np.int64)
    frailty = draws.normal("frailty", numbers)
    for change in scenario.case_mix:
        frailty = frailty + change.value * (start_us + enrol_day * DAY_US >= change.from_us)
    cancer = draws.pick([c[1] for c in CANCERS], "cancer", numbers)
    spread = np.array([c[3] for c in CANCERS])[cancer]
    metastatic = draws.chance(spread * np.exp(0.5 * frailty - 0.125), "metastatic", numbers)
    treated = draws.chance(0.45, "treated", numbers)
    conditions = np.zeros((n, len(CONDITIONS)), bool)
    for k, (_, share, _) in enumerate(CONDITIONS):
        conditions[:, k] = draws.chance(share * np.exp(0.5 * frailty - 0.125), "condition", numbers, k)
    cover = draws.pick(COVER_SHARES, "cover", numbers)
    age_days = ((65 + 12 * draws.normal("age", numbers)).clip(20, 95) * 365.25).astype(np.int64)
    log_hazard = (
        FRAILTY * frailty
        + np.array([c[2] for c in CANCERS])[cancer]
        + METASTATIC * metastatic
        + MEDICAID * (cover == COVERS.index("medicaid"))
        + TREATED * treated
        + AGE_DECADE * (age_days / 3652.5 - 6.5)
        + conditions @ np.array([c[2] for c in CONDITIONS])
    )
    own = VISITS_SPREAD * draws.normal("visits", numbers) - VISITS_SPREAD**2 / 2
    return People(
        number=numbers,
        enrol_day=enrol_day,
        frailty=frailty,
        sex=draws.pick(SEX_SHARES, "sex", numbers),
        race=draws.pick(RACE_SHARES, "race", numbers),
        ethnicity=draws.pick(ETHNICITY_SHARES, "ethnicity", numbers),
        cover=cover,
        cancer=cancer,
        site=1 + np.floor(draws.uniform("site", numbers) * scenario.sites).astype(np.int64),
        age_days=age_days,
        metastatic=metastatic,
        treated=treated,
        conditions=conditions,
        log_hazard=log_hazard,
        visits_daily=scenario.volume * VISITS_DAILY * np.exp(own + 0.12 * frailty + 0.35 * treated),
        falls_ill_daily=np.minimum(0.1, 0.008 * np.exp(0.45 * frailty)),
    )
