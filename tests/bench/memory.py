"""Whether memory grows with the log: `make bench-memory`. Peak resident memory of `premonitor features`, and of making a log from events.

python tests/bench/memory.py                             logs of 2 and of 20 million facts: half an hour
python tests/bench/memory.py --facts 200000,2000000      a quick look
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
MARK = 1.5
SEED = 7
WORKS = ("features", "build_log")


def child(work: str, facts: int, log: Path, out: Path) -> None:
    """What a measured process does; prints its peak."""
    from features import tables, usecase
    from features.codes import codebook
    from features.importers.build import build_log
    from features.log import Log
    from tests.bench import big_log, task
    from tests.bench.matrix import peak_mb

    book = codebook()
    before = peak_mb()
    if work == "write":
        big_log.write(log, facts, seed=SEED, book=book)
    elif work == "features":
        use_case = usecase.parse(task.definition(), source="bench.toml", book=book)
        tables.features_table(Log(log, book), use_case, out, lambda n: None)
    else:
        build_log(big_log.events(facts, seed=SEED), out, book=book, source="invented")
    print(json.dumps({"before_mb": before, "peak_mb": peak_mb()}))


def run(work: str, facts: int, log: Path, out: Path) -> float:
    """Peak of a process in MB; prints a line."""
    begin = time.perf_counter()
    command = [sys.executable, str(Path(__file__)), "child", work, str(facts), str(log), str(out)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{work} of {facts:,} failed:\n{done.stderr[-2_000:]}")
    found, took = json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - begin
    peak = f"peak {found['peak_mb']:6.0f} MB, {found['before_mb']:.0f} of them before it began"
    click.echo(f"{work:<10} {facts:>12,} facts  {peak}  {took:6.0f} s")
    return float(found["peak_mb"])


@click.command()
@click.option("--facts", default="2000000,20000000", show_default=True, help="Sizes, joined by commas, the smallest first.")
@click.option("--works", default=",".join(WORKS), show_default=True, help="What is measured, joined by commas.")
@click.option("--logs", type=click.Path(path_type=Path), help="Folder with a log of each size, such as 2000000; what lacks is made there.")
def main(facts: str, works: str, logs: Path | None) -> None:
    """Print peaks, and how much larger that of the largest log is."""
    sizes = [int(size) for size in facts.split(",")]
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        peaks: dict[str, list[float]] = {}
        for work in works.split(","):
            for size in sizes:
                log = (logs or folder) / str(size)
                if work == "features" and not log.exists():
                    run("write", size, log, folder / "none")
                out = folder / f"{work}-{size}"
                peaks.setdefault(work, []).append(run(work, size, log, out))
                shutil.rmtree(out, ignore_errors=True)
        for work, found in peaks.items():
            ratio = found[-1] / found[0]
            met = "met" if ratio <= MARK else "missed"
            click.echo(f"{work}: {ratio:.2f} × the peak for {sizes[-1] / sizes[0]:.0f} × the facts; the mark of {MARK:g} is {met}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.path[:1] = [str(ROOT)]  # not this folder: it has a module of the same name as the package features
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
    else:
        main()
