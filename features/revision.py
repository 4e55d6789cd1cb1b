"""Which encounters ask for a score, when, and at which later places the answer changed (S7, S8).

Between two versions an encounter stands still: a *stint* is the stretch of places in which one of its versions rules.

      place   p₀ ····· d ········ k₁ ········ p₁ ······ k₂
      stint   [──────── version 1 ──────────)[── version 2 ──…
      asked          r0           r1          r2        (equal: none)

d is the first place at which the encounter is an index and due. Later it is asked again where its own version changed and where a
fact that its row can see was told, amended or retracted; of equal consecutive answers only the first is issued. Everything is
computed from the history alone, so a crash, a replay and a backfill give the same answers under the same ids.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from features import codes, fact, history
from features.history import Bool, Histories, Int, stretches
from features.merge import Move, first_history, moves
from features.usecase import BUILT_IN_REASONS, UseCase
from features.windows import Questions, rows

SCORED, EXCLUDED, WITHDRAWN = 0, 1, 2
STATUS_NAMES = ("scored", "excluded", "withdrawn")
RETRACTED, CANCELLED, NOT_AN_INDEX, DIED, TOO_LONG = range(1, 6)
_PLACES = 2**33
"""More than any place: (patient, place) as one number is patient × this + place."""
ENTERED_IN_ERROR = fact.STATUS["entered-in-error"]


@dataclass(frozen=True, slots=True)
class Answers:
    """What is to be issued, one entry a score record without its risk, by patient, encounter and place. Shape (n,)."""

    seg: Int
    trigger: Int
    """Row of the record that caused it."""
    due: Int
    """Row at which the encounter became due (d)."""
    encounter: Int
    """Row of the encounter's version that was last an index: its id and its name."""
    revision: Int
    status: Int
    reason: Int
    """Index into `reasons(use_case)`."""
    index_us: Int
    matrix: npt.NDArray[np.float64]
    """Shape (n, p): the row; zeros where the status is not scored."""
    due_known_us: Int
    """known(d): when the encounter became due, at its first patient where a merge carried it."""
    packet: Int
    """Which of `Histories.packets` carried the encounter here after it had become due, or -1."""
    due_place: Int
    """Place of d, of a carried encounter in its packet."""
    told: Bool
    """False: what a merge brought, as it was last issued under the first patient. For the alert only."""

    def where(self, mask: Bool | Int) -> Answers:
        """The entries for which the mask holds, or with these numbers."""
        if mask.dtype == bool and mask.all():
            return self
        return Answers(*(getattr(self, name)[mask] for name in Answers.__slots__))


def reasons(use_case: UseCase) -> tuple[str, ...]:
    """The reasons a record of this use case can have, by number."""
    return (*BUILT_IN_REASONS, *(rule.reason for rule in use_case.definition.cohort))


@dataclass(frozen=True, slots=True)
class _Stints:
    """Versions of encounters while they rule, sorted by (group, place). `group` counts encounters; shape (s,)."""

    group: Int
    row: Int
    is_index: Bool
    index_us: Int
    """Index time of this version, or of the last one that was an index."""
    named: Int
    """Row of this version, or of the last one that was an index."""


def answers(h: Histories, use_case: UseCase, *, since: Int, until: Int, first_only: bool = False) -> Answers:
    """Everything that is issued at places in `[since, until)`, given the whole histories.

    Args:
        h: Folded histories.
        use_case: Gives index, cohort, columns and `revise_for`.
        since: First place of interest for each patient, shape (patients,).
        until: First place that is no longer of interest, same shape.
        first_only: Only revision 0 is looked for; where there are merges, others may be among the answers.
    """
    until = np.minimum(until, fact.PLACE_MAX + 1)
    moved = moves(h)
    for patient, move in moved:
        if move.undone < 0:
            until[patient] = min(until[patient], move.place)
    stints = _stints(h, use_case)
    due = _due(h, stints)
    prior = _priors(h, use_case, stints, due) if h.packets else _NO_PRIORS
    due_known_us = h.known_us[np.maximum(due, 0)]
    due_known_us[prior.group] = prior.found.due_known_us
    alone = first_only and not moved and not h.packets
    group, stint, asked = _asked(h, stints, due, due_known_us, use_case, since, until, at_due_only=alone)
    if any(move.undone >= 0 for _, move in moved) and len(asked):
        group, stint, asked = _after_silence(h, moved, group, stint, asked)
    status, reason = _verdicts(h, use_case, stints.row[stint], due[group])
    index_us, encounter = stints.index_us[stint], stints.named[stint]
    scored = np.flatnonzero(status == SCORED)
    found = rows(h, Questions(h.seg[asked[scored]], index_us[scored], h.place[asked[scored]], h.episode[encounter[scored]]), use_case.plan)
    columns = len(use_case.features)
    if len(scored) == len(asked):  # most often: a copy of the matrix takes as long as a window
        matrix = found[:, :columns]
    else:
        matrix = np.zeros((columns, len(asked))).T
        matrix[scored] = found[:, :columns]
    _judge(use_case, found[:, columns:], scored, status, reason)
    matrix[status != SCORED] = 0.0
    same = _as_before(group, status, reason, index_us, matrix)
    first = _first_of(group)
    base = _continue(prior, group, same, status, reason, index_us, matrix) if len(prior.group) else np.zeros(len(group), np.int64)
    counted = np.cumsum(~same)
    revision = counted - counted[first] + base[first]
    place, seg = h.place[asked], h.seg[asked]
    issued = np.flatnonzero(~same & (place >= since[seg]) & (place < until[seg]))
    packet, due_place = np.full(len(due), -1), h.place[np.maximum(due, 0)]
    packet[prior.group], due_place[prior.group] = prior.found.packet, prior.found.due_place
    of = group[issued]
    kept = matrix if len(issued) == len(matrix) else matrix[issued]
    made = Answers(
        seg[issued], asked[issued], due[of], encounter[issued], revision[issued], status[issued], reason[issued],
        index_us[issued], kept, due_known_us[of], packet[of], due_place[of], np.ones(len(of), bool),
    )  # fmt: skip
    return _with_brought(h, made, prior, since, until) if len(prior.group) else made


def _first_of(group: Int) -> Int:
    """The first entry of the same group, of groups that stand together."""
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    return np.repeat(begins, np.diff(begins, append=len(group)))


def _as_before(group: Int, status: Int, reason: Int, index_us: Int, matrix: npt.NDArray[np.float64]) -> Bool:
    """Which answers are equal, bit by bit, to the one before of the same encounter."""
    again = np.flatnonzero(group[1:] == group[:-1]) + 1
    equal = (matrix[again].view(np.int64) == matrix[again - 1].view(np.int64)).all(axis=1)
    for column in (status, reason, index_us):
        equal &= column[again] == column[again - 1]
    same = np.zeros(len(group), bool)
    same[again] = equal
    return same


@dataclass(frozen=True, slots=True)
class _Priors:
    """Encounters that a merge brought after they had become due: their last answers at the first patient, one a group."""

    group: Int
    encounter: Int
    """Row of each among this patient's."""
    found: Answers


_NOBODY = np.zeros(0, np.int64)
_NO_PRIORS = _Priors(_NOBODY, _NOBODY, Answers(*([_NOBODY] * 8), np.zeros((0, 0)), *([_NOBODY] * 3), np.zeros(0, bool)))  # type: ignore[arg-type, call-arg]


def _priors(h: Histories, use_case: UseCase, stints: _Stints, due: Int) -> _Priors:
    """What the packets say of their encounters; makes `due` the end of the merge, unless the patient had the encounter before."""
    firsts = history.read([first_history(h, rows.tolist()) for *_, rows in h.packets])
    everything = np.full(len(h.packets), history.NEVER)
    found = answers(firsts, use_case, since=np.zeros_like(everything), until=everything)
    last: dict[tuple[int, int, int], int] = {}
    for n, (packet, row) in enumerate(zip(found.seg.tolist(), found.encounter.tolist(), strict=True)):
        patient, end, _ = h.packets[packet]
        if h.until[end] > 0:
            last[patient, int(firsts.id_hi[row]), int(firsts.id_lo[row])] = n
    groups, rows_here, entries = [], [], []
    begins = np.flatnonzero(np.diff(stints.group, prepend=-1))
    for g, row in enumerate(stints.row[begins].tolist()):
        n = last.get((int(h.seg[row]), int(h.id_hi[row]), int(h.id_lo[row])), -1)
        if n < 0:
            continue
        end = h.packets[int(found.seg[n])][1]
        if due[g] < 0 or h.place[due[g]] >= h.place[end]:
            due[g] = end
            groups.append(g)
            rows_here.append(row)
            entries.append(n)
    some = np.array(entries, np.int64)
    kept = found.where(some)
    return _Priors(
        np.array(groups, np.int64), np.array(rows_here, np.int64), replace(kept, packet=kept.seg, due_place=firsts.place[kept.due])
    )


def _with_brought(h: Histories, made: Answers, prior: _Priors, since: Int, until: Int) -> Answers:
    """The answers, and before them the last ones of what a merge brings at these places."""
    told = prior.found
    ends = np.array([end for _, end, _ in h.packets])[told.packet]
    seg, place = h.seg[ends], h.place[ends]
    now = np.flatnonzero((told.status == SCORED) & (place >= since[seg]) & (place < until[seg]))
    brought = replace(told, seg=seg, trigger=ends, due=ends, encounter=prior.encounter, told=np.zeros(len(seg), bool)).where(now)
    return Answers(*(np.concatenate([getattr(one, name) for one in (brought, made)]) for name in Answers.__slots__))


def _continue(prior: _Priors, group: Int, same: Bool, status: Int, reason: Int, index_us: Int, matrix: npt.NDArray[np.float64]) -> Int:
    """Compare the first question of carried encounters with their last answer elsewhere; returns what their counts begin with."""
    base = np.zeros(len(group), np.int64)
    for g, n in zip(prior.group.tolist(), range(len(prior.group)), strict=True):
        i = int(np.searchsorted(group, g))
        if i < len(group) and group[i] == g:
            told = prior.found
            same[i] = (
                (status[i], reason[i], index_us[i]) == (told.status[n], told.reason[n], told.index_us[n])
                and matrix[i].tobytes() == told.matrix[n].tobytes()
            )  # fmt: skip
            base[i] = told.revision[n] + (not same[i])
    return base


def _stints(h: Histories, use_case: UseCase) -> _Stints:
    """All versions of all encounters that were ever an index, while they ruled."""
    ruled = h.until > 0
    row = first = np.flatnonzero(use_case.index_table[h.concept] & ruled)
    amended = np.flatnonzero((h.earlier >= 0) & ruled)
    if len(amended):
        root = np.arange(len(h.seg))
        for i in amended.tolist():  # in log order, so the root of the earlier version is known
            root[i] = root[h.earlier[i]]
        of_interest = np.zeros(len(root), bool)
        of_interest[root[row]] = True
        row = np.flatnonzero(of_interest[root] & ruled)
        first = root[row]
    brought = np.flatnonzero((h.undone[row] >= 0) & (h.until[row] == h.place[h.undone[row]])) if h.packets else row[:0]
    if len(brought):  # an undone merge is a version of what it brought: from there on it was never here
        row, first = np.concatenate([row, h.undone[row[brought]]]), np.concatenate([first, first[brought]])
    if len(amended) or len(brought):
        order = np.lexsort((row, first))
        row, first = row[order], first[order]
    group = np.cumsum(first[1:] != first[:-1])
    group = np.concatenate([np.zeros(min(len(row), 1), np.int64), group])
    index_us = h.event_us[row] + use_case.offset_us
    is_index = use_case.is_index(h.concept[row], h.status[row])
    if use_case.definition.index.at == "end":
        length = h.value[row]
        is_index &= ~np.isnan(length)
        index_us = index_us + np.nan_to_num(length).astype(np.int64)
    last = np.maximum.accumulate(np.where(is_index, np.arange(len(row)), 0)) if len(row) else row
    return _Stints(group, row, is_index, index_us[last], row[last])


def _due(h: Histories, stints: _Stints) -> Int:
    """d of each group: the row at which it is first an index and due (S7), or -1."""
    groups = int(stints.group[-1]) + 1 if len(stints.group) else 0
    due = np.full(groups, -1, np.int64)
    index = np.flatnonzero(stints.is_index)
    row, needed = stints.row[index], stints.index_us[index] - fact.FUTURE_TOLERANCE_US
    when = np.where(h.known_us[row] >= needed, row, -1)
    for n in np.flatnonzero(when < 0).tolist():  # booked ahead: the first record at which its time has come
        begin, end = int(row[n]), int(h.start[h.seg[row[n]] + 1])
        at = begin + int(np.searchsorted(h.known_us[begin:end], needed[n]))
        if at < end and h.place[at] < h.until[row[n]]:
            when[n] = at
    found = np.flatnonzero(when >= 0)[::-1]
    due[stints.group[index[found]]] = h.lead[when[found]]  # the earliest stint wins: numpy keeps what is written last
    return due


def _asked(
    h: Histories, stints: _Stints, due: Int, due_known_us: Int, use_case: UseCase, since: Int, until: Int, *, at_due_only: bool
) -> tuple[Int, Int, Int]:
    """(group, stint, row) of every place at which an answer may differ from the one before, by (group, place)."""
    if not len(due):
        return stints.group, stints.group, stints.group
    order = h.seg * _PLACES + h.place
    happened = due >= 0
    d = np.where(happened, due, 0)
    seg = h.seg[d]
    latest_us = due_known_us + use_case.revise_for_us
    part = np.searchsorted(order, np.arange(len(since)) * _PLACES + since).take(seg)  # first row of interest of its patient
    ahead = part < h.start[seg + 1]
    open_ = happened & ahead & (h.place[d] < until[seg]) & (h.known_us[d] <= latest_us)
    open_ &= (h.place[d] >= since[seg]) | (h.known_us[np.where(ahead, part, 0)] <= latest_us)
    of_stint = np.flatnonzero(open_[stints.group])
    if not len(of_stint):
        return of_stint, of_stint, of_stint
    row, group = stints.row[of_stint], stints.group[of_stint]
    first = np.flatnonzero((row <= d[group]) & (h.place[d[group]] < h.until[row]) & stints.is_index[of_stint])
    at_due = first[np.flatnonzero(np.diff(group[first], prepend=-1))]
    if at_due_only:
        return group[at_due], of_stint[at_due], d[group[at_due]]
    begin = np.maximum(row, d[group] + 1)  # the first row after d in which this version rules
    end = np.searchsorted(order, h.seg[row] * _PLACES + np.minimum(h.until[row], until[h.seg[row]]))
    which, record = stretches(begin, np.maximum(end - begin, 0))
    reach = _reaches(h, use_case, record, stints.index_us[of_stint][which]) & stints.is_index[of_stint][which]
    asks_all = (h.concept[record] == codes.MERGED) | ((h.concept[record] == codes.MERGE) & (h.status[record] >= fact.GONE))
    reach |= asks_all & (h.until[record] > 0)  # whatever a merge brings or takes, it asks once
    matters = (h.known_us[record] <= latest_us[group[which]]) & (reach | (record == row[which])) & (h.lead[record] == record)
    stint = np.concatenate([of_stint[at_due], of_stint[which[matters]]])
    asked = np.concatenate([d[group[at_due]], record[matters]])
    by_place = np.lexsort((asked, stints.group[stint]))
    return _of_interest(h, stints.group[stint[by_place]], stint[by_place], asked[by_place], since)


def _after_silence(h: Histories, moved: list[tuple[int, Move]], group: Int, stint: Int, asked: Int) -> tuple[Int, Int, Int]:
    """Without the questions at places at which a patient was somebody else."""
    keep = np.ones(len(asked), bool)
    for patient, move in moved:
        keep &= (h.seg[asked] != patient) | (h.place[asked] < move.place) | (h.place[asked] >= move.until)
    return group[keep], stint[keep], asked[keep]


def _of_interest(h: Histories, group: Int, stint: Int, asked: Int, since: Int) -> tuple[Int, Int, Int]:
    """Drop the encounters whose last question is older than what is of interest."""
    keep = np.zeros(int(group[-1]) + 1, bool) if len(group) else np.zeros(0, bool)
    keep[group[h.place[asked] >= since[h.seg[asked]]]] = True
    kept = keep[group]
    return group[kept], stint[kept], asked[kept]


def _reaches(h: Histories, use_case: UseCase, record: Int, index_us: Int) -> Bool:
    """Whether the row of an encounter with this index time can see the record, or what the record amended."""
    before = h.earlier[record]
    seen = _visible(h, use_case, record, index_us)
    amends = np.flatnonzero(before >= 0)
    seen[amends] |= _visible(h, use_case, before[amends], index_us[amends])
    result: Bool = seen & (h.until[record] > 0)
    return result


def _visible(h: Histories, use_case: UseCase, record: Int, index_us: Int) -> Bool:
    plan, concept = use_case.plan, h.concept[record]
    time = h.event_us[record]
    near = plan.reads[concept] & (time >= index_us - plan.longest_us)
    result: Bool = (time < index_us) & (near | plan.reads_ever[concept])
    return result


def _verdicts(h: Histories, use_case: UseCase, version: Int, due: Int) -> tuple[Int, Int]:
    """Status and reason as far as the encounter itself decides them: (status, reason)."""
    status, reason = np.zeros(len(due), np.int64), np.zeros(len(due), np.int64)
    told, concept = h.status[version], h.concept[version]
    gone = told >= fact.GONE
    index = use_case.is_index(concept, told)
    if use_case.definition.index.at == "end":
        index &= ~np.isnan(h.value[version])
    status[~index] = WITHDRAWN
    reason[~index] = NOT_AN_INDEX
    reason[gone] = np.where(told[gone] == ENTERED_IN_ERROR, RETRACTED, CANCELLED)
    if use_case.definition.index.exclude_expired:
        died = index & (h.flags[version] & fact.EXPIRED > 0)
        status[died], reason[died] = EXCLUDED, DIED
    long = (status == SCORED) & (due - h.start[h.seg[due]] >= use_case.definition.history_facts_max)  # judged once, when it became due
    status[long], reason[long] = EXCLUDED, TOO_LONG
    return status, reason


def _judge(use_case: UseCase, values: npt.NDArray[np.float64], scored: Int, status: Int, reason: Int) -> None:
    """Apply the cohort's rules, first to last; the first that fails is the reason."""
    undecided = np.ones(len(scored), bool)
    for n, rule in enumerate(use_case.definition.cohort):
        value = values[:, n]
        fails = np.zeros(len(scored), bool)
        if rule.at_least is not None:
            fails |= value < rule.at_least
        if rule.at_most is not None:
            fails |= value > rule.at_most
        if rule.missing == "exclude":
            fails |= np.isnan(value)
        fails &= undecided
        undecided &= ~fails
        status[scored[fails]], reason[scored[fails]] = EXCLUDED, len(BUILT_IN_REASONS) + n
