"""The Parquet log: all records of `facts` in order, partitioned by a hash of the patient, written and read in pieces.

    LOG/log.json                what it is: format, code sets, counts for each feed
    LOG/controls.parquet        ticks and activations: seq, stamp, id, payload
    LOG/facts/bucket-007.parquet    facts of the patients of bucket 7, in log order

`seq` is the place of a record in the whole log; a control stands once and counts for every patient. A log made from several
partitions has no offsets: records between two controls are in any order that keeps each patient's own.
"""

from __future__ import annotations

import heapq
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features import codes, fact
from features.errors import InputError
from features.heads import Heads, Texts
from features.progress import Progress, unheard

FORMAT = 1
BUCKETS, BUCKETS_MAX = 16, 512
BUCKET_FACTS = 125_000
"""A reader holds a whole bucket: in larger logs there are more of them, up to `BUCKETS_MAX` open files."""
PIECE_ROWS = 200_000
"""A writer holds so many rows."""
_GROUP_ROWS = 800_000
"""Of all buckets together: who reads a log in order holds a row group of each."""
_ROWS_AT_ONCE = 65_536
"""Of all buckets together, where a log is read in order."""
_HEAD_FIELDS = ("event_us", "stamp_us", "value", "episode", "ordinal", "version", "concept", "status", "flags", "merge")
_TIMES = {"event_us": "event_time", "stamp_us": "known_time"}
_TOLD_FIELDS = tuple(fact.Told.__struct_fields__)
_READ = ("seq", "patient_id", "id", "source_id", *(_TIMES.get(name, name) for name in _HEAD_FIELDS))
"""Columns that histories are made of."""
SCHEMA = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("id", pa.binary(16), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("event_time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("known_time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("episode", pa.uint64()),
        pa.field("ordinal", pa.uint32()),
        pa.field("version", pa.uint16()),
        pa.field("concept", pa.uint16()),
        pa.field("status", pa.uint8()),
        pa.field("flags", pa.uint8()),
        pa.field("merge", pa.uint16()),
        pa.field("kind", pa.string()),
        pa.field("code_system", pa.string()),
        pa.field("code", pa.string()),
        pa.field("told_value", pa.float64()),
        pa.field("comparator", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("known_us", pa.int64()),
        pa.field("episode_id", pa.string()),
        pa.field("facility", pa.string()),
        pa.field("feed", pa.string()),
        pa.field("told", pa.uint64()),
    ]
)
_GROWING = ("seq", "event_time", "known_time", "known_us", "told")
"""Columns that are written as differences."""
_MANIFOLD = ("id", "source_id", "value", "told_value", "episode")
"""Columns without a dictionary: it would cost more to write and to read than it saves."""
CONTROL_SCHEMA = pa.schema(
    [pa.field("seq", pa.int64()), pa.field("stamp_us", pa.int64()), pa.field("id", pa.binary(16)), pa.field("value", pa.binary())]
)


@dataclass(frozen=True, slots=True)
class Record:
    """One record in log order. `patient_id` None: a control."""

    seq: int
    patient_id: str | None
    stamp_us: int
    value: bytes
    """As on the topic `facts`, with its stamp written into the head."""


def bucket_of(patient_id: str, buckets: int) -> int:
    """The bucket of a patient."""
    return fact.hash64(patient_id) % buckets


def buckets_for(facts: int) -> int:
    """How many buckets a log of so many facts gets."""
    return min(max(BUCKETS, -(-facts // BUCKET_FACTS)), BUCKETS_MAX)


@dataclass
class LogWriter:
    """Writes a log in pieces; it appears under its name only when it is whole. Meanwhile it takes its size on the disk a second time: an
    open Parquet file remembers each of its row groups, an Arrow stream nothing.

    Args:
        path: Folder to make; must not exist.
        book: The code sets with which the facts were made.
        source: What it was made from, for people.
        written: Told how many facts were written so far.
    """

    path: Path
    book: codes.Codebook
    source: str
    buckets: int = BUCKETS
    """May be set anew before the first fact."""
    written: Progress = unheard
    seq: int = 0
    _rows: dict[int, list[tuple[int, str, bytes]]] = field(default_factory=dict)
    _streams: dict[int, Any] = field(default_factory=dict)
    _controls: list[tuple[int, int, bytes, bytes]] = field(default_factory=list)
    _waiting: int = 0
    facts: int = 0
    known_until_us: int = fact.NO_STAMP

    def __enter__(self) -> LogWriter:
        if self.path.exists():
            raise InputError(f"{self.path} exists already: a log is never overwritten; give another --out or remove it")
        self._part = self.path.with_name(self.path.name + ".part")
        shutil.rmtree(self._part, ignore_errors=True)
        (self._part / "facts").mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            for stream in self._streams.values():
                stream.close()
            shutil.rmtree(self._part, ignore_errors=True)

    def fact(self, patient_id: str, value: bytes) -> None:
        """Append a fact: a value of `facts` whose head carries its stamp."""
        self._rows.setdefault(bucket_of(patient_id, self.buckets), []).append((self.seq, patient_id, value))
        self.known_until_us = max(self.known_until_us, int.from_bytes(value[25:33], "little", signed=True))
        self.seq += 1
        self.facts += 1
        self._waiting += 1
        if self._waiting >= PIECE_ROWS:
            self._flush()

    def control(self, value: bytes) -> None:
        """Append a control record."""
        head = fact.heads([value])[0]
        self._controls.append((self.seq, int(head["stamp_us"]), value[1:17], value))
        self.known_until_us = max(self.known_until_us, int(head["stamp_us"]))
        self.seq += 1

    def close(self, *, feeds: dict[str, dict[str, Any]]) -> None:
        """Finish: write what waits and put the log under its name. `feeds` holds the counts of each feed (S13)."""
        self._flush()
        for bucket, stream in self._streams.items():
            stream.close()
            self._settle(bucket)
        columns = [[control[n] for control in self._controls] for n in range(4)]
        pq.write_table(pa.table(columns, schema=CONTROL_SCHEMA), self._part / "controls.parquet", compression="zstd")
        about = {
            "format": FORMAT,
            "codes": self.book.content_hash,
            "source": self.source,
            "buckets": self.buckets,
            "facts": self.facts,
            "controls": len(self._controls),
            "known_until_us": self.known_until_us,
            "feeds": feeds,
        }
        (self._part / "log.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        self._part.rename(self.path)

    def _flush(self) -> None:
        for bucket, rows in self._rows.items():
            if bucket not in self._streams:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._streams[bucket] = pa.ipc.new_stream(str(self._file(bucket, "arrows")), SCHEMA, options=options)
            self._streams[bucket].write_table(_table(rows))
        self._rows.clear()
        self._waiting = 0
        self.written(self.facts)

    def _settle(self, bucket: int) -> None:
        """Make the Parquet file of a bucket from its stream."""
        streamed = self._file(bucket, "arrows")
        with pa.memory_map(str(streamed)) as source, pa.ipc.open_stream(source) as stream:
            pq.write_table(
                stream.read_all(),
                self._file(bucket, "parquet"),
                row_group_size=max(_GROUP_ROWS // self.buckets, 1),
                compression="lz4",
                use_dictionary=[name for name in SCHEMA.names if name not in _GROWING + _MANIFOLD],
                column_encoding=dict.fromkeys(_GROWING, "DELTA_BINARY_PACKED"),
            )
        streamed.unlink()
        self.written(self.facts)

    def _file(self, bucket: int, kind: str) -> Path:
        return self._part / "facts" / f"bucket-{bucket:03d}.{kind}"


def _table(rows: list[tuple[int, str, bytes]]) -> pa.Table:
    seq, patients, values = zip(*rows, strict=True)
    heads = fact.heads(list(values))
    told = [fact.told(v) for v in values]
    columns: dict[str, Any] = {
        "seq": list(seq),
        "patient_id": list(patients),
        "id": [v[1:17] for v in values],
        "source_id": [fact.source_id(v).decode() for v in values],
    }
    for name in _HEAD_FIELDS:
        column = np.ascontiguousarray(heads[name])
        columns[_TIMES.get(name, name)] = pa.array(column).cast(pa.timestamp("us", tz="UTC")) if name in _TIMES else column
    for name in _TOLD_FIELDS:
        columns["told_value" if name == "value" else name] = [getattr(t, name) for t in told]
    return pa.table(columns, schema=SCHEMA)


@dataclass(frozen=True)
class Controls:
    """The controls of a log, in order. Shapes (c,)."""

    seq: npt.NDArray[np.int64]
    stamp_us: npt.NDArray[np.int64]
    """Greatest stamp of a control so far."""
    value: list[bytes]


@dataclass(frozen=True, slots=True)
class Bucket:
    """The facts of a bucket in log order. Arrays have shape (n,) unless said otherwise."""

    patients: list[str]
    """Sorted."""
    owner: npt.NDArray[np.int64]
    """Number of each fact's patient in `patients`."""
    heads: Heads
    """Their places are those in the whole log."""
    sources: Texts
    """Their source ids."""


class Log:
    """A log to read.

    Raises:
        InputError: not a log, another format, other code sets.
    """

    def __init__(self, path: Path, book: codes.Codebook) -> None:
        about = path / "log.json"
        if not about.is_file():
            raise InputError(f"{path} is not a log: it has no log.json. Make one with: premonitor import … --out {path}")
        self.path, self.book = path, book
        try:
            content = json.loads(about.read_text(encoding="utf-8"))
        except ValueError:
            content = None
        if not isinstance(content, dict) or not {"format", "codes", "buckets", "feeds", "known_until_us"} <= content.keys():
            raise InputError(f"{about} is not readable as the head of a log: was it cut short or edited? Make the log anew")
        self.about: dict[str, Any] = content
        if self.about["format"] != FORMAT:
            raise InputError(f"{path} has format {self.about['format']}, this version reads {FORMAT}")
        if self.about["codes"] != book.content_hash:
            raise InputError(
                f"{path} was made with code sets {self.about['codes']}, this version has {book.content_hash}: import its source again (S11)"
            )
        self.buckets: int = self.about["buckets"]
        self.known_until_us: int = self.about["known_until_us"]
        """Greatest stamp of the log: what lies behind it was not observed."""
        table = pq.ParquetFile(path / "controls.parquet").read()
        seq, stamps = (_numbers(table[name], np.int64) for name in ("seq", "stamp_us"))
        self.controls = Controls(seq, np.maximum.accumulate(stamps), table["value"].to_pylist())

    def bucket_files(self) -> list[Path]:
        """The files that exist: an empty bucket has none."""
        return sorted((self.path / "facts").glob("bucket-*.parquet"))

    def bucket(self, file: Path) -> tuple[pa.Table, npt.NDArray[np.void]]:
        """A bucket's table in log order, and its heads with places (= seq) filled in."""
        table = pq.ParquetFile(file).read().combine_chunks()
        return table, _heads(table).records()

    def facts(self, file: Path) -> Bucket:
        """A bucket as far as histories need it.

        Raises:
            InputError: more records than a history can count.
        """
        stored = pq.ParquetFile(file, read_dictionary=["patient_id"])
        table = stored.read(list(_READ), use_threads=False)  # several buckets are read at once
        seq = _numbers(table["seq"], np.int64)
        if seq[-1] > fact.PLACE_MAX:
            raise InputError(f"{self.path} has more than 2**32 records: make several logs of it")
        encoded = _whole(table["patient_id"].unify_dictionaries())
        names = encoded.dictionary.to_pylist()
        by_name = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
        number = np.empty(len(names), np.int64)
        number[by_name] = np.arange(len(names))
        patients, owner = [names[n] for n in by_name.tolist()], number.take(_numbers(encoded.indices, np.int32))
        told = _whole(table["source_id"])
        _, edges, content = told.buffers()
        sources = Texts(np.frombuffer(content or b"", np.uint8), np.frombuffer(edges, np.int32)[told.offset :][: len(seq) + 1])
        return Bucket(patients, owner, _heads(table), sources)

    def records(self, since: int = 0) -> Iterator[Record]:
        """Everything from `seq` = `since` on in log order, in pieces: memory does not grow with the log."""
        files = self.bucket_files()
        rows_at_once = max(_ROWS_AT_ONCE // max(len(files), 1), 1)
        found = heapq.merge(self._control_records(), *(self._bucket_records(f, rows_at_once, since) for f in files), key=lambda r: r.seq)
        yield from (record for record in found if record.seq >= since)

    def _control_records(self) -> Iterator[Record]:
        for seq, value in zip(self.controls.seq.tolist(), self.controls.value, strict=True):
            yield Record(seq, None, int(fact.heads([value])["stamp_us"][0]), value)

    def _bucket_records(self, file: Path, rows_at_once: int, since: int) -> Iterator[Record]:
        reader = pq.ParquetFile(file)
        for batch in reader.iter_batches(batch_size=rows_at_once):
            if batch.column("seq")[-1].as_py() < since:
                continue
            table = pa.Table.from_batches([batch])
            heads = _heads(table).records()
            heads["place"] = 0
            columns = [table["told_value" if n == "value" else n].to_pylist() for n in _TOLD_FIELDS]
            sources, patients, seqs = (table[n].to_pylist() for n in ("source_id", "patient_id", "seq"))
            for i, told in enumerate(zip(*columns, strict=True)):
                value = fact.join(heads[i].tobytes(), sources[i].encode(), fact.Told(*told))
                yield Record(seqs[i], patients[i], int(heads["stamp_us"][i]), value)


def _heads(table: pa.Table) -> Heads:
    identity = _whole(table["id"])
    begin = 2 * identity.offset
    high, low = np.frombuffer(identity.buffers()[1], "<u8")[begin : begin + 2 * table.num_rows].reshape(-1, 2).T.copy()
    fields = {name: _numbers(table[_TIMES.get(name, name)], fact.HEAD[name]) for name in _HEAD_FIELDS}
    return Heads(id_hi=high, id_lo=low, place=_numbers(table["seq"], np.int64), **fields)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece: `combine_chunks` copies it also where it is one already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _numbers(column: Any, kind: Any) -> npt.NDArray[Any]:
    """A column without nulls. Its own `to_numpy`, like `pyarrow.parquet.read_table`, would import pandas, which takes a second."""
    array = _whole(column) if isinstance(column, pa.ChunkedArray) else column
    return np.frombuffer(array.buffers()[1] or b"", kind)[array.offset : array.offset + len(array)]
