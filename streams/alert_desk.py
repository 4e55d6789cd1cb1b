"""The alert desk: keeps the score histories of patients and folds those that have something flagged, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple, Protocol

import numpy as np

from features import codes, fact
from features.bookings import Bookings, PartitionState
from features.clock import ALWAYS_US, MINUTE_US
from features.pack import Packed, Told
from features.revision import STATUS_NAMES
from features.usecase import UseCase
from models.score import Issued
from streams import alert
from streams.admit import Row
from streams.store import Gap, Store, Write, encode_state

_STATUS = {name: number for number, name in enumerate((*STATUS_NAMES, "failed"))}


class Mark(NamedTuple):
    """Something that may end an alert: a death, a merge into another patient, or an event that a use case counts as its outcome."""

    kind: int
    """`DIED`, `MOVED`, `CAME_BACK` or `HAPPENED` of `streams.alert`."""
    place: int
    patient: bytes
    event_us: int
    known_us: int
    episode: int
    use_case: str


class Batch(Protocol):
    """Places `[start, next)` of a partition."""

    partition: int
    start: int
    next: int


@dataclass
class _Partition:
    """A partition in hand. Booked is when time may change an alert: it ends the stillness, or the time at risk."""

    state: PartitionState
    next: int
    exact_from: int
    """Place at which the state was stored; see `features.pack.Packer`."""
    waiting: Bookings
    """Patients who had something flagged whose time at risk is not over: a superset of those with an open alert."""
    committed_us: int = ALWAYS_US


class AlertDesk:
    """scores → alerts. One store call a batch, of its own kind, guarded by the same places as the histories of facts."""

    def __init__(self, store: Store, use_cases: Sequence[UseCase]) -> None:
        self.store = store
        self._use_cases = {u.name: u for u in use_cases}
        self._partitions: dict[int, _Partition] = {}

    def let_go(self, partition: int) -> None:
        self._partitions.pop(partition, None)

    def committed(self, partition: int, place: int) -> None:
        held = self._partitions.get(partition)
        if held is not None and held.exact_from <= held.next <= place:
            held.committed_us = held.state.control_us

    async def __call__(self, batches: Sequence[tuple[Batch, Packed, Sequence[Issued], Sequence[Mark]]]) -> list[list[Row] | Exception]:
        """The alert rows of each batch, or what went wrong with it."""
        results: list[list[Row] | Exception] = []
        writes: list[tuple[int, Batch, Sequence[Issued], Write]] = []
        for batch, packed, issued, marks in batches:
            results.append([])
            held = await self._take_up(batch)
            if isinstance(held, Gap):
                results[-1] = held
                continue
            write = self._pack(held, batch, packed, issued, marks)
            writes.append((len(results) - 1, batch, issued, write))
        answers = await self.store.apply([write for *_, write in writes])
        for (n, batch, issued, _), answer in zip(writes, answers, strict=True):
            if isinstance(answer, Exception):
                self.let_go(batch.partition)
                results[n] = answer
            else:
                results[n] = self._rows(answer, issued, batch.start, batch.next)
        return results

    async def _take_up(self, batch: Batch) -> _Partition | Gap:
        held = self._partitions.get(batch.partition)
        if held is None or held.next != batch.start:
            loaded = await self.store.load(batch.partition)
            if loaded.place < batch.start:
                return Gap(loaded.place)
            held = _Partition(loaded.state, batch.start, loaded.place, Bookings(loaded.state, loaded.place))
            self._partitions[batch.partition] = held
        return held

    def _pack(self, held: _Partition, batch: Batch, packed: Packed, issued: Sequence[Issued], marks: Sequence[Mark]) -> Write:
        """The score history records of a batch, in place order: marks first, then scores, then ticks."""
        told: dict[bytes, Told] = {}
        new: list[tuple[int, bytes]] = []
        events: list[tuple[int, int, Mark | Issued | int]] = []
        events += [(mark.place, 0, mark) for mark in marks]
        flagged = {one.patient for one in issued if one.score.flagged}  # who is neither in it nor waiting has no alert, and gets none
        concern = (one for one in issued if one.patient in flagged or one.patient in held.waiting)
        events += [(one.place, 1, one) for one in concern if one.score.role == "champion"]
        events += [(place, 2, stamp_us) for place, stamp_us in packed.controls]
        events.sort(key=itemgetter(0, 1))
        for place, _, event in events:
            if isinstance(event, Issued):
                self._score(held, told, new, event)
            elif isinstance(event, Mark):
                self._mark(held, told, event)
            else:
                self._tick(held, told, place, event)
        held.next = batch.next
        return Write(
            partition=batch.partition,
            since=batch.start,
            until=batch.next,
            patients=told,
            state=encode_state(held.state),
            booked=new,
            forget_us=held.committed_us,
            exact_from=held.exact_from,
        )

    def _score(self, held: _Partition, told: dict[bytes, Told], new: list[tuple[int, bytes]], one: Issued) -> None:
        score, patient = one.score, one.patient
        if not score.flagged and patient not in held.waiting:
            return  # no alert is open, and this opens none
        use_case = self._use_cases[score.use_case]
        mine = told.setdefault(patient, Told())
        mine.records += alert.score_record(
            encounter=one.encounter,
            episode=one.episode,
            place=one.place,
            index_us=one.index_us,
            known_us=one.known_us,
            risk=score.risk,
            status=_STATUS[score.status],
            flagged=score.flagged,
            fresh=one.fresh,
            use_case=score.use_case,
            name=score.encounter_id,
        )
        if score.flagged:
            ends_us = one.index_us + use_case.at_risk_us + 1
            self._book(held, new, max(ends_us, one.known_us + 1), patient)
        else:
            self._book(held, new, one.known_us + use_case.definition.settle_minutes * MINUTE_US, patient)
        mine.oldest_us = ALWAYS_US

    def _book(self, held: _Partition, new: list[tuple[int, bytes]], when_us: int, patient: bytes) -> None:
        held.waiting.add(when_us, patient)
        new.append((when_us, patient))

    def _tick(self, held: _Partition, told: dict[bytes, Told], place: int, stamp_us: int) -> None:
        held.state.control_us = control_us = max(held.state.control_us, stamp_us)
        for patient in held.waiting.woken(place, control_us):
            mine = told.setdefault(patient, Told())
            mine.records += alert.mark(codes.TICK, place=place, event_us=control_us, known_us=control_us)
            mine.oldest_us = ALWAYS_US

    def _mark(self, held: _Partition, told: dict[bytes, Told], mark: Mark) -> None:
        if mark.patient not in held.waiting:
            return
        mine = told.setdefault(mark.patient, Told())
        mine.records += alert.mark(
            mark.kind,
            place=mark.place,
            event_us=mark.event_us,
            known_us=mark.known_us,
            episode=mark.episode,
            use_case=mark.use_case,
        )
        mine.oldest_us = ALWAYS_US

    def _rows(self, histories: dict[bytes, bytes], issued: Sequence[Issued], since: int, until: int) -> list[Row]:
        """The alert records of the places of a batch, in place order."""
        if not histories:
            return []
        made: list[tuple[int, Row]] = []
        causes: dict[tuple[bytes, str, int], Issued] = {}
        for one in issued:
            if one.patient not in histories or one.score.role != "champion":
                continue
            key = (one.patient, one.score.use_case, one.place)
            known = causes.get(key)
            if known is None or (one.score.risk or 0.0) > (known.score.risk or 0.0):
                causes[key] = one
        patients = list(histories)
        records = np.frombuffer(b"".join(histories.values()), fact.HEAD)
        starts = np.cumsum([0, *(len(stored) // fact.HEAD_BYTES for stored in histories.values())]).tolist()
        for name, use_case in self._use_cases.items():
            for patient, items in zip(patients, alert.items(records, starts, name), strict=True):
                for step in alert.fold(items, use_case, patient, since):
                    if since <= step.place < until:
                        cause = causes.get((patient, name, step.place))
                        score = cause.score if cause else None
                        record = alert.written(step, records, patient_id=patient.decode(), use_case=name, cause=score)
                        made.append((step.place, (patient, alert.encode(record))))
        made.sort(key=lambda row: row[0])
        return [row for _, row in made]
