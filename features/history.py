"""Histories: the records of many patients in log order, and the fold that says which version of a fact rules when (S2–S4).

A history is bytes (`features.fact`): heads, names and the ticks that mattered to the patient, in the order of the log.
Everything here works on many patients at once: arrays over all their records, `seg` numbering the patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features import codes, fact
from features.clock import ALWAYS_US
from features.heads import Heads, Names, StoredNames
from features.merge import NEVER as NEVER
from features.merge import together

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Histories:
    """Facts and ticks of many patients, patient by patient, each in log order. Arrays have shape (n,) unless said otherwise.

    `known_us` is known(k): the greatest stamp so far of that patient (S3). A fact rules from its place until `until`; a repeat,
    a conflict and a lower version that came later never rule (`until` = 0). `earlier` is the row that ruled before it, or -1.
    """

    heads: Heads
    """As stored: with the place in the log also where a merge gave effect later, and with the flags of the way."""
    sources: Names
    at: Int
    """Where `sources` knows the name of each."""
    seg: Int
    start: Int
    """First row of each patient, shape (patients + 1,)."""
    event_us: Int
    known_us: Int
    place: Int
    ordinal: Int
    version: Int
    concept: Int
    status: Int
    flags: Int
    value: npt.NDArray[np.float64]
    id_hi: npt.NDArray[np.uint64]
    id_lo: npt.NDArray[np.uint64]
    episode: npt.NDArray[np.uint64]
    until: Int
    earlier: Int
    lead: Int
    """Row of the end of the merge that brings a row into effect, else the row itself: it is what triggers."""
    undone: Int
    """Row that undid the merge which brought a row, or -1."""
    packets: list[tuple[int, int, Int]]
    """What merges brought: (patient, row of the end, its rows)."""
    duplicates: int
    conflicts: int

    @property
    def present(self) -> Bool:
        """Rows whose fact is there while it rules: not cancelled, not entered in error, not a tick."""
        return (self.until > 0) & (self.status < fact.GONE) & (self.concept < codes.CONTROL_FLOOR)

    def name(self, row: int) -> str:
        """The source's identifier of the encounter at `row`."""
        return self.names(np.array([row]))[0]

    def names(self, rows: Int) -> list[str]:
        """The source's identifiers of encounters."""
        return self.sources.texts(self.at[rows])

    def names_joined(self, rows: Int) -> tuple[fact.Buffer, Int]:
        """The same in UTF-8, end to end: (all of them, where each begins and the last ends)."""
        return self.sources.joined(self.at[rows])


def read(histories: list[bytes]) -> Histories:
    """Parse and fold the histories of many patients.

    Args:
        histories: One bytes object a patient, as stored.
    Returns:
        Their records in arrays; an empty history has no rows.
    """
    sizes = np.fromiter((len(h) // fact.HEAD_BYTES for h in histories), np.int64, len(histories))
    records = np.frombuffer(b"".join(histories), fact.HEAD)
    at = np.flatnonzero(records["concept"] != codes.NAME)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return fold(Heads.of(fact.take(records, at)), owner[at], len(sizes), StoredNames(records), at)


def fold(heads: Heads, seg: Int, patients: int, sources: Names, at: Int) -> Histories:
    """The same from heads, patient by patient, each in log order: `seg` numbers the patients, `at` is where `sources` knows each."""
    place, lead, packets = heads.place.astype(np.int64, copy=False), np.arange(len(seg)), list[tuple[int, int, Int]]()
    undone, gone = np.full(len(seg), -1), np.full(len(seg), NEVER)
    if heads.merge.any():
        told = together(heads, seg, place)
        heads, seg, at = heads.take(told.order), seg[told.order], at[told.order]
        place, lead, packets, undone = told.place, told.lead, told.packets, told.undone
        gone = np.where(undone < 0, NEVER, place[undone])
    start = np.searchsorted(seg, np.arange(patients + 1))
    until, earlier, duplicates, conflicts = _fold(heads, seg, place, gone)
    return Histories(
        heads=heads,
        sources=sources,
        at=at,
        seg=seg,
        start=start,
        event_us=heads.event_us,
        known_us=_running_max(heads.stamp_us, seg, start)[lead],
        place=place,
        ordinal=heads.ordinal.astype(np.int64, copy=False),
        version=heads.version.astype(np.int64, copy=False),
        concept=heads.concept.astype(np.int64, copy=False),
        status=heads.status.astype(np.int64, copy=False),
        flags=(heads.flags & fact.MEANING).astype(np.int64, copy=False),
        value=heads.value,
        id_hi=heads.id_hi,
        id_lo=heads.id_lo,
        episode=heads.episode,
        until=until,
        earlier=earlier,
        lead=lead,
        undone=undone,
        packets=packets,
        duplicates=duplicates,
        conflicts=conflicts,
    )


def stretches(begin: Int, n: Int) -> tuple[Int, Int]:
    """The indices in [begin, begin + n) of many stretches, one after the other: (number of its stretch, index) of each."""
    which = np.repeat(np.arange(len(n)), n)
    return which, np.arange(len(which)) + np.repeat(begin - (np.cumsum(n) - n), n)


def _running_max(stamp_us: Int, seg: Int, start: Int) -> Int:
    """known(k) of S3: the greatest stamp at or before each place of the same patient."""
    back = np.flatnonzero((stamp_us[1:] < stamp_us[:-1]) & (seg[1:] == seg[:-1]))
    if len(back):
        stamp_us = stamp_us.copy()
        for s in np.unique(seg[back]).tolist():  # rare: a clock went back
            part = slice(start[s], start[s + 1])
            stamp_us[part] = np.maximum.accumulate(stamp_us[part])
    return stamp_us


def _fold(heads: Heads, seg: Int, place: Int, gone: Int) -> tuple[Int, Int, int, int]:
    """Which records rule, and until when (S4): (until, earlier, duplicates, conflicts). `gone`: place at which a merge was undone."""
    until = gone.copy()
    earlier = np.full(len(seg), -1, np.int64)
    until[heads.concept >= codes.CONTROL_FLOOR] = 0
    low = np.sort(heads.id_lo)
    if not (low[1:] == low[:-1]).any():  # most often every id was told once
        return until, earlier, 0, 0
    by_id, version = np.argsort(heads.id_lo, kind="stable"), heads.version
    low = heads.id_lo[by_id]
    again = low[1:] == low[:-1]
    several = np.zeros(len(low), bool)
    several[1:] |= again
    several[:-1] |= again
    several &= heads.concept[by_id] < codes.CONTROL_FLOOR
    duplicates = conflicts = 0
    ruling: dict[tuple[int, int, int], int] = {}
    told: dict[tuple[int, int, int, int], int] = {}
    for i in np.sort(by_id[several]).tolist():  # in log order; only ids that were told more than once
        identity = (int(seg[i]), int(heads.id_hi[i]), int(heads.id_lo[i]))
        first = told.setdefault((*identity, int(version[i])), i)
        if gone[first] <= place[i]:  # an undone merge had told it: as if never told
            told[*identity, int(version[i])] = first = i
        if first != i:
            same = fact.content(heads.head(first)) == fact.content(heads.head(i))
            duplicates, conflicts = duplicates + same, conflicts + (not same)
            until[i] = 0
            continue
        best = ruling.get(identity)
        if best is not None and gone[best] <= place[i]:
            best = None
        if best is not None and version[best] > version[i]:
            until[i] = 0  # a lower version that came later has no effect
            continue
        ruling[identity] = i
        if best is not None:
            until[best] = min(place[i], gone[best])
            earlier[i] = best
    return until, earlier, duplicates, conflicts


def known_at(histories: Histories, seg: int, place: int) -> int:
    """known(k) of one patient at a place of the log, in µs; the beginning of time before the first record."""
    part = slice(histories.start[seg], histories.start[seg + 1])
    n = int(np.searchsorted(histories.place[part], place, side="right"))
    return int(histories.known_us[part][n - 1]) if n else ALWAYS_US
