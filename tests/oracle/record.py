"""One record of a history as a plain object, read from bytes with `struct` alone."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

LAYOUT = "<QQqqdQIIHHBBH"
SIZE = 64
CONTROLS, NAME = 65_000, 65_535
GONE = (8, 9)
"""Status numbers of cancelled and entered in error."""


@dataclass
class Record:
    """A fact or a tick. `concept` from `CONTROLS` on is no fact; `name` is the source id of an encounter."""

    id: tuple[int, int]
    event_us: int
    stamp_us: int
    value: float
    episode: int
    place: int
    ordinal: int
    version: int
    concept: int
    status: int
    flags: int
    name: bytes = b""

    @property
    def id_bytes(self) -> bytes:
        """The 128-bit identity as it stands in the history."""
        return struct.pack("<QQ", *self.id)

    def same_content(self, other: Record) -> bool:
        """Whether another telling of this (id, version) says the same; stamp and place are not what it says."""
        mine, its = ((r.event_us, r.episode, r.ordinal, r.concept, r.status, r.flags) for r in (self, other))
        return mine == its and (self.value == other.value or (math.isnan(self.value) and math.isnan(other.value)))


def parse(history: bytes) -> list[Record]:
    """The records of one patient in log order, names attached to the head before them."""
    records: list[Record] = []
    for at in range(0, len(history), SIZE):
        hi, lo, event, stamp, value, episode, place, ordinal, version, concept, status, flags, _ = struct.unpack_from(LAYOUT, history, at)
        if concept == NAME:
            records[-1].name += history[at : at + version]
        else:
            records.append(Record((hi, lo), event, stamp, value, episode, place, ordinal, version, concept, status, flags))
    return records
