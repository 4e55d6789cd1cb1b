"""The histories of a bucket, packed record by record as the worker does live: the twin of `features.cohort`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.log import Log
from features.pack import Packer
from features.usecase import UseCase


def packed(log: Log, file: Path, use_cases: Sequence[UseCase]) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """(patient → history, activations): the bucket's facts and the log's controls in the order of the log."""
    table, heads = log.bucket(file)
    told: list[tuple[int, bytes | None, bytes]] = []
    columns = table["seq"].to_pylist(), table["patient_id"].to_pylist(), table["source_id"].to_pylist(), heads
    for seq, patient, source, head in zip(*columns, strict=True):
        name = source.encode()
        told.append((seq, patient.encode(), b"\x01" + head.tobytes() + len(name).to_bytes(2, "little") + name))
    told += [(seq, None, value) for seq, value in zip(log.controls.seq.tolist(), log.controls.value, strict=True)]
    packer, stored = Packer(use_cases), dict[str, bytes]()
    for seq, key, value in sorted(told, key=lambda record: record[0]):
        made = packer.pack([key], [value], np.array([seq]), np.zeros(1, np.int64))
        for patient, said in made.patients.items():
            stored[patient.decode()] = stored.get(patient.decode(), b"") + b"".join(said.parts)
    return stored, packer.state.activations
