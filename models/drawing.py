"""Drawings of an evaluation as SVG: the calibration curve over a histogram, and the rows of a forest plot."""

from __future__ import annotations

import math
from html import escape
from typing import Any

INK, QUIET, BLUE, RED = "#1a1a1a", "#595959", "#0b5cad", "#8a1f11"
LEFT, RIGHT, TOP, BOTTOM = 40.0, 352.0, 8.0, 326.0
"""Of the curve's square, in units of the drawing, which is 360 wide."""
BARS_TOP, BARS_BOTTOM, HEIGHT = 344.0, 392.0, 428.0


def calibration_curve(bands: list[dict[str, Any]], curve: list[list[float]], histogram: dict[str, Any], threshold: float) -> str:
    """Observed against predicted: a smooth line, and points by risk band with intervals; below it how many visits have which risk."""
    top = float(histogram["edges"][-1])

    def x(share: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * min(share, top) / top, 2)

    def y(share: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * min(share, top) / top, 2)

    parts = [*_grid(top, x, y), f'<path d="M{x(0)} {y(0)}L{x(top)} {y(top)}" stroke="{QUIET}" stroke-dasharray="5 4" fill="none"/>']
    if threshold < top:
        parts.append(f'<path d="M{x(threshold)} {TOP}V{BARS_BOTTOM}" stroke="{RED}" stroke-width="1.5" stroke-dasharray="2 3"/>')
        side, gap = ("end", -4) if threshold > 0.5 * top else ("start", 4)
        parts.append(_text(x(threshold) + gap, BOTTOM - 8, "flagged from here", anchor=side, fill=RED))
    line = "L".join(f"{x(risk)} {y(seen)}" for risk, seen in curve if risk <= top)
    parts.append(f'<path d="M{line}" stroke="{BLUE}" fill="none"/>')
    for band in bands:
        at, (low, high) = x(band["predicted"]), band["by_patient"]
        if low is not None and high is not None:
            parts.append(
                f'<path d="M{at} {y(low)}V{y(high)}M{at - 3} {y(low)}h6M{at - 3} {y(high)}h6" stroke="{BLUE}" stroke-width="1.5"/>'
            )
        parts.append(f'<circle cx="{at}" cy="{y(band["observed"])}" r="3.5" fill="{BLUE}"/>')
    parts += _bars(histogram, x)
    words = "Of 100 visits, predicted and seen: " + "; ".join(
        f"{band['predicted'] * 100:.0f} and {band['observed'] * 100:.0f}" for band in bands
    )
    return (
        f'<svg viewBox="0 0 360 {HEIGHT:.0f}" role="img" aria-labelledby="curve-title curve-words">'
        f'<title id="curve-title">Calibration curve</title><desc id="curve-words">{escape(words)}</desc>{"".join(parts)}</svg>'
    )


def _grid(top: float, x: Any, y: Any) -> list[str]:
    """Lines at round shares, their numbers and the names of the axes."""
    step = 0.1 if top > 0.35 else 0.05 if top > 0.15 else 0.02
    step = 0.2 if top > 0.75 else step
    parts = [f'<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" stroke="{INK}" fill="none"/>']
    for n in range(round(top / step) + 1):
        share = n * step
        if share > top + 1e-9:
            break
        if n:
            parts.append(f'<path d="M{LEFT} {y(share)}H{RIGHT}" stroke="#dddddd"/>')
            parts.append(_text(LEFT - 5, y(share) + 4, f"{share * 100:.0f}", anchor="end"))
        parts.append(_text(x(share), BARS_BOTTOM + 14, f"{share * 100:.0f}", anchor="middle"))
    parts.append(_text((LEFT + RIGHT) / 2, BARS_BOTTOM + 32, "predicted, in 100 visits; bars: number of visits", anchor="middle"))
    middle = (TOP + BOTTOM) / 2
    parts.append(f'<g transform="rotate(-90 11 {middle})">{_text(11, middle, "seen, in 100 visits", anchor="middle")}</g>')
    return parts


def _bars(histogram: dict[str, Any], x: Any) -> list[str]:
    edges, counts = histogram["edges"], histogram["visits"]
    most = max(max(counts), 1)
    parts = [f'<path d="M{LEFT} {BARS_BOTTOM}H{RIGHT}" stroke="{INK}"/>']
    for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True):
        if n:  # the smallest bar can still be seen
            tall = max((BARS_BOTTOM - BARS_TOP) * n / most, 1.0)
            parts.append(
                f'<rect x="{x(low) + 0.5}" y="{BARS_BOTTOM - tall:.2f}" width="{x(high) - x(low) - 1:.2f}" height="{tall:.2f}" '
                f'fill="{QUIET}"><title>{low * 100:.1f} to {high * 100:.1f} in 100: {n:,} visits</title></rect>'
            )
    return parts


def _text(x: float, y: float, words: str, *, anchor: str = "start", fill: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="13" fill="{fill}">{escape(words)}</text>'


def interval(value: float, low: float | None, high: float | None, *, reach: float, verdict: str) -> str:
    """One row of a forest plot from −reach to +reach; an end outside, or not known, is an arrow; hollow where it cannot be told."""

    def x(share: float) -> float:
        return round(100 + 96 * max(-1.0, min(share / reach, 1.0)), 2)

    stands_out, told = verdict in ("over-states", "under-states"), verdict != "cannot tell"
    ink = RED if stands_out else BLUE if told else QUIET
    parts = []
    if not told and (low is None or high is None):
        low, high = -math.inf, math.inf
    if low is not None and high is not None:
        dashes = "" if told else ' stroke-dasharray="4 3"'
        parts.append(f'<path d="M{x(low)} 10H{x(high)}" stroke="{ink}" stroke-width="2.5"{dashes}/>')
        for end, outside, step in ((low, low < -reach, 5), (high, high > reach, -5)):
            shape = f"M{x(end) + step} 5L{x(end)} 10L{x(end) + step} 15" if outside else f"M{x(end)} 6V14"
            parts.append(f'<path d="{shape}" stroke="{ink}" stroke-width="1.5" fill="none"/>')
    if abs(value) <= reach:
        size = 4.5 if stands_out else 4
        fill = ink if told else "#ffffff"
        parts.append(
            f'<rect x="{x(value) - size}" y="{10 - size}" width="{2 * size}" height="{2 * size}" fill="{fill}" stroke="{ink}"/>'
            if stands_out
            else f'<circle cx="{x(value)}" cy="10" r="{size}" fill="{fill}" stroke="{ink}" stroke-width="1.5"/>'
        )
    return f'<svg viewBox="0 0 200 20" aria-hidden="true">{"".join(parts)}</svg>'
