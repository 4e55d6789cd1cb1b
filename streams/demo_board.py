"""What the demo has seen: feeds sent, facts, scores and alerts on their topics, and the story that they tell. Pure: no Kafka, no screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from features import event, fact
from features.clock import DAY_US, MINUTE_US, to_us
from features.retell import is_told
from models import score
from models.score import Score
from streams.admit import CONTROLS
from streams.alert import Alert
from streams.demo_patients import Moment, Source

KIND_OF_FEED = {feed: kind for kind, feed in event.FEED_OF_KIND.items()}
NOUNS = {"lab": "lab result", "vital": "weight", "encounter": "visit", "death": "death", "coverage": "cover", "person": "person's record"}
_alert = msgspec.json.Decoder(Alert).decode


def in_100(risk: float | None) -> str:
    """A risk as the care team reads it.

    Example:
        >>> in_100(0.274)
        '27 in 100'
    """
    return "no risk" if risk is None else f"{round(risk * 100)} in 100"


def reasons(contributions: Sequence[tuple[str, float]], background: Collection[str], *, most: int = 2) -> str:
    """What a high risk goes with, by topic: those that raise it, largest first.

    Example:
        >>> reasons([("age", 0.9), ("hemoglobin", 0.7), ("visits", -0.4), ("albumin", 0.1)], ["age"])
        'hemoglobin, albumin'
    """
    told = [topic for topic, share in contributions if share >= 0.01 and topic not in background][:most]
    return ", ".join(told) or "background alone"


def span(time_us: int) -> str:
    """A length of time in one unit.

    Example:
        >>> span(90 * MINUTE_US), span(50 * DAY_US)
        ('90 minutes', '50 days')
    """
    for unit_us, name in ((DAY_US, "days"), (60 * MINUTE_US, "hours")):
        if time_us >= 2 * unit_us:
            return f"{time_us // unit_us} {name}"
    return f"{time_us // MINUTE_US} minutes"


@dataclass(frozen=True, slots=True)
class Question:
    """What a champion foresees, as far as it is shown."""

    background: Collection[str] = ()
    """Topics that reasons do not list."""
    threshold: float = 0.5
    """Risk from which a visit is flagged."""
    horizon_days: int = 60
    outcome: str = "they came to the emergency department"


@dataclass(slots=True)
class _Sent:
    """The last time a fact was told."""

    at_s: float
    kind: str
    about: dict[str, Any]


@dataclass(slots=True)
class Stand:
    """How far a source has been played."""

    sent: int = 0
    known_us: int | None = None


@dataclass
class Board:
    """Everything that the demo shows. Times are seconds after the start of the feeds.

    Args:
        sources: What is played.
        questions: By use case.
    """

    sources: list[Source]
    questions: Mapping[str, Question] = field(default_factory=dict)
    stands: list[Stand] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    """Events by feed."""
    facts: set[bytes] = field(default_factory=set)
    dead_letters: set[bytes] = field(default_factory=set)
    controls: Counter[str] = field(default_factory=Counter)
    scores: set[str] = field(default_factory=set)
    repeats: int = 0
    revisions: int = 0
    alerts: dict[str, Alert] = field(default_factory=dict)
    """The last thing that happened to each."""
    transitions: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)
    """What is worth telling and has not been told."""
    outage: tuple[float, float] | None = None
    """From the kill until everything that was sent meanwhile is a fact; its end far away while it lasts."""
    _delays: list[tuple[float, float]] = field(default_factory=list)
    _last: dict[str, _Sent] = field(default_factory=dict)
    _visits: dict[tuple[str, str, str], Score] = field(default_factory=dict)
    """By use case, patient and encounter: of champions."""
    _seen: set[tuple[str, int]] = field(default_factory=set)
    _source_of: dict[str, int] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.stands = [Stand() for _ in self.sources]

    @property
    def flagged(self) -> int:
        """Visits whose last score is flagged."""
        return sum(s.flagged for s in self._visits.values())

    @property
    def open_alerts(self) -> list[Alert]:
        """Newest first."""
        mine = [a for a in self.alerts.values() if a.transition not in ("withdrawn", "closed")]
        return sorted(mine, key=lambda a: a.known_time, reverse=True)

    @property
    def under_way(self) -> int:
        """Events that were sent and are neither fact nor dead letter yet."""
        return self.sent.total() - len(self.facts) - len(self.dead_letters)

    def source_of(self, patient: str) -> str:
        return self.sources[self._source_of[patient]].name if patient in self._source_of else ""

    def feed(self, moments: Sequence[Moment], at_s: float) -> None:
        """These were sent."""
        for m in moments:
            stand = self.stands[m.source]
            stand.known_us = m.known_us
            if m.feed == CONTROLS:
                continue
            stand.sent += 1
            self.sent[m.feed] += 1
            about = m.event
            self._source_of.setdefault(about["patient_id"], m.source)
            kind = about["target_kind"] if m.feed == "retractions" else KIND_OF_FEED[m.feed]
            self._last[fact.fact_id(kind, about["id"]).hex()] = _Sent(at_s, kind, about)

    def take_fact(self, key: bytes | None, value: bytes) -> None:
        """A record of `facts`."""
        if key is not None:
            if is_told(value):  # what a merge carries was never sent
                self.facts.add(value)
        else:
            self.controls["activate" if b'"model_version"' in value else "tick"] += 1

    def take_score(self, value: bytes, at_s: float) -> None:
        """A record of `scores`."""
        made = score.decode(value)
        if made.score_id in self.scores:
            self.repeats += 1
            return
        self.scores.add(made.score_id)
        self.revisions += made.revision > 0
        cause = self._last.get(made.trigger)
        if cause is not None:
            self._delays.append((cause.at_s, at_s - cause.at_s))
        visit = (made.use_case, made.patient_id, made.encounter_id)
        before = self._visits.get(visit)
        if made.role == "champion" and (before is None or before.revision < made.revision):
            self._visits[visit] = made
            if before is not None and cause is not None:
                self._tell_revision(before, made, cause)

    def take_alert(self, value: bytes) -> None:
        """A record of `alerts`."""
        told = _alert(value)
        if (told.alert_id, told.sequence) in self._seen:
            return
        self._seen.add((told.alert_id, told.sequence))
        self.transitions[told.transition] += 1
        self.alerts[told.alert_id] = told
        whose = f"{told.patient_id} ({self.source_of(told.patient_id)})"
        if told.transition == "opened":
            words = f"{in_100(told.risk)}, listed from {round(self._question(told).threshold * 100)}; goes with {self.reasons(told)}"
            self._tell("opened", f"first alert: {whose}, {words}")
        elif told.transition == "withdrawing":
            self._tell("withdrawing", f"alert of {whose} is being taken back: no visit of theirs is flagged any more")
        elif told.transition == "closed" and told.reason == "outcome":
            self._tell("outcome", f"alert of {whose} closed: {self._question(told).outcome}")

    def reasons(self, alert: Alert) -> str:
        return reasons(alert.contributions, self._question(alert).background)

    def _question(self, alert: Alert) -> Question:
        return self.questions.get(alert.use_case, Question())

    @property
    def horizon(self) -> str:
        """What the risks are about, where it is the same for all."""
        days = {question.horizon_days for question in self.questions.values()}
        return f"risk in {days.pop()} days" if len(days) == 1 else "risk"

    def _tell(self, what: str, words: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self.story.append(words)

    def _tell_revision(self, before: Score, now: Score, cause: _Sent) -> None:
        noun = NOUNS.get(cause.kind, cause.kind.replace("_", " "))
        status = "entered-in-error" if "target_kind" in cause.about else cause.about.get("status", "final")
        risk = f"revision {now.revision}, {in_100(before.risk)} → {in_100(now.risk)}"
        if now.status == "withdrawn":
            self._tell("withdrawn", f"a visit of {now.patient_id} turned out never to have been: its score is withdrawn")
        elif in_100(before.risk) == in_100(now.risk):
            return
        elif status in ("amended", "corrected"):
            self._tell("corrected", f"a {noun} of {now.patient_id} was corrected: {risk}")
        elif status in ("entered-in-error", "cancelled"):
            self._tell("taken back", f"a {noun} of {now.patient_id} was taken back: {risk}")
        elif cause.kind in ("lab", "vital"):
            late_us = _us(cause.about["known_time"]) - _us(now.index_time)
            if late_us > MINUTE_US:
                self._tell("late", f"a {noun} of {now.patient_id} became known {span(late_us)} after the visit began: {risk}")

    def delays(self) -> tuple[float, float, float | None] | None:
        """Seconds from sending an event to its score: p50 and p99 while the worker ran, and the longest over the kill."""
        begin_s, end_s = self.outage or (float("inf"), float("inf"))
        end_s = max((s + d for s, d in self._delays if begin_s - d <= s < end_s), default=end_s)  # others wait behind those
        usual = [d for s, d in self._delays if not begin_s - d <= s < end_s]
        over = [d for s, d in self._delays if begin_s - d <= s < end_s]
        if not usual:
            return None
        p50, p99 = np.percentile(usual, [50, 99]).tolist()
        return p50, p99, max(over, default=None)


def _us(text: str) -> int:
    return to_us(msgspec.convert(text, fact.AwareTime))
