"""The histories of a log, and the index encounters in them: what `features`, `labels`, `train` and `backfill` start from.

A whole bucket is packed at once, to the bytes that `features.pack` makes batch by batch; their twin is tests/oracle/packing.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from features import codes, fact, history
from features.history import NEVER, Histories, Int
from features.log import Bucket, Log
from features.pack import ALWAYS_US, Packer, Rows, index_times, index_us_of, is_visit, laid_out
from features.progress import Progress, unheard
from features.revision import SCORED, Answers, answers
from features.usecase import UseCase

PATIENTS_AT_ONCE = 1_000
THREADS = 2


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some patients of a log with their whole histories."""

    patients: list[str]
    histories: Histories
    activations: list[dict[str, Any]]
    """Of the whole log, each with its `place`."""


T = TypeVar("T")
Item = TypeVar("Item")


def in_order(work: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T]:
    """What `work` makes of each item, in their order. `THREADS` work at a time, a little ahead of whoever takes the results: numpy and
    Parquet leave the interpreter to each other."""
    left = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
        coming = deque(pool.submit(work, item) for item in islice(left, THREADS + 1))
        try:
            while coming:
                made = coming.popleft().result()
                coming.extend(pool.submit(work, item) for item in islice(left, 1))
                yield made
        finally:
            for waiting in coming:
                waiting.cancel()


def each_chunk(
    log: Log,
    use_cases: Sequence[UseCase],
    work: Callable[[Chunk], T],
    *,
    patients_at_once: int = PATIENTS_AT_ONCE,
    progress: Progress = unheard,
) -> Iterator[T]:
    """What `work` makes of the patients of a log, some at a time, in an order that depends on the log alone.

    Args:
        log: To read.
        use_cases: Their index times are waited for.
        work: Called in threads, for several buckets at once.
        patients_at_once: The rows of so many fit a processor's cache.
        progress: Told how many patients were read.
    """
    controls, asked, read = _controls(log), index_times(use_cases), 0

    def of_bucket(file: Path) -> list[tuple[int, T]]:
        everybody, records, start = _packed(log.facts(file), controls, asked)
        made = []
        for begin in range(0, len(everybody), patients_at_once):
            some = everybody[begin : begin + patients_at_once]
            edges = start[begin : begin + len(some) + 1]
            histories = history.fold(records[edges[0] : edges[-1]], np.diff(edges))
            made.append((len(some), work(Chunk(some, histories, controls.activations))))
        return made

    for parts in in_order(of_bucket, log.bucket_files()):
        for patients, part in parts:
            read += patients
            progress(read)
            yield part


def chunks(
    log: Log, use_cases: Sequence[UseCase], *, patients_at_once: int = PATIENTS_AT_ONCE, progress: Progress = unheard
) -> Iterator[Chunk]:
    """The patients of a log themselves, likewise."""
    return each_chunk(log, use_cases, lambda chunk: chunk, patients_at_once=patients_at_once, progress=progress)


@dataclass(frozen=True, slots=True)
class _Controls:
    """The controls of a log in order. Shapes (c,)."""

    seq: Int
    known_us: Int
    """Greatest stamp so far."""
    ticks: npt.NDArray[np.void]
    """What the history of a patient gets whom a control wakes."""
    activations: list[dict[str, Any]]


def _controls(log: Log) -> _Controls:
    seq, values = log.controls.seq, log.controls.value
    packer = Packer([])
    stamps = [stamp_us for _, stamp_us in packer.pack([None] * len(seq), values, seq, np.zeros(len(seq), np.int64)).controls]
    known_us = np.maximum.accumulate(np.maximum(np.array(stamps, np.int64), ALWAYS_US))
    ticks = fact.heads(values)
    ticks["stamp_us"], ticks["place"], ticks["concept"] = known_us, seq, codes.TICK
    return _Controls(seq, known_us, ticks, packer.state.activations)


def _packed(bucket: Bucket, controls: _Controls, asked: Sequence[tuple[str, int]]) -> tuple[list[str], npt.NDArray[np.void], Int]:
    """The histories of a bucket, patient by patient: (patients, records, first record of each patient and at last their number)."""
    heads = bucket.heads
    before = np.searchsorted(controls.seq, bucket.seq)  # controls before each fact
    stamp = np.where(heads["stamp_us"] == fact.NO_STAMP, 0, heads["stamp_us"])
    carried = heads["flags"] & fact.CARRIED > 0  # known at its first patient's time, until the end of the merge
    told_us = np.concatenate([[ALWAYS_US], controls.known_us])[before]
    heads["stamp_us"] = np.where(carried, stamp, np.maximum(stamp, told_us))
    woken, by = _woken(bucket, controls, np.flatnonzero(is_visit(heads["concept"])), before, asked)
    ticks = Rows(fact.take(controls.ticks, by), woken, controls.seq[by])
    content = np.concatenate([bucket.source, np.zeros(fact.NAME_CHUNK, np.uint8)])
    sources = content, bucket.source_at[:-1], bucket.source_at[1:]
    return bucket.patients, *laid_out(Rows(heads, bucket.owner, bucket.seq), sources, ticks, len(bucket.patients))


def _woken(bucket: Bucket, controls: _Controls, visits: Int, before: Int, asked: Sequence[tuple[str, int]]) -> tuple[Int, Int]:
    """The ticks of patients whose booked visits become due: (patient, control), each pair once."""
    told = fact.take(bucket.heads, visits)
    pairs = []
    for which, index_us in index_us_of(told, asked):
        due_us = index_us - fact.FUTURE_TOLERANCE_US
        later = np.flatnonzero(due_us > told["stamp_us"][which])
        at = visits[which[later]]
        control = np.maximum(np.searchsorted(controls.known_us, due_us[later]), before[at])
        pairs.append(bucket.owner[at] * (len(controls.seq) + 1) + control)
    woken, by = np.divmod(np.unique(np.concatenate([np.zeros(0, np.int64), *pairs])), len(controls.seq) + 1)
    return woken[by < len(controls.seq)], by[by < len(controls.seq)]


def index_answers(chunk: Chunk, use_case: UseCase, *, eligible_only: bool = False) -> Answers:
    """Revision 0 of every index encounter of a chunk: the rows to train and to evaluate on (S8)."""
    patients = len(chunk.patients)
    every = answers(chunk.histories, use_case, since=np.zeros(patients, np.int64), until=np.full(patients, NEVER), first_only=True)
    first = (every.revision == 0) & every.told
    return every.where(first & (every.status == SCORED) if eligible_only else first)
