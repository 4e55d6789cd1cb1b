"""Generated histories, questions and use cases: small pools and a coarse grid of times, so that edges, ties and repeats do meet."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple, TypeVar

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from features import codes, fact, history, revision, usecase
from features.catalog import AGGREGATES
from features.clock import DAY_US, MINUTE_US, SECOND_US
from features.history import Histories
from features.usecase import UseCase
from tests.oracle.revision import Issued

_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
settings.register_profile("premonitor", max_examples=150, deadline=None, print_blob=True, suppress_health_check=_SLOW)
settings.register_profile("thorough", settings.get_profile("premonitor"), max_examples=5_000)
settings.register_profile(
    "mutants",
    settings.get_profile("premonitor"),
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
)
CHECKED = settings.get_profile(os.environ.get("PREMONITOR_HYPOTHESIS", "premonitor"))
"""Decorates every property test: local, so that no test depends on which module was imported first."""

BOOK = codes.codebook()
HOUR_US = 60 * MINUTE_US
T_US = 1_777_798_800 * SECOND_US
"""2026-05-03 09:00 UTC."""
STARTS = [T_US, T_US + DAY_US, T_US + 30 * DAY_US]
LENGTHS = [float(2 * DAY_US), 0.0, math.nan]
_LATER = [0, 4 * HOUR_US, 2 * DAY_US]
INDEX_TIMES = [start + later for start, later in product(STARTS, _LATER)]
EVENT_TIMES = [t - days * DAY_US + beside for days, t, beside in product((0, 1, 5, 30, 90), INDEX_TIMES, (0, -1, 1))]
"""Every window edge of every index time, and one microsecond on both sides of it."""
LONG_AGO_US = -60 * 365 * DAY_US
"""A birth. In a batch of 2,000 patients it makes the kernel count distinct times instead of microseconds."""
KNOWN_TIMES = [t + beside for t, beside in product([*INDEX_TIMES, *(s - 5 * MINUTE_US for s in INDEX_TIMES)], (0, -1))]
STEPS = [0, 0, 0, 2 * SECOND_US, 2 * SECOND_US, 5 * MINUTE_US, 5 * MINUTE_US, DAY_US, 30 * DAY_US, 30 * DAY_US + 1, -1, -DAY_US]
VALUES = [12.0, 11.9, 1.2, 1.3, 0.1, 0.2, 0.3, 1e16, -1.0, 0.0, math.nan]
ENCOUNTERS, RESULTS = ["E0", "E1", "E2", "E3"], ["L0", "L1", "L2", "L3", "L4", "L5"]
EPISODES = [0, *(fact.hash64(name) for name in ("E0", "E1", "stay"))]
VISITS = [codes.VISIT_CONCEPTS[name] for name in ("ambulatory", "ambulatory", "ambulatory", "emergency", "inpatient")]
RESULT_CONCEPTS = [
    BOOK.by_name[n].number
    for n in ("hemoglobin", "hemoglobin", "hemoglobin", "bilirubin", "weight", "condition.cancer.breast", "ed_registration")
]


class Telling(NamedTuple):
    """What a source says once, before it has a place and a stamp."""

    kind: str
    source: str
    version: int
    event_us: int
    concept: int
    status: int = fact.STATUS["final"]
    value: float = math.nan
    episode: int = 0
    ordinal: int = 0
    flags: int = 0

    @property
    def key(self) -> tuple[str, str, int]:
        """Two tellings with one key are a duplicate or a conflict."""
        return self.kind, self.source, self.version

    def record(self, *, place: int, stamp_us: int) -> bytes:
        """Its records in a history: the head and, of an encounter, its name."""
        content = {name: getattr(self, name) for name in ("version", "concept", "status", "value", "episode", "ordinal", "flags")}
        event_us = stamp_us if self.kind == "control" else self.event_us
        head = fact.pack(identity=fact.fact_id(self.kind, self.source), event_us=event_us, stamp_us=stamp_us, place=place, **content)
        return head + (fact.name_records(self.source.encode(), place=place) if self.concept in codes.VISIT_CONCEPTS.values() else b"")


def encounter(
    source: str, event_us: int, *, version: int = 1, status: str = "in-progress", visit: str = "ambulatory", **more: float
) -> Telling:
    """An encounter, its own episode unless said otherwise."""
    more.setdefault("episode", fact.hash64(source))
    return Telling("encounter", source, version, event_us, codes.VISIT_CONCEPTS[visit], fact.STATUS[status], **more)  # type: ignore[arg-type]


def lab(source: str, event_us: int, value: float = 9.0, *, version: int = 1, concept: str = "hemoglobin", **more: int) -> Telling:
    """A result."""
    return Telling("lab", source, version, event_us, BOOK.by_name[concept].number, value=value, **more)


def retraction(kind: str, source: str, version: int, event_us: int = T_US) -> Telling:
    """What was told under this id was never true."""
    return Telling(kind, source, version, event_us, codes.OTHER, fact.STATUS["entered-in-error"])


TICK = Telling("control", "tick|1", 1, 0, codes.TICK)


def log(*entries: tuple[Telling, int, int]) -> bytes:
    """A history from (telling, place, stamp) in log order."""
    return b"".join(telling.record(place=place, stamp_us=stamp_us) for telling, place, stamp_us in entries)


_T = TypeVar("_T")
_VERSIONS = [1, 1, 1, 1, 2, 3, 4]
_STATUSES = [
    fact.STATUS[name] for name in ("in-progress", "in-progress", "finished", "planned", "finished", "cancelled", "entered-in-error")
]
_RESULT_STATUSES = [5, 5, 5, 5, 5, 6, 7, 8, 9]
_content = st.binary(min_size=20, max_size=20)


class _Choices:
    """Many small choices out of drawn bytes, one each: a history of 25 records would else need 250 draws. 0 is the first option."""

    def __init__(self, content: bytes) -> None:
        self._bytes = iter(content)

    def of(self, options: Sequence[_T]) -> _T:
        return options[next(self._bytes) % len(options)]

    def telling(self, said: list[Telling]) -> Telling | None:
        """A new telling, or None: repeat one."""
        match self.of("lllllleeeeert=+"):
            case "l":
                return self._lab([telling.event_us for telling in said if telling.kind == "lab"])
            case "e":
                return self._encounter()
            case "r":
                kind, source = self.of([*(("lab", f"L{n}") for n in range(8)), *(("encounter", f"E{n}") for n in range(5))])
                return retraction(kind, source, self.of(_VERSIONS), self.of(EVENT_TIMES))
            case "+":
                return Telling("person", self.of(["P0", "P1"]), 1, LONG_AGO_US, BOOK.by_name["person.birth"].number)
            case "t":
                return TICK._replace(source=f"tick|{len(said)}")
        return said[self.of(range(len(said)))] if said else None

    def _lab(self, used: list[int]) -> Telling:
        value, episode, ordinal = self.of(VALUES), self.of(EPISODES), self.of([0, 0, 1, 2])
        source, version, status = self.of(RESULTS), self.of(_VERSIONS), self.of(_RESULT_STATUSES)
        event_us, concept = self.of(EVENT_TIMES), self.of(RESULT_CONCEPTS)
        if used and self.of(range(3)) == 2:  # a tie
            event_us = used[-1]
        return Telling("lab", source, version, event_us, concept, status, value, episode, ordinal)

    def _encounter(self) -> Telling:
        source, version, start, status = self.of(ENCOUNTERS), self.of(_VERSIONS), self.of(STARTS), self.of(_STATUSES)
        length, episode, ordinal = self.of(LENGTHS), self.of(EPISODES[1:]), self.of([0, 1])
        return Telling(
            "encounter", source, version, start, self.of(VISITS), status, length, episode, ordinal, self.of([0, 0, 0, fact.EXPIRED])
        )


@st.composite
def logs(draw: st.DrawFn, *, conflicts: bool = True, size_max: int = 25) -> list[tuple[Telling, int, int]]:
    """(telling, place, stamp) of one patient in log order: what `log` takes.

    Places grow, with gaps; stamps mostly grow. A version that was told already with other content mostly becomes the next free one;
    once all four are told it stays a conflict.
    """
    entries: list[tuple[Telling, int, int]] = []
    told: dict[tuple[str, str, int], Telling] = {}
    size = draw(st.sampled_from([*range(1, size_max + 1), *range(size_max // 2, size_max + 1)]))
    place, stamp_us = -1, draw(st.sampled_from([T_US, T_US - 5 * MINUTE_US, T_US + 2 * DAY_US, T_US + 30 * DAY_US, T_US - 30 * DAY_US]))
    for choices in map(_Choices, draw(st.lists(_content, min_size=size, max_size=size))):
        place += choices.of([1, 1, 1, 2, 9])
        stamp_us = choices.of(KNOWN_TIMES) if choices.of(range(8)) == 7 else stamp_us + choices.of(STEPS)
        said = [telling for telling, _, _ in entries]
        telling = choices.telling(said) or TICK._replace(source=f"tick|{len(said)}")
        if telling not in said:
            free = [v for v in range(telling.version, 5) if (*telling.key[:2], v) not in told]
            if choices.of([True, True, True, False]) and free:
                telling = telling._replace(version=free[0])
            if not conflicts:
                telling = told.get(telling.key, telling)
        told.setdefault(telling.key, telling)
        entries.append((telling, place, stamp_us))
    return entries


def histories(*, conflicts: bool = True, size_max: int = 25) -> st.SearchStrategy[bytes]:
    """The history of one patient, as stored."""
    return logs(conflicts=conflicts, size_max=size_max).map(lambda entries: log(*entries))


_GROUPS = [
    "hemoglobin",
    "hemoglobin",
    "visit.*",
    "bilirubin hemoglobin weight",
    "visit.emergency",
    "weight",
    "condition.cancer.breast",
    "person.birth",
]
_concepts = st.sampled_from([group.split() for group in [*_GROUPS, "ed_registration hemoglobin"]])
_days = st.sampled_from([None, 30, 5, 90])
_episode = st.sampled_from(["any", "other", "own"])


@lru_cache(maxsize=1_000)
def parsed(text: str) -> UseCase:
    """A use case from TOML, made once."""
    return usecase.parse(text, source="generated.toml", book=BOOK)


def _toml(header: str, content: dict[str, object]) -> str:
    return "\n".join((header, *(f"{key} = {json.dumps(value)}" for key, value in content.items() if value is not None)))


@st.composite
def use_cases(draw: st.DrawFn, *, leaks: bool = True) -> UseCase:
    """A small use case: 1 to 3 groups of columns, 0 to 2 rules, every way to ask. `leaks`: columns may look ahead."""
    index: dict[str, object] = {
        "classes": draw(
            st.sampled_from([["ambulatory"], ["ambulatory", "emergency"], ["ambulatory", "inpatient"], ["emergency", "inpatient"]])
        ),
        "statuses": draw(st.sampled_from([None, None, ["in-progress", "finished"], ["finished"]])),
        "at": draw(st.sampled_from(["start", "start", "start", "end"])),
        "offset_hours": draw(st.sampled_from([0.0, 4.0])),
        "exclude_expired": draw(st.booleans()),
    }
    parts = [
        f'name = "generated"\nrevise_for_days = {draw(st.sampled_from([30, 30, 1, 0]))}',
        _toml("[index]", index),
        '[outcome]\nconcepts = ["visit.emergency"]\nhorizon_days = 60',
    ]
    for n in range(draw(st.sampled_from([0, 0, 1, 2]))):
        rule: dict[str, object] = {"reason": f"rule_{n}", "concepts": draw(_concepts), "aggregate": draw(st.sampled_from(AGGREGATES))}
        rule |= {"days": draw(_days), "episode": draw(_episode), "missing": draw(st.sampled_from(["exclude", "keep"]))}
        rule |= {"at_least": draw(st.sampled_from([None, 1.0])), "at_most": draw(st.sampled_from([None, 12.0]))}
        parts.append(_toml("[[cohort]]", rule))
    for n in range(draw(st.integers(1, 3))):
        concepts, days = draw(_concepts), draw(_days)
        group: dict[str, object] = {"name": f"group_{n}", "concepts": concepts, "episode": draw(_episode)}
        group["aggregates"] = ["count", *draw(st.lists(st.sampled_from(AGGREGATES[1:]), max_size=4, unique=True))]
        group["days"] = None if days is None else draw(st.sampled_from([[days], [5, 30, 90]]))
        group["leak"] = leaks and draw(st.sampled_from([False, False, True]))
        group["unit"] = "g" if concepts == ["weight"] else None
        parts.append(_toml("[[features]]", group))
    return parsed("\n".join(parts))


def limited(use_case: UseCase, history_facts_max: int) -> UseCase:
    """The use case with a limit on histories lower than files may ask for, so that short ones meet it."""
    return dataclasses.replace(use_case, definition=use_case.definition.model_copy(update={"history_facts_max": history_facts_max}))


def issued(h: Histories, use_case: UseCase, *, since: int | list[int] = 0, until: int | list[int] = history.NEVER) -> list[list[Issued]]:
    """What the product issues at places in `[since, until)`, as plain records of each patient."""
    patients = len(h.start) - 1
    limits = [np.broadcast_to(np.asarray(limit, np.int64), patients) for limit in (since, until)]
    found = revision.answers(h, use_case, since=limits[0], until=limits[1])
    plain: list[list[Issued]] = [[] for _ in range(patients)]
    names = revision.reasons(use_case)
    for n, trigger in enumerate(found.trigger.tolist()):
        status = revision.STATUS_NAMES[found.status[n]]
        plain[found.seg[n]].append(
            Issued(
                encounter=h.name(int(found.encounter[n])),
                place=int(h.place[trigger]),
                trigger=h.id_hi[trigger].tobytes() + h.id_lo[trigger].tobytes(),
                version=int(h.version[trigger]),
                revision=int(found.revision[n]),
                status=status,
                reason=names[found.reason[n]],
                index_us=int(found.index_us[n]),
                row=found.matrix[n].tobytes() if status == "scored" else b"",
            )
        )
    return plain
