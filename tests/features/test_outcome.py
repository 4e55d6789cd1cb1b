"""Labels: what counts in the time at risk, on both of its edges, and when it could be known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import codes, fact, history, usecase
from features.clock import DAY_US, NEVER_US, SECOND_US, TIME_MAX_US
from features.outcome import STATUS_NAMES, Labels, labels
from features.usecase import UseCase
from tests.oracle import outcome as oracle
from tests.oracle.outcome import Told

CHECKED = settings(max_examples=200, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
T = TypeVar("T")
BOOK = codes.codebook()
T_US = 1_777_798_800_000_000
OWN, OTHER = fact.hash64("E"), fact.hash64("another visit")
Answer = tuple[str, int | None, int | None]
"""(status, label_known, mature); None: never."""
PLAIN: dict[str, Any] = {"concepts": ["visit.emergency"], "horizon_days": 60, "gap_days": 0, "own_episode": False, "priorities": None}


@lru_cache(maxsize=64)
def _use_case(items: tuple[tuple[str, Any], ...]) -> UseCase:
    definition = {
        "name": "test",
        "index": {"classes": ["ambulatory"]},
        "outcome": {name: list(x) if isinstance(x, tuple) else x for name, x in items},
        "features": [{"name": "hemoglobin", "concepts": ["hemoglobin"], "aggregates": ["count"]}],
    }
    return usecase.bind(usecase.Definition.model_validate(definition), source="test.toml", book=BOOK)


def use_case(**outcome: Any) -> UseCase:
    return _use_case(tuple((name, tuple(x) if isinstance(x, list) else x) for name, x in (PLAIN | outcome).items()))


def stored(told: Sequence[Told], *, status: str = "in-progress") -> bytes:
    """The history of a patient; `status` of what is not taken back."""
    out = []
    for place, one in enumerate(told):
        visit = one.concept.startswith("visit.")
        head = fact.pack(
            identity=fact.fact_id("x", one.id), event_us=one.event_us, stamp_us=one.known_us, version=one.version, place=place,
            concept=BOOK.by_name[one.concept].number, value=float("nan") if one.length_us is None else float(one.length_us),
            episode=one.episode, status=fact.STATUS["entered-in-error" if one.gone else status],
            flags=fact.PRIORITY[None if one.priority == "unknown" else one.priority],  # type: ignore[index]
        )  # fmt: skip
        out.append(head + (fact.name_records(one.id.encode(), place=place) if visit else b""))
    return b"".join(out)


def answers(found: Labels) -> list[Answer]:
    def never(time_us: int) -> int | None:
        return time_us if time_us < NEVER_US else None

    columns = (found.status.tolist(), found.label_known_us.tolist(), found.mature_us.tolist())
    return [(STATUS_NAMES[status], never(known), never(mature)) for status, known, mature in zip(*columns, strict=True)]


def asked(patients: Sequence[bytes], questions: Sequence[tuple[int, int, int]], case: UseCase, *, as_of_us: int = NEVER_US) -> list[Answer]:
    """Answers of (patient, index time, episode), which are sorted by patient."""
    seg, index_us, episode = zip(*questions, strict=True)
    h = history.read(list(patients))
    found = labels(h, case, seg=np.array(seg), index_us=np.array(index_us), episode=np.array(episode, np.uint64), as_of_us=as_of_us)
    assert np.array_equal(np.isnan(found.label), np.isin(found.status, [2, 3]))
    assert np.array_equal(found.label[~np.isnan(found.label)], (found.status == 0)[~np.isnan(found.label)].astype(float))
    return answers(found)


def one(*told: Told, status: str = "in-progress", **outcome: Any) -> Answer:
    """The label of a visit at T_US in episode OWN."""
    return asked([stored(told, status=status)], [(0, T_US, OWN)], use_case(**outcome))[0]


def covered(days: float | None = None, **more: Any) -> Told:
    """Observed from a year before the visit until some days after it; None: it goes on."""
    length_us = None if days is None else round((365 + days) * DAY_US)
    return Told(**{"id": "C", "version": 1, "gone": False, "concept": oracle.COVERED, "event_us": T_US - 365 * DAY_US,
                   "length_us": length_us, "episode": 0, "priority": "unknown", "known_us": T_US - DAY_US} | more)  # fmt: skip


def ed(after_us: int, **more: Any) -> Told:
    """An emergency visit so long after the index time, known a day later."""
    return Told(**{"id": "ED", "version": 1, "gone": False, "concept": "visit.emergency", "event_us": T_US + after_us, "length_us": None,
                   "episode": OTHER, "priority": "unknown", "known_us": T_US + after_us + DAY_US} | more)  # fmt: skip


def death(after_us: int, **more: Any) -> Told:
    return ed(after_us, **{"id": "D", "concept": "death", "episode": 0} | more)


MATURE_US = T_US + 60 * DAY_US
NO_EVENT: Answer = ("no_event", MATURE_US, MATURE_US)

# --- compared with the loop ------------------------------------------------------------------------------------------------------------

OFFSETS = [days * DAY_US + beside for days, beside in itertools.product((0, 5, 30, 60, 65, 90), (-1, 0, 1))]
CASES: list[dict[str, Any]] = [
    {}, {"gap_days": 5}, {"gap_days": 5, "horizon_days": 25}, {"horizon_days": 30, "own_episode": True},
    {"priorities": ["emergency", "unknown"]}, {"priorities": ["urgent"], "own_episode": True},
    {"concepts": ["visit.emergency", "visit.inpatient"], "horizon_days": 90}, {"concepts": ["hemoglobin"]}, {"concepts": ["death"]},
]  # fmt: skip


class Choices:
    """Many small choices out of drawn bytes."""

    def __init__(self, content: bytes) -> None:
        self._bytes: Iterator[int] = iter(content)

    def of(self, options: Sequence[T]) -> T:
        return options[next(self._bytes) % len(options)]

    def telling(self) -> Told:
        concept = self.of(["visit.emergency"] * 7 + ["visit.inpatient", "visit.ambulatory", "hemoglobin", oracle.COVERED, oracle.DIED])
        return Told(
            id=concept + self.of("12"),
            version=self.of([1, 1, 1, 2, 3]),
            gone=self.of(range(5)) == 4,
            concept=concept,
            event_us=T_US + self.of([DAY_US, 2 * DAY_US, *OFFSETS, -DAY_US]),
            length_us=self.of([None, 0, *(days * DAY_US for days in (5, 30, 60))]) if concept == oracle.COVERED else None,
            episode=self.of([0, OWN, OTHER]),
            priority=self.of(["unknown", "emergency", "urgent", "elective"]),
            known_us=T_US + self.of(OFFSETS),
        )


patients = st.lists(st.binary(min_size=10, max_size=10).map(lambda content: Choices(content).telling()), max_size=12)
questions = st.lists(st.tuples(st.sampled_from(OFFSETS), st.sampled_from([0, OWN, OTHER])), min_size=1, max_size=4)


@CHECKED
@given(st.lists(st.tuples(patients, questions), min_size=1, max_size=3), st.sampled_from(CASES), st.sampled_from([NEVER_US, *OFFSETS]))
def test_labels_agree_with_a_loop(content: list[tuple[list[Told], list[tuple[int, int]]]], outcome: dict[str, Any], as_of_us: int) -> None:
    """Amended and retracted events, edges of the time at risk, own and other visits, priorities, deaths: several patients at once."""
    known = [itertools.accumulate((f.known_us for f in facts), max) for facts, _ in content]  # S3: the greatest stamp so far
    told = [[f._replace(known_us=us) for f, us in zip(facts, times, strict=True)] for (facts, _), times in zip(content, known, strict=True)]
    flat = [(seg, T_US + offset, episode) for seg, (_, some) in enumerate(content) for offset, episode in some]
    as_of_us += T_US if as_of_us < NEVER_US else 0
    expected = [
        oracle.label(told[seg], outcome=PLAIN | outcome, index_us=index_us, episode=episode, as_of_us=as_of_us)
        for seg, index_us, episode in flat
    ]
    assert asked([stored(facts) for facts in told], flat, use_case(**outcome), as_of_us=as_of_us) == expected


# --- the rules, one by one -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap_days", [0, 5])
@pytest.mark.parametrize(("at", "beside", "counts"), [(0, 0, False), (0, 1, True), (60, 0, True), (60, 1, False), (0, -1, False)])
def test_both_edges_of_the_time_at_risk(gap_days: int, at: int, beside: int, counts: bool) -> None:
    """(t + gap, t + gap + horizon]: an event exactly at its start does not count, one exactly at its end does."""
    after_us = (gap_days + at) * DAY_US + beside
    mature_us = T_US + (gap_days + 60) * DAY_US
    expected = ("event", T_US + after_us + DAY_US, mature_us) if counts else ("no_event", mature_us, mature_us)
    assert one(covered(), ed(after_us), gap_days=gap_days) == expected


@pytest.mark.parametrize(("own", "episode", "counts"), [(False, OWN, False), (False, OTHER, True), (False, 0, True), (True, OWN, True)])
def test_the_own_episode(own: bool, episode: int, counts: bool) -> None:
    """An event of the index visit itself counts only where the use case says so; one without an episode belongs to no visit."""
    assert (one(covered(), ed(DAY_US, episode=episode), own_episode=own)[0] == "event") == counts


@pytest.mark.parametrize("priority", ["emergency", "urgent", "elective", "unknown"])
@pytest.mark.parametrize("allowed", [None, ["emergency"], ["urgent", "unknown"]])
def test_priorities(priority: str, allowed: list[str] | None) -> None:
    """Only events that came about so; None: all; unknown is a priority to name."""
    assert (one(covered(), ed(DAY_US, priority=priority), priorities=allowed)[0] == "event") == (allowed is None or priority in allowed)


@pytest.mark.parametrize(("days", "beside", "expected"), [(60, 0, NO_EVENT), (60, -1, ("censored", None, None)), (60, 1, NO_EVENT)])
def test_both_edges_of_follow_up(days: int, beside: int, expected: Answer) -> None:
    """Followed exactly to the end of the time at risk is long enough, a microsecond less is not."""
    assert one(covered(days + beside / DAY_US)) == expected


@pytest.mark.parametrize(("days", "beside", "expected"), [(60, 0, NO_EVENT), (60, -1, ("censored", None, None))])
def test_coverage_that_lasts_ends_with_the_log(days: int, beside: int, expected: Answer) -> None:
    """Nothing behind the end of the log was observed; coverage that was told to end later ends when it was told."""
    as_of_us = T_US + days * DAY_US + beside
    assert asked([stored([covered()])], [(0, T_US, OWN)], use_case(), as_of_us=as_of_us) == [expected]


def test_follow_up_without_coverage_ends_with_the_last_fact() -> None:
    """Any later fact says that somebody was looking; a retracted one does not."""
    visit = ed(60 * DAY_US, id="V", concept="visit.ambulatory")
    assert one(visit) == NO_EVENT
    assert one(visit, visit._replace(version=2, gone=True)) == ("censored", None, None)
    assert one() == ("censored", None, None)
    assert one(covered(59), visit) == ("censored", None, None), "where there is coverage it alone says so"


def test_an_event_counts_without_follow_up() -> None:
    """Its label is 1, but it is not mature: metrics leave it out, or events would be over-represented."""
    assert one(covered(2), ed(DAY_US)) == ("event", T_US + 2 * DAY_US, None)


def test_death_without_follow_up_is_no_label() -> None:
    """A patient who died before the end of the time at risk without the event was not followed: neither 1 nor 0."""
    assert one(covered(5), death(5 * DAY_US)) == ("death", None, None)
    assert one(covered(5), death(60 * DAY_US)) == ("death", None, None)
    assert one(covered(5), death(60 * DAY_US + 1)) == ("censored", None, None)
    assert one(covered(5), ed(DAY_US), death(5 * DAY_US))[0] == "event"


def test_death_ends_follow_up() -> None:
    """Coverage that nobody closed does not follow the dead: who died on day 5 cannot have been free of the event for 60 days."""
    assert one(covered(), death(5 * DAY_US)) == ("death", None, None)


def test_a_label_is_known_when_the_first_event_was_known() -> None:
    """Of several events the one that was told first, whichever happened first; a retracted one is none."""
    told_late, told_early = ed(DAY_US, id="A", known_us=T_US + 9 * DAY_US), ed(3 * DAY_US, id="B", known_us=T_US + 4 * DAY_US)
    assert one(covered(), told_early, told_late) == ("event", T_US + 4 * DAY_US, MATURE_US)
    back = told_early._replace(version=2, gone=True, known_us=T_US + 5 * DAY_US)
    assert one(covered(), told_early, back, told_late) == ("event", T_US + 9 * DAY_US, MATURE_US)
    assert one(covered(), told_early, back) == NO_EVENT


def test_a_label_is_known_from_the_first_telling_on() -> None:
    """That the emergency visit was finished, told days later, does not change when we knew of it."""
    first = ed(DAY_US, known_us=T_US + DAY_US + SECOND_US)
    finished = first._replace(version=2, length_us=8 * 3600 * SECOND_US, known_us=T_US + 4 * DAY_US)
    assert one(covered(), first, finished) == ("event", T_US + DAY_US + SECOND_US, MATURE_US)


def test_an_amendment_moves_an_event_out_of_the_time_at_risk() -> None:
    """The label is hindsight: what holds in the end decides."""
    assert one(covered(), ed(DAY_US), ed(0, version=2, known_us=T_US + 9 * DAY_US)) == NO_EVENT
    assert one(covered(), ed(0), ed(DAY_US, version=2, known_us=T_US + 9 * DAY_US)) == ("event", T_US + 9 * DAY_US, MATURE_US)
    moved = [ed(n * DAY_US, version=n, known_us=T_US + n * DAY_US) for n in (2, 3)]
    assert one(covered(), *moved) == ("event", T_US + 2 * DAY_US, MATURE_US)


def test_an_amendment_of_the_visit_an_event_belongs_to() -> None:
    """Told first as part of the index visit, it was no event; it is one since it was amended."""
    first = ed(DAY_US, episode=OWN, known_us=T_US + 2 * DAY_US)
    assert one(covered(), first, first._replace(version=2, episode=OTHER, known_us=T_US + 9 * DAY_US)) == (
        "event",
        T_US + 9 * DAY_US,
        MATURE_US,
    )


def test_a_planned_visit_is_no_event() -> None:
    """A visit that is only booked has not happened."""
    assert one(covered(), ed(DAY_US), status="planned") == NO_EVENT


def test_a_planned_visit_is_no_follow_up() -> None:
    """A visit booked for next year does not say that anybody looked until then."""
    assert one(ed(400 * DAY_US, concept="visit.ambulatory", known_us=T_US + DAY_US), status="planned") == ("censored", None, None)


def test_the_last_time_that_is_admitted() -> None:
    """Index times at the end of what is admitted do not overflow."""
    told = covered(event_us=T_US)
    assert asked([stored([told])], [(0, TIME_MAX_US - 1, OWN)], use_case(horizon_days=3_650, gap_days=3_650)) == [
        ("no_event", TIME_MAX_US - 1 + 7_300 * DAY_US, TIME_MAX_US - 1 + 7_300 * DAY_US)
    ]


def test_no_questions() -> None:
    """Nobody asked, nothing is answered; a patient without records is censored."""
    h = history.read([stored([ed(DAY_US)])])
    none = np.zeros(0, np.int64)
    assert answers(labels(h, use_case(), seg=none, index_us=none, episode=none.astype(np.uint64))) == []
    assert asked([b"", stored([covered()])], [(0, T_US, OWN), (1, T_US, OWN)], use_case()) == [("censored", None, None), NO_EVENT]
