"""The stored state against the log: each history compared with the one that the facts give, and partitions dropped to be made anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from features import codes, fact
from features.bookings import PartitionState
from features.clock import ALWAYS_US
from features.errors import CheckFailed, InputError
from features.pack import Packer, Piece, pack
from features.usecase import UseCase
from streams import store_redis
from streams.reader import Reach, reach, read_partition
from streams.settings import Settings
from streams.store_redis import RedisStore
from streams.topics import Names

KINDS = ("f", "a")
"""Histories of facts and of scores."""
_PIECE = 500


@dataclass(slots=True)
class Expected:
    """What a partition must hold at a place, by patient."""

    histories: dict[bytes, bytearray]
    newest: dict[bytes, int]
    state: PartitionState


@dataclass
class Found:
    """What the comparison of one partition gave, in patients. No patient is named."""

    partition: int
    place: int = 0
    histories: int = 0
    different: int = 0
    missing: int = 0
    extra: int = 0
    beside: int = 0
    """The history is right, but not the length or the latest index time beside it."""
    state: bool = True
    """The partition's own state is right: activations, time, bookings."""

    @property
    def good(self) -> bool:
        return self.state and not (self.different or self.missing or self.extra or self.beside)

    def sentence(self) -> str:
        words = [f"{n:,} {what}" for what, n in (("different", self.different), ("missing", self.missing), ("extra", self.extra)) if n]
        words += [f"{self.beside:,} with a wrong length or index time"] if self.beside else []
        words += [] if self.state else ["the partition's own state differs"]
        return f"partition {self.partition}: of {self.histories:,} histories {', '.join(words) or 'none differs'}"

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good}


def difference(stored: tuple[bytes, int, int | None], expected: bytes, newest_us: int, place: int) -> str:
    """How a patient's stored history differs from the expected one: "", or the name of a field of `Found`.

    Args:
        stored: (history, length that was written, latest index time).
        expected: The history up to `place`.
        newest_us: Latest index time up to `place`; `ALWAYS_US`: none.
        place: A worker may have gone on meanwhile: what it added stands at later places and is left out.
    """
    history, length, index_us = stored
    records = [history[i : i + fact.HEAD_BYTES] for i in range(0, len(history), fact.HEAD_BYTES)]
    before = [record for record in records if int.from_bytes(record[48:52], "little") < place]
    if b"".join(before) != expected and b"".join(_without_repeats(before, expected)) != expected:
        return "missing" if not history else "different" if expected else "extra"
    stored_us = ALWAYS_US if index_us is None else index_us
    if length != len(history) or stored_us < newest_us or (len(before) == len(records) and stored_us != newest_us):
        return "beside"
    return ""


def _without_repeats(records: list[bytes], expected: bytes) -> list[bytes]:
    """The records without ticks that wake a patient for a visit that was due before: a worker that starts anew may write such."""
    left = {expected[i : i + fact.HEAD_BYTES] for i in range(0, len(expected), fact.HEAD_BYTES)}
    return [r for r in records if r in left or int.from_bytes(r[58:60], "little") != codes.TICK]


def same_state(stored: PartitionState, expected: PartitionState) -> bool:
    """Whether the stored state knows the same time and models, and waits for everybody who is still to be waited for."""
    if (stored.control_us, stored.activations) != (expected.control_us, expected.activations):
        return False
    waiting, wanted = set(stored.booked), set(expected.booked)
    return wanted <= waiting and all(due_us <= stored.control_us for due_us, _ in waiting - wanted)


async def expect(batches: AsyncIterator[list[Any]], use_cases: Sequence[UseCase], place: int) -> Expected:
    """What the facts before `place` give.

    Raises:
        CheckFailed: the log does not reach back to its beginning any more.
    """
    packer = Packer(use_cases)
    out = Expected({}, {}, packer.state)
    first = True
    async for records in batches:
        if first and records[0].offset > 0:
            raise CheckFailed(f"the log on Kafka begins at {records[0].offset:,}: what a history should be cannot be told from it any more")
        first = False
        records = [r for r in records if r.offset < place]
        (packed,) = pack([Piece.of(packer, records)])
        for patient, told in packed.patients.items():
            out.histories.setdefault(patient, bytearray()).extend(told.records)
            out.newest[patient] = max(out.newest.get(patient, ALWAYS_US), told.newest_index_us)
    return out


async def _check_partition(settings: Settings, store: RedisStore, use_cases: Sequence[UseCase], partition: int) -> Found:
    loaded = await store.load(partition)
    facts = read_partition(settings, Names(settings.prefix).facts, partition, until=loaded.place)
    expected = await expect(facts, use_cases, loaded.place)
    patients = list({**dict.fromkeys(expected.histories), **dict.fromkeys(await store.patients(partition))})
    kinds: Counter[str] = Counter()
    for begin in range(0, len(patients), _PIECE):
        piece = patients[begin : begin + _PIECE]
        for patient, stored in zip(piece, await store.stored(partition, piece), strict=True):
            should = bytes(expected.histories.get(patient, b""))
            kinds[difference(stored, should, expected.newest.get(patient, ALWAYS_US), loaded.place)] += 1
    kinds.pop("", None)
    return Found(partition, loaded.place, len(expected.histories), **kinds, state=same_state(loaded.state, expected.state))


async def _facts(settings: Settings, partitions: Sequence[int]) -> dict[int, Reach]:
    """Reach of the partitions of `facts` in question; none given: of all.

    Raises:
        InputError: there is no such topic, or no such partition.
    """
    topic = Names(settings.prefix).facts
    found = (await reach(settings, [topic])).get(topic)
    if not found:
        raise InputError(f"there is no topic '{topic}' on this Kafka. Is the --prefix right? premonitor topics --kafka HOST:PORT")
    wrong = [p for p in partitions if p not in found]
    if wrong:
        raise InputError(f"{topic} has no partition {wrong[0]}: it has {len(found)}, counted from 0")
    return {p: found[p] for p in (partitions or sorted(found))}


async def check(
    settings: Settings, use_cases: Sequence[UseCase], partitions: Sequence[int], progress: Callable[[int], None]
) -> list[Found]:
    """Compare the histories of some partitions, or of all, with those that `facts` gives. A live worker is not disturbed.

    Args:
        settings: Where Kafka and Redis are.
        use_cases: Those of the worker: a history holds the ticks of visits that they wait for.
        partitions: Which; none: all.
        progress: Called with the number of histories compared.
    Raises:
        CheckFailed: the log does not reach back to its beginning any more.
        ServiceError: Kafka or Redis is out of reach.
    """
    chosen = await _facts(settings, partitions)
    client = store_redis.connect(settings)
    results: list[Found] = []
    try:
        async with store_redis.service_errors(settings):
            store = RedisStore(client, prefix=settings.prefix)
            for partition in chosen:
                results.append(await _check_partition(settings, store, use_cases, partition))
                progress(sum(r.histories for r in results))
    finally:
        await client.aclose()
    return results


async def drop(settings: Settings, partitions: Sequence[int], say: Callable[[str], None]) -> dict[int, int]:
    """Drop the state of some partitions, or of all, so that the worker makes it anew; partition → facts that will be read again.

    Raises:
        CheckFailed: the log does not reach back to its beginning any more: nothing was dropped.
        ServiceError: Kafka or Redis is out of reach.
    """
    chosen = await _facts(settings, partitions)
    for partition, r in chosen.items():
        if r.begin > 0:
            raise CheckFailed(
                f"the log on Kafka begins at {r.begin:,} in partition {partition}: what stood before could not be read again, so nothing "
                "was dropped. Restore Redis from its own backup, or start a new generation from an archive: premonitor replay LOG --kafka"
            )
    client = store_redis.connect(settings)
    try:
        async with store_redis.service_errors(settings):
            stores = [RedisStore(client, prefix=settings.prefix, kind=kind) for kind in KINDS]
            for partition, r in chosen.items():
                for store in stores:
                    await store.forget(partition)
                say(f"partition {partition}: dropped; {r.end:,} records will be read again")
    finally:
        await client.aclose()
    return {p: r.end for p, r in chosen.items()}
