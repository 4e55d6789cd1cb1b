"""`premonitor simulate`: the truth beside the log, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from features.clinic import Knobs, Scenario
from features.codes import codebook
from features.errors import InputError
from features.log import Log
from streams.cli.simulate import simulate

SPAN = ("--patients", "40", "--start", "2025-01-01", "--end", "2025-06-01", "--seed", "3")


def run(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(simulate, [*SPAN, "--out", str(folder / "log"), *words])


def test_the_truth_names_encounters_of_the_log(tmp_path: Path) -> None:
    """One row a clinic visit that took place; null where the 60 days are not over."""
    done = run(tmp_path, "--truth", str(tmp_path / "t.parquet"), "--late", "0", "--retracted", "0", "--site", "2")
    assert done.exit_code == 0, done.output
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    log = Log(tmp_path / "log", codebook())
    told = {source for file in log.bucket_files() for source in log.bucket(file)[0]["source_id"].to_pylist()}
    assert len(rows) > 150 and {row["encounter_id"] for row in rows} <= told
    assert all(0 < row["risk_60d"] < 1 and 0 < row["hazard_per_day"] < 1 for row in rows)
    assert {row["event"] for row in rows} == {True, False, None}
    assert {row["site"] for row in rows} == {1, 2}


def test_what_is_asked_reaches_the_clinic(tmp_path: Path) -> None:
    """Every knob and each part of a scenario has an option, save those that only tests turn."""
    options = {option.name for option in simulate.params}
    internal = {"wrong_patient", "booked", "rescheduled", "cancelled", "future_clock", "lower_version_late", "edges", "second"}
    assert set(Knobs.__dataclass_fields__) - internal <= options
    assert set(Scenario.__dataclass_fields__) <= options
    words = ("--drift", "1.5@2025-03-01", "--drift", "black:2", "--case-mix", "0.5@2025-03-01", "--slope", "0.8", "--bias", "female=1.2")
    words += ("--silent", "labs@2025-03-01..2025-03-04", "--half-lost", "labs@2025-04-01..2025-05-01", "--unit-change", "1@2025-03-01")
    done = run(tmp_path, *words, "--volume", "2", "--merges", "0.5", "--missing", "0.1", "--corrected", "0.1", "--duplicated", "0.1")
    assert done.exit_code == 0, done.output
    assert "merges" in done.output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--drift", "soon"), "'soon' is not of the form 1.5@2025-03-01"),
        (("--bias", "tall=2"), "group tall is not known"),
        (("--silent", "blood@2025-03-01..2025-03-04"), "feed blood is not known"),
        (("--unit-change", "4@2025-03-01"), "sites are numbered from 1 to 1"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    done = run(tmp_path, *words)
    assert isinstance(done.exception, InputError) and sentence in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_truth_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").touch()
    done = run(tmp_path, "--truth", str(tmp_path / "t.parquet"))
    assert done.exit_code == 2 and "exists already" in done.output
    assert not (tmp_path / "log").exists()
