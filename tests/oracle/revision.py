"""What is issued for one patient, by walking its places one by one and computing obj(E, u, k) at each (S7, S8)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from features.usecase import UseCase
from tests.oracle import fold
from tests.oracle.objects import Objects
from tests.oracle.record import Record, parse

FIVE_MINUTES_US = 300_000_000
DAY_US = 86_400_000_000


class Issued(NamedTuple):
    """One score record without its risk. `row` is empty where nothing was scored; floats as their 64 bits."""

    encounter: str
    place: int
    trigger: bytes
    version: int
    revision: int
    status: str
    reason: str
    index_us: int
    row: bytes


def walk(history: bytes, use_case: UseCase) -> list[Issued]:
    """All that is issued, by encounter (in the order in which they were first told) and then by place."""
    records = parse(history)
    issued: list[Issued] = []
    for identity in dict.fromkeys(r.id for r in records):
        issued += _walk_one(identity, Objects(records, use_case), use_case.definition.revise_for_days * DAY_US)
    return issued


def _walk_one(identity: tuple[int, int], objects: Objects, revise_for_us: int) -> list[Issued]:
    issued: list[Issued] = []
    last_index: Record | None = None
    known_at_due: int | None = None
    due = 0
    before: tuple[str, str, int, bytes] | None = None
    for k, trigger in enumerate(objects.records):
        version, known_us = fold.ruling(objects.records[: k + 1]).get(identity), fold.known_us(objects.records[: k + 1])
        if version is not None and objects.is_index(version):
            last_index = version
            if known_at_due is None and objects.index_us(version) <= known_us + FIVE_MINUTES_US:
                known_at_due, due = known_us, k
        if known_at_due is None or version is None or last_index is None:
            continue
        status, reason, row = objects.answer(k, due, version)
        answer = (status, reason, objects.index_us(last_index), struct.pack(f"<{len(row)}d", *row))
        if not issued or (answer != before and known_us - known_at_due <= revise_for_us):
            issued.append(Issued(last_index.name.decode(), trigger.place, trigger.id_bytes, trigger.version, len(issued), *answer))
        before = answer
    return issued
