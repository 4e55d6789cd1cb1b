"""The bench of features in its short form: every plan of every peer gives our values, and a wrong value would be found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.codes import codebook
from features.log import Log
from tests.bench import big_log, matrix
from tests.bench.task import DAY_US

pytestmark = pytest.mark.fast
FACTS = 20_000


def test_the_invented_log_is_what_its_docstring_says(tmp_path: Path) -> None:
    """A fifth visits, one result in twenty late, no two facts at one event time, everything in known-time order with daily ticks."""
    told = big_log.invent(FACTS, seed=3)
    visit = np.isnan(told.value)
    assert visit.mean() == pytest.approx(0.2, abs=0.02)
    assert (told.known_us - told.event_us > 2 * DAY_US)[~visit].mean() == pytest.approx(big_log.LATE, abs=0.01)
    assert len(set(told.event_us.tolist())) == FACTS
    big_log.write(tmp_path / "log", FACTS, seed=3, book=codebook())
    log = Log(tmp_path / "log", codebook())
    stamps = [record.stamp_us for record in log.records()]
    assert stamps == sorted(stamps)
    assert (log.about["facts"], len(stamps) - FACTS > 700) == (FACTS, True)


@pytest.mark.timeout(900)
def test_every_plan_gives_our_values(tmp_path: Path) -> None:
    """`measure` stops at the first value that differs."""
    peers = [pytest.importorskip(f"tests.bench.peer_{who}", reason="of the extra bench") for who in ("polars", "duckdb")]
    big_log.write(tmp_path / "log", FACTS, seed=3, book=codebook())
    plans = dict(zip(("polars", "duckdb"), (peer.PLANS for peer in peers), strict=True))
    counted = matrix.measure(tmp_path / "log", tmp_path, reps=1, plans=plans, keep={})
    assert {who: len(runs) for who, runs in counted.items()} == {matrix.OURS: 1, "polars": 1, "duckdb": 1}
    assert matrix.report(counted).count("×") == 4


@pytest.mark.parametrize(
    ("column", "other", "wrong"), [([1.0, None], [1.0, None], 0), ([1.0, None], [1.0, 0.0], 1), ([1.0, 2.0], [1.0, 2.5], 1)]
)
def test_a_difference_is_found(column: list[float | None], other: list[float | None], wrong: int, tmp_path: Path) -> None:
    """In a value, and in a null; the order of the rows does not matter."""
    names = ["a", "b"]
    pq.write_table(pa.table({"encounter_id": names, "x": column}), tmp_path / "one")
    pq.write_table(pa.table({"encounter_id": names[::-1], "x": other[::-1]}), tmp_path / "other")
    assert len(matrix.differences(tmp_path / "one", tmp_path / "other")) == wrong
