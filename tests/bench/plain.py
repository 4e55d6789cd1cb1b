"""The task in plain Python, fact by fact: what the peers run, and what our scores are compared with.

It knows the words of the task and nothing of the windows, histories and revisions of the product. Each patient's facts lie in order of
event time; a question looks at the last 90 days of them. A fact that comes later asks again those of its patient's encounters that
were due at most 30 days ago and whose window it lies in; where the 46 numbers changed there is a further revision.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from features.catalog import Feature
from models.artifact import Model
from tests.bench.task import CLASSES, LABS, WINDOWS_DAYS

DAY_US = 86_400_000_000
LONGEST_US = WINDOWS_DAYS[-1] * DAY_US
OPEN_US = 30 * DAY_US
COLUMNS_OF_LAB = 10
"""Of one kind of result: count, any abnormal and last in three windows, and the days since the last."""
VISITS_AT = COLUMNS_OF_LAB * len(LABS)
COLUMNS = VISITS_AT + 2 * len(WINDOWS_DAYS)
EMERGENCY, OTHER_VISIT = len(LABS), len(LABS) + 1
"""Kinds of facts beside the results, which are numbered as in `LABS`."""
KIND_OF_CODE = {code: n for n, (_, code, *_) in enumerate(LABS)}
KIND_OF_CLASS = {cls: EMERGENCY if cls == "emergency" else OTHER_VISIT for cls in CLASSES}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Told(msgspec.Struct, gc=False):
    """A feed record of either feed, as far as the task reads it."""

    id: str
    patient_id: str
    event_time: datetime
    known_time: datetime
    kind: str
    encounter_class: str = ""
    code: str = ""
    value: float = 0.0


class Answer(msgspec.Struct, gc=False, omit_defaults=True):
    """What a peer writes for each answer: with its reasons what our score records say to people, without them a bare number."""

    encounter_id: str
    patient_id: str
    revision: int
    risk: float
    index_time: datetime | None = None
    known_time: datetime | None = None
    flagged: bool = False
    contributions: list[tuple[str, float]] = []
    """(topic, share of the logit), largest first."""
    missing: list[str] = []
    """Topics of which nothing was known."""


decode = msgspec.json.Decoder(Told).decode
encode = msgspec.json.Encoder().encode


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970, exactly."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


Numbers = list[float | None]
"""A row: None where nothing is known."""
Fact = tuple[int, int, float, bool]
"""(event time, kind, value, whether it is outside the reference interval)"""


class Logistic:
    """The model with its columns put into the order of the task, ready for one row at a time.

    Args:
        model: Of the task.
        reasons: Whether answers say more than the risk.
    """

    def __init__(self, model: Model, *, reasons: bool = True) -> None:
        artifact = model.artifact
        by_name = dict(zip((c.name for c in artifact.columns), artifact.columns, strict=True))
        topic_of = {f.name: f.topic for f in model.use_case.features}
        self.reasons, self.threshold = reasons, artifact.threshold
        self.topics = sorted(set(topic_of.values()))
        self.base = artifact.intercept
        self.terms: list[tuple[int, float, float, float]] = []
        """(topic, slope, constant, what a null adds) of each column."""
        self.nullable: list[list[int]] = [[] for _ in self.topics]
        """The columns of each topic that can be null."""
        for n, name in enumerate(column_names()):
            c, topic = by_name[name], self.topics.index(topic_of[name])
            slope = c.coefficient / c.scale
            here = -c.missing_rate * c.missing_coefficient
            null = (c.fill - c.mean) * slope + (1.0 - c.missing_rate) * c.missing_coefficient
            self.terms.append((topic, slope, here - c.mean * slope, null))
            self.base += c.missing_coefficient * c.missing_rate
            if c.missing_rate > 0:
                self.nullable[topic].append(n)

    def answer(self, visit: Visit, patient_id: str, known_time: datetime) -> Answer:
        """What is said of one visit now."""
        row, shares = visit.row, [0.0] * len(self.topics)
        for x, (topic, slope, constant, null) in zip(row, self.terms, strict=True):
            shares[topic] += null if x is None else x * slope + constant
        risk = 1.0 / (1.0 + math.exp(-self.base - sum(shares)))
        if not self.reasons:
            return Answer(visit.id, patient_id, visit.revision, risk)
        told = [(topic, round(share, 6)) for topic, share in zip(self.topics, shares, strict=True)]
        told.sort(key=lambda one: -abs(one[1]))
        missing = [topic for topic, some in zip(self.topics, self.nullable, strict=True) if some and all(row[n] is None for n in some)]
        times = visit.event_time, known_time
        return Answer(visit.id, patient_id, visit.revision, risk, *times, risk >= self.threshold, told, missing)


def column_names() -> list[str]:
    """The 46 columns in the order of `row`, by the names that the use case gives them."""
    names = []
    for concept, *_ in LABS:
        names += [f"{concept}_{aggregate}_{days}d" for days in WINDOWS_DAYS for aggregate in ("count", "any_abnormal", "last")]
        names.append(f"{concept}_days_since_last_{WINDOWS_DAYS[-1]}d")
    return names + [f"{stem}_count_{days}d" for days in WINDOWS_DAYS for stem in ("ed_visits", "visits")]


def intervals(model: Model) -> list[tuple[float, float]]:
    """The reference interval of each kind of result, from the code sets."""
    book = model.use_case.book
    bounds = [(book.by_name[concept].low, book.by_name[concept].high) for concept, *_ in LABS]
    return [(-math.inf if low is None else low, math.inf if high is None else high) for low, high in bounds]


@dataclass(slots=True)
class Visit:
    """An encounter whose answer may still change."""

    id: str
    event_time: datetime
    event_us: int
    known_us: int
    revision: int
    row: Numbers


class Patient:
    """What is known of one patient. Feed it in the order of known time."""

    __slots__ = ("facts", "known_us", "open")

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.open: list[Visit] = []
        self.known_us = 0

    def tell(self, told: Told, limits: list[tuple[float, float]], logistic: Logistic, *, revise: bool = True) -> list[Answer]:
        """Learn one fact; the answers that it gives."""
        event_us = microseconds(told.event_time)
        self.known_us = known_us = max(self.known_us, microseconds(told.known_time))
        if told.kind == "lab":
            kind = KIND_OF_CODE[told.code]
            low, high = limits[kind]
            insort(self.facts, (event_us, kind, told.value, not low <= told.value <= high))
        else:
            insort(self.facts, (event_us, KIND_OF_CLASS[told.encounter_class], 0.0, False))
        answers = []
        if revise and self.open:
            self.open = [visit for visit in self.open if known_us - visit.known_us <= OPEN_US]
            for visit in self.open:
                if event_us < visit.event_us <= event_us + LONGEST_US:
                    row = self.row(visit.event_us)
                    if row != visit.row:
                        visit.row = row
                        visit.revision += 1
                        answers.append(logistic.answer(visit, told.patient_id, told.known_time))
        if told.kind != "lab":
            visit = Visit(told.id, told.event_time, event_us, known_us, 0, self.row(event_us))
            answers.append(logistic.answer(visit, told.patient_id, told.known_time))
            if revise:
                self.open.append(visit)
        return answers

    def row(self, at_us: int) -> Numbers:
        """The 46 numbers of an encounter at this time, from the facts in [at − 90 days, at)."""
        row: Numbers = [0.0, 0.0, None, 0.0, 0.0, None, 0.0, 0.0, None, None] * len(LABS) + [0.0] * (COLUMNS - VISITS_AT)
        facts = self.facts
        for n in range(bisect_left(facts, (at_us - LONGEST_US,)), bisect_left(facts, (at_us,))):
            event_us, kind, value, abnormal = facts[n]
            age_us = at_us - event_us
            narrowest = 0 if age_us <= WINDOWS_DAYS[0] * DAY_US else 1 if age_us <= WINDOWS_DAYS[1] * DAY_US else 2
            if kind < EMERGENCY:
                begin = kind * COLUMNS_OF_LAB
                row[begin + 9] = age_us / DAY_US
                for at in range(begin + 3 * narrowest, begin + 9, 3):
                    row[at] += 1.0  # type: ignore[operator]
                    row[at + 2] = value
                    if abnormal:
                        row[at + 1] = 1.0
            else:
                for at in range(VISITS_AT + 2 * narrowest, COLUMNS, 2):
                    row[at + 1] += 1.0  # type: ignore[operator]
                    if kind == EMERGENCY:
                        row[at] += 1.0  # type: ignore[operator]
        return row


def answers(values: list[bytes], model: Model, *, revise: bool = True) -> dict[tuple[str, int], Answer]:
    """(encounter, revision) → answer to events in known-time order."""
    limits, logistic = intervals(model), Logistic(model)
    patients: dict[str, Patient] = {}
    given: dict[tuple[str, int], Answer] = {}
    for value in values:
        told = decode(value)
        patient = patients.setdefault(told.patient_id, Patient())
        for answer in patient.tell(told, limits, logistic, revise=revise):
            given[answer.encounter_id, answer.revision] = answer
    return given


def check_columns(features: tuple[Feature, ...]) -> None:
    """The use case must ask for exactly the columns of the task."""
    if sorted(f.name for f in features) != sorted(column_names()):
        raise ValueError("the use case of the bench and its plain reading do not have the same columns")
