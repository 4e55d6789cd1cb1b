"""How long the rows of all index encounters of a large log take us, and the best plans of Polars and DuckDB: `make bench-features`.

python tests/bench/matrix.py                                  2 million facts, three repetitions
python tests/bench/matrix.py --facts 200000 --reps 1          a quick look

Each run is a process of its own that reads the same Parquet log and writes the same table; a time counts only if every value is equal.
The peers' tasks are easier: that each fact was told once and how the columns of one visit follow from each other is written into them.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[2]
MARK = 2.0
OURS = "premonitor"
COLUMNS = 46
THREADS = 2


@dataclass(frozen=True, slots=True)
class Run:
    """One process. `wall_s` and `cpu_s` are without its start and its imports."""

    who: str
    plan: str
    wall_s: float
    cpu_s: float
    whole_s: float
    peak_mb: float

    def line(self) -> str:
        return (
            f"{self.who:<11} {self.plan:<18} {self.wall_s:7.2f} s wall  {self.cpu_s:7.2f} s CPU  "
            f"{self.whole_s:7.2f} s with start and imports  {self.peak_mb:7.0f} MB"
        )


def peak_mb(process: int | str = "self") -> float:
    """Greatest resident memory of a process. Not from `getrusage`: that begins with what the parent had."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def child(who: str, plan: str, log: Path, out: Path, task: dict[str, Any]) -> None:
    """What a measured process does; prints what it took."""
    if who == OURS:
        from features import tables, usecase
        from features.codes import codebook
        from features.log import Log
        from tests.bench.task import definition

        book = codebook()
        use_case = usecase.parse(definition(), source="bench.toml", book=book)

        def work() -> None:
            tables.features_table(Log(log, book), use_case, out, lambda n: None)
    else:
        from importlib import import_module

        peer = import_module(f"tests.bench.peer_{who}")

        def work() -> None:
            peer.run(log, out, plan, task)

    begin, cpu = time.perf_counter(), time.process_time()
    work()
    took = time.perf_counter() - begin, time.process_time() - cpu
    print(json.dumps({"wall_s": took[0], "cpu_s": took[1], "peak_mb": peak_mb()}))


def run(who: str, plan: str, log: Path, out: Path, task: dict[str, Any]) -> Run:
    """Start a process and wait for it."""
    out.unlink(missing_ok=True)
    begin = time.perf_counter()
    command = [sys.executable, "-W", "ignore", str(Path(__file__)), "child", who, plan, str(log), str(out), json.dumps(task)]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{who} {plan} failed:\n{done.stderr[-2_000:]}")
    return Run(who, plan, whole_s=time.perf_counter() - begin, **json.loads(done.stdout.splitlines()[-1]))


def differences(ours: Path, theirs: Path) -> list[str]:
    """Columns in which two tables differ in any value, rows matched by encounter."""
    import numpy as np
    import pyarrow.parquet as pq

    tables = [pq.ParquetFile(path).read().sort_by("encounter_id") for path in (ours, theirs)]
    if tables[0].num_rows != tables[1].num_rows or set(tables[0].column_names) != set(tables[1].column_names):
        return [f"{tables[0].num_rows} rows and {tables[1].num_rows}, or other columns"]
    wrong = []
    for name in tables[0].column_names:
        one, other = (table[name].to_numpy() for table in tables)
        nulls = [table[name].is_null().to_numpy() for table in tables]
        floats = one.dtype.kind == "f"
        if not np.array_equal(one, other, equal_nan=floats) or not np.array_equal(*nulls) or (floats and other.dtype.kind != "f"):
            wrong.append(name)
    return wrong


def described() -> dict[str, Any]:
    """The task in the words that a peer needs: numbers of concepts, limits of normal, names of columns."""
    from features import codes
    from tests.bench import task

    book = codes.codebook()
    labs = {name: [book.by_name[name].number, book.by_name[name].low, book.by_name[name].high] for name, *_ in task.LABS}
    columns = [feature.name for feature in task.model(book).use_case.features]
    if len(columns) != COLUMNS:
        raise click.ClickException(f"the task has {len(columns)} columns, not {COLUMNS}")
    return {
        "labs": labs,
        "emergency": codes.VISIT_CONCEPTS["emergency"],
        "visits_max": max(codes.VISIT_CONCEPTS.values()),
        "columns": columns,
    }


def measure(log: Path, folder: Path, *, reps: int, plans: dict[str, list[str]], keep: dict[str, str]) -> dict[str, list[Run]]:
    """All plans once, then ours and the best plan of each peer in turn; returns the runs that count by who made them."""
    task, ours = described(), folder / "ours.parquet"
    run(OURS, "", log, ours, task)

    def checked(who: str, plan: str) -> Run:
        out = folder / f"{who}.parquet"
        made = run(who, plan, log, out, task)
        wrong = differences(ours, out)
        click.echo(made.line() + (f"  WRONG in {', '.join(wrong[:3])}" if wrong else ""))
        if wrong:
            raise click.ClickException(f"{who} {plan} gives other values: its time does not count")
        return made

    best = dict(keep)
    for who, names in plans.items():
        if who not in best:
            best[who] = min((checked(who, plan) for plan in names), key=lambda made: made.wall_s).plan
    counted: dict[str, list[Run]] = {OURS: [], **{who: [] for who in plans}}
    for _ in range(reps):
        for who in counted:
            counted[who].append(checked(who, best.get(who, "-")))
    return counted


def report(counted: dict[str, list[Run]]) -> str:
    """Ratios of the same repetition, their median, and the greatest peaks."""
    lines = []
    for who, runs in counted.items():
        lines.append(
            f"{who:<11} {runs[0].plan:<18} median {statistics.median(r.wall_s for r in runs):.2f} s wall, "
            f"{statistics.median(r.cpu_s for r in runs):.2f} s CPU; peak {max(r.peak_mb for r in runs):,.0f} MB"
        )
    for who, runs in counted.items():
        if who != OURS:
            walls = [theirs.wall_s / ours.wall_s for ours, theirs in zip(counted[OURS], runs, strict=True)]
            cpus = [theirs.cpu_s / ours.cpu_s for ours, theirs in zip(counted[OURS], runs, strict=True)]
            met = "met" if statistics.median(walls) >= MARK else "missed"
            lines.append(
                f"{who}: {statistics.median(walls):.2f} × our wall time ({min(walls):.2f} to {max(walls):.2f}), "
                f"{statistics.median(cpus):.2f} × our CPU; the mark of {MARK:g} is {met}"
            )
    return "\n".join(lines)


@click.command()
@click.option("--facts", default=2_000_000, show_default=True)
@click.option("--reps", default=3, show_default=True)
@click.option("--seed", default=7, show_default=True)
@click.option("--log", type=click.Path(path_type=Path), help="Take this log instead of making one.")
@click.option("--polars", help="Only this plan.  [default: all once, then the fastest]")
@click.option("--duckdb", help="Only this plan.")
def main(facts: int, reps: int, seed: int, log: Path | None, polars: str | None, duckdb: str | None) -> None:
    """Print times, peaks and ratios."""
    from features.codes import codebook
    from tests.bench import big_log, peer_duckdb, peer_polars

    plans = {"polars": peer_polars.PLANS, "duckdb": peer_duckdb.PLANS}
    keep = {who: plan for who, plan in (("polars", polars), ("duckdb", duckdb)) if plan}
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        if log is None:
            log = folder / "log"
            big_log.write(log, facts, seed=seed, book=codebook())
            click.echo(
                f"{facts:,} invented facts, seed {seed}; load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {THREADS} threads each"
            )
        click.echo(report(measure(log, folder, reps=reps, plans=plans, keep=keep)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.path[:1] = [str(ROOT)]  # not this folder: it has a module of the same name as the package features
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:4], Path(sys.argv[4]), Path(sys.argv[5]), json.loads(sys.argv[6]))
    else:
        main()
