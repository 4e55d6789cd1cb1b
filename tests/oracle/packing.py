"""Packing record by record, with a list of who waits: the twin of `features.pack`, and over whole buckets of `features.cohort`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from features import codes, fact
from features.clock import ALWAYS_US, NEVER_US
from features.log import Log
from features.pack import index_times
from features.usecase import UseCase

LAST_VISIT = 6
Record = tuple[bytes | None, bytes, int, int]
"""(patient, value, place, append time in µs)"""


class Slow:
    """One partition from its beginning. What it has told so far lies in its attributes."""

    def __init__(self, use_cases: Sequence[UseCase]) -> None:
        self.asked = index_times(use_cases)
        self.looked_for = {codes.DEATH, *(c for u in use_cases for c in u.outcome_concepts)}
        self.histories: dict[bytes, bytes] = {}
        self.oldest_us: dict[bytes, int] = {}
        """Of the records told since it was emptied; likewise `newest_us`."""
        self.newest_us: dict[bytes, int] = {}
        self.booked: list[tuple[int, bytes]] = []
        self.controls: list[tuple[int, int]] = []
        self.activations: list[dict[str, Any]] = []
        self.waiting: list[tuple[int, bytes]] = []
        self.control_us = ALWAYS_US

    def tell(self, record: Record) -> None:
        """Take the next record."""
        patient, value, place, append_us = record
        (head,) = fact.heads([value])
        stamp_us = append_us if head["stamp_us"] == fact.NO_STAMP else int(head["stamp_us"])
        if head["concept"] >= codes.CONTROL_FLOOR:
            self.controls.append((place, stamp_us))
            self._control(value, place, max(stamp_us, self.control_us))
            return
        assert patient is not None
        if not head["flags"] & fact.CARRIED:
            stamp_us = max(stamp_us, self.control_us)
        head["stamp_us"], head["place"] = stamp_us, place
        self.histories[patient] = self.histories.get(patient, b"") + head.tobytes()
        concept = int(head["concept"])
        visit, merge = 0 < concept <= LAST_VISIT, codes.MERGE <= concept <= codes.CARRIED_MODEL
        if visit or (merge and concept != codes.CARRIED_TICK):
            self.histories[patient] += fact.name_records(fact.source_id(value), place=place)
        plain = concept not in self.looked_for and not visit and not merge and head["version"] == 1 and head["status"] < fact.GONE
        self._reach(patient, int(head["event_us"]) if plain and all(patient != who for _, who in self.waiting) else ALWAYS_US)
        if concept == codes.MERGE:
            self.newest_us[patient] = NEVER_US
        for at, offset_us in self.asked if visit else ():
            if at == "start" or head["value"] == head["value"]:
                index_us = int(head["event_us"]) + offset_us + (int(head["value"]) if at == "end" else 0)
                self.newest_us[patient] = max(self.newest_us[patient], index_us)
                if index_us - fact.FUTURE_TOLERANCE_US > stamp_us:
                    self.waiting.append((index_us - fact.FUTURE_TOLERANCE_US, patient))
                    self.booked.append(self.waiting[-1])

    def _reach(self, patient: bytes, oldest_us: int) -> None:
        self.oldest_us[patient] = min(self.oldest_us.get(patient, NEVER_US), oldest_us)
        self.newest_us.setdefault(patient, ALWAYS_US)

    def _control(self, value: bytes, place: int, control_us: int) -> None:
        self.control_us = control_us
        (head,) = fact.heads([value])
        if head["concept"] == codes.ACTIVATE:
            payload = fact.control_payload(value)
            if payload["id"] not in [known["id"] for known in self.activations]:
                self.activations.append({**payload, "place": place})
        head["stamp_us"], head["place"], head["concept"] = control_us, place, codes.TICK
        for patient in sorted({who for due_us, who in self.waiting if due_us <= control_us}):
            self.histories[patient] = self.histories.get(patient, b"") + head.tobytes()
            self._reach(patient, ALWAYS_US)
        self.waiting = [(due_us, who) for due_us, who in self.waiting if due_us > control_us]


def packed(log: Log, file: Path, use_cases: Sequence[UseCase]) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """(patient → history, activations): the bucket's facts and the log's controls in the order of the log."""
    table, heads = log.bucket(file)
    told: list[Record] = []
    columns = table["seq"].to_pylist(), table["patient_id"].to_pylist(), table["source_id"].to_pylist(), heads
    for seq, patient, source, head in zip(*columns, strict=True):
        name = source.encode()
        told.append((patient.encode(), b"\x01" + head.tobytes() + len(name).to_bytes(2, "little") + name, seq, 0))
    told += [(None, value, seq, 0) for seq, value in zip(log.controls.seq.tolist(), log.controls.value, strict=True)]
    slow = Slow(use_cases)
    for record in sorted(told, key=lambda record: record[2]):
        slow.tell(record)
    return {patient.decode(): stored for patient, stored in slow.histories.items()}, slow.activations
