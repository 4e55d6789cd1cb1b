"""From records of `facts` to history bytes: one partition's records in order, live, in a replay and in a backfill alike.

A history gets what the place in the log adds to a fact: the place, the stamp folded with the controls before it (S3), the source id of
an encounter, and a tick of its own where time made a booked visit due (S7): so that a score needs the history and nothing else.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from features import codes, fact
from features.clock import NEVER_US
from features.errors import InputError
from features.usecase import UseCase

LAST_VISIT = max(codes.VISIT_CONCEPTS.values())
_PLAIN, _LOOK, _VISIT, _MERGE, _CONTROL = range(5)
"""What a record means here: a plain fact; one that asks for a look at the history whatever its time; and three that say more."""
ALWAYS_US = -NEVER_US


@dataclass
class PartitionState:
    """What a partition of `facts` remembers beside the histories; stored in the same call as they are."""

    control_us: int = ALWAYS_US
    """Greatest stamp of a control so far."""
    activations: list[dict[str, Any]] = field(default_factory=list)
    """Payloads of `activate` in order, each with its `place`."""
    booked: list[tuple[int, bytes]] = field(default_factory=list)
    """Heap of (time at which it will be due, patient)."""


@dataclass(slots=True)
class Told:
    """What one batch tells about one patient."""

    parts: list[bytes] = field(default_factory=list)
    """History records to append."""
    oldest_us: int = NEVER_US
    """Earliest event time among plain facts; `ALWAYS_US` where the history must be looked at in any case."""
    newest_index_us: int = ALWAYS_US
    """Latest index time that the batch's encounters may have."""


@dataclass(slots=True)
class Packed:
    """A batch, patient by patient in order of first mention."""

    patients: dict[bytes, Told] = field(default_factory=dict)
    booked: list[tuple[int, bytes]] = field(default_factory=list)
    """Newly booked visits."""
    controls: list[tuple[int, int]] = field(default_factory=list)
    """(place, stamp) of each control."""


def index_times(use_cases: Iterable[UseCase]) -> list[tuple[str, int]]:
    """When the use cases ask about a visit: (start or end, µs after it). Histories wait for booked visits at these times."""
    return sorted({(u.definition.index.at, u.offset_us) for u in use_cases})


class Packer:
    """Packs the records of one partition.

    Args:
        use_cases: Their index times are waited for.
        state: What was stored with the partition.
        exact_from: The place at which it was stored. Records before it are told again: their history records are cut off by the store,
            and each control wakes everybody whom any control up to there may have woken.
    """

    def __init__(self, use_cases: Iterable[UseCase], state: PartitionState | None = None, *, exact_from: int = 0) -> None:
        self.state = state or PartitionState()
        self._exact_from = exact_from
        self._served_us: int | None = self.state.control_us if exact_from else None
        """Bookings up to here were served before `exact_from`."""
        use_cases = list(use_cases)
        self._offsets = index_times(use_cases)
        self._kind = np.zeros(2**16, np.uint8)
        """Concept → what it means here."""
        self._kind[[codes.DEATH, *(c for u in use_cases for c in u.outcome_concepts)]] = _LOOK
        self._kind[1 : LAST_VISIT + 1] = _VISIT
        self._kind[codes.MERGE : codes.CARRIED_MODEL + 1] = _MERGE
        self._kind[codes.CONTROL_FLOOR :] = _CONTROL
        self._waiting = {patient for _, patient in self.state.booked}

    def pack(self, keys: Sequence[bytes | None], values: list[bytes], places: Any, stamps_us: Any) -> Packed:
        """The history records of a batch in log order.

        Args:
            keys: Patient of each record; ignored for controls.
            values: Values of `facts`.
            places: Place of each record in the partition, int64, increasing.
            stamps_us: Append time of each record in µs; used where the head has no stamp of its own.
        Raises:
            InputError: an unreadable record, or a partition with more than 2**32 records.
        """
        out = Packed()
        if not values:
            return out
        if places[-1] > fact.PLACE_MAX:
            raise InputError("a partition of facts holds at most 2**32 records in one generation: start a new generation")
        heads = fact.heads(values)
        heads["place"] = places
        stamp = np.where(heads["stamp_us"] == fact.NO_STAMP, stamps_us, heads["stamp_us"])
        kind = self._kind[heads["concept"]]
        is_control = kind == _CONTROL
        control_us = np.maximum(np.maximum.accumulate(np.where(is_control, stamp, fact.NO_STAMP)), self.state.control_us)
        carried = heads["flags"] & fact.CARRIED > 0  # known at its first patient's time, until the end of the merge
        heads["stamp_us"] = np.where(carried, stamp, np.maximum(stamp, control_us))
        kind[(kind == _PLAIN) & ((heads["version"] != 1) | (heads["status"] >= fact.GONE))] = _LOOK
        patients, waiting = out.patients, self._waiting
        columns = (heads.view(fact.WHOLE), kind, heads["event_us"])
        lengths, stamps = heads["value"].tolist(), heads["stamp_us"].tolist()
        for j, (key, head, what, event_us) in enumerate(zip(keys, *(column.tolist() for column in columns), strict=True)):
            if what == _CONTROL:
                out.controls.append((int(places[j]), int(stamp[j])))
                self._control(out, int(places[j]), int(control_us[j]), values[j])
                continue
            if key is None:
                raise InputError("a fact without a key in facts: only premonitor may write that topic")
            told = patients.get(key)
            if told is None:
                told = patients[key] = Told()
            told.parts.append(head)
            if what == _VISIT:
                told.parts.append(fact.name_records(fact.source_id(values[j]), place=int(places[j])))
                told.oldest_us = ALWAYS_US
                self._book(out, told, key, event_us, lengths[j], stamps[j])
            elif what == _MERGE:
                _merge(told, int(heads["concept"][j]), values[j], int(places[j]))
            elif what == _LOOK or key in waiting:
                told.oldest_us = ALWAYS_US
            elif event_us < told.oldest_us:
                told.oldest_us = event_us
        self.state.control_us = int(control_us[-1])
        return out

    def _book(self, out: Packed, told: Told, key: bytes, event_us: int, length: float, stamp_us: int) -> None:
        """Note the index times of an encounter, and wait for those that lie ahead."""
        for at, offset_us in self._offsets:
            if at == "end" and math.isnan(length):
                continue
            index_us = event_us + offset_us + (int(length) if at == "end" else 0)
            if index_us > told.newest_index_us:
                told.newest_index_us = index_us
            due_us = index_us - fact.FUTURE_TOLERANCE_US
            if due_us > stamp_us:
                heapq.heappush(self.state.booked, (due_us, key))
                self._waiting.add(key)
                out.booked.append((due_us, key))

    def _control(self, out: Packed, place: int, control_us: int, value: bytes) -> None:
        """A control: remember an activation, and give a tick to each patient whose booked visit it makes due."""
        head = bytearray(value[1:65])
        if int.from_bytes(head[58:60], "little") == codes.ACTIVATE:
            payload = fact.control_payload(value)
            if all(payload["id"] != known["id"] for known in self.state.activations):
                self.state.activations.append({**payload, "place": place})
        exact = place >= self._exact_from
        if exact and self._served_us is not None:
            due_patients(self.state.booked, self._served_us, keep=False)
            self._served_us = None
        woken = due_patients(self.state.booked, control_us, keep=not exact)
        if not woken:
            return
        head[24:32] = control_us.to_bytes(8, "little", signed=True)
        head[48:52] = place.to_bytes(4, "little")
        head[58:60] = codes.TICK.to_bytes(2, "little")
        for key in woken:
            told = out.patients.setdefault(key, Told())
            told.parts.append(bytes(head))
            told.oldest_us = ALWAYS_US
        self._waiting = {patient for _, patient in self.state.booked}


def _merge(told: Told, concept: int, value: bytes, place: int) -> None:
    """A record of a merge: who goes where stands in the history, and a patient who went over is looked at for ever."""
    if concept == codes.MERGE:
        told.newest_index_us = NEVER_US
    if concept != codes.CARRIED_TICK:
        told.parts.append(fact.name_records(fact.source_id(value), place=place))
    told.oldest_us = ALWAYS_US


def due_patients(booked: list[tuple[int, bytes]], control_us: int, *, keep: bool) -> list[bytes]:
    """Patients of a heap of bookings whose time has come, in order; taken off the heap unless `keep`."""
    if not booked or booked[0][0] > control_us:
        return []
    if keep:
        return sorted({patient for due_us, patient in booked if due_us <= control_us})
    due = set()
    while booked and booked[0][0] <= control_us:
        due.add(heapq.heappop(booked)[1])
    return sorted(due)
