"""The histories of a log, and the index encounters in them: what `features`, `labels`, `train` and `backfill` start from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from features import history
from features.history import NEVER, Histories
from features.log import Log
from features.pack import Packer
from features.revision import SCORED, Answers, answers
from features.usecase import UseCase

PATIENTS_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some patients of a log with their whole histories."""

    patients: list[str]
    histories: Histories
    stored: list[bytes]
    """The histories as bytes."""
    packer: Packer
    """After the last record: knows the activations."""


def chunks(log: Log, use_cases: Sequence[UseCase], *, patients_at_once: int = PATIENTS_AT_ONCE) -> Iterator[Chunk]:
    """The patients of a log, some at a time, in an order that depends on the log alone."""
    for file in log.bucket_files():
        table, heads = log.bucket(file)
        names = table["patient_id"].to_numpy(zero_copy_only=False)
        sources = table["source_id"].to_numpy(zero_copy_only=False)
        stored, packer = _packed(log, heads, names, sources, use_cases)
        patients = sorted(stored)
        for begin in range(0, len(patients), patients_at_once):
            some = patients[begin : begin + patients_at_once]
            blobs = [stored[p] for p in some]
            yield Chunk([p.decode() for p in some], history.read(blobs), blobs, packer)


def _packed(
    log: Log, heads: history.Array, names: history.Array, sources: history.Array, use_cases: Sequence[UseCase]
) -> tuple[dict[bytes, bytes], Packer]:
    """The histories of a bucket, by patient: its facts and the log's controls, packed in log order."""
    packer = Packer(use_cases)
    stored: dict[bytes, list[bytes]] = {}
    controls = log.controls
    rank = np.concatenate([heads["place"].astype(np.int64), controls.seq])
    order = np.argsort(rank, kind="stable")
    n = len(heads)
    raw = heads.tobytes()
    for begin in range(0, len(order), 100_000):
        keys: list[bytes | None] = []
        values: list[bytes] = []
        for i in order[begin : begin + 100_000].tolist():
            if i < n:
                source = sources[i].encode()
                keys.append(names[i].encode())
                values.append(b"".join((b"\x01", raw[i * 64 : i * 64 + 64], len(source).to_bytes(2, "little"), source)))
            else:
                keys.append(None)
                values.append(controls.value[i - n])
        places = rank[order[begin : begin + 100_000]]
        for patient, told in packer.pack(keys, values, places, np.zeros(len(places), np.int64)).patients.items():
            stored.setdefault(patient, []).extend(told.parts)
    return {patient: b"".join(parts) for patient, parts in stored.items()}, packer


def index_answers(chunk: Chunk, use_case: UseCase, *, eligible_only: bool = False) -> Answers:
    """Revision 0 of every index encounter of a chunk: the rows to train and to evaluate on (S8)."""
    patients = len(chunk.patients)
    every = answers(chunk.histories, use_case, since=np.zeros(patients, np.int64), until=np.full(patients, NEVER))
    first = (every.revision == 0) & every.told
    return every.where(first & (every.status == SCORED) if eligible_only else first)
