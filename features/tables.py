"""Tables for people and notebooks: features, labels and scores as Parquet, times in microseconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.catalog import COUNTS
from features.clock import NEVER_US
from features.cohort import Chunk, each_chunk, index_answers
from features.errors import InputError
from features.fact import Buffer
from features.heads import Texts
from features.history import Histories
from features.log import Log
from features.outcome import STATUS_NAMES, labels
from features.progress import Progress
from features.revision import EXCLUDED, Answers, reasons
from features.usecase import UseCase

if TYPE_CHECKING:
    from features.clinic import Clinic

TIME = pa.timestamp("us", tz="UTC")
_GROUP_ROWS = 32_000
"""Pieces wait for so many: a row group costs as much for each column as thousands of its values."""
_NAMES = ("patient_id", "encounter_id", "score_id", "trigger", "row_digest", "record")
"""Columns whose values hardly repeat: a dictionary would cost more to make than it saves."""


def features_table(log: Log, use_case: UseCase, out: Path, progress: Progress) -> int:
    """Write the row of every eligible index encounter as it was known when it became due: keys, then the features."""
    schema = pa.schema(
        [("patient_id", pa.string()), ("encounter_id", pa.string()), ("index_time", TIME)]
        + [pa.field(f.name, pa.float64(), nullable=f.aggregate not in COUNTS) for f in use_case.features]
    )

    def piece(chunk: Chunk) -> dict[str, Any]:
        found = index_answers(chunk, use_case, eligible_only=True)
        columns = zip(use_case.features, np.ascontiguousarray(found.matrix.T), strict=True)
        numbers = {f.name: _column(c, pa.float64(), None if f.aggregate in COUNTS else np.isnan(c)) for f, c in columns}
        return {**_keys(chunk.patients, chunk.histories, found), **numbers}

    return write(out, schema, each_chunk(log, [use_case], piece), progress)


def labels_table(log: Log, use_case: UseCase, out: Path, progress: Progress) -> int:
    """Write the label of every index encounter; excluded ones have the reason as their status. Returns the count."""
    schema = pa.schema(
        [
            ("patient_id", pa.string()),
            ("encounter_id", pa.string()),
            ("index_time", TIME),
            ("label", pa.int8()),
            ("status", pa.string()),
            ("label_known_time", TIME),
            ("mature_time", TIME),
        ]
    )
    names = reasons(use_case)

    def piece(chunk: Chunk) -> dict[str, Any]:
        found = index_answers(chunk, use_case)
        h = chunk.histories
        told = labels(h, use_case, seg=found.seg, index_us=found.index_us, episode=h.episode[found.encounter], as_of_us=log.known_until_us)
        out_of_cohort = found.status == EXCLUDED
        label = told.label
        label[out_of_cohort] = np.nan
        status = [
            names[r] if x else STATUS_NAMES[s]
            for x, r, s in zip(out_of_cohort.tolist(), found.reason.tolist(), told.status.tolist(), strict=True)
        ]
        return {
            **_keys(chunk.patients, chunk.histories, found),
            "label": pa.array(np.nan_to_num(label).astype(np.int8), mask=np.isnan(label)),
            "status": status,
            "label_known_time": _times(np.where(out_of_cohort, NEVER_US, told.label_known_us)),
            "mature_time": _times(told.mature_us),
        }

    return write(out, schema, each_chunk(log, [use_case], piece), progress)


def truth_table(clinic: Clinic, out: Path, progress: Progress) -> int:
    """Write what is true at each index visit of a simulated clinic (`features.clinic.Truth`). Returns the count.

    `event` null: the patient left, or the calendar ended, before the 60 days were over.
    """
    words = ("sex", "race", "ethnicity", "cover")
    schema = pa.schema(
        [
            ("patient_id", pa.string()),
            ("encounter_id", pa.string()),
            ("index_time", TIME),
            ("risk_60d", pa.float64()),
            ("hazard_per_day", pa.float64()),
            ("event", pa.bool_()),
            ("frailty", pa.float64()),
            ("illness", pa.int8()),
            ("site", pa.int32()),
            *((word, pa.string()) for word in words),
        ]
    )

    def pieces() -> Iterator[dict[str, Any]]:
        for t in clinic.truths():
            yield {
                "patient_id": t.patient_id,
                "encounter_id": t.encounter_id,
                "index_time": _column(t.index_us, TIME),
                "risk_60d": t.risk,
                "hazard_per_day": t.hazard,
                "event": pa.array(t.event, mask=~t.followed),
                "frailty": t.people.frailty,
                "illness": t.state.astype(np.int8),
                "site": t.people.site.astype(np.int32),
                **{word: t.people.words(word) for word in words},
            }

    return write(out, schema, pieces(), progress)


def _times(us: Any) -> pa.Array:
    return _column(us, TIME, us >= NEVER_US)


def _column(content: Any, kind: pa.DataType, missing: Any = None) -> pa.Array:
    """A column from 64-bit numbers. `pa.array` would import pandas first, which takes a second."""
    known = None if missing is None or not missing.any() else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(kind, len(content), [known, pa.py_buffer(np.ascontiguousarray(content))])


def _joined(text: Buffer, edges: Any) -> pa.Array:
    """A column from texts that stand end to end, likewise."""
    return pa.StringArray.from_buffers(len(edges) - 1, pa.py_buffer(edges.astype(np.int32)), pa.py_buffer(text))


def _keys(patients: list[str], h: Histories, found: Answers) -> dict[str, Any]:
    return {
        "patient_id": _joined(*Texts.of(patients).joined(found.seg)),
        "encounter_id": _joined(*h.names_joined(found.encounter)),
        "index_time": _column(found.index_us, TIME),
    }


def write(out: Path, schema: pa.Schema, pieces: Iterable[dict[str, Any]], progress: Progress) -> int:
    """Write pieces of a table; the file appears under its name only when it is whole."""
    part = out.with_name(out.name + ".part")
    out.parent.mkdir(parents=True, exist_ok=True)
    texts = [f.name for f in schema if f.type in (pa.string(), pa.binary())]
    ordered = [f.name for f in schema if f.type == TIME]  # bounds of others help nobody to find a row
    packed = {f.name: "zstd" if f.name in texts else "lz4" for f in schema}
    few = [f.name for f in schema if f.type == pa.float64() and not f.nullable]  # counts: small numbers again and again
    words = [*(name for name in texts if name not in _NAMES), *few]
    n = written = 0
    waiting = list[pa.Table]()
    try:
        with pq.ParquetWriter(part, schema, compression=packed, use_dictionary=words, write_statistics=ordered) as writer:
            for piece in pieces:
                waiting.append(pa.table(piece, schema=schema))
                n += waiting[-1].num_rows
                if n - written >= _GROUP_ROWS:
                    writer.write_table(pa.concat_tables(waiting))
                    written = n
                    waiting.clear()
                progress(n)
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return n


SCORE_SCHEMA = pa.schema(
    [
        ("patient_id", pa.string()),
        ("encounter_id", pa.string()),
        ("use_case", pa.string()),
        ("index_time", TIME),
        ("known_time", TIME),
        ("revision", pa.int32()),
        ("score_id", pa.string()),
        ("trigger", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("risk", pa.float64()),
        ("flagged", pa.bool_()),
        ("model_version", pa.string()),
        ("row_digest", pa.string()),
        ("record", pa.binary()),
    ]
)
"""`record` holds the bytes as issued: what `verify` compares."""


def score_pieces(batches: Iterable[list[tuple[Any, bytes]]]) -> Iterator[dict[str, Any]]:
    """Columns of `SCORE_SCHEMA` from batches of (score, bytes as issued)."""
    for batch in batches:
        piece = {name: [getattr(score, name) for score, _ in batch] for name in SCORE_SCHEMA.names[:-1]}
        times = {name: pa.array(piece[name], pa.string()).cast(TIME) for name in ("index_time", "known_time")}
        yield {**piece, **times, "record": [value for _, value in batch]}


def read_scores(path: Path) -> Iterator[tuple[str, bytes]]:
    """(score id, bytes) of a scores file."""
    if not path.is_file():
        raise InputError(f"{path}: no such scores file. Make one with: premonitor scores --kafka HOST:PORT --out {path}")
    reader = pq.ParquetFile(path)
    if not set(SCORE_SCHEMA.names) <= set(reader.schema_arrow.names):
        raise InputError(f"{path} is not a scores file: it lacks {sorted(set(SCORE_SCHEMA.names) - set(reader.schema_arrow.names))[0]}")
    for batch in reader.iter_batches(columns=["score_id", "record"]):
        yield from zip(batch["score_id"].to_pylist(), batch["record"].to_pylist(), strict=True)
