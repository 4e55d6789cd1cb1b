"""A use case as data: which encounters are scored, for whom, from what, for which outcome. TOML in, a checked object out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from features import fact, toml
from features.catalog import Aggregate, Episode, Feature, declare
from features.clock import DAY_US, HOUR_US, SECOND_US
from features.codes import Codebook
from features.errors import InputError
from features.windows import CONCEPTS, Plan

BUILT_IN_REASONS = ("", "retracted", "cancelled", "not_an_index", "died_in_hospital", "history_too_long")
"""Reasons that every use case has; the cohort's own come behind them."""
Days = Field(ge=1, le=36_500)
NAME = r"^[a-z][a-z0-9_]{0,39}$"
"""Of a use case, which is also that of its file."""
Visit = Literal["ambulatory", "emergency", "inpatient", "observation", "home", "virtual"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Index(_Part):
    """Which encounters ask the question, and at which instant."""

    classes: list[Visit] = Field(min_length=1)
    statuses: list[Literal["planned", "in-progress", "finished"]] = ["planned", "in-progress", "finished"]
    at: Literal["start", "end"] = "start"
    """`start`: the index time is the start of the visit; `end`: its end (unfinished visits are not yet an index)."""
    offset_hours: float = Field(default=0.0, ge=0, le=720)
    """Added to it: 4.0 scores four hours after the start."""
    exclude_expired: bool = False
    """Visits during which the patient died are excluded, reason `died_in_hospital`."""


class Rule(_Part):
    """One rule of eligibility, judged at the index from what was known (P5). The first rule that fails is the reason."""

    reason: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    concepts: list[str] = Field(min_length=1)
    aggregate: Aggregate
    days: int | None = Field(default=None, ge=1, le=36_500)
    episode: Episode = "any"
    at_least: float | None = None
    at_most: float | None = None
    missing: Literal["exclude", "keep"] = "exclude"
    """What a null does: the default is to exclude, because eligibility that is not known is not eligibility."""


class Outcome(_Part):
    """The clinical event of interest in the time at risk `(index_time + gap, index_time + gap + horizon]`."""

    concepts: list[str] = Field(min_length=1)
    horizon_days: int = Field(ge=1, le=3_650)
    gap_days: int = Field(default=0, ge=0, le=3_650)
    own_episode: bool = False
    """Whether an event of the index visit itself counts."""
    priorities: list[Literal["emergency", "urgent", "elective", "unknown"]] | None = None
    """Only events that came about so; None: all."""
    follow_up: str = "coverage.observed"
    """Concept whose end is the end of follow-up; without such a fact, the last fact of the patient is."""


class FeatureGroup(_Part):
    """Columns of one stem: every aggregate in every window; without `days`, over the whole past."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    concepts: list[str] = Field(min_length=1)
    aggregates: list[Aggregate] = Field(min_length=1)
    days: list[Annotated[int, Days]] | None = Field(default=None, min_length=1)
    episode: Episode = "any"
    leak: bool = False
    unit: str | None = None
    topic: str | None = None


class Definition(_Part):
    """The whole file."""

    name: str = Field(pattern=NAME)
    title: str = ""
    capacity: float = Field(default=0.10, gt=0, lt=1)
    """The share of visits that the team can review; the threshold is chosen to flag as many."""
    revise_for_days: int = Field(default=30, ge=0, le=365)
    fresh_for_hours: int = Field(default=72, ge=1, le=8_760)
    settle_minutes: int = Field(default=10, ge=1, le=1_440)
    notify_rise: float = Field(default=0.10, gt=0, lt=1)
    """An open alert notifies again when its risk rose by at least this."""
    history_facts_max: int = Field(default=100_000, ge=100)
    background: list[str] = []
    """Topics that reasons never list one by one."""
    index: Index
    outcome: Outcome
    cohort: list[Rule] = []
    features: list[FeatureGroup] = Field(min_length=1)

    @model_validator(mode="after")
    def _reasons_are_unique(self) -> Definition:
        reasons = [rule.reason for rule in self.cohort]
        for n, reason in enumerate(reasons):
            if reason in reasons[:n] or reason in BUILT_IN_REASONS:
                raise ValueError(f"the reason {reason} is taken; give each rule of the cohort a word of its own")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Definition:
        seen: set[tuple[str, str, int | None]] = set()
        for group in self.features:
            for aggregate in group.aggregates:
                for days in _windows(group):
                    if (group.name, aggregate, days) in seen:
                        raise ValueError(f"feature {group.name}_{aggregate} is declared twice; give one of them another name")
                    seen.add((group.name, aggregate, days))
        return self


def _table(size: int, numbers: Iterable[int]) -> npt.NDArray[np.bool_]:
    table = np.zeros(size, bool)
    table[list(numbers)] = True
    return table


@dataclass(frozen=True)
class UseCase:
    """A checked use case with its columns and its hash. Equal hash: equal questions and equal rows."""

    definition: Definition
    content_hash: str
    features: tuple[Feature, ...]
    """The columns of the model's matrix."""
    plan: Plan
    """Of the features and, behind them, of the cohort's rules."""
    index_concepts: tuple[int, ...]
    index_statuses: tuple[int, ...]
    outcome_concepts: tuple[int, ...]
    follow_up_concept: int
    book: Codebook

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def feature_names(self) -> list[str]:
        return [f.name for f in self.features]

    @property
    def horizon_us(self) -> int:
        return self.definition.outcome.horizon_days * DAY_US

    @property
    def at_risk_us(self) -> int:
        """End of the time at risk, after the index time: gap and horizon."""
        return self.definition.outcome.gap_days * DAY_US + self.horizon_us

    @property
    def revise_for_us(self) -> int:
        return self.definition.revise_for_days * DAY_US

    @property
    def fresh_for_us(self) -> int:
        return self.definition.fresh_for_hours * HOUR_US

    @property
    def offset_us(self) -> int:
        return round(self.definition.index.offset_hours * 3600) * SECOND_US

    def is_outcome(self, concept: npt.NDArray[np.int64], flags: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether facts with these concepts and flags are events of the outcome."""
        hit: npt.NDArray[np.bool_] = self._outcome_table[0][concept]
        if self.definition.outcome.priorities is not None:
            hit &= self._outcome_table[1][flags & fact.PRIORITY_MASK]
        return hit

    def is_index(self, concept: npt.NDArray[np.int64], status: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether encounters with these concepts and statuses are index encounters, as far as these two decide."""
        hit: npt.NDArray[np.bool_] = self.index_table[concept] & self._index_status_table[status]
        return hit

    # Tables instead of numpy's isin, whose fixed cost is felt in each small batch.

    @cached_property
    def index_table(self) -> npt.NDArray[np.bool_]:
        """Concept number → whether it is one of the index's."""
        return _table(CONCEPTS, self.index_concepts)

    @cached_property
    def _index_status_table(self) -> npt.NDArray[np.bool_]:
        return _table(256, self.index_statuses)

    @cached_property
    def _outcome_table(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        priorities = self.definition.outcome.priorities or []
        allowed = [number for name, number in fact.PRIORITY.items() if (name or "unknown") in priorities]
        return _table(CONCEPTS, self.outcome_concepts), _table(256, allowed)

    @property
    def leaks(self) -> list[str]:
        """Names of the columns that look at the future on purpose."""
        return [f.name for f in self.features if f.leak]


def load(name: str | Path, book: Codebook) -> UseCase:
    """A use case by the name of a shipped one or by the path of a TOML file.

    Raises:
        InputError: names file, line, what came and what is allowed.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise InputError(f"{path}: no such use case file")
        return parse(toml.read(path), source=str(path), book=book)
    return parse(shipped(str(name)), source=f"{name}.toml", book=book)


def shipped(name: str) -> str:
    """The text of a shipped use case.

    Raises:
        InputError: there is none of that name; says which there are.
    """
    folder = files("features").joinpath("usecases")
    known = sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))
    if name not in known:
        raise InputError(f"use case '{name}' is not known. Shipped: {', '.join(known)}; or give the path of a .toml file")
    return folder.joinpath(f"{name}.toml").read_text(encoding="utf-8")


def parse(text: str, *, source: str, book: Codebook) -> UseCase:
    """A use case from TOML text. `source` names it in errors."""
    return bind(toml.parse(text, Definition, source=source), source=source, book=book)


def bind(definition: Definition, *, source: str, book: Codebook) -> UseCase:
    """A definition with its concepts looked up in the code sets."""
    features = tuple(f for group in definition.features for f in _columns(group, book, source))
    rules = [
        declare(book, stem=f"cohort_{n}", concepts=r.concepts, aggregate=r.aggregate, days=r.days, episode=r.episode)
        for n, r in enumerate(definition.cohort)
    ]
    canonical = msgspec.json.encode([definition.model_dump(mode="json", exclude={"title"}), book.content_hash], order="sorted")
    return UseCase(
        definition=definition,
        content_hash=hashlib.blake2b(canonical, digest_size=8).hexdigest(),
        features=features,
        plan=Plan([*features, *rules], book),
        index_concepts=book.numbers([f"visit.{c}" for c in definition.index.classes]),
        index_statuses=tuple(fact.STATUS[s] for s in definition.index.statuses),
        outcome_concepts=book.numbers(definition.outcome.concepts),
        follow_up_concept=book.numbers([definition.outcome.follow_up])[0],
        book=book,
    )


def _windows(group: FeatureGroup) -> Sequence[int | None]:
    return group.days if group.days is not None else [None]


def _columns(group: FeatureGroup, book: Codebook, source: str) -> list[Feature]:
    try:
        return [
            declare(
                book,
                stem=group.name,
                concepts=group.concepts,
                aggregate=aggregate,
                days=days,
                episode=group.episode,
                leak=group.leak,
                unit=group.unit,
                topic=group.topic,
            )
            for aggregate in group.aggregates
            for days in _windows(group)
        ]
    except InputError as error:
        raise InputError(f"{source}: features.{group.name}: {error}") from None
