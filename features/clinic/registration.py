"""What is told of a patient apart from visits: who it is, old diagnoses, cover, observation from enrolment on, death."""

from __future__ import annotations

import numpy as np

from features.clinic import rows
from features.clinic.draws import Draws, Int
from features.clinic.illness import Course
from features.clinic.people import CANCERS, CONDITIONS, COVERS, ETHNICITIES, METASTASES, RACES, SEXES, People
from features.clinic.rows import CODE, STATUS, Rows
from features.clock import DAY_US, HOUR_US, NEVER_US

COVER_ENDS = 0.15


def facts(people: People, course: Course, draws: Draws, *, start_us: int) -> tuple[list[Rows], Rows, Rows]:
    """(facts told once, `observed` when it begins, the versions that end it), the last two in the order of the patients."""
    number, known_us = people.number, course.registered_us
    birth_us = start_us - people.age_days * DAY_US
    told = [rows.new("person", number, event_us=birth_us, known_us=known_us, code=CODE["birth", "birth"])]
    for system, codes, column in (
        ("sex", SEXES, people.sex),
        ("race", RACES, people.race),
        ("ethnicity", ETHNICITIES, people.ethnicity),
    ):
        code = np.array([CODE[system, c] for c in codes])[column]
        told.append(rows.new("person", number, event_us=known_us, known_us=known_us, code=code))
    told += _conditions(people, known_us, draws)
    until_us = known_us + draws.span_us(0, 365 * DAY_US, "cover until", number)
    told.append(
        rows.new(
            "coverage",
            number,
            event_us=known_us - draws.span_us(30 * DAY_US, 900 * DAY_US, "cover since", number),
            known_us=known_us,
            code=np.array([CODE["coverage", c] for c in COVERS])[people.cover],
            end_us=np.where(draws.chance(COVER_ENDS, "cover ends", number), until_us, NEVER_US),
        )
    )
    told.append(_deaths(people, course, draws))
    observed = rows.new("coverage", number, event_us=known_us, known_us=known_us, code=CODE["coverage", "observed"])
    observed["fact"] = np.arange(len(number))
    left = course.left_us < NEVER_US
    ended = observed[left].copy()
    ended["version"], ended["status"], ended["end_us"] = 2, STATUS["amended"], course.left_us[left]
    ended["known_us"] = course.left_us[left] + draws.span_us(HOUR_US, 5 * DAY_US, "left known", number[left])
    return told, observed, ended


def _conditions(people: People, known_us: Int, draws: Draws) -> list[Rows]:
    """Cancer, metastases and comorbidities, told within the hour of the registration."""
    cancers, others = (np.array([CODE["icd10cm", row[0]] for row in table]) for table in (CANCERS, CONDITIONS))
    spread = np.array([CODE["icd10cm", c] for c in METASTASES])[draws.pick((1,) * len(METASTASES), "metastasis", people.number)]
    who, k = np.nonzero(people.conditions)
    every = [(np.arange(len(known_us)), cancers[people.cancer]), (np.flatnonzero(people.metastatic), spread[people.metastatic])]
    told = []
    for kind, (patient, code) in enumerate([*every, (who, others[k])]):
        index = 100 * kind + np.asarray(code)
        told_us = known_us[patient] + draws.span_us(0, HOUR_US, "condition told", people.number[patient], index)
        told.append(rows.new("condition", people.number[patient], event_us=known_us[patient], known_us=told_us, code=code))
    return told


def _deaths(people: People, course: Course, draws: Draws) -> Rows:
    died = course.death_us < NEVER_US
    number, death_us = people.number[died], course.death_us[died]
    return rows.new("death", number, event_us=death_us, known_us=death_us + draws.span_us(HOUR_US, 5 * DAY_US, "death known", number))
