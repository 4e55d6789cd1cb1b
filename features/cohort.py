"""The histories of a log, and the index encounters in them: what `features`, `labels`, `train` and `backfill` start from.

A whole bucket is packed at once, to the bytes that `features.pack` makes batch by batch; their twin is tests/oracle/packing.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some patients of a log with their whole histories."""

    patients: list[str]
    histories: Histories
    activations: list[dict[str, Any]]
    """Of the whole log, each with its `place`."""


T = TypeVar("T")


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made in a thread while the one before is used: numpy and Parquet leave a second core to it."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def chunks(
    log: Log, use_cases: Sequence[UseCase], *, patients_at_once: int = PATIENTS_AT_ONCE, progress: Progress = unheard
) -> Iterator[Chunk]:
    """The patients of a log, some at a time, in an order that depends on the log alone. `progress` is told how many were read."""
    controls, asked, read = _controls(log), index_times(use_cases), 0
    buckets = map(log.facts, log.bucket_files())
    for bucket, (records, start) in ahead((bucket, _packed(bucket, controls, asked)) for bucket in buckets):
        for begin in range(0, len(bucket.patients), patients_at_once):
            some = bucket.patients[begin : begin + patients_at_once]
            edges = start[begin : begin + len(some) + 1]
            read += len(some)
            progress(read)
            yield Chunk(some, history.fold(records[edges[0] : edges[-1]], np.diff(edges)), controls.activations)


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


def _packed(bucket: Bucket, controls: _Controls, asked: Sequence[tuple[str, int]]) -> tuple[npt.NDArray[np.void], Int]:
    """The histories of a bucket, patient by patient: (records, first record of each patient and at last their number)."""
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
    return laid_out(Rows(heads, bucket.owner, bucket.seq), sources, ticks, len(bucket.patients))


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
