"""The fact: a fixed head of 64 bytes that windows read, and a tail with what the source literally said.

On the topic `facts`:   format (1 byte) | head (64) | length of the source id (2) | source id | tail (JSON array)
In a history (Redis):   the heads of one patient in log order; after an encounter's head its source id in records named `NAME`.

The head is written by admission without `place` and, live, without `stamp_us`: the reader of the log fills both (S1, S3).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from features import codes
from features.clock import SECOND_US, TIME_MAX_US, TIME_MIN_US, to_us
from features.errors import InputError, Rejected

FORMAT = 1
_FORMAT = bytes((FORMAT,))
_SOURCE = 67
"""Where the source id begins in a record of `facts`; its length stands before it."""
Buffer = bytes | npt.NDArray[np.uint8]
HEAD = np.dtype(
    [
        ("id_hi", "<u8"),
        ("id_lo", "<u8"),
        ("event_us", "<i8"),
        ("stamp_us", "<i8"),
        ("value", "<f8"),
        ("episode", "<u8"),
        ("place", "<u4"),
        ("ordinal", "<u4"),
        ("version", "<u2"),
        ("concept", "<u2"),
        ("status", "u1"),
        ("flags", "u1"),
        ("merge", "<u2"),
    ]
)
"""One record of a history. `value`: in the concept's unit, NaN for none; of an encounter its length in µs, NaN while open."""
HEAD_BYTES = HEAD.itemsize
WHOLE = np.dtype(f"V{HEAD_BYTES}")
"""A record as one thing: numpy copies a structured array field by field."""
_NAME = struct.Struct("<48sIIHHBBH")
_HEAD = struct.Struct("<16sqqdQIIHHBBH")
_VERSION, _CONCEPT, _NAMED = 56, slice(58, 60), codes.NAME.to_bytes(2, "little")
NAME_CHUNK = 48
"""Bytes of a source id that one NAME record holds (in place of the id, times, value and episode)."""
_ONLY = np.where(np.arange(NAME_CHUNK) < np.arange(NAME_CHUNK + 1)[:, None], 255, 0).astype(np.uint8)
"""Masks that leave so many bytes and clear the rest."""
NO_STAMP = -(2**62)
"""`stamp_us` of a head whose stamp is the append time of `facts`."""
PLACE_MAX = 2**32 - 1
"""A partition of `facts` holds at most this many records in one generation."""

STATUS = {
    "planned": 1,
    "in-progress": 2,
    "finished": 3,
    "preliminary": 4,
    "final": 5,
    "amended": 6,
    "corrected": 7,
    "cancelled": 8,
    "entered-in-error": 9,
}
STATUS_NAME = {number: name for name, number in STATUS.items()}
GONE = 8
"""From this status on a fact is absent (S4)."""
PLANNED = 1

BELOW, ABOVE, EXPIRED = 1, 2, 4
"""Flags: the value is an upper limit (`<0.2`), a lower limit (`>100`); the patient died during the encounter."""
PRIORITY = {None: 0, "emergency": 8, "urgent": 16, "elective": 24}
PRIORITY_MASK = 24
CARRIED, SETTLED = 32, 64
"""Flags of the way, not of the fact: it waits for the end of a merge; what had to be sent on for it was sent (`features.merge`)."""
MEANING = 31
"""Flags of the fact."""


class Told(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """The tail: what a source said, so that a new code set can read the log anew (S11)."""

    kind: str
    code_system: str
    code: str
    value: float | None
    comparator: str | None
    unit: str
    known_us: int | None
    episode_id: str | None
    facility: str
    feed: str
    told: int
    """Which feed record it came from (a hash of topic and partition, plus the offset); the same again after a restart."""


AwareTime = Annotated[datetime, msgspec.Meta(tz=True)]

_encode_told = msgspec.json.Encoder().encode
decode_told = msgspec.json.Decoder(Told).decode


def fact_id(kind: str, source_id: str) -> bytes:
    """128-bit identity of a fact: hash of its kind and the source's identifier (S1)."""
    identity = _salted(kind).copy()
    identity.update(source_id.encode())
    made: bytes = identity.digest()
    return made


@cache
def _salted(kind: str) -> Any:
    return blake2b(f"{kind}|".encode(), digest_size=16)


def hash64(text: str) -> int:
    """A 64-bit hash of a text, never 0 (0 means none)."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def episode_of(kind: str, source_id: str, episode_id: str | None) -> int:
    """Number of the episode; an encounter without one is its own."""
    if episode_id is not None:
        return hash64(episode_id)
    return hash64(source_id) if kind == "encounter" else 0


def admitted_us(moment: datetime, field: str) -> int:
    """A time of an event, between 1900 and 2250."""
    time_us = to_us(moment)
    if TIME_MIN_US <= time_us < TIME_MAX_US:
        return time_us
    raise Rejected("absurd-time", f"{field} is outside 1900 to 2250")


def convert(event: Any, *, feed: str, told: int, stamp: str, book: codes.Codebook) -> tuple[int, bytes]:
    """A decoded event as (source time in µs, value for the topic `facts`).

    A merge is keyed by the patient who goes over: see `key_of`.

    Args:
        event: A struct of `features.decode`.
        feed: Name of the feed it came in.
        told: Number of the feed record (see `Told.told`).
        stamp: `given` writes the event's known time into the head; `append` leaves it to the append time of `facts`.
        book: The code sets of this generation.
    Raises:
        Rejected: unknown unit, absurd time, end before start, missing known time.
    """
    kind: str = event.kind
    event_us = admitted_us(event.event_time, "event_time")
    known_us = None if event.known_time is None else admitted_us(event.known_time, "known_time")
    if stamp != "given":
        stamp_us = NO_STAMP
    elif known_us is not None:
        stamp_us = known_us
    else:
        raise Rejected("missing-field", "known_time is required where the log is built from history")
    concept, value, flags, said = _meaning(event, kind, event_us, book)
    if kind == "retraction":  # alone of all it has no status: it is one
        target, status = event.target_kind, "entered-in-error"
    else:
        target, status = kind, event.status
    source_id: str = event.id
    episode = episode_of(target, source_id, event.episode_id)
    head = _HEAD.pack(
        fact_id(target, source_id), event_us, stamp_us, value, episode, 0, event.ordinal, event.version, concept, STATUS[status], flags, 0
    )
    system, code, number, comparator, unit, facility = said
    tail = Told(kind, system, code, number, comparator, unit, known_us, event.episode_id, facility, feed, told)
    # Behind a head stands its name in the source; behind a redirect, where it leads.
    source = event.patient_id if kind == "merge" else source_id
    return event_us if known_us is None else known_us, join(head, source.encode(), tail)


def key_of(event: Any) -> str:
    """The patient under whom an event stands in `facts`. A merge stands at the end of what was told of the one who goes over."""
    key: str = event.from_patient_id if event.kind == "merge" else event.patient_id
    return key


_Said = tuple[str, str, float | None, str | None, str, str]
"""What an event says of itself, as in `Told`: (code_system, code, value, comparator, unit, facility); empty where its kind has none."""
_NOTHING: _Said = ("", "", None, None, "", "")


def _meaning(event: Any, kind: str, event_us: int, book: codes.Codebook) -> tuple[int, float, int, _Said]:
    """(concept, value, flags) of an event, and what it says."""
    if kind == "lab" or kind == "vital":
        system, code, value, comparator, unit = event.code_system, event.code, event.value, event.comparator, event.unit
        number = book.concept(kind=kind, system=system, code=code)
        flags = 0 if comparator is None else BELOW if comparator[0] == "<" else ABOVE
        meant = math.nan if value is None else book.in_unit(number, value, unit) if number else value
        return number, meant, flags, (system, code, value, comparator, unit, "")
    if kind == "encounter":
        length, flags = _length_us(event, event_us), PRIORITY[event.priority] | (EXPIRED if event.expired else 0)
        return codes.VISIT_CONCEPTS[event.encounter_class], length, flags, ("", "", None, None, "", event.facility)
    if kind == "death":
        return codes.DEATH, math.nan, 0, _NOTHING
    if kind == "retraction":
        return codes.OTHER, math.nan, 0, _NOTHING
    if kind == "merge":
        if event.from_patient_id == event.patient_id:
            raise Rejected("bad-value", "a merge of a patient with themselves")
        return codes.MERGE, math.nan, 0, ("", event.id, None, None, "", "")
    system, code, length = event.code_system, event.code, _length_us(event, event_us) if kind == "coverage" else math.nan
    return book.concept(kind=kind, system=system, code=code), length, 0, (system, code, None, None, "", "")


def _length_us(event: Any, event_us: int) -> float:
    if event.end_time is None:
        return math.nan
    end_us = admitted_us(event.end_time, "end_time")
    if end_us < event_us:
        raise Rejected("end-before-start", "end_time is before event_time")
    return float(end_us - event_us)


def pack(
    *,
    identity: bytes,
    event_us: int,
    concept: int,
    stamp_us: int = 0,
    value: float = math.nan,
    episode: int = 0,
    place: int = 0,
    ordinal: int = 0,
    version: int = 1,
    status: int = 5,
    flags: int = 0,
) -> bytes:
    """One head. `identity` is the 16 bytes of `fact_id`."""
    return _HEAD.pack(identity, event_us, stamp_us, value, episode, place, ordinal, version, concept, status, flags, 0)


def join(head: bytes, source: bytes, tail: Told) -> bytes:
    """Value of a record of `facts`."""
    return b"".join((_FORMAT, head, len(source).to_bytes(2, "little"), source, _encode_told(tail)))


def source_id(value: bytes) -> bytes:
    """The source's identifier in a record of `facts`."""
    return value[_SOURCE : _SOURCE + value[_SOURCE - 2] + 256 * value[_SOURCE - 1]]


def told(value: bytes) -> Told:
    """The tail of a record of `facts`."""
    return decode_told(value[_SOURCE + int.from_bytes(value[_SOURCE - 2 : _SOURCE], "little") :])


class Parsed(NamedTuple):
    """Records of `facts` as arrays. Shapes (n,)."""

    heads: npt.NDArray[np.void]
    """Writable."""
    content: bytes
    """The values one after the other, and behind the last as many bytes as a NAME record holds."""
    source: npt.NDArray[np.int64]
    """Where each source id begins in `content`."""
    source_end: npt.NDArray[np.int64]


def parse(values: Sequence[bytes]) -> Parsed:
    """Heads and source ids of records of `facts`.

    Raises:
        InputError: a record in another format: readers are deployed before writers (S13), so this stops the partition.
    """
    content = b"".join((*values, bytes(NAME_CHUNK)))
    raw, size = np.frombuffer(content, np.uint8), np.fromiter(map(len, values), np.int64, len(values))
    begin = np.cumsum(size) - size
    if len(values) and (size.min() < _SOURCE or (raw[begin] != FORMAT).any()):
        strange = next(value for value in values if len(value) < _SOURCE or value[0] != FORMAT)
        raise InputError(
            f"a record of facts has format {strange[:1].hex() or 'none'}, this version reads 01: deploy readers before writers"
        )
    source = begin + _SOURCE
    source_end = source + raw[begin + _SOURCE - 2] + 256 * raw[begin + _SOURCE - 1].astype(np.int64)
    return Parsed(cut(content, begin + 1, HEAD_BYTES).view(HEAD), content, source, source_end)


def heads(values: Sequence[bytes]) -> npt.NDArray[np.void]:
    """The heads of records of `facts`, as `parse`."""
    return parse(values).heads


def take(records: npt.NDArray[np.void], which: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    """These of the records. Indexing would copy them field by field; `take` is half the time of indexing whole ones."""
    return records.view(WHOLE).take(which).view(HEAD)


def cut(content: Buffer, begin: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.void]:
    """`size` bytes from each of these places on."""
    return np.ndarray((max(len(content) - size + 1, 0),), f"V{size}", content, strides=(1,))[begin]  # overlapping: a view of every place


def content(head: bytes) -> bytes:
    """What makes two tellings of one (id, version) the same: all of a head but stamp, place and the flags of the way."""
    return head[16:24] + head[32:48] + head[52:61] + bytes((head[61] & MEANING,))


def name_records(source: bytes, *, place: int) -> bytes:
    """NAME records that hold a source id; they follow the head that they name."""
    if len(source) <= NAME_CHUNK:
        return _NAME.pack(source, place, 0, len(source), codes.NAME, 0, 0, 0)
    chunks = [source[i : i + NAME_CHUNK] for i in range(0, len(source), NAME_CHUNK)]
    return b"".join(
        chunk.ljust(NAME_CHUNK, b"\0") + struct.pack("<IIHHBBH", place, n, len(chunk), codes.NAME, 0, 0, 0)
        for n, chunk in enumerate(chunks)
    )


def names_of(
    content: Buffer, begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64], place: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.void]]:
    """The same of many source ids at once: (number of its id, record) of each.

    Args:
        content: Where they stand, with at least `NAME_CHUNK` bytes behind the last.
        begin: Where each begins, shape (n,); `end` and `place` likewise.
    """
    chunks = np.maximum(-(-(end - begin) // NAME_CHUNK), 1)
    which = np.repeat(np.arange(len(chunks)), chunks)
    ordinal = np.arange(len(which)) - (np.cumsum(chunks) - chunks)[which]
    begin = begin[which] + ordinal * NAME_CHUNK
    size = np.minimum(end[which] - begin, NAME_CHUNK)
    names = np.zeros(len(which), HEAD)
    names["ordinal"], names["version"], names["place"], names["concept"] = ordinal, size, place[which], codes.NAME
    text = cut(content, begin, NAME_CHUNK).view(np.uint8).reshape(-1, NAME_CHUNK)
    names.view(np.uint8).reshape(-1, HEAD_BYTES)[:, :NAME_CHUNK] = text & _ONLY.take(size, axis=0)
    return which, names


def name_at(records: npt.NDArray[np.void], row: int) -> str:
    """The source id in the NAME records that begin at `row`."""
    text = b""
    while row < len(records):
        head = records[row].tobytes()
        if head[_CONCEPT] != _NAMED:
            break
        text += head[: head[_VERSION]]
        if head[_VERSION] < NAME_CHUNK:  # a longer one goes on in the next record
            break
        row += 1
    return text.decode()


def control(*, name: str, number: int, stamp_us: int, payload: dict[str, Any]) -> bytes:
    """A control record of `facts`: `tick` or `activate` (S1). `number` counts the controls of a generation."""
    concept = {"tick": codes.TICK, "activate": codes.ACTIVATE}[name]
    head = pack(identity=fact_id("control", f"{name}|{number}"), event_us=stamp_us, stamp_us=stamp_us, concept=concept)
    return b"".join((_FORMAT, head, (0).to_bytes(2, "little"), msgspec.json.encode(payload, order="sorted")))


def control_payload(value: bytes) -> dict[str, Any]:
    """The payload of a control record."""
    payload: dict[str, Any] = msgspec.json.decode(value[_SOURCE:])
    return payload


FUTURE_TOLERANCE_US = 300 * SECOND_US
"""An encounter is due when its index time is at most five minutes after what is known (S7)."""
