"""Alerts: a fold over a patient's score records, ticks, deaths and outcomes in place order (S12), champion only.

      none ──support──▶ open ◀──support── withdrawing ──tick ≥ settle──▶ withdrawn
                         │ └──support gone──▶ ┘
                         └──death, the outcome itself, expiry──▶ closed

An encounter supports iff its latest record is scored and flagged and its first was issued within `fresh_for` of its index time.
The fold sees the score history of the patient each time: nothing is remembered but records, so a replay gives the same alerts. A score
history begins with the first flagged score: what came before it changes no alert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from features import codes, fact
from features.clock import ALWAYS_US, DAY_US, MINUTE_US, rfc3339
from features.revision import SCORED
from features.usecase import UseCase
from models.score import Score

SCORE, DIED, HAPPENED, MOVED, CAME_BACK = 65_002, 65_003, 65_004, 65_005, 65_006
"""Concepts of the records of a score history, beside ticks and names."""
FLAGGED, FRESH = 1, 2
"""Flags of a score record: flagged; its encounter's first record was issued within `fresh_for` of the index time."""


class Alert(msgspec.Struct, frozen=True):
    """One thing that happened to an alert. Nothing is edited; `sequence` counts from 0 within the alert."""

    alert_id: str
    sequence: int
    patient_id: str
    use_case: str
    transition: str
    """opened, updated, withdrawing, reopened, withdrawn, closed."""
    notify: bool
    known_time: str
    risk: float | None
    """Greatest risk among the supporting encounters."""
    support: list[str]
    """Encounters that support it."""
    reason: str
    """Why it closed: death, outcome, expired, moved (to another patient, S9)."""
    score_id: str
    """The score record that caused it; empty for time, death and outcome."""
    contributions: list[tuple[str, float]]


encode = msgspec.json.Encoder().encode


class Item(NamedTuple):
    """One record of a score history."""

    place: int
    kind: int
    encounter: bytes
    episode: int
    row: int
    """Where its name stands in the stored history."""
    index_us: int
    known_us: int
    risk: float
    supports: bool


@dataclass(slots=True)
class _State:
    """The alert of one patient and use case."""

    patient: bytes
    since: int
    """Transitions at earlier places are counted, not made."""
    members: set[bytes] = field(default_factory=set)
    """Every encounter that supported this alert at some time."""
    spent: set[bytes] = field(default_factory=set)
    """Members of closed alerts: they do not open another."""
    support: dict[bytes, Item] = field(default_factory=dict)
    """The encounters that support the alert, each with its latest record."""
    opened: tuple[bytes, int] = (b"", 0)
    """What the alert's id is a hash of: its first supporters and when it opened."""
    sequence: int = 0
    status: str = "none"
    withdrawing_since_us: int = 0
    told_risk: float = 0.0
    """The risk of the last notification."""
    made: list[Transition] = field(default_factory=list)


class Transition(NamedTuple):
    """What happened at a place, before it is written out."""

    place: int
    known_us: int
    alert_id: str
    sequence: int
    transition: str
    notify: bool
    risk: float | None
    support: list[Item]
    """The supporting encounters, by index time."""
    reason: str = ""


def fold(items: Sequence[Item], use_case: UseCase, patient: bytes, since: int = 0) -> list[Transition]:
    """The transitions of one patient's alert at places from `since` on, from its whole score history of one use case."""
    state = _State(patient, since)
    known_us, i = ALWAYS_US, 0
    while i < len(items):
        place, end = items[i].place, i + 1
        while end < len(items) and items[end].place == place:
            end += 1
        told = items[i:end]
        i = end
        known_us = max(known_us, told[-1].known_us, told[0].known_us)
        scores_only = told[0].kind == told[-1].kind == SCORE  # at one place marks come first, and ticks last
        if state.status != "none" and not scores_only:
            _close(state, told, use_case, place, known_us)
        touched = _take_in(state, told)
        if touched or state.status == "withdrawing":
            _move(state, touched, use_case, place, known_us, ticked=told[-1].kind == codes.TICK)
    return state.made


def _take_in(state: _State, told: Sequence[Item]) -> bool:
    """Learn the score records of one place; whether any concerns the support, before or after."""
    touched = False
    for item in told:
        if item.kind == CAME_BACK:
            touched = bool(state.support)
        if item.kind != SCORE:
            continue
        if item.supports and item.encounter not in state.spent:
            state.support[item.encounter] = item
            state.members.add(item.encounter)
            touched = True
        elif state.support.pop(item.encounter, None) is not None:
            touched = True
    return touched


def _close(state: _State, told: Sequence[Item], use_case: UseCase, place: int, known_us: int) -> None:
    """Death, the outcome itself and expiry end an alert, before anything else that the same place tells."""
    reason = ""
    for item in told:
        if item.kind == DIED:
            reason = "death"
        elif reason:
            continue
        elif item.kind == MOVED:
            reason = "moved"
        elif item.kind == HAPPENED:
            reason = "outcome" if any(_is_outcome(item, x, use_case) for x in state.support.values()) else ""
        elif item.kind == codes.TICK and state.support:
            latest_us = max(x.index_us for x in state.support.values())
            reason = "expired" if known_us > latest_us + use_case.at_risk_us else ""
    if reason:
        _step(state, use_case, place, known_us, "closed", notify=False, reason=reason)
        state.status = "none"
        if reason != "moved":  # what supports it counts again, should the merge be undone
            state.spent |= state.members
            state.members, state.support = set(), {}


def _is_outcome(event: Item, visit: Item, use_case: UseCase) -> bool:
    """Whether the event lies in the visit's time at risk and is not the visit itself (as the label counts it)."""
    outcome = use_case.definition.outcome
    after_us = event.index_us - visit.index_us - outcome.gap_days * DAY_US
    own = not outcome.own_episode and event.episode == visit.episode != 0
    return 0 < after_us <= use_case.horizon_us and not own


def _move(state: _State, touched: bool, use_case: UseCase, place: int, known_us: int, *, ticked: bool) -> None:
    """Opening, updating and withdrawing, at most one of them at a place."""
    support = state.support
    risk = max((x.risk for x in support.values()), default=0.0)
    settle_us = use_case.definition.settle_minutes * MINUTE_US
    if state.status == "none":
        if support and touched:
            state.sequence, state.status, state.told_risk = 0, "open", risk
            state.opened = b"|".join([state.patient, *sorted(support)]), known_us
            _step(state, use_case, place, known_us, "opened", notify=True)
    elif not support:
        if state.status == "open":
            state.status, state.withdrawing_since_us = "withdrawing", known_us
            _step(state, use_case, place, known_us, "withdrawing", notify=False)
        elif ticked and known_us - state.withdrawing_since_us >= settle_us:
            _step(state, use_case, place, known_us, "withdrawn", notify=False)
            state.status = "none"
    elif touched or state.status == "withdrawing":
        rises = risk >= state.told_risk + use_case.definition.notify_rise
        if rises:
            state.told_risk = risk
        transition = "reopened" if state.status == "withdrawing" else "updated"
        state.status = "open"
        _step(state, use_case, place, known_us, transition, notify=rises)


def _step(state: _State, use_case: UseCase, place: int, known_us: int, transition: str, *, notify: bool, reason: str = "") -> None:
    sequence = state.sequence
    state.sequence += 1
    if place < state.since:
        return
    support = sorted(state.support.values(), key=lambda x: (x.index_us, x.encounter))
    risk = max((x.risk for x in support), default=None)
    alert_id = blake2b(b"%b|%b|%d" % (use_case.name.encode(), *state.opened), digest_size=16).hexdigest()
    state.made.append(Transition(place, known_us, alert_id, sequence, transition, notify, risk, support, reason))


def score_record(
    *,
    encounter: bytes,
    episode: int,
    place: int,
    index_us: int,
    known_us: int,
    risk: float | None,
    status: int,
    flagged: bool,
    fresh: bool,
    use_case: str,
    name: str,
) -> bytes:
    """A score as a record of the score history, with the encounter's name behind it."""
    head = fact.pack(
        identity=encounter, event_us=index_us, stamp_us=known_us, value=risk if risk is not None else 0.0, episode=episode,
        place=place, ordinal=number(use_case), concept=SCORE, status=status, flags=FLAGGED * flagged | FRESH * fresh,
    )  # fmt: skip
    return head + fact.name_records(name.encode(), place=place)


def mark(kind: int, *, place: int, event_us: int, known_us: int, episode: int = 0, use_case: str = "") -> bytes:
    """A tick, a death or a use case's outcome event as a record of the score history."""
    ordinal = number(use_case) if use_case else 0
    return fact.pack(identity=bytes(16), event_us=event_us, stamp_us=known_us, place=place, concept=kind, episode=episode, ordinal=ordinal)


@cache
def number(use_case: str) -> int:
    """The number of a use case in score histories; 0 stands for all."""
    return fact.hash64(use_case) % (2**32 - 1) + 1


def items(records: npt.NDArray[np.void], starts: Sequence[int], use_case: str) -> list[list[Item]]:
    """The score histories of one use case of several patients, with the marks that concern all use cases.

    Args:
        records: The patients' records, one patient after the other.
        starts: Where each patient begins, and the end.
    """
    kind = records["concept"]
    row = np.flatnonzero((kind != codes.NAME) & ((records["ordinal"] == 0) | (records["ordinal"] == number(use_case))))
    some = records[row]
    supports = (some["concept"] == SCORE) & (some["status"] == SCORED) & (some["flags"] == FLAGGED | FRESH)
    ids = np.stack([some["id_hi"], some["id_lo"]], axis=1).tobytes()
    place, concept, index_us, known_us, risk = (some[name].tolist() for name in ("place", "concept", "event_us", "stamp_us", "value"))
    encounter = [ids[n : n + 16] for n in range(0, len(ids), 16)]
    made = list(map(Item, place, concept, encounter, some["episode"].tolist(), row.tolist(), index_us, known_us, risk, supports.tolist()))
    bounds = np.searchsorted(row, starts).tolist()
    return [made[begin:end] for begin, end in pairwise(bounds)]


def written(transition: Transition, records: npt.NDArray[np.void], *, patient_id: str, use_case: str, cause: Score | None) -> Alert:
    """The record of a transition, with the names that stand in the score history."""
    return Alert(
        alert_id=transition.alert_id,
        sequence=transition.sequence,
        patient_id=patient_id,
        use_case=use_case,
        transition=transition.transition,
        notify=transition.notify,
        known_time=rfc3339(transition.known_us),
        risk=transition.risk,
        support=[fact.name_at(records, item.row + 1) for item in transition.support],
        reason=transition.reason,
        score_id=cause.score_id if cause else "",
        contributions=cause.contributions if cause else [],
    )
