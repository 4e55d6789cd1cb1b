"""The fact: a fixed head of 64 bytes that windows read, and a tail with what the source literally said.

On the topic `facts`:   format (1 byte) | head (64) | length of the source id (2) | source id | tail (JSON array)
In a history (Redis):   the heads of one patient in log order; after an encounter's head its source id in records named `NAME`.

The head is written by admission without `place` and, live, without `stamp_us`: the reader of the log fills both (S1, S3).
"""

from __future__ import annotations

import math
import struct
from datetime import datetime
from hashlib import blake2b
from operator import itemgetter
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from features import codes
from features.clock import SECOND_US, TIME_MAX_US, TIME_MIN_US, to_us
from features.errors import InputError, Rejected

FORMAT = 1
_FORMAT = bytes((FORMAT,))
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
NAME_CHUNK = 48
"""Bytes of a source id that one NAME record holds (in place of the id, times, value and episode)."""
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
    return blake2b(f"{kind}|{source_id}".encode(), digest_size=16).digest()


def hash64(text: str) -> int:
    """A 64-bit hash of a text, never 0 (0 means none)."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def episode_of(kind: str, source_id: str, episode_id: str | None) -> int:
    """Number of the episode; an encounter without one is its own."""
    if episode_id is not None:
        return hash64(episode_id)
    return hash64(source_id) if kind == "encounter" else 0


def admitted_us(event: Any, field: str) -> int:
    """A time of an event, between 1900 and 2250."""
    time_us = to_us(getattr(event, field))
    if not TIME_MIN_US <= time_us < TIME_MAX_US:
        raise Rejected("absurd-time", f"{field} is outside 1900 to 2250")
    return time_us


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
    event_us = admitted_us(event, "event_time")
    known_us = admitted_us(event, "known_time") if event.known_time is not None else None
    if known_us is None and stamp == "given":
        raise Rejected("missing-field", "known_time is required where the log is built from history")
    concept, value, flags = _meaning(event, kind, event_us, book)
    target = event.target_kind if kind == "retraction" else kind
    status = "entered-in-error" if kind == "retraction" else getattr(event, "status", "final")
    # Behind a head stands its name in the source; behind a redirect, where it leads.
    source = (event.patient_id if kind == "merge" else event.id).encode()
    head = pack(
        identity=fact_id(target, event.id),
        event_us=event_us,
        stamp_us=known_us if stamp == "given" and known_us is not None else NO_STAMP,
        value=value,
        episode=episode_of(target, event.id, event.episode_id),
        ordinal=event.ordinal,
        version=event.version,
        concept=concept,
        status=STATUS[status],
        flags=flags,
    )
    tail = Told(
        kind=kind,
        code_system=getattr(event, "code_system", ""),
        code=event.id if kind == "merge" else getattr(event, "code", ""),
        value=getattr(event, "value", None),
        comparator=getattr(event, "comparator", None),
        unit=getattr(event, "unit", ""),
        known_us=known_us,
        episode_id=event.episode_id,
        facility=getattr(event, "facility", ""),
        feed=feed,
        told=told,
    )
    return known_us if known_us is not None else event_us, join(head, source, tail)


def key_of(event: Any) -> str:
    """The patient under whom an event stands in `facts`. A merge stands at the end of what was told of the one who goes over."""
    key: str = event.from_patient_id if event.kind == "merge" else event.patient_id
    return key


def _meaning(event: Any, kind: str, event_us: int, book: codes.Codebook) -> tuple[int, float, int]:
    """(concept, value, flags) of an event."""
    if kind in ("lab", "vital"):
        number = book.concept(kind=kind, system=event.code_system, code=event.code)
        flags = 0 if event.comparator is None else BELOW if event.comparator[0] == "<" else ABOVE
        if event.value is None:
            return number, math.nan, flags
        return number, book.in_unit(number, event.value, event.unit) if number else event.value, flags
    if kind == "encounter":
        length = _length_us(event, event_us)
        return codes.VISIT_CONCEPTS[event.encounter_class], length, PRIORITY[event.priority] | (EXPIRED if event.expired else 0)
    if kind == "coverage":
        return book.concept(kind=kind, system=event.code_system, code=event.code), _length_us(event, event_us), 0
    if kind == "death":
        return codes.DEATH, math.nan, 0
    if kind == "retraction":
        return codes.OTHER, math.nan, 0
    if kind == "merge":
        if event.from_patient_id == event.patient_id:
            raise Rejected("bad-value", "a merge of a patient with themselves")
        return codes.MERGE, math.nan, 0
    return book.concept(kind=kind, system=event.code_system, code=event.code), math.nan, 0


def _length_us(event: Any, event_us: int) -> float:
    if event.end_time is None:
        return math.nan
    end_us = admitted_us(event, "end_time")
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
    return value[67 : 67 + value[65] + 256 * value[66]]


def told(value: bytes) -> Told:
    """The tail of a record of `facts`."""
    return decode_told(value[67 + int.from_bytes(value[65:67], "little") :])


def heads(values: list[bytes]) -> npt.NDArray[np.void]:
    """The heads of records of `facts`, writable.

    Raises:
        InputError: a record in another format: readers are deployed before writers (S13), so this stops the partition.
    """
    if values and (min(map(len, values)) < 67 or set(map(itemgetter(0), values)) != {FORMAT}):
        strange = next(value for value in values if len(value) < 67 or value[0] != FORMAT)
        raise InputError(
            f"a record of facts has format {strange[:1].hex() or 'none'}, this version reads 01: deploy readers before writers"
        )
    return np.frombuffer(bytearray().join([value[1:65] for value in values]), HEAD)


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


def name_at(records: npt.NDArray[np.void], row: int) -> str:
    """The source id in the NAME records that begin at `row`."""
    text = b""
    while row < len(records) and records["concept"][row] == codes.NAME:
        text += records[row].tobytes()[: int(records["version"][row])]
        row += 1
    return text.decode()


def control(*, name: str, number: int, stamp_us: int, payload: dict[str, Any]) -> bytes:
    """A control record of `facts`: `tick` or `activate` (S1). `number` counts the controls of a generation."""
    concept = {"tick": codes.TICK, "activate": codes.ACTIVATE}[name]
    head = pack(identity=fact_id("control", f"{name}|{number}"), event_us=stamp_us, stamp_us=stamp_us, concept=concept)
    return b"".join((bytes((FORMAT,)), head, (0).to_bytes(2, "little"), msgspec.json.encode(payload, order="sorted")))


def control_payload(value: bytes) -> dict[str, Any]:
    """The payload of a control record."""
    payload: dict[str, Any] = msgspec.json.decode(value[67:])
    return payload


FUTURE_TOLERANCE_US = 300 * SECOND_US
"""An encounter is due when its index time is at most five minutes after what is known (S7)."""
