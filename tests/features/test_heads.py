"""Heads as columns are the same records; texts end to end are the same texts."""

from __future__ import annotations

import resource
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from features import codes, fact
from features.heads import Heads, Texts, is_named, is_visit, joined
from features.memory import keep_freed

_texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), min_size=1, max_size=9)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """By bits."""
    return one.tobytes() == other.tobytes()


@given(arrays.arrays(fact.HEAD, st.integers(1, 5)), st.data())
def test_columns_are_the_records(records: np.ndarray, data: st.DataObject) -> None:
    """There and back, whole, taken, cut and put together; one head alone has the bytes of its record."""
    heads, n = Heads.of(records), len(records)
    assert Heads._fields == fact.HEAD.names
    assert same(heads.records(), records)
    assert [heads.head(row) for row in range(n)] == [record.tobytes() for record in records]
    which = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=5)), np.int64)
    assert same(heads.take(which).records(), records[which])
    cut = data.draw(st.integers(0, n))
    assert same(joined([heads.part(slice(cut, n)), heads.part(slice(cut))]).records(), np.concatenate([records[cut:], records[:cut]]))


@given(_texts, st.data())
def test_texts_end_to_end(texts: list[str], data: st.DataObject) -> None:
    """Any of them in any order, several times or never, of equal and of different lengths."""
    at = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=9))
    wanted = [texts[n] for n in at]
    stored, rows = Texts.of(texts), np.array(at, np.int64)
    content, edges = stored.joined(rows)
    assert stored.texts(rows) == wanted
    assert bytes(content) == "".join(wanted).encode()
    assert edges.tolist() == [len("".join(wanted[:n]).encode()) for n in range(len(wanted) + 1)]


@pytest.mark.parametrize(
    ("concept", "visit", "named"),
    [
        (codes.OTHER, False, False),
        (1, True, True),
        (codes.LAST_VISIT, True, True),
        (codes.LAST_VISIT + 1, False, False),
        (codes.MERGE - 1, False, False),
        (codes.MERGE, False, True),
        (codes.MERGED, False, True),
        (codes.CARRIED_TICK, False, False),
        (codes.CARRIED_MODEL, False, True),
        (codes.CARRIED_MODEL + 1, False, False),
        (codes.TICK, False, False),
        (codes.NAME, False, False),
    ],
)
def test_who_has_a_name(concept: int, visit: bool, named: bool) -> None:
    """Both ends of both ranges."""
    one = np.array([concept], np.uint16)
    assert (is_visit(one).tolist(), is_named(one).tolist()) == ([visit], [named])


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told what to keep")
def test_freed_memory_is_kept_for_the_next_array() -> None:
    """Arrays that come and go again and again touch no new page; 800 a round would be new by default."""
    keep_freed()

    def round_of() -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        some = [np.ones(340_000, np.uint8) for _ in range(10)]
        del some
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    assert min(round_of() for _ in range(8)) < 80
