"""The table: medians, and ratios between rows of the same repetition, with the marks beside them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

Runs = list[dict[str, Any]]
NAMES = {
    "floor": "floor: bare aiokafka, JSON decoded",
    "bytewax": "Bytewax, in memory",
    "risk": "Bytewax, without reasons",
    "score": "score stage",
    "both": "both stages, one process",
    "admit": "admission alone",
    "faust": "plain Faust + Redis *",
}
MARKS_OF_CPU = {("score", "bytewax"): ("at most", 0.6), ("both", "bytewax"): ("at most", 1.0), ("faust", "score"): ("at least", 30.0)}
"""(row, in proportion to) → bound."""
BESIDE = (("score", "risk"), ("both", "risk"))
"""Ratios without a mark: a peer that writes the risk alone has less to do than the worker."""
MARKS_OF_LATENCY_MS = {500: 40.0, 2_000: 60.0}


def per_event(run: dict[str, Any], part: str) -> float:
    """µs an event of `wall`, `worker`, `redis` or `broker`."""
    return run[f"{part}_s"] / run["events"] * 1e6


def ratios(runs: Runs, row: str, to: str, part: str = "worker") -> list[float]:
    """`row` over `to`, repetition by repetition: what was measured one after the other is compared."""
    mine, others = ([per_event(r, part) for r in runs if r["row"] == name] for name in (row, to))
    return [a / b for a, b in zip(mine, others, strict=False) if b > 0]


def _range(values: list[float], shown: Callable[[float], str] = "{:.2f}".format) -> str:
    if not values:
        return "–"
    middle = shown(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({shown(min(values))}–{shown(max(values))})"


def table(found: dict[str, Any]) -> str:
    """Everything that was measured, for people."""
    runs: Runs = found["runs"]
    head = ("row", "events/s", "CPU µs/event", "+ Redis", "+ broker", "× Bytewax (CPU)", "× floor (CPU)", "start s", "runs")
    lines = [head]
    for row in dict.fromkeys(run["row"] for run in runs):
        mine = [run for run in runs if run["row"] == row]
        middle = {part: statistics.median(per_event(run, part) for run in mine) for part in ("wall", "worker", "redis", "broker")}
        lines.append(
            (
                NAMES[row],
                f"{1e6 / middle['wall']:,.0f}" if middle["wall"] else "–",
                *(f"{middle[part]:.2f}" for part in ("worker", "redis", "broker")),
                _range(ratios(runs, row, "bytewax")),
                _range(ratios(runs, row, "floor")),
                f"{statistics.median(run['start_s'] for run in mine):.1f}",
                f"{len(mine)}{', WRONG' if any(run['wrong'] for run in mine) else ''}",
            )
        )
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    text = [
        "  ".join(cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    text += [
        "* on the first events only, where histories are short, and without revisions.",
        "",
        *_marks(found),
        "",
        *_sizes(runs),
        *_about(found),
    ]
    return "\n".join(text)


def _marks(found: dict[str, Any]) -> list[str]:
    lines = []
    for (row, to), (bound, mark) in MARKS_OF_CPU.items():
        values = ratios(found["runs"], row, to)
        if values:
            reached = statistics.median(values) <= mark if bound == "at most" else statistics.median(values) >= mark
            lines.append(
                f"{NAMES[row]} / {NAMES[to]}, CPU: {_range(values)}   mark: {bound} {mark:g}   {'reached' if reached else 'MISSED'}"
            )
    for row, to in BESIDE:
        if values := ratios(found["runs"], row, to):
            lines.append(f"{NAMES[row]} / {NAMES[to]}, CPU: {_range(values)}")
    for delay in found["latency"]:
        mark = MARKS_OF_LATENCY_MS.get(delay["rate"])
        verdict = "" if mark is None else f"   mark: p99 at most {mark:g}   {'reached' if delay['p99_ms'] <= mark else 'MISSED'}"
        lines.append(f"feed record → score at {delay['rate']:,}/s: p50 {delay['p50_ms']:.0f}, p99 {delay['p99_ms']:.0f} ms{verdict}")
    return lines


def _sizes(runs: Runs) -> list[str]:
    lines = []
    if sized := [run["more"] for run in runs if "redis_bytes_a_fact" in run["more"]]:
        redis, topic = (statistics.median(more[name] for more in sized) for name in ("redis_bytes_a_fact", "topic_bytes_a_fact"))
        lines.append(f"bytes a fact: {redis:.0f} in Redis (score histories included), {topic:.0f} on the topic facts")
    peaks: dict[str, float] = {}
    for run in runs:
        if mb := run["more"].get("peak_mb"):
            peaks[run["row"]] = max(mb, peaks.get(run["row"], 0.0))
    if peaks:
        lines.append("greatest memory of a worker: " + ", ".join(f"{NAMES[row]} {mb:,.0f} MB" for row, mb in peaks.items()))
    return lines


def _about(found: dict[str, Any]) -> list[str]:
    machine = found["machine"]
    load = ", ".join(f"{value:.1f}" for value in machine["load"])
    return [f"{found['events']:,} events; {machine['cpus']} CPUs, Python {machine['python']}, load {load}: compare within this run only"]
