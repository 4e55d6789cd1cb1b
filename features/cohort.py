"""The histories of a log, and the index encounters in them: what `features`, `labels`, `train` and `backfill` start from.

A whole bucket is laid out at once, as columns: the same heads and names that `features.pack` makes batch by batch as bytes. The twin of
both is tests/oracle/packing.py.
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

from features import codes, fact, history
from features.clock import ALWAYS_US
from features.heads import Heads, Names, is_visit, joined
from features.history import NEVER, Histories, Int
from features.log import Bucket, Log
from features.memory import keep_freed
from features.pack import Packer, by_patient, index_times, index_us_of
from features.progress import Progress, unheard
from features.revision import SCORED, Answers, answers
from features.usecase import UseCase

PATIENTS_AT_ONCE = 2_500
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
    keep_freed()
    left = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
        coming = deque(pool.submit(work, item) for item in islice(left, THREADS + 2))
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
        patients_at_once: More cost memory, fewer cost calls of numpy.
        progress: Told how many patients were read.
    """
    controls, asked, read = _controls(log), index_times(use_cases), 0

    def of_bucket(file: Path) -> list[tuple[int, T]]:
        everybody, heads, owner, sources, at = _laid_out(log.facts(file), controls, asked)
        made = []
        for begin in range(0, len(everybody), patients_at_once):
            some = everybody[begin : begin + patients_at_once]
            part = slice(*np.searchsorted(owner, [begin, begin + len(some)]))
            histories = history.fold(heads.part(part), owner[part] - begin, len(some), sources, at[part])
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
    ticks: Heads
    """What the history of a patient gets whom a control wakes."""
    activations: list[dict[str, Any]]


def _controls(log: Log) -> _Controls:
    seq, values = log.controls.seq, log.controls.value
    packer = Packer([])
    stamps = [stamp_us for _, stamp_us in packer.pack([None] * len(seq), values, seq, np.zeros(len(seq), np.int64)).controls]
    known_us = np.maximum.accumulate(np.maximum(np.array(stamps, np.int64), ALWAYS_US))
    ticks = fact.heads(values)
    ticks["stamp_us"], ticks["place"], ticks["concept"] = known_us, seq, codes.TICK
    return _Controls(seq, known_us, Heads.of(ticks), packer.state.activations)


def _laid_out(bucket: Bucket, controls: _Controls, asked: Sequence[tuple[str, int]]) -> tuple[list[str], Heads, Int, Names, Int]:
    """The histories of a bucket, patient by patient: (patients, heads, patient of each, their names, where these know each)."""
    heads, owner = _told(bucket, controls, asked)
    order = by_patient(owner, heads.place, len(bucket.patients))
    return bucket.patients, heads.take(order), owner.take(order), bucket.sources, order


def _told(bucket: Bucket, controls: _Controls, asked: Sequence[tuple[str, int]]) -> tuple[Heads, Int]:
    """What the histories of a bucket hold, with the patient of each: its facts in log order, each known when the controls before it were
    (S3), and behind them the ticks."""
    heads = bucket.heads
    stamp = np.where(heads.stamp_us == fact.NO_STAMP, 0, heads.stamp_us)
    carried = heads.flags & fact.CARRIED > 0  # known at its first patient's time, until the end of the merge
    first = np.searchsorted(heads.place, controls.seq)  # of the facts behind each control
    told_us = np.repeat([ALWAYS_US, *controls.known_us], np.diff(first, prepend=0, append=len(stamp)))
    heads = heads._replace(stamp_us=np.where(carried, stamp, np.maximum(stamp, told_us)))
    woken, by = _woken(heads, bucket.owner, controls, asked)
    if not len(by):
        return heads, bucket.owner
    return joined([heads, controls.ticks.take(by)]), np.concatenate([bucket.owner, woken])


def _woken(heads: Heads, owner: Int, controls: _Controls, asked: Sequence[tuple[str, int]]) -> tuple[Int, Int]:
    """The ticks of patients whose booked visits become due: (patient, control), each pair once."""
    visits = np.flatnonzero(is_visit(heads.concept))
    stamp_us = heads.stamp_us.take(visits)
    pairs = []
    for which, index_us in index_us_of(heads.event_us.take(visits), heads.value.take(visits), asked):
        due_us = index_us - fact.FUTURE_TOLERANCE_US
        later = np.flatnonzero(due_us > stamp_us[which])
        at = visits[which[later]]
        before = np.searchsorted(controls.seq, heads.place[at])  # a control before the visit was told wakes nobody
        control = np.maximum(np.searchsorted(controls.known_us, due_us[later]), before)
        pairs.append(owner[at] * (len(controls.seq) + 1) + control)
    told = np.concatenate([np.zeros(0, np.int64), *pairs])
    if not len(told):  # most often: what else follows is imported only now
        return told, told
    woken, by = np.divmod(np.unique(told), len(controls.seq) + 1)
    return woken[by < len(controls.seq)], by[by < len(controls.seq)]


def index_answers(chunk: Chunk, use_case: UseCase, *, eligible_only: bool = False) -> Answers:
    """Revision 0 of every index encounter of a chunk: the rows to train and to evaluate on (S8)."""
    patients = len(chunk.patients)
    every = answers(chunk.histories, use_case, since=np.zeros(patients, np.int64), until=np.full(patients, NEVER), first_only=True)
    first = (every.revision == 0) & every.told
    return every.where(first & (every.status == SCORED) if eligible_only else first)
