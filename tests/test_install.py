"""The installed command, as a data team uses it: from a folder that has packages of the same names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def premonitor(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = str(Path(sys.executable).with_name("premonitor"))
    return subprocess.run([command, *words], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with packages `features`, `models` and `streams` of somebody else."""
    for name in ("features", "models", "streams"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the foreign package was imported')\n")
    return tmp_path


def test_a_foreign_features_folder_does_no_harm(foreign: Path) -> None:
    """`features/` is a usual folder name: the commands must not import it."""
    done = premonitor(
        "simulate", "--patients", "3", "--start", "2025-01-01", "--end", "2025-02-01", "--seed", "1", "--out", "log", cwd=foreign
    )
    assert done.returncode == 0, done.stderr
    assert "encounters" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["backfill", "nowhere", "--model", "m.json", "--out", "s.parquet"], 2, "does not exist"),
        (["features", ".", "--use-case", "ed_60d_any", "--out", "f.parquet"], 2, "is not a log: it has no log.json"),
        (["simulate", "--patients", "0", "--start", "2025-01-01", "--end", "2025-02-01", "--seed", "1", "--out", "x"], 2, "--patients"),
        (["simulate", "--patients", "3", "--start", "2025-02-01", "--end", "2025-01-01", "--seed", "1", "--out", "x"], 2, "must be after"),
        (["topics", "--kafka", "127.0.0.1:1"], 3, "not reachable"),
        (["topics", "--kafka", "127.0.0.1:1", "--prefix", "a_b."], 2, "prefix"),
        (["scores", "--kafka", "127.0.0.1:1", "--out", "s.parquet"], 3, "not reachable"),
        (["frobnicate"], 2, "No such command"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, words: list[str], code: int, sentence: str) -> None:
    """A wrong argument or file is exit 2, a service out of reach exit 3; no traceback, nothing half-written."""
    done = premonitor(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
