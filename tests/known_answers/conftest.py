"""Logs and tables of the known answers, made once a session through the command line alone."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from streams.cli import main

HERE = Path(__file__).parent
DATA = Path(os.environ.get("PREMONITOR_DATA") or HERE.parent / "data")
SOURCES = {"mimic": "mimic_iv_demo", "eicu": "eicu_demo_labs", "synthea": "synthea"}

Row = dict[str, Any]
Table = Callable[[str, str], dict[str, Row]]


def premonitor(*arguments: object) -> None:
    """Run one command; it must succeed."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, f"premonitor {' '.join(map(str, arguments))}: {done.output} {done.exception!r}"


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Rows by encounter of `table(command, use_case)`: command `features` or `labels`, use case a file beside this one."""
    folder = tmp_path_factory.mktemp("known_answers")

    @cache
    def log(kind: str) -> Path:
        premonitor("import", kind, DATA / SOURCES[kind], "--out", folder / kind)
        return folder / kind

    @cache
    def rows(command: str, use_case: str) -> dict[str, Row]:
        out = folder / f"{use_case}.{command}.parquet"
        premonitor(command, log(use_case.partition("_")[0]), "--use-case", HERE / f"{use_case}.toml", "--out", out)
        found = pq.read_table(out).to_pylist()
        by_encounter = {row["encounter_id"]: row for row in found}
        assert len(by_encounter) == len(found), "an encounter was asked twice"
        return by_encounter

    return rows


@pytest.fixture(scope="session")
def expected() -> Callable[[str], Any]:
    """Content of `expected(file)`: rows of a .jsonl.gz or .csv, the object of a .json; of a summary that is not there, nothing."""

    def content(file: str) -> Any:
        path = DATA / "expected" / file
        if path.suffix == ".gz":
            with gzip.open(path, "rt") as lines:
                return [json.loads(line) for line in lines]
        if path.suffix == ".csv":
            return list(csv.DictReader(path.read_text().splitlines()))
        return json.loads(path.read_text()) if path.is_file() else {}

    return content
