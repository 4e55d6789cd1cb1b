"""When an encounter is due, which later places issue a revision, and why an answer is none (S2, S6, S7, S8)."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import fact, history, revision
from features.clock import DAY_US, MINUTE_US, SECOND_US
from features.errors import InputError
from features.usecase import UseCase
from tests.oracle import revision as oracle
from tests.oracle.revision import Issued
from tests.strategies import (
    CHECKED,
    HOUR_US,
    T_US,
    TICK,
    Telling,
    encounter,
    histories,
    issued,
    lab,
    limited,
    log,
    logs,
    parsed,
    retraction,
    use_cases,
)

Entries = list[tuple[Telling, int, int]]

RULES = """
[[cohort]]
reason = "no_result"
concepts = ["hemoglobin"]
aggregate = "last"
days = 30
at_least = 8.0
[[cohort]]
reason = "too_high"
concepts = ["hemoglobin"]
aggregate = "max"
days = 30
at_most = 12.0
missing = "keep"
"""


def simple(index: str = "", cohort: str = "", head: str = "") -> UseCase:
    """Ambulatory visits; the row is (haemoglobin results in 30 days,)."""
    return parsed(f"""
        name = "simple"
        {head}
        [index]
        classes = ["ambulatory"]
        {index}
        [outcome]
        concepts = ["visit.emergency"]
        horizon_days = 60
        {cohort}
        [[features]]
        name = "hemoglobin"
        concepts = ["hemoglobin"]
        aggregates = ["count"]
        days = [30]
    """)


SIMPLE = [
    simple(),
    simple(head="revise_for_days = 1"),
    simple("offset_hours = 4.0", head="revise_for_days = 0"),
    simple('at = "end"\nexclude_expired = true', RULES),
]


def told(use_case: UseCase, *entries: tuple[Telling, int]) -> list[Issued]:
    """What is issued for one patient after (telling, stamp) at places 0, 1, 2, ..."""
    (mine,) = issued(history.read([log(*((telling, n, stamp_us) for n, (telling, stamp_us) in enumerate(entries)))]), use_case)
    return mine


def brief(issue: Issued) -> tuple[Any, ...]:
    """(place, revision, status or reason, count in the row or None)."""
    (count,) = struct.unpack("<d", issue.row) if issue.row else (None,)
    return issue.place, issue.revision, issue.reason or issue.status, count


@CHECKED
@given(histories(), use_cases())
def test_s8_answers_agree_with_the_oracle(patient: bytes, use_case: UseCase) -> None:
    """A walk over all places that computes each answer by definition issues the same records, rows equal by bits."""
    h = history.read([patient])
    for asked in (use_case, *SIMPLE):
        assert issued(h, asked) == [oracle.walk(patient, asked)]


@CHECKED
@given(logs(), use_cases(leaks=False), st.data())
def test_s2_appending_changes_nothing_issued(entries: Entries, use_case: UseCase, data: st.DataObject) -> None:
    """What was issued up to a place is what is issued up to it once more was told."""
    cut = data.draw(st.integers(1, len(entries)))
    after = entries[cut][1] if cut < len(entries) else entries[-1][1] + 1
    (then,) = issued(history.read([log(*entries[:cut])]), use_case)
    whole = history.read([log(*entries)])
    assert issued(whole, use_case, until=after) == [then]
    (now,) = issued(whole, use_case)
    assert [issue for issue in now if issue.place < after] == then


@CHECKED
@given(histories(), use_cases(), st.lists(st.integers(0, 60), max_size=4))
def test_s8_parts_make_the_whole(patient: bytes, use_case: UseCase, cuts: list[int]) -> None:
    """Asked for one stretch of places after the other, wherever they are cut, the answers are those of one go."""
    h = history.read([patient])
    limits = [0, *sorted(cuts), history.NEVER]
    parts = [issue for since, until in pairwise(limits) for issue in issued(h, use_case, since=since, until=until)[0]]
    (whole,) = issued(h, use_case)
    assert sorted(parts) == sorted(whole)


@settings(CHECKED, max_examples=60)
@given(st.lists(histories(), min_size=2, max_size=5), use_cases(), st.lists(st.integers(0, 40), min_size=5, max_size=5))
def test_s6_answers_do_not_depend_on_the_batch(patients: list[bytes], use_case: UseCase, starts: list[int]) -> None:
    """Each patient gets alone, and from any place of its own on, what it gets in a batch."""
    since = starts[: len(patients)]
    alone = [issued(history.read([patient]), use_case, since=start)[0] for patient, start in zip(patients, since, strict=True)]
    assert issued(history.read(patients), use_case, since=since) == alone


@pytest.mark.parametrize(("beside_us", "due"), [(0, True), (-1, False), (1, True)])
@pytest.mark.parametrize("index", ["", "offset_hours = 4.0", 'at = "end"'], ids=["start", "offset", "end"])
def test_s7_due(index: str, beside_us: int, due: bool) -> None:
    """An index at most five minutes after known time is due, one microsecond more is not; so at the start, after it and at the end."""
    later_us = {"": 0, "offset_hours = 4.0": 4 * HOUR_US}.get(index, 2 * DAY_US)
    visit = encounter("E", T_US, value=float(2 * DAY_US))
    found = told(simple(index), (visit, T_US + later_us - 5 * MINUTE_US + beside_us))
    assert [(issue.place, issue.index_us) for issue in found] == [(0, T_US + later_us)] * due


@pytest.mark.parametrize("bringer", [TICK, lab("L", T_US - 1), retraction("lab", "none", 1)], ids=["tick", "fact", "retraction of nothing"])
def test_s7_a_booked_visit_waits_until_it_is_due(bringer: Telling) -> None:
    """The first record at which its time has come brings it, a tick or any other; revision 0 stands at that place."""
    visit = encounter("E", T_US, status="planned")
    found = told(simple(), (visit, T_US - DAY_US), (TICK, T_US - 5 * MINUTE_US - 1), (bringer, T_US - 5 * MINUTE_US), (TICK, T_US))
    assert [brief(issue) for issue in found] == [(2, 0, "scored", float(bringer.kind == "lab" and bringer.source == "L"))]


def test_s7_a_stamp_that_went_back_keeps_a_visit_due() -> None:
    """Known time is the greatest stamp so far, so a later record with an older stamp is judged by the newer one."""
    assert [brief(issue) for issue in told(simple(), (TICK, T_US), (encounter("E", T_US), T_US - DAY_US))] == [(1, 0, "scored", 0.0)]


def test_s7_a_booked_visit_that_never_came_is_never_due() -> None:
    """Cancelled, retracted, moved to another class or superseded before it was due: nothing is issued."""
    booked = encounter("E", T_US, status="planned")
    for end in (booked._replace(status=fact.STATUS["cancelled"]), retraction("encounter", "E", 2), booked._replace(concept=2)):
        assert told(simple(), (booked, T_US - DAY_US), (end._replace(version=2), T_US - HOUR_US), (TICK, T_US)) == []


def test_s7_the_version_that_rules_says_when() -> None:
    """A visit moved earlier is due by its new time, one moved later waits for it, and then stays due wherever it is moved."""
    first, second = encounter("E", T_US, status="planned"), encounter("E", T_US + DAY_US, status="planned", version=2)
    third = encounter("E", T_US + 9 * DAY_US, version=3)
    found = told(simple(), (first, T_US - DAY_US), (second, T_US - HOUR_US), (TICK, T_US), (TICK, T_US + DAY_US), (third, T_US + DAY_US))
    assert [(issue.place, issue.revision, issue.index_us) for issue in found] == [(3, 0, T_US + DAY_US), (4, 1, T_US + 9 * DAY_US)]


@pytest.mark.parametrize(("after_us", "revised"), [(30 * DAY_US, True), (30 * DAY_US + 1, False)])
@pytest.mark.parametrize("news", [lab("L", T_US - 1), retraction("encounter", "E", 2)], ids=["row", "status"])
def test_s8_revisions_end_with_revise_for(news: Telling, after_us: int, revised: bool) -> None:
    """known(k) − known(d) may be `revise_for`, and not a microsecond more; it counts from known(d), not from the index time."""
    known_us = T_US + 3 * DAY_US
    found = told(simple(), (encounter("E", T_US), known_us), (news, known_us + after_us), (TICK, known_us + after_us))
    assert [issue.place for issue in found] == [0, 1][: 1 + revised]


def test_s8_revise_for_reads_known_time_not_stamps() -> None:
    """Once known time is past it, a record with an old stamp revises nothing either."""
    found = told(simple(), (encounter("E", T_US), T_US), (TICK, T_US + 31 * DAY_US), (lab("L", T_US - 1), T_US))
    assert [issue.place for issue in found] == [0]


def test_s8_revisions() -> None:
    """A record is issued where the answer differs from that at the place before: not for a repeat, nor for an equal answer."""
    entries = [
        encounter("E", T_US),
        lab("L", T_US - 1),
        lab("L", T_US - 1),
        lab("outside", T_US),
        lab("too old at first", T_US - 30 * DAY_US - 1),
        lab("L", T_US - 2, 7.0, version=2),
        retraction("lab", "L", 3),
        encounter("E", T_US, version=2, status="finished"),
        encounter("E", T_US - 1, version=3, status="finished"),
        lab("L", T_US - 2, version=4),
    ]
    found = told(simple(), *((entry, T_US + n * SECOND_US) for n, entry in enumerate(entries)))
    assert [brief(issue) for issue in found] == [
        (0, 0, "scored", 0.0), (1, 1, "scored", 1.0), (6, 2, "scored", 0.0), (8, 3, "scored", 1.0), (9, 4, "scored", 2.0)
    ]  # fmt: skip
    assert [issue.index_us for issue in found] == [T_US, T_US, T_US, T_US - 1, T_US - 1]


def test_s8_an_amendment_leaves_a_window_on_both_edges() -> None:
    """A result moved to the open edge, back, and before the closed edge is revised each time."""
    times = [T_US - 1, T_US, T_US - 30 * DAY_US, T_US - 30 * DAY_US - 1, T_US - 1]
    labs = [(lab("L", at, version=n + 1), T_US) for n, at in enumerate(times)]
    assert [brief(issue)[3] for issue in told(simple(), (encounter("E", T_US), T_US), *labs)] == [0, 1, 0, 1, 0, 1]


WITHDRAWALS = [
    (retraction("encounter", "E", 2), "retracted"),
    (encounter("E", T_US - DAY_US, version=2, status="entered-in-error"), "retracted"),
    (encounter("E", T_US - DAY_US, version=2, status="cancelled"), "cancelled"),
    (encounter("E", T_US - DAY_US, version=2, visit="home", value=0.0), "not_an_index"),
    (encounter("E", T_US - DAY_US, version=2, status="planned", value=0.0), "not_an_index"),
    (encounter("E", T_US - DAY_US, version=2), "not_an_index"),
]


@pytest.mark.parametrize(("second", "reason"), WITHDRAWALS)
def test_s8_withdrawn(second: Telling, reason: str) -> None:
    """A visit that is an index no more is withdrawn at its last index time, is not revised by results, and may come back."""
    use_case = simple('at = "end"\nstatuses = ["in-progress", "finished"]')
    first = encounter("E", T_US, value=float(HOUR_US))
    back = first._replace(version=3)
    found = told(use_case, (first, T_US + HOUR_US), (second, T_US + HOUR_US), (lab("L", T_US), T_US + HOUR_US), (back, T_US + HOUR_US))
    assert [brief(issue) for issue in found] == [(0, 0, "scored", 0.0), (1, 1, reason, None), (3, 2, "scored", 1.0)]
    assert [issue.status for issue in found] == ["scored", "withdrawn", "scored"]
    assert {(issue.index_us, issue.encounter) for issue in found} == {(T_US + HOUR_US, "E")}


def test_p5_rules_are_closed_and_the_first_that_fails_is_the_reason() -> None:
    """Both bounds are inclusive, null is excluded unless kept, and an excluded visit is revised when its reason changes."""
    values = [8.0, 7.9, 12.0, 12.5, 7.0]
    labs = [(lab("L", T_US - 1, value, version=n + 1), T_US) for n, value in enumerate(values)]
    found = told(simple(cohort=RULES), (encounter("E", T_US), T_US), *labs)
    assert [brief(issue)[2] for issue in found] == ["no_result", "scored", "no_result", "scored", "too_high", "no_result"]


def test_s8_died_in_hospital() -> None:
    """Visits that ended in death are excluded where the use case says so, before any rule of the cohort."""
    visit = encounter("E", T_US, flags=fact.EXPIRED)
    found = told(simple("exclude_expired = true", cohort=RULES), (visit, T_US))
    assert [(issue.status, issue.reason) for issue in found] == [("excluded", "died_in_hospital")]
    assert [brief(issue)[2] for issue in told(simple(), (visit, T_US))] == ["scored"]


@pytest.mark.parametrize(("before", "reason"), [(2, "scored"), (3, "history_too_long"), (4, "history_too_long")])
def test_s8_history_too_long(before: int, reason: str) -> None:
    """A visit is excluded once as many records as allowed stand before it; ticks and repeats count, names do not."""
    entries = [(encounter("other", T_US, visit="home"), T_US), (TICK, T_US), *([(lab("L", T_US - 1), T_US)] * (before - 2))]
    found = told(limited(simple(), 3), *entries, (encounter("E", T_US), T_US))
    assert [brief(issue)[2] for issue in found] == [reason]


def test_s8_died_comes_before_too_long() -> None:
    """Reasons are judged in their order: what the visit itself says comes first."""
    visit = encounter("E", T_US, flags=fact.EXPIRED)
    found = told(limited(simple("exclude_expired = true"), 1), (TICK, T_US), (visit, T_US))
    assert [issue.reason for issue in found] == ["died_in_hospital"]


def test_s7_every_new_encounter_gets_a_record() -> None:
    """Two visits at one instant are two questions, each with its own revisions."""
    found = told(simple(), (encounter("A", T_US), T_US), (encounter("B", T_US), T_US), (lab("L", T_US - 1), T_US))
    assert [(issue.encounter, issue.place, issue.revision) for issue in found] == [("A", 0, 0), ("A", 2, 1), ("B", 1, 0), ("B", 2, 1)]


def test_nobody_is_asked_about() -> None:
    """No patients, no records and no visits give no answers."""
    assert issued(history.read([]), simple()) == []
    assert issued(history.read([b"", log((lab("L", T_US), 0, T_US))]), simple()) == [[], []]


@pytest.mark.parametrize("taken", ["no_result", "retracted", "history_too_long"])
def test_s8_each_rule_has_a_reason_of_its_own(taken: str) -> None:
    """Two rules with one word would issue equal bytes as a revision: such a use case is refused."""
    with pytest.raises(InputError, match=f"the reason {taken} is taken"):
        simple(cohort=RULES.replace("too_high", taken))


@CHECKED
@given(histories(), use_cases(), st.integers(0, 40))
def test_s7_each_answer_names_the_place_at_which_its_encounter_was_due(patient: bytes, use_case: UseCase, since: int) -> None:
    """Revisions, asked for from any place on, point to the record of revision 0: the model is chosen by it."""
    h = history.read([patient])
    zero = {issue.encounter: issue.place for issue in issued(h, use_case)[0] if issue.revision == 0}
    found = revision.answers(h, use_case, since=np.array([since]), until=np.array([history.NEVER]))
    for encounter_row, due in zip(found.encounter.tolist(), found.due.tolist(), strict=True):
        assert h.place[due] == zero[h.name(encounter_row)]


def test_the_last_place_of_a_partition() -> None:
    """The greatest place that a history can hold is asked about like any other."""
    patient = log((encounter("E", T_US), fact.PLACE_MAX - 1, T_US), (lab("L", T_US - 1), fact.PLACE_MAX, T_US))
    assert [brief(issue)[0] - fact.PLACE_MAX for issue in issued(history.read([patient, patient]), simple())[1]] == [-1, 0]
