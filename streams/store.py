"""The store of histories: one conditional call that is dedupe of redelivery, guard against zombies and detector of loss.

    stored place  <  since   →  Gap: something was lost, the worker reads again from there
                  =  since   →  append all, move the place to `until`
                  >  since   →  a part (or all) was stored by an earlier try: append only the rest

A caller whose state is that of a later place (`exact_from`) can only cut off what is stored, not append: less stored is a Gap too.

`MemoryStore` is the twin in Python of `store_redis` with its `apply.lua`; tests compare them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from features import fact
from features.bookings import PartitionState
from features.clock import ALWAYS_US
from features.pack import Told


class Gap(Exception):
    """The store is behind what the caller believes: read again from `place`."""

    def __init__(self, place: int) -> None:
        super().__init__(f"the store is at place {place}")
        self.place = place


class Damaged(Exception):
    """Stored histories have not the length that was written: they are rebuilt from the log."""

    def __init__(self, patients: list[bytes]) -> None:
        super().__init__(f"{len(patients)} histories are damaged or gone")
        self.patients = patients


@dataclass(slots=True)
class Write:
    """One partition's batch. Histories are returned for patients whose answers may change; see `needed`."""

    partition: int
    since: int
    until: int
    patients: dict[bytes, Told]
    state: str
    """JSON of the partition's state after the batch."""
    booked: Sequence[tuple[int, bytes]] = ()
    forget_us: int = ALWAYS_US
    """Bookings up to here were served in batches that are committed."""
    exact_from: int = 0
    """Records before it were packed with the state of this later place: they must be stored already."""

    @property
    def least(self) -> int:
        """The place that the store must have reached."""
        return min(max(self.since, self.exact_from), self.until)

    def rest(self, place: int) -> Write:
        """The same batch without the records that are stored already."""
        told = {key: Told(_since(t.records, place), t.oldest_us, t.newest_index_us) for key, t in self.patients.items()}
        return Write(self.partition, place, self.until, told, self.state, self.booked, self.forget_us, self.exact_from)


def _since(records: bytes, place: int) -> bytes:
    size = fact.HEAD_BYTES
    kept = [records[i : i + size] for i in range(0, len(records), size) if int.from_bytes(records[i + 48 : i + 52], "little") >= place]
    return b"".join(kept)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A partition as stored."""

    place: int
    state: PartitionState


class Store(Protocol):
    """What a worker needs of a store. `kind` keeps histories of facts and of scores apart."""

    async def apply(self, writes: Sequence[Write]) -> list[dict[bytes, bytes] | Exception]:
        """Each batch's needed histories, or its Gap, Damaged or trouble; one failing leaves the others alone."""

    async def load(self, partition: int) -> Loaded:
        """Place and state of a partition; place 0 where there is nothing."""

    async def place(self, partition: int) -> int:
        """Place of a partition: everything before it is stored."""

    async def audit(self, partition: int) -> list[bytes]:
        """Some patients of a partition whose history is gone or has another length than was written; goes on where it left off."""

    async def replace(self, partition: int, patient: bytes, history: bytes, place: int) -> bool:
        """Put a rebuilt history in place of a damaged one, if the partition still is at `place`."""

    async def forget(self, partition: int) -> None:
        """Drop a partition: the worker then finds a gap and reads it again from the log."""


def encode_state(state: PartitionState) -> str:
    """The state without its bookings, which the store keeps apart."""
    return msgspec.json.encode({"activations": state.activations, "control_us": state.control_us}).decode()


def decode_state(text: str | bytes | None, booked: list[tuple[int, bytes]]) -> PartitionState:
    """The inverse of `encode_state`."""
    content: dict[str, Any] = msgspec.json.decode(text) if text else {}
    return PartitionState(**content, booked=sorted(booked))


@dataclass
class _Partition:
    place: int = 0
    state: str = ""
    histories: dict[bytes, bytes] = field(default_factory=dict)
    lengths: dict[bytes, int] = field(default_factory=dict)
    newest: dict[bytes, int] = field(default_factory=dict)
    booked: set[tuple[int, bytes]] = field(default_factory=set)


@dataclass
class MemoryStore:
    """The store in memory: replays without Redis, and the test Driver."""

    partitions: dict[int, _Partition] = field(default_factory=dict)

    def _of(self, partition: int) -> _Partition:
        return self.partitions.setdefault(partition, _Partition())

    async def apply(self, writes: Sequence[Write]) -> list[dict[bytes, bytes] | Exception]:
        return [self._apply(w) for w in writes]

    def _apply(self, w: Write) -> dict[bytes, bytes] | Exception:
        p = self._of(w.partition)
        if p.place < w.least:
            return Gap(p.place)
        if w.since < p.place < w.until:
            w = w.rest(p.place)
        fresh, damaged = p.place == w.since, []
        needed: dict[bytes, bytes] = {}
        for patient, told in w.patients.items():
            before = p.newest.get(patient, ALWAYS_US)
            if fresh:
                p.histories[patient] = p.histories.get(patient, b"") + told.records
                p.lengths[patient] = p.lengths.get(patient, 0) + len(told.records)
                p.newest[patient] = max(before, told.newest_index_us)
            if len(p.histories.get(patient, b"")) != p.lengths.get(patient, 0):
                damaged.append(patient)
            if told.oldest_us < before or told.oldest_us == ALWAYS_US:
                needed[patient] = p.histories.get(patient, b"")
        if fresh:
            p.booked = {b for b in p.booked if b[0] > w.forget_us} | set(w.booked)
            p.state, p.place = w.state, w.until
        return Damaged(damaged) if damaged else needed

    async def load(self, partition: int) -> Loaded:
        p = self._of(partition)
        return Loaded(p.place, decode_state(p.state, list(p.booked)))

    async def place(self, partition: int) -> int:
        return self._of(partition).place

    async def audit(self, partition: int) -> list[bytes]:
        p = self._of(partition)
        return sorted(k for k, n in p.lengths.items() if len(p.histories.get(k, b"")) != n)

    async def replace(self, partition: int, patient: bytes, history: bytes, place: int) -> bool:
        p = self._of(partition)
        if p.place != place:
            return False
        p.histories[patient], p.lengths[patient] = history, len(history)
        return True

    async def forget(self, partition: int) -> None:
        self.partitions.pop(partition, None)
