"""Merges: one person was told under two names, and the facts of the one go over to the other (S9).

      A  ──a1──a2──[redirect]  silent from here; later facts of A are sent on ──▶
      B  ──b1──────────(a1 a2)[end]──b2──     a1 and a2 are known at `end`, together; without an end, not at all

What travels through the log is A's history: heads, names of encounters, the ticks that mattered, the models that were active. So B's
history alone says what A's answers were, and nothing else is remembered.

      A  ──[redirect]──a3──a4──[undone]──     A's own history was never cut: its visits are asked again from here on
      B  ──[end]──b2──────────────[end, undone]──     what the merge had brought is gone, its visits are withdrawn
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from features import codes, fact
from features.clock import TIME_MIN_US
from features.fact import CARRIED, SETTLED
from features.heads import Heads, is_named

Int = npt.NDArray[np.int64]
NEVER = 2**40
"""A place that is never reached."""
_FLAGS, _CONCEPT = 61, slice(58, 60)
"""Where they stand in a head."""
_TICK, _CARRIED_TICK, _MERGE, _MERGED = (n.to_bytes(2, "little") for n in (codes.TICK, codes.CARRIED_TICK, codes.MERGE, codes.MERGED))


def number(merge: bytes) -> int:
    """The number of a merge in the heads of what it carries: 1 to 65,535, from the 16 bytes of its id."""
    return int.from_bytes(blake2b(merge, digest_size=4).digest(), "little") % 65_535 + 1


def sent_on(head: bytes, *, merge: int, packed: bool) -> bytes:
    """A head as it goes to the other patient: without place, with the number of the merge.

    Args:
        packed: It waits for the end of the merge; else it takes effect where it stands.
    """
    if head[_CONCEPT] == _TICK:
        head = head[:58] + _CARRIED_TICK + head[60:]
    flags = head[_FLAGS] & ~(CARRIED | SETTLED) | CARRIED * packed
    return head[:48] + bytes(4) + head[52:_FLAGS] + bytes((flags,)) + merge.to_bytes(2, "little")


def settled(value: bytes) -> bytes:
    """A record of `facts` from a whole log: what had to be sent on for it stands in that log already."""
    return value[: 1 + _FLAGS] + bytes((value[1 + _FLAGS] | SETTLED,)) + value[2 + _FLAGS :]


def end_record(redirect: bytes, origin: str) -> bytes:
    """The record of `facts` that ends a merge, from the head of its redirect."""
    identity = blake2b(b"end|" + redirect[:16], digest_size=16).digest()
    head = identity + redirect[16:48] + bytes(4) + redirect[52:58] + _MERGED + redirect[60:_FLAGS]
    return fact.join(head + b"\0" + number(redirect[:16]).to_bytes(2, "little"), origin.encode(), _tail("merged"))


def carried_value(head: bytes, name: bytes) -> bytes:
    """The record of `facts` that carries a head of a history. The source's own words stay under the first patient."""
    return fact.join(head, name, _tail("carried"))


def _tail(kind: str) -> fact.Told:
    return fact.Told(kind, "", "", None, None, "", None, None, "", "", 0)


def model_marker(activation: dict[str, Any], redirect: bytes, merge: int) -> bytes:
    """The record of `facts` that says which model was active at the first patient from here on."""
    words = msgspec.json.encode({name: activation[name] for name in ("use_case", "model_version", "role")}, order="sorted")
    identity = blake2b(b"model|%b|%d" % (redirect[:16], activation["id"]), digest_size=16).digest()
    event_us = int.from_bytes(redirect[24:32], "little", signed=True)
    head = fact.pack(identity=identity, event_us=event_us, stamp_us=TIME_MIN_US, concept=codes.CARRIED_MODEL)  # no news of time
    return carried_value(sent_on(head, merge=merge, packed=True), words)


@dataclass(frozen=True, slots=True)
class Together:
    """The rows of many patients in the order of their effect: a packet right before its end, at the end's place."""

    order: Int
    """Rows as stored that have an effect, in the new order."""
    place: Int
    lead: Int
    """Row (in the new order) of the end that brings a carried row into effect; of other rows the row itself."""
    packets: list[tuple[int, int, Int]]
    """(patient, row of the end, its rows), in the new order."""
    undone: Int
    """Row that undid the merge which brought a row, or -1."""


def together(heads: Heads, seg: Int, place: Int) -> Together:
    """Bring what merges carry to the place of its end, and leave out what has no end yet."""
    merge, ends = heads.merge.astype(np.int64), heads.concept == codes.MERGED
    end_of: dict[tuple[int, int], int] = {}
    undone = np.full(len(seg), -1)
    for i in np.flatnonzero(ends & (merge > 0)).tolist():
        brought = (seg == seg[i]) & (merge == merge[i])
        if heads.status[i] < fact.GONE:
            end_of.setdefault((int(seg[i]), int(merge[i])), i)
        elif not (undone[brought] >= 0).any():
            undone[brought & ~ends] = i
    effect, lead = place.copy(), np.arange(len(seg))
    kept = np.ones(len(seg), bool)
    for i in np.flatnonzero((heads.flags & CARRIED > 0) & ~ends).tolist():
        end = end_of.get((int(seg[i]), int(merge[i])))
        if end is None:
            kept[i] = False
        elif end > i:
            effect[i], lead[i] = place[end], end
    order = np.flatnonzero(kept)
    order = order[np.lexsort((ends[order], effect[order], seg[order]))]
    new = np.full(len(seg) + 1, -1)  # one more, so that -1 stays -1
    new[order] = np.arange(len(order))
    packets = []
    for (patient, _), end in sorted(end_of.items(), key=lambda item: item[1]):
        rows = np.sort(new[np.flatnonzero((lead == end) & (np.arange(len(seg)) != end))])
        packets.append((patient, int(new[end]), rows))
    return Together(order, effect[order], new[lead[order]], packets, new[undone[order]])


def first_history(h: Any, rows: Iterable[int]) -> bytes:
    """The history of the first patient, as carried: its heads with their names, ticks as ticks again.

    Args:
        h: Folded histories (`features.history.Histories`).
        rows: What was carried, in order.
    """
    parts = []
    for row in rows:
        head: bytes = h.heads.head(row)
        concept = _TICK if head[_CONCEPT] == _CARRIED_TICK else head[_CONCEPT]
        parts.append(head[:58] + concept + head[60:_FLAGS] + bytes((head[_FLAGS] & ~CARRIED,)) + bytes(2))
        if is_named(h.concept[row]):
            parts.append(fact.name_records(_name(h, row), place=int(h.heads.place[row])))
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Move:
    """Where a patient's facts go."""

    place: int
    """Of the redirect: from here on nothing is issued."""
    row: int
    target: str
    undone: int = -1
    """Row that undid it, or -1."""
    until: int = NEVER
    """Its place."""


def moves(h: Any) -> list[tuple[int, Move]]:
    """(patient, move) of the patients of folded histories (`features.history.Histories`) that were merged into another, in log order.

    Without effect are a redirect to somebody who was merged into this patient, which would send both in a circle, and one of a patient
    who went over already.
    """
    found: list[tuple[int, Move]] = []
    rules = (h.concept == codes.MERGE) & (h.until > 0)
    for row in np.flatnonzero(rules & (h.status < fact.GONE)).tolist():
        seg, place, target = int(h.seg[row]), int(h.place[row]), h.name(row)
        here = h.seg == seg
        came = np.flatnonzero(here & (h.concept == codes.MERGED) & (h.place < place) & (place < h.until) & (h.status < fact.GONE))
        if target in h.names(came) or any(other == seg and place < move.until for other, move in found):
            continue
        same = here & (h.id_hi == h.id_hi[row]) & (h.id_lo == h.id_lo[row])
        undone = np.flatnonzero(rules & same & (h.status >= fact.GONE) & (h.place > place))[:1].tolist()
        found.append((seg, Move(place, row, target, *([undone[0], int(h.place[undone[0]])] if undone else []))))
    return found


def sendings(
    h: Any, seg: int, move: Move, activations: Sequence[dict[str, Any]], patient: str, *, since: int, until: int
) -> Iterator[bytes]:
    """What the facts of a merged patient at places `[since, until)` send on to the other one, as values of `facts`, in order."""
    redirect = h.heads.head(move.row)
    merge = number(redirect[:16])
    begin, end = int(h.start[seg]), int(h.start[seg + 1])
    for row in range(begin, end):
        place = int(h.place[row])
        if not since <= place < until or not move.place <= place <= move.until or h.heads.flags[row] & SETTLED:
            continue
        if row == move.row:
            yield from _packet(h, range(begin, row), redirect, merge, activations)
            yield end_record(redirect, patient)
        elif row == move.undone:
            yield end_record(h.heads.head(row), patient)
        elif h.until[row] > 0 and h.concept[row] == codes.MERGED:  # somebody else's facts have come: they go on as they came
            for carried in (*np.flatnonzero((h.lead == row) & (np.arange(len(h.seg)) != row)).tolist(), row):
                yield carried_value(_again(h.heads.head(carried)), _name(h, carried))
        elif h.until[row] > 0 and h.concept[row] < codes.CONTROL_FLOOR and h.concept[row] != codes.MERGE and h.lead[row] == row:
            yield carried_value(sent_on(h.heads.head(row), merge=merge, packed=False), _name(h, row))


def _packet(h: Any, rows: range, redirect: bytes, merge: int, activations: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    waiting = sorted((a for a in activations if a["place"] < h.place[rows.stop]), key=lambda a: a["place"])
    for row in rows:
        while waiting and waiting[0]["place"] < h.place[row]:
            yield model_marker(waiting.pop(0), redirect, merge)
        if h.concept[row] in (codes.MERGED, codes.MERGE, codes.CARRIED_MODEL):
            continue  # an earlier merge: its facts count as this patient's own from here on
        yield carried_value(sent_on(h.heads.head(row), merge=merge, packed=True), _name(h, row))
    for activation in waiting:
        yield model_marker(activation, redirect, merge)


def _again(head: bytes) -> bytes:
    return head[:48] + bytes(4) + head[52:]


def _name(h: Any, row: int) -> bytes:
    return str(h.name(row)).encode() if is_named(h.concept[row]) else b""


def is_redirect(value: bytes) -> bool:
    """Whether a record of `facts` says that its patient goes over to another, or takes that back."""
    return value[59:61] == _MERGE


class Carrier:
    """Carries out the merges of a log that is made from history, as the worker does live; the source's words travel with the facts.

    Ticks are not carried: a visit that was booked ahead and has not begun at the merge becomes due under the second patient.

    Args:
        write: Appends a fact to the log: (patient, value).
        leaving: The patients whom a merge takes over: only of them the facts are kept.
    """

    def __init__(self, write: Callable[[str, bytes], None], leaving: Iterable[str]) -> None:
        self._write = write
        self._told: dict[str, list[bytes]] = {patient: [] for patient in leaving}
        self._moved: dict[str, tuple[str, bytes]] = {}
        """Patient → where to, and the id of the merge."""

    def fact(self, patient: str, value: bytes) -> None:
        """Write a fact, and what it sends on."""
        if patient not in self._told:
            self._write(patient, value)
            return
        redirects, undoes = is_redirect(value), value[61] >= fact.GONE
        if patient in self._moved:
            target, identity = self._moved[patient]
            self._write(patient, settled(value))
            self._told[patient].append(value)
            if redirects and undoes and value[1:17] == identity:
                del self._moved[patient]
                self._hand_over(target, [end_record(value[1:65], patient)])
            elif not redirects:
                self.fact(target, _moved_value(value, number(identity), packed=False))
            return
        target = fact.source_id(value).decode() if redirects and not undoes else ""
        if not target or self._leads_to(target, patient):
            self._told[patient].append(value)
            self._write(patient, value)
            return
        redirect = value[1:65]
        self._write(patient, settled(value))
        packet = [
            _moved_value(v, number(redirect[:16]), packed=True) for v in self._told[patient] if v[1:][_CONCEPT] not in (_MERGE, _MERGED)
        ]
        self._moved[patient] = target, redirect[:16]
        self._hand_over(target, [*packet, end_record(redirect, patient)])

    def _hand_over(self, target: str, packet: list[bytes]) -> None:
        while target in self._moved:
            for value in packet:
                self._write(target, settled(value))
            target = self._moved[target][0]
        for value in packet:
            self._write(target, value)
            if target in self._told:
                self._told[target].append(value)

    def _leads_to(self, target: str, patient: str) -> bool:
        while target in self._moved:
            target = self._moved[target][0]
        return target == patient


def _moved_value(value: bytes, merge: int, *, packed: bool) -> bytes:
    return value[:1] + sent_on(value[1:65], merge=merge, packed=packed) + value[65:]
