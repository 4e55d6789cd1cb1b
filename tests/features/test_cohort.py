"""A bucket that is laid out at once tells what one tells that is packed record by record; its rows are those of revision 0."""

from __future__ import annotations

import math
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import codes, cohort, fact, history, tables
from features.clock import DAY_US, HOUR_US, MINUTE_US
from features.errors import InputError
from features.heads import Heads, Int, Names, is_named
from features.log import Log, LogWriter
from features.revision import SCORED, Answers, answers
from features.usecase import UseCase
from tests import logs
from tests.features.test_pack import BOOK, END, LATER, START, T_US, TAIL
from tests.oracle.packing import packed
from tests.strategies import histories, use_cases

CHECKED = settings(max_examples=150, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
LAB = BOOK.by_name["hemoglobin"].number


_concepts = st.sampled_from(
    [LAB, codes.OTHER, codes.DEATH, codes.MERGE, codes.MERGED, codes.CARRIED_TICK, codes.CARRIED_MODEL, *codes.VISIT_CONCEPTS.values()]
)
_names = st.sampled_from(["", "a", "b" * 47, "c" * 48, "d" * 49, "e" * 96, "f" * 97, "\N{GREEK SMALL LETTER ALPHA}" * 25])
_patients = st.sampled_from(["p1", "p2", "p", "p\N{GREEK SMALL LETTER ALPHA}", "\N{GRINNING FACE}", "\N{FULLWIDTH LATIN SMALL LETTER P}"])
_steps_us = st.sampled_from([0, 0, 1, MINUTE_US, 5 * MINUTE_US, HOUR_US, DAY_US, 2 * DAY_US, -DAY_US])
_ahead_us = st.sampled_from([-DAY_US, 0, 5 * MINUTE_US, 5 * MINUTE_US + 1, DAY_US, 10 * DAY_US])


@st.composite
def values(draw: st.DrawFn, stamp_us: int) -> tuple[str, bytes]:
    """(patient, value of `facts`): anything that may stand in a log, what merges bring too."""
    head = bytearray(
        fact.pack(
            identity=draw(st.sampled_from([b"1" * 16, b"2" * 16])),
            event_us=stamp_us + draw(_ahead_us),
            concept=draw(_concepts),
            stamp_us=draw(st.sampled_from([stamp_us, stamp_us, stamp_us, fact.NO_STAMP])),
            value=draw(st.sampled_from([math.nan, 0.0, float(HOUR_US), 2.5 * DAY_US])),
            version=draw(st.integers(1, 3)),
            flags=draw(st.sampled_from([0, 0, fact.CARRIED, fact.SETTLED, fact.EXPIRED])),
            status=draw(st.integers(1, 9)),
        )
    )
    head[62:64] = draw(st.sampled_from([0, 0, 9])).to_bytes(2, "little")
    return draw(_patients), fact.join(bytes(head), draw(_names).encode(), TAIL)


@st.composite
def records(draw: st.DrawFn) -> list[tuple[str | None, bytes]]:
    """A log in order, controls among its facts."""
    told: list[tuple[str | None, bytes]] = []
    stamp_us = T_US
    for number in range(draw(st.integers(0, 30))):
        stamp_us += draw(_steps_us)
        if draw(st.sampled_from([True, False, False])):
            name, payload = draw(st.sampled_from([("tick", {}), ("tick", {}), ("activate", {"id": draw(st.integers(1, 2))})]))
            told.append((None, fact.control(name=name, number=number, stamp_us=stamp_us, payload=payload)))
        else:
            told.append(draw(values(stamp_us)))
    return told


def _as_bytes(heads: Heads, seg: Int, patients: int, sources: Names, at: Int) -> list[bytes]:
    stored = [b""] * patients
    for row, who in enumerate(seg.tolist()):
        (name,) = sources.texts(at[row : row + 1]) if is_named(heads.concept[row]) else [None]
        names = b"" if name is None else fact.name_records(name.encode(), place=int(heads.place[row]))
        stored[who] += heads.head(row) + names
    return stored


def assert_same(log: Log, asked: list[UseCase], monkeypatch: pytest.MonkeyPatch) -> int:
    """Both ways give the same patients in the same order with the same bytes; returns how many."""
    with monkeypatch.context() as patch:
        patch.setattr(history, "fold", _as_bytes)  # what is drawn here need not be a possible history
        chunks = list(cohort.chunks(log, asked, patients_at_once=2))
    assert all(len(chunk.patients) <= 2 for chunk in chunks)
    found = [pair for chunk in chunks for pair in zip(chunk.patients, chunk.histories, strict=True)]
    expected = []
    for file in log.bucket_files():
        stored, activations = packed(log, file, asked)
        expected += sorted(stored.items(), key=lambda pair: pair[0].encode())
        assert all(chunk.activations == activations for chunk in chunks)
    assert found == expected
    return len(found)


@CHECKED
@given(records(), st.sampled_from([[START], [END], [START, LATER, END], []]), st.sampled_from([1, 3]))
def test_a_bucket_at_once_is_as_record_by_record(told: list[tuple[str | None, bytes]], asked: list[UseCase], buckets: int) -> None:
    """Bookings, merges, repeated ids, clocks that go back, names of any length: byte for byte."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        with LogWriter(Path(folder, "log"), BOOK, "test", buckets=buckets) as writer:
            for patient, value in told:
                if patient is None:
                    writer.control(value)
                else:
                    writer.fact(patient, value)
            writer.close(feeds={})
        count = assert_same(Log(Path(folder, "log"), BOOK), asked, patch)
        assert count == len({patient for patient, _ in told if patient is not None})


@pytest.mark.parametrize("kind", logs.KINDS)
def test_the_histories_of_a_source(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of real patients."""
    assert assert_same(logs.build(kind, tmp_path / "log"), [START, END], monkeypatch) > 10


def test_a_place_that_a_history_cannot_hold_is_refused(tmp_path: Path) -> None:
    """2**32 records are the most; the one before is read."""
    lab = fact.join(fact.pack(identity=b"1" * 16, event_us=T_US, concept=LAB, stamp_us=T_US), b"a", TAIL)
    for name, seq in (("fits", fact.PLACE_MAX), ("full", fact.PLACE_MAX + 1)):
        with LogWriter(tmp_path / name, BOOK, "test", seq=seq) as writer:
            writer.fact("p", lab)
            writer.close(feeds={})
    (chunk,) = cohort.chunks(Log(tmp_path / "fits", BOOK), [START])
    assert chunk.histories.place.tolist() == [fact.PLACE_MAX]
    with pytest.raises(InputError, match="more than"):
        list(cohort.chunks(Log(tmp_path / "full", BOOK), [START]))


@CHECKED
@given(st.lists(histories(), min_size=1, max_size=3), use_cases(), st.booleans())
def test_the_rows_to_train_on_are_those_of_revision_0(stored: list[bytes], asked: UseCase, eligible_only: bool) -> None:
    """Asked once for each encounter, they are the same as picked from everything that is issued."""
    chunk = cohort.Chunk([f"p{n}" for n in range(len(stored))], history.read(stored), [])
    patients = len(stored)
    every = answers(chunk.histories, asked, since=np.zeros(patients, np.int64), until=np.full(patients, history.NEVER))
    wanted = every.where((every.revision == 0) & every.told & ((every.status == SCORED) | (not eligible_only)))
    found = cohort.index_answers(chunk, asked, eligible_only=eligible_only)
    for name in Answers.__slots__:
        one, other = getattr(found, name), getattr(wanted, name)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()), name


def test_work_in_threads_comes_in_order_and_fails_where_it_is_used() -> None:
    """However long each takes; an error stands where its result would, and an iterator that is left unfinished is let go."""
    later = threading.Event()

    def slow_first(n: int) -> int:
        if n == 0:
            assert later.wait(10), "nobody works beside the first"
        later.set()
        return n

    assert list(cohort.in_order(slow_first, range(9))) == list(range(9))
    assert list(cohort.in_order(str, [])) == []
    seen = []
    with pytest.raises(ZeroDivisionError):
        for item in cohort.in_order(lambda n: 6 // n, (3, 2, 0, 1)):
            seen.append(item)
    assert seen == [2, 3]
    assert next(cohort.in_order(str, range(9))) == "0"


@pytest.mark.parametrize(
    "names", [[""], ["a", "", "\N{GRINNING FACE}" * 11], ["b" * 47, "c"], ["d" * 48, "e"], ["f" * 49, "g" * 97, "h"], []]
)
def test_names_of_encounters_are_columns(names: list[str]) -> None:
    """As `Histories.names` has them, on both sides of the length that one record holds."""
    visit = fact.pack(identity=b"1" * 16, event_us=T_US, concept=codes.VISIT_CONCEPTS["home"])
    h = history.read([b"".join(visit + fact.name_records(name.encode(), place=0) for name in names)])
    rows = np.arange(len(names))
    assert tables._joined(*h.names_joined(rows)).to_pylist() == h.names(rows) == names
