"""What an answer is at one place: (status, reason, row), from the words of S8 and the cohort's rules (P5)."""

from __future__ import annotations

from functools import partial
from math import isnan

from features.catalog import declare
from features.fact import EXPIRED, STATUS
from features.usecase import UseCase
from tests.oracle import fold, windows
from tests.oracle.record import Record

HOUR_US = 3_600_000_000


class Objects:
    """The answers of one patient and use case at any place of the records."""

    def __init__(self, records: list[Record], use_case: UseCase) -> None:
        self.records, self.use_case, self.rules = records, use_case, use_case.definition.cohort
        self.index = use_case.definition.index
        self.judged = [
            declare(use_case.book, stem="rule", concepts=r.concepts, aggregate=r.aggregate, days=r.days, episode=r.episode)
            for r in self.rules
        ]

    def is_index(self, r: Record) -> bool:
        """Whether this version of an encounter asks the question."""
        classes = [self.use_case.book.by_name[f"visit.{c}"].number for c in self.index.classes]
        ended = self.index.at == "start" or not isnan(r.value)
        return r.concept in classes and r.status in [STATUS[s] for s in self.index.statuses] and ended

    def index_us(self, r: Record) -> int:
        """The instant of the question that this version asks."""
        return r.event_us + (int(r.value) if self.index.at == "end" else 0) + round(self.index.offset_hours * HOUR_US)

    def answer(self, k: int, due: int, version: Record) -> tuple[str, str, list[float]]:
        """Status, reason and row after record number `k`, of an encounter that became due at record `due`; `version` rules then."""
        if not self.is_index(version):
            reason = {STATUS["entered-in-error"]: "retracted", STATUS["cancelled"]: "cancelled"}.get(version.status, "not_an_index")
            return "withdrawn", reason, []
        if self.index.exclude_expired and version.flags & EXPIRED:
            return "excluded", "died_in_hospital", []
        if due >= self.use_case.definition.history_facts_max:
            return "excluded", "history_too_long", []
        value = partial(windows.value, index_us=self.index_us(version), episode=version.episode, book=self.use_case.book)
        now, at_the_end = fold.present(self.records[: k + 1]), fold.present(self.records)
        for rule, feature in zip(self.rules, self.judged, strict=True):
            found = value(feature, now)
            too_low = rule.at_least is not None and found < rule.at_least
            too_high = rule.at_most is not None and found > rule.at_most
            if too_low or too_high or (isnan(found) and rule.missing == "exclude"):
                return "excluded", rule.reason, []
        return "scored", "", [value(f, at_the_end if f.leak else now) for f in self.use_case.features]
