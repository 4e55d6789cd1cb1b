"""Who waits for a time, and what a partition of the log remembers beside its histories."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from features.clock import ALWAYS_US


@dataclass
class PartitionState:
    """What a partition of `facts` remembers beside the histories; stored in the same call as they are."""

    control_us: int = ALWAYS_US
    """Greatest stamp of a control so far."""
    activations: list[dict[str, Any]] = field(default_factory=list)
    """Payloads of `activate` in order, each with its `place`."""
    booked: list[tuple[int, bytes]] = field(default_factory=list)
    """Heap of (time at which it will be due, patient)."""


class Bookings:
    """Patients who wait for a time: the heap of a partition's state, and how often each is in it.

    Args:
        state: What was stored with the partition.
        exact_from: The place at which it was stored. Controls before it are told again: each wakes everybody whom any control up to
            there may have woken.
    """

    def __init__(self, state: PartitionState, exact_from: int) -> None:
        self._heap, self._exact_from = state.booked, exact_from
        self._served_us: int | None = state.control_us if exact_from else None
        """Bookings up to here were served before `exact_from`."""
        self._times = Counter(patient for _, patient in self._heap)

    def __contains__(self, patient: bytes) -> bool:
        return patient in self._times

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, due_us: int, patient: bytes) -> None:
        """The patient waits for this time too."""
        heapq.heappush(self._heap, (due_us, patient))
        self._times[patient] += 1

    def woken(self, place: int, control_us: int) -> list[bytes]:
        """Those whose time has come at a control, in order."""
        if place < self._exact_from:
            return sorted({patient for due_us, patient in self._heap if due_us <= control_us})
        if self._served_us is not None:
            self._take_off(self._served_us)
            self._served_us = None
        return sorted(self._take_off(control_us))

    def _take_off(self, until_us: int) -> set[bytes]:
        due = set()
        while self._heap and self._heap[0][0] <= until_us:
            _, patient = heapq.heappop(self._heap)
            due.add(patient)
            self._times[patient] -= 1
            if not self._times[patient]:
                del self._times[patient]
        return due
