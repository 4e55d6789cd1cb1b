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
from features.clock import NEVER_US
from features.merge import NEVER as NEVER
from features.merge import together

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Histories:
    """Records of many patients, patient by patient, each in log order. Arrays have shape (n,) unless said otherwise.

    `known_us` is known(k): the greatest stamp so far of that patient (S3). A fact rules from its place until `until`; a repeat,
    a conflict and a lower version that came later never rule (`until` = 0). `earlier` is the row that ruled before it, or -1.
    """

    records: npt.NDArray[np.void]
    """All records as stored, names included, shape (m,)."""
    row: Int
    """Row in `records` of each fact or tick."""
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

    def stored_place(self, row: int) -> int:
        """Where a row stands in the log, also if a merge gave it effect later."""
        return int(self.records["place"][self.row[row]])

    @property
    def present(self) -> Bool:
        """Rows whose fact is there while it rules: not cancelled, not entered in error, not a tick."""
        return (self.until > 0) & (self.status < fact.GONE) & (self.concept < codes.CONTROL_FLOOR)

    def name(self, row: int) -> str:
        """The source's identifier of the encounter at `row`."""
        return self.names(np.array([row]))[0]

    def names(self, rows: Int) -> list[str]:
        """The source's identifiers of encounters."""
        at = self.row[rows] + 1
        chunk = fact.take(self.records, at)
        raw, size = chunk.tobytes(), chunk["version"].tolist()
        if fact.NAME_CHUNK in size:  # a long one continues in the next record
            return [fact.name_at(self.records, row) for row in at.tolist()]
        return [raw[64 * n : 64 * n + length].decode() for n, length in enumerate(size)]

    def names_joined(self, rows: Int) -> tuple[bytes, Int]:
        """The same in UTF-8, end to end: (all of them, where each begins and the last ends)."""
        chunk = fact.take(self.records, self.row[rows] + 1)
        size = chunk["version"].astype(np.int64)
        if (size == fact.NAME_CHUNK).any():
            names = [name.encode() for name in self.names(rows)]
            return b"".join(names), np.cumsum([0, *map(len, names)])
        text = chunk.view(np.uint8).reshape(len(chunk), fact.HEAD_BYTES)[:, : fact.NAME_CHUNK]
        return text[np.arange(fact.NAME_CHUNK) < size[:, None]].tobytes(), np.append(0, np.cumsum(size))


def read(histories: list[bytes]) -> Histories:
    """Parse and fold the histories of many patients.

    Args:
        histories: One bytes object a patient, as stored.
    Returns:
        Their records in arrays; an empty history has no rows.
    """
    sizes = np.fromiter((len(h) // fact.HEAD_BYTES for h in histories), np.int64, len(histories))
    return fold(np.frombuffer(b"".join(histories), fact.HEAD), sizes)


def fold(records: npt.NDArray[np.void], sizes: Int) -> Histories:
    """The same from the records of all patients, one patient after the other, and how many each has."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    row = np.flatnonzero(records["concept"] != codes.NAME)
    seg = owner[row]
    start = np.searchsorted(seg, np.arange(len(sizes) + 1))
    facts = fact.take(records, row)
    place, lead, packets = facts["place"].astype(np.int64), np.arange(len(seg)), list[tuple[int, int, Int]]()
    undone, gone = np.full(len(seg), -1), np.full(len(seg), NEVER)
    if facts["merge"].any():
        told = together(facts, seg, place)
        facts, seg, row = facts[told.order], seg[told.order], row[told.order]
        place, lead, packets, undone = told.place, told.lead, told.packets, told.undone
        gone = np.where(undone < 0, NEVER, place[undone])
        start = np.searchsorted(seg, np.arange(len(sizes) + 1))
    version = facts["version"].astype(np.int64)
    until, earlier, duplicates, conflicts = _fold(facts, seg, place, version, gone)
    return Histories(
        records=records,
        row=row,
        seg=seg,
        start=start,
        event_us=np.ascontiguousarray(facts["event_us"]),
        known_us=_running_max(np.ascontiguousarray(facts["stamp_us"]), seg, start)[lead],
        place=place,
        ordinal=facts["ordinal"].astype(np.int64),
        version=version,
        concept=facts["concept"].astype(np.int64),
        status=facts["status"].astype(np.int64),
        flags=(facts["flags"] & fact.MEANING).astype(np.int64),
        value=np.ascontiguousarray(facts["value"]),
        id_hi=np.ascontiguousarray(facts["id_hi"]),
        id_lo=np.ascontiguousarray(facts["id_lo"]),
        episode=np.ascontiguousarray(facts["episode"]),
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


def _fold(facts: npt.NDArray[np.void], seg: Int, place: Int, version: Int, gone: Int) -> tuple[Int, Int, int, int]:
    """Which records rule, and until when (S4): (until, earlier, duplicates, conflicts). `gone`: place at which a merge was undone."""
    until = gone.copy()
    earlier = np.full(len(facts), -1, np.int64)
    until[facts["concept"] >= codes.CONTROL_FLOOR] = 0
    low = np.sort(np.ascontiguousarray(facts["id_lo"]))
    if not (low[1:] == low[:-1]).any():  # most often every id was told once
        return until, earlier, 0, 0
    by_id = np.argsort(facts["id_lo"], kind="stable")
    low = facts["id_lo"][by_id]
    again = low[1:] == low[:-1]
    several = np.zeros(len(low), bool)
    several[1:] |= again
    several[:-1] |= again
    several &= facts["concept"][by_id] < codes.CONTROL_FLOOR
    duplicates = conflicts = 0
    ruling: dict[tuple[int, int, int], int] = {}
    told: dict[tuple[int, int, int, int], int] = {}
    for i in np.sort(by_id[several]).tolist():  # in log order; only ids that were told more than once
        identity = (int(seg[i]), int(facts["id_hi"][i]), int(facts["id_lo"][i]))
        first = told.setdefault((*identity, int(version[i])), i)
        if gone[first] <= place[i]:  # an undone merge had told it: as if never told
            told[*identity, int(version[i])] = first = i
        if first != i:
            same = fact.content(facts[first].tobytes()) == fact.content(facts[i].tobytes())
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
    return int(histories.known_us[part][n - 1]) if n else -NEVER_US
