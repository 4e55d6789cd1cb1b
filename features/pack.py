"""From records of `facts` to history bytes: each partition's records in order, live, in a replay and in a backfill alike.

A history gets what the place in the log adds to a fact: the place, the stamp folded with the controls before it (S3), the source id of
an encounter, and a tick of its own where time made a booked visit due (S7): so that a score needs the history and nothing else.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, compress, count, pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from features import codes, fact
from features.bookings import Bookings, PartitionState
from features.clock import ALWAYS_US, NEVER_US
from features.errors import InputError
from features.heads import is_named
from features.usecase import UseCase

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
_Event = tuple[int, int, bytes | int]
"""(row, time, patient who waits for it or place of a control)"""
_PLAIN, _LOOK, _VISIT, _MERGE, _CONTROL = range(5)
"""What a concept means here: a plain fact; one that asks for a look at the history whatever its time; and three that say more."""
_AT_ONCE = 1_000
"""Beside more records a call of numpy costs nothing, and those of one partition are nearer in memory."""


class Told(msgspec.Struct):
    """What one batch tells about one patient."""

    records: bytes = b""
    """Of the history, to append."""
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
    """(place, stamp) of each control: its own, because the alerts may be at an earlier place than the histories."""


def index_times(use_cases: Iterable[UseCase]) -> list[tuple[str, int]]:
    """When the use cases ask about a visit: (start or end, µs after it). Histories wait for booked visits at these times."""
    return sorted({(u.definition.index.at, u.offset_us) for u in use_cases})


class Rows(NamedTuple):
    """Heads of many patients in log order. Shapes (n,)."""

    records: npt.NDArray[np.void]
    owner: Int
    """Number of the patient of each."""
    seq: Int
    """Place in the log, or anything that grows like it."""


def by_patient(owner: Int, seq: Int, patients: int) -> Int:
    """The order of records by (owner, seq); of equal ones the first stays first."""
    by_seq = np.arange(len(seq)) if (seq[1:] >= seq[:-1]).all() else np.argsort(seq, kind="stable")
    small = owner.astype(np.uint16 if patients < 2**16 else np.int64)  # 16 bits: sorted in one pass
    return by_seq.take(np.argsort(small.take(by_seq), kind="stable"))


def laid_out(facts: Rows, sources: tuple[fact.Buffer, Int, Int], ticks: Rows, patients: int) -> tuple[npt.NDArray[np.void], Int]:
    """Histories, patient by patient: (records, first record of each patient and at last their number). Behind an encounter, and behind
    what a merge says, stands its name.

    Args:
        facts: The facts, with their places.
        sources: Their source ids: where they stand, as `fact.names_of` has it, and where each begins and ends.
        ticks: What is told besides.
        patients: How many there are.
    """
    content, begin, end = sources
    named = np.flatnonzero(is_named(facts.records["concept"]))
    which, names = fact.names_of(content, begin[named], end[named], facts.records["place"][named])
    fact_of = named[which]
    n = len(facts.owner)
    size = np.concatenate([1 + np.bincount(fact_of, minlength=n), np.ones(len(ticks.owner), np.int64)])
    owner = np.concatenate([facts.owner, ticks.owner])
    order = by_patient(owner, np.concatenate([facts.seq, ticks.seq]), patients)
    edges = np.append(0, np.cumsum(size.take(order)))
    at = np.empty(len(order), np.int64)
    at[order] = edges[:-1]
    records = np.empty(len(at) + len(names), fact.HEAD)
    whole = records.view(fact.WHOLE)
    whole[at[:n]] = facts.records.view(fact.WHOLE)
    whole[at[n:]] = ticks.records.view(fact.WHOLE)
    whole[at.take(fact_of) + 1 + names["ordinal"]] = names.view(fact.WHOLE)
    told = np.append(0, np.cumsum(np.bincount(owner, minlength=patients)))  # facts and ticks before each patient
    return records, edges.take(told)


class Packer:
    """What packing knows of one partition from batch to batch. Its twin, record by record, is tests/oracle/packing.py.

    Args:
        use_cases: Their index times are waited for.
        state: What was stored with the partition.
        exact_from: The place at which it was stored. Records before it are told again: their history records are cut off by the store.
    """

    def __init__(self, use_cases: Iterable[UseCase], state: PartitionState | None = None, *, exact_from: int = 0) -> None:
        self.state = state or PartitionState()
        self.waiting = Bookings(self.state, exact_from)
        use_cases = list(use_cases)
        self.asked = index_times(use_cases)
        self.kind = np.zeros(2**16, np.uint8)
        """Concept → what it means here."""
        self.kind[[codes.DEATH, *(c for u in use_cases for c in u.outcome_concepts)]] = _LOOK
        self.kind[1 : codes.LAST_VISIT + 1] = _VISIT
        self.kind[codes.MERGE : codes.CARRIED_MODEL + 1] = _MERGE
        self.kind[codes.CONTROL_FLOOR :] = _CONTROL

    def pack(self, keys: Sequence[bytes | None], values: Sequence[bytes], places: Int, stamps_us: Int) -> Packed:
        """The history records of a batch: `pack` of this partition alone."""
        return pack([Piece(self, keys, values, places, stamps_us)])[0]

    def activate(self, value: bytes, place: int) -> None:
        """Remember an activation; told again after a crash of admission it is the same one."""
        if int.from_bytes(value[59:61], "little") == codes.ACTIVATE:
            payload = fact.control_payload(value)
            if all(payload["id"] != known["id"] for known in self.state.activations):
                self.state.activations.append({**payload, "place": place})


class Piece(NamedTuple):
    """Records of one partition in log order."""

    packer: Packer
    keys: Sequence[bytes | None]
    """Patient of each record; ignored for controls."""
    values: Sequence[bytes]
    """Values of `facts`."""
    places: Int
    """Place of each record in the partition, int64, increasing."""
    stamps_us: Int
    """Append time of each record in µs; used where the head has no stamp of its own."""

    @classmethod
    def of(cls, packer: Packer, records: Sequence[Any]) -> Piece:
        """Records of the topic as a client reads them, their timestamps in ms."""
        keys, values = [record.key for record in records], [record.value or b"" for record in records]
        places = np.array([record.offset for record in records], np.int64)
        stamps_us = np.array([record.timestamp for record in records], np.int64) * 1000
        return cls(packer, keys, values, places, stamps_us)


def pack(pieces: Sequence[Piece]) -> list[Packed]:
    """The history records of batches of different partitions, all at once: a poll has few records of each, and numpy costs by the call.

    Args:
        pieces: Their packers have the same use cases.
    Returns:
        What each piece gives, as if packed alone.
    Raises:
        InputError: an unreadable record, or a partition with more than 2**32 records.
    """
    out = [Packed() for _ in pieces]
    size = sum(len(piece.values) for piece in pieces)
    if not size:
        return out
    if size > _AT_ONCE and len(pieces) > 1:
        return [pack([piece])[0] for piece in pieces]
    together = _Together.of(pieces)
    parsed, packer = fact.parse(together.values), pieces[0].packer
    heads, kind = parsed.heads, packer.kind.take(parsed.heads["concept"])
    is_control = kind == _CONTROL
    row, control = (~is_control).nonzero()[0], is_control.nonzero()[0]
    stamp = together.stamp(heads, is_control)
    people = _People(together, is_control)
    facts, kind = Rows(fact.take(heads, row), people.owner, row), kind.take(row)
    plain = (kind == _PLAIN) & (facts.records["version"] == 1) & (facts.records["status"] < fact.GONE)
    if any(len(piece.packer.waiting) for piece in pieces):
        plain &= ~people.waiting().take(people.owner)
    visits = (kind == _VISIT).nonzero()[0]
    event_us, length = (facts.records[name].take(visits) for name in ("event_us", "value"))
    asked = [(visits.take(which), index_us) for which, index_us in index_us_of(event_us, length, packer.asked)]
    known = zip(control.tolist(), heads["stamp_us"].take(control).tolist(), together.places.take(control).tolist(), strict=True)
    for j, own_us in zip(control.tolist(), stamp.take(control).tolist(), strict=True):
        out[together.of_row(j)].controls.append((int(together.places[j]), own_us))
    ticks = _serve(out, [*_ahead(facts, asked, together.keys), *known], heads, together, people)
    newest_us, oldest_us = np.full(len(people.names), ALWAYS_US), np.full(len(people.names), NEVER_US)
    for visit, index_us in asked:
        np.maximum.at(newest_us, facts.owner.take(visit), index_us)
    newest_us[facts.owner[facts.records["concept"] == codes.MERGE]] = NEVER_US  # whoever went over is looked at for ever
    np.minimum.at(oldest_us, facts.owner, np.where(plain, facts.records["event_us"], ALWAYS_US))
    oldest_us[ticks.owner] = ALWAYS_US
    sources = parsed.content, parsed.source.take(row), parsed.source_end.take(row)
    records, start = laid_out(facts, sources, ticks, len(people.names))
    raw, bounds = records.tobytes(), pairwise((start * fact.HEAD_BYTES).tolist())
    about = zip(people.piece, people.names, bounds, oldest_us.tolist(), newest_us.tolist(), strict=True)
    for n, patient, (begin, end), oldest, newest in about:
        out[n].patients[patient] = Told(raw[begin:end], oldest, newest)
    return out


@dataclass(frozen=True, slots=True)
class _Together:
    """The records of all pieces, one piece after the other."""

    pieces: Sequence[Piece]
    edges: list[int]
    """Where each piece begins and the last ends."""
    keys: list[bytes | None]
    values: list[bytes]
    places: Int
    stamps_us: Int

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> _Together:
        if any(piece.places[-1] > fact.PLACE_MAX for piece in pieces if len(piece.places)):
            raise InputError("a partition of facts holds at most 2**32 records in one generation: start a new generation")
        keys = list(chain.from_iterable(piece.keys for piece in pieces))
        values = list(chain.from_iterable(piece.values for piece in pieces))
        places, stamps_us = (np.concatenate(columns) for columns in zip(*((p.places, p.stamps_us) for p in pieces), strict=True))
        return cls(pieces, [*accumulate((len(piece.values) for piece in pieces), initial=0)], keys, values, places, stamps_us)

    def of_row(self, row: int) -> int:
        """Number of the piece of a record."""
        return bisect_right(self.edges, row) - 1

    def stamp(self, heads: npt.NDArray[np.void], is_control: Bool) -> Int:
        """Write into the heads where they stand, and when they became known (S3); returns what each says of itself."""
        heads["place"] = self.places
        stamp = np.where(heads["stamp_us"] == fact.NO_STAMP, self.stamps_us, heads["stamp_us"])
        control_us = np.repeat([piece.packer.state.control_us for piece in self.pieces], np.diff(self.edges))
        for piece, (begin, end) in zip(self.pieces, pairwise(self.edges), strict=True) if is_control.any() else ():
            told = np.where(is_control[begin:end], stamp[begin:end], fact.NO_STAMP)
            if len(told):
                control_us[begin:end] = np.maximum(np.maximum.accumulate(told), piece.packer.state.control_us)
                piece.packer.state.control_us = int(control_us[end - 1])
        carried = heads["flags"] & fact.CARRIED > 0  # known at its first patient's time, until the end of the merge
        heads["stamp_us"] = np.where(carried, stamp, np.maximum(stamp, control_us))
        return stamp


class _People:
    """The patients of all pieces, piece by piece in order of first mention, and behind them those who are only woken.

    Raises:
        InputError: a fact without a key.
    """

    def __init__(self, together: _Together, is_control: Bool) -> None:
        self._pieces = together.pieces
        self.names: list[bytes] = []
        self.piece: list[int] = []
        """Number of the piece of each."""
        self._numbers: list[dict[Any, int]] = []
        owner: list[int] = []
        facts = (~is_control).tolist()
        for n, (begin, end) in enumerate(pairwise(together.edges)):
            told = list(compress(together.keys[begin:end], facts[begin:end]))
            number: dict[Any, int] = dict(zip(dict.fromkeys(told), count(len(self.names))))
            if None in number:
                raise InputError("a fact without a key in facts: only premonitor may write that topic")
            self._numbers.append(number)
            self.names += number
            self.piece += [n] * len(number)
            owner += map(number.__getitem__, told)
        self.owner = np.array(owner, np.int64)
        """Number of the patient of each fact."""

    def number(self, piece: int, patient: bytes) -> int:
        """Of a patient, who may be new."""
        found = self._numbers[piece].setdefault(patient, len(self.names))
        if found == len(self.names):
            self.names.append(patient)
            self.piece.append(piece)
        return found

    def waiting(self) -> Bool:
        """Who waits for a time."""
        return np.array([patient in self._pieces[n].packer.waiting for n, patient in zip(self.piece, self.names, strict=True)], bool)


def _serve(out: list[Packed], events: list[_Event], heads: npt.NDArray[np.void], together: _Together, people: _People) -> Rows:
    """Take bookings and controls in order: remember activations, and give a tick to each patient whose booked visit is due.

    Args:
        out: Gets the bookings.
        events: Bookings, and the controls with the greatest stamp of one so far.
        heads: Of all rows.
        together: What they are of.
        people: Gets those who are only woken.
    """
    owner, seq = list[int](), list[int]()
    for j, us, what in sorted(events, key=itemgetter(0)):
        n = together.of_row(j)
        packer = together.pieces[n].packer
        if isinstance(what, bytes):
            packer.waiting.add(us, what)
            out[n].booked.append((us, what))
            continue
        packer.activate(together.values[j], what)
        for woken in packer.waiting.woken(what, us):
            owner.append(people.number(n, woken))
            seq.append(j)
    told = np.array(seq, np.int64)
    ticks = fact.take(heads, told)
    ticks["concept"] = codes.TICK
    return Rows(ticks, np.array(owner, np.int64), told)


def _ahead(facts: Rows, asked: Iterable[tuple[Int, Int]], keys: Sequence[bytes | None]) -> Iterator[_Event]:
    """What is booked: index times, each with the number of its visit, that are not yet due."""
    for visit, index_us in asked:
        due_us = index_us - fact.FUTURE_TOLERANCE_US
        later = np.flatnonzero(due_us > facts.records["stamp_us"][visit])
        for j, us in zip(facts.seq[visit[later]].tolist(), due_us[later].tolist(), strict=True):
            yield j, us, keys[j] or b""


def index_us_of(event_us: Int, length: npt.NDArray[np.float64], asked: Iterable[tuple[str, int]]) -> Iterator[tuple[Int, Int]]:
    """The index times of visits, for each of `index_times`: (numbers of the visits that have one, index time of each). A visit that has
    not ended, of length NaN, has none at its end."""
    for at, offset_us in asked:
        if at == "end":
            ended = np.flatnonzero(~np.isnan(length))
            yield ended, event_us[ended] + offset_us + length[ended].astype(np.int64)
        else:
            yield np.arange(len(event_us)), event_us + offset_us
