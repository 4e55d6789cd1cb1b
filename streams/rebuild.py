"""Rebuild: one routine that makes histories anew from the log on `facts`, for a patient, some, or a whole partition."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from features.errors import CheckFailed
from features.pack import Packer, Piece, pack
from features.usecase import UseCase
from streams.reader import read_partition
from streams.settings import Settings
from streams.store import Store


async def rebuild_patients(
    settings: Settings, topic: str, store: Store, use_cases: Sequence[UseCase], partition: int, patients: Sequence[bytes]
) -> int:
    """Write the histories of some patients of a partition anew, up to the place that the store has reached.

    Returns:
        How many were replaced; fewer than asked where the partition moved on meanwhile: the next check finds them again.
    Raises:
        CheckFailed: the log does not reach back to its beginning any more.
    """
    place = await store.place(partition)
    histories = await _histories(read_partition(settings, topic, partition, until=place), use_cases, set(patients), place)
    replaced = 0
    for patient in patients:
        replaced += await store.replace(partition, patient, histories.get(patient, b""), place)
    return replaced


async def _histories(batches: AsyncIterator[list[Any]], use_cases: Sequence[UseCase], wanted: set[bytes], place: int) -> dict[bytes, bytes]:
    packer, parts = Packer(use_cases), {patient: bytearray() for patient in wanted}
    first = True
    async for records in batches:
        if first and records[0].offset > 0:
            raise CheckFailed(
                f"facts begins at {records[0].offset:,} on Kafka: make a new generation from the archive: "
                "premonitor replay LOG --kafka HOST:PORT --prefix NEW."
            )
        first = False
        records = [r for r in records if r.offset < place]
        (packed,) = pack([Piece.of(packer, records)])
        for patient in packed.patients.keys() & wanted:
            parts[patient] += packed.patients[patient].records
    return {patient: bytes(blob) for patient, blob in parts.items()}
