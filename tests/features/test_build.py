"""A log that is built in sorted runs on disk has the bytes of one that is sorted in memory, and leaves nothing else behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from features import log as log_module
from features.clock import DAY_US, rfc3339
from features.codes import codebook
from features.importers import build
from features.log import BUCKET_FACTS, BUCKETS, BUCKETS_MAX, Log, buckets_for
from tests import logs

T_US = 1_777_798_800_000_000
Events = list[tuple[str, dict[str, Any]]]


def told() -> Events:
    """Visits and results, a merge and its taking back, rows that are rejected, and many facts at one instant."""
    out: Events = list(logs.events("simulated", patients=8, seed=3))[:400]
    at = {"event_time": rfc3339(T_US), "known_time": rfc3339(T_US)}
    for n in range(30):
        who = {"id": f"S{n}", "patient_id": f"same{n % 3}", **at}
        out.append(("encounters", who | {"encounter_class": "home"}) if n % 7 == 0 else ("labs", who | {"code": "718-7", "value": n}))
    merge = {"id": "M", "patient_id": "same1", "from_patient_id": "same0", "event_time": at["event_time"]}
    out.append(("merges", merge | {"known_time": rfc3339(T_US + DAY_US)}))
    out.append(("merges", merge | {"known_time": rfc3339(T_US + 3 * DAY_US), "version": 2, "status": "entered-in-error"}))
    return [*out, ("labs", {"id": "bad"}), ("rejected", {"feed": "labs", "reason": "no-patient"})]


def content_of(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize(("run", "frame"), [(7, 3), (100, 1_000), (1, 1)])
def test_runs_on_disk_make_the_same_log(run: int, frame: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the runs and of what is read at once of each."""
    events = told()
    counts = build.build_log(events, tmp_path / "memory", book=codebook(), source="test")
    assert counts["merges"].facts == 2, counts["merges"]
    monkeypatch.setattr(build, "RUN_ROWS", run)
    monkeypatch.setattr(build, "_FRAME_ROWS", frame)
    assert build.build_log(events, tmp_path / "runs", book=codebook(), source="test") == counts
    assert content_of(tmp_path / "runs") == content_of(tmp_path / "memory")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory", "runs"]


@pytest.mark.parametrize("rows", [99, 100, 101, 200])
def test_a_full_last_run_loses_nothing(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of the edge at which rows go to disk."""
    monkeypatch.setattr(build, "RUN_ROWS", 100)
    times = {"event_time": rfc3339(T_US), "known_time": rfc3339(T_US)}
    events = [("labs", {"id": f"{n:03d}", "patient_id": "p", "code": "718-7", **times}) for n in range(rows)]
    build.build_log(reversed(events), tmp_path / "log", book=codebook(), source="test")
    assert Log(tmp_path / "log", codebook()).about["facts"] == rows


def test_progress_is_told_of_both_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read, and then what stands in the log, up to its last fact."""
    monkeypatch.setattr(log_module, "PIECE_ROWS", 100)
    read, written = list[int](), list[int]()
    build.build_log(told(), tmp_path / "log", book=codebook(), source="test", progress=read.append, written=written.append)
    facts = Log(tmp_path / "log", codebook()).about["facts"]
    assert read == [0]
    assert written == sorted(written) and written[:2] == [100, 200] and written[-1] == facts


def test_a_source_that_breaks_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a log nor runs, although some were on disk already."""
    monkeypatch.setattr(build, "RUN_ROWS", 10)
    seen: list[int] = []
    real = build._on_disk
    monkeypatch.setattr(build, "_on_disk", lambda rows, file: (seen.append(len(rows)), real(rows, file))[1])

    def broken() -> Iterator[tuple[str, dict[str, Any]]]:
        yield from told()
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="gone"):
        build.build_log(broken(), tmp_path / "log", book=codebook(), source="test")
    assert len(seen) > 10
    assert list(tmp_path.iterdir()) == []


def test_larger_logs_have_more_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as keep a bucket at its size; the records are the same."""
    most = BUCKETS * BUCKET_FACTS
    assert [buckets_for(n) for n in (0, most, most + 1, 2 * most)] == [BUCKETS, BUCKETS, BUCKETS + 1, 2 * BUCKETS]
    assert [buckets_for(BUCKET_FACTS * n) for n in (BUCKETS_MAX, BUCKETS_MAX + 1)] == [BUCKETS_MAX, BUCKETS_MAX]
    events = told()
    for name, size in (("few", BUCKET_FACTS), ("many", 10)):
        monkeypatch.setattr(log_module, "BUCKET_FACTS", size)
        counts = build.build_log(events, tmp_path / name, book=codebook(), source="test")
    few, many = (Log(tmp_path / name, codebook()) for name in ("few", "many"))
    facts = sum(count.facts for count in counts.values())
    assert (few.buckets, many.buckets) == (BUCKETS, -(-facts // 10)), facts
    assert many.buckets > BUCKETS
    assert list(few.records()) == list(many.records())
