"""Verify: the set of issued (id, bytes) against the set computed from log and models (S14)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from features import fact
from features.fact import hash64
from features.importers.build import END_TOLD
from features.log import Log
from features.progress import Progress, unheard
from models.artifact import Model
from streams.backfill import backfill


@dataclass
class Comparison:
    """How two sets of score records differ. Ids are ours, not a patient's."""

    expected: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not (self.missing or self.extra or self.different)

    def sentence(self) -> str:
        return f"missing {self.missing:,}, extra {self.extra:,}, different {self.different:,} of {self.expected:,}"

    def _example(self, kind: str, score_id: str) -> None:
        if len(self.examples) < 10:
            self.examples.append(f"{kind}: score {score_id}")


def compare(issued: Iterable[tuple[str, bytes]], expected: Iterable[tuple[str, bytes]]) -> Comparison:
    """Compare what was issued with what should have been; a repeat of the same id and bytes is no difference."""
    result = Comparison()
    seen: dict[str, bytes] = {}
    for score_id, value in issued:
        if seen.setdefault(score_id, value) != value:
            result.different += 1
            result._example("issued twice with different bytes", score_id)
    for score_id, value in expected:
        result.expected += 1
        came = seen.pop(score_id, None)
        if came is None:
            result.missing += 1
            result._example("missing", score_id)
        elif came != value:
            result.different += 1
            result._example("different", score_id)
    result.extra = len(seen)
    for score_id in list(seen)[:10]:
        result._example("extra", score_id)
    return result


def verify(log: Log, models: Sequence[Model], issued: Iterable[tuple[str, bytes]], progress: Progress = unheard) -> Comparison:
    """Compare issued scores with those that the log gives."""

    def expected() -> Iterable[tuple[str, bytes]]:
        n = 0
        for batch in backfill(log, models):
            n += len(batch)
            progress(n)
            for made, value in batch:
                yield made.score_id, value

    return compare(issued, expected())


@dataclass
class Conservation:
    """Where a feed's records went: read = facts + duplicates + conflicts + dead letters (S13)."""

    feed: str
    read: int
    facts: int
    duplicates: int
    conflicts: int
    dead_letters: int
    conflict_ids: list[str] = field(default_factory=list)
    """Facts told twice under one version with different content (S4); the first telling counts."""

    @property
    def holds(self) -> bool:
        return self.read == self.facts + self.duplicates + self.conflicts + self.dead_letters

    def sentence(self) -> str:
        return (
            f"{self.feed}: read {self.read:,} = facts {self.facts:,} + duplicates {self.duplicates:,} + conflicts {self.conflicts:,} "
            f"+ dead letters {self.dead_letters:,}" + ("" if self.holds else "  DOES NOT ADD UP")
        )


def conservation(log: Log) -> list[Conservation]:
    """One line a feed: the log's facts, sorted into first tellings, repeats and conflicts, against what was read and rejected."""
    facts: Counter[str] = Counter()
    duplicates: Counter[str] = Counter()
    conflicts: dict[str, list[str]] = {}
    for file in log.bucket_files():
        table, heads = log.bucket(file)
        told: dict[tuple[str, int], bool] = {}
        first: dict[tuple[str, bytes, int], Any] = {}
        columns = (table["patient_id"].to_pylist(), table["feed"].to_pylist(), table["told"].to_pylist(), heads)
        for patient, feed, number, head in zip(*columns, strict=True):
            if head["merge"]:
                continue  # told of another patient, and counted there
            if told.setdefault((feed, number), False):
                continue  # the same feed record again after a restart of admission: counted once
            told[feed, number] = True
            raw = head.tobytes()
            content = fact.content(raw)
            before = first.setdefault((patient, raw[:16], int(head["version"])), content)
            if before is not content and before != content:
                conflicts.setdefault(feed, []).append(_id(raw))
            else:
                (facts if before is content else duplicates)[feed] += 1
    lines = []
    for feed, about in sorted(log.about["feeds"].items()):
        dead = sum(about["rejected"].values())
        ids = conflicts.get(feed, [])
        events = about["rows"] + about.get("noted", {}).get(END_TOLD, 0)  # a row whose end came later was told twice
        lines.append(Conservation(feed, events, facts[feed], duplicates[feed], len(ids), dead, ids))
    return lines


def _id(head: bytes) -> str:
    return f"{head[:16].hex()} version {int.from_bytes(head[56:58], 'little')}"


def told_of_two_patients(log: Log) -> list[str]:
    """Ids of facts that stand under two patients: a correction to the wrong patient leaves the first with a wrong fact for ever,
    unless the source retracts it. Both are to be looked at."""
    ids, owners = [], []
    for file in log.bucket_files():
        table, heads = log.bucket(file)
        own = heads["merge"] == 0  # what a merge carried is meant to stand under two
        ids.append(np.stack([heads["id_hi"], heads["id_lo"]], axis=1)[own])
        owners.append(np.array([hash64(p) for p in table["patient_id"].to_pylist()], np.uint64)[own])
    if not ids:
        return []
    pairs = np.unique(np.concatenate([np.concatenate(ids), np.concatenate(owners)[:, None]], axis=1), axis=0)
    twice = (pairs[1:, :2] == pairs[:-1, :2]).all(axis=1)
    return sorted({row.tobytes().hex() for row in pairs[1:][twice][:, :2]})
