"""The steps of the worker: facts → histories → scores and alerts. They know batches, a store and models, but no Faust and no Kafka."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol

import numpy as np

from features import codes, fact, history
from features.clock import ALWAYS_US
from features.merge import Move, moves, sendings
from features.pack import Packed, Packer, Piece, pack
from models.artifact import Model
from models.score import Desk, Issued
from streams.admit import Row
from streams.alert import CAME_BACK, DIED, HAPPENED, MOVED
from streams.alert_desk import AlertDesk, Mark
from streams.store import Damaged, Gap, Loaded, Store, Write, encode_state


class FactBatch(Protocol):
    """Records of one partition of `facts`, from place `start` up to `next`."""

    partition: int
    start: int
    next: int
    records: Sequence[Any]


@dataclass
class Outputs:
    """What a batch of facts gives. Sent in this order and acknowledged before the batch is done."""

    scores: list[Row] = field(default_factory=list)
    alerts: list[Row] = field(default_factory=list)
    sent_on: list[Row] = field(default_factory=list)
    """Facts of merged patients for the log, under the name of the other one (S9). Told again after a crash they are repeats."""
    patients_read: int = 0


@dataclass
class _Partition:
    """A partition in hand: its packer, right for place `next`."""

    packer: Packer
    next: int
    exact_from: int
    """Place at which the state was stored: of records before it, told again, the state knows too much."""
    committed_us: int = ALWAYS_US
    """Greatest control stamp in batches that are committed: bookings up to it were served."""


_IN_PLACE_ORDER = attrgetter("place", "seg", "told")
_Good = tuple[int, FactBatch, Packed, dict[bytes, bytes]]
Rebuild = Callable[[int, list[bytes]], Awaitable[None]]


class ScoreStep:
    """facts → scores: append to the histories, look at those whose answers may change, issue what changed.

    Args:
        store: Histories of facts.
        models: All models that the log may activate.
        rebuild: Mends damaged histories of a partition from the log.
        alerts: The alert fold, behind the scores.
        at: Called at the step between the two stores, for tests of crashes.
    """

    def __init__(
        self, store: Store, models: Sequence[Model], *, rebuild: Rebuild, alerts: AlertDesk, at: Callable[[str], None] = lambda step: None
    ) -> None:
        self.store, self.desk, self._rebuild, self.alerts, self._at = store, Desk(models), rebuild, alerts, at
        self._partitions: dict[int, _Partition] = {}

    async def place(self, partition: int) -> int:
        """Place from which a partition must be read: what is before it is stored, for scores and for alerts."""
        return min(await self.store.place(partition), await self.alerts.store.place(partition))

    def let_go(self, partition: int) -> None:
        """Forget a partition that is read anew or was revoked."""
        self._partitions.pop(partition, None)
        self.alerts.let_go(partition)

    def committed(self, partition: int, place: int) -> None:
        """Everything before `place` is committed: what it served need not be remembered."""
        held = self._partitions.get(partition)
        if held is not None and held.exact_from <= held.next <= place:
            held.committed_us = held.packer.state.control_us
        self.alerts.committed(partition, place)

    async def __call__(self, batches: Sequence[FactBatch]) -> list[Outputs | Exception]:
        """The outputs of batches of different partitions, or what went wrong with each."""
        taken: list[tuple[int, FactBatch, _Partition]] = []
        results: list[Outputs | Exception] = [Outputs() for _ in batches]
        for n, batch in enumerate(batches):
            held = await self._take_up(batch)
            if isinstance(held, Gap):
                results[n] = held
            else:
                taken.append((n, batch, held))
        ready: list[tuple[int, FactBatch, Packed, Write]] = []
        made = pack([Piece.of(held.packer, batch.records) for _, batch, held in taken])
        for (n, batch, held), packed in zip(taken, made, strict=True):
            held.next = batch.next
            write = Write(
                partition=batch.partition,
                since=batch.start,
                until=batch.next,
                patients=packed.patients,
                state=encode_state(held.packer.state),
                booked=packed.booked,
                forget_us=held.committed_us,
                exact_from=held.exact_from,
            )
            ready.append((n, batch, packed, write))
        answers = await self.store.apply([write for *_, write in ready])
        good: list[tuple[int, FactBatch, Packed, dict[bytes, bytes]]] = []
        for (n, batch, packed, _), answer in zip(ready, answers, strict=True):
            if isinstance(answer, Exception):
                self.let_go(batch.partition)
                results[n] = answer
                if isinstance(answer, Damaged):
                    await self._rebuild(batch.partition, answer.patients)
            else:
                good.append((n, batch, packed, answer))
        if good:
            issued, marks, sent_on = self._issue(good)
            self._at("score.half_stored")
            finished = await self.alerts(
                [(batch, packed, mine, some) for (_, batch, packed, _), mine, some in zip(good, issued, marks, strict=True)]
            )
            for (n, batch, _, answer), mine, alerts, moved in zip(good, issued, finished, sent_on, strict=True):
                if isinstance(alerts, Exception):
                    self.let_go(batch.partition)
                    results[n] = alerts
                    if isinstance(alerts, Damaged):  # a score history follows from the facts: read the partition again from its beginning
                        await self.alerts.store.forget(batch.partition)
                else:
                    rows: list[Row] = [(i.patient, i.value) for i in mine if i.told]
                    results[n] = Outputs(rows, alerts, moved, len(answer))
        return results

    async def _take_up(self, batch: FactBatch) -> _Partition | Gap:
        """The partition as it is at the start of the batch, from memory or from the store."""
        held = self._partitions.get(batch.partition)
        if held is None or held.next != batch.start:
            loaded: Loaded = await self.store.load(batch.partition)
            if loaded.place < batch.start:
                return Gap(loaded.place)
            held = _Partition(Packer(self.desk.use_cases, loaded.state, exact_from=loaded.place), batch.start, loaded.place)
            self._partitions[batch.partition] = held
        return held

    def _issue(self, good: Sequence[_Good]) -> tuple[list[list[Issued]], list[list[Mark]], list[list[Row]]]:
        """Score records, marks and what is sent on of each batch: one kernel call for all partitions, their histories laid one after the
        other."""
        patients = [patient for *_, answer in good for patient in answer]
        parts: list[list[Issued]] = [[] for _ in good]
        marks: list[list[Mark]] = [[] for _ in good]
        sent_on: list[list[Row]] = [[] for _ in good]
        if not patients:
            return parts, marks, sent_on
        owner = np.repeat(np.arange(len(good)), [len(answer) for *_, answer in good])
        h = history.read([answer[patient] for *_, answer in good for patient in answer])
        since = np.array([batch.start for _, batch, *_ in good])[owner]
        until = np.array([batch.next for _, batch, *_ in good])[owner]
        activations = [self._partitions[batch.partition].packer.state.activations for _, batch, *_ in good]
        of = owner.tolist()
        for one in self.desk.issue(h, patients, activations, owner=owner, since=since, until=until):
            parts[of[one.seg]].append(one)
        for part in parts:
            part.sort(key=_IN_PLACE_ORDER)
        fresh = (h.place >= since[h.seg]) & (h.place < until[h.seg]) & h.present & (h.status != fact.PLANNED)
        moved = moves(h)
        ends = list(self._ends(h, np.flatnonzero(fresh), [move for _, move in moved]))
        rows = np.array([row for _, row, _ in ends], np.int64)
        here = (h.place[rows] >= since[h.seg[rows]]) & (h.place[rows] < until[h.seg[rows]])
        columns = (column[rows].tolist() for column in (h.seg, h.place, h.event_us, h.known_us, h.episode))
        for (kind, _, use_case), now, seg, place, event_us, known_us, episode in zip(ends, here.tolist(), *columns, strict=True):
            if now:
                marks[of[seg]].append(Mark(kind, place, patients[seg], event_us, known_us, episode, use_case))
        for seg, move in moved:
            n = of[seg]
            told = patients[seg].decode()
            values = sendings(h, seg, move, activations[n], told, since=int(since[seg]), until=int(until[seg]))
            sent_on[n] += [(move.target.encode(), value) for value in values]
        return parts, marks, sent_on

    def _ends(self, h: history.Histories, rows: history.Int, moved: Iterable[Move]) -> Iterator[tuple[int, int, str]]:
        """(kind, row, use case) of what may end an alert: for all use cases deaths and merges, and the events that one counts as its
        outcome."""
        concept = h.concept[rows]
        for row in rows[concept == codes.DEATH].tolist():
            yield DIED, row, ""
        for move in moved:
            yield MOVED, move.row, ""
            if move.undone >= 0:
                yield CAME_BACK, move.undone, ""
        for use_case in {u.name: u for u in self.desk.use_cases}.values():
            for row in rows[use_case.is_outcome(concept, h.flags[rows])].tolist():
                yield HAPPENED, row, use_case.name
