"""CATALOGUE: what the columns of a use case say, and what a use case can be made of; for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from features.catalog import AGGREGATES, COUNTS, WORDS, Feature
from features.clock import DAY_US
from features.codes import CONTROL_FLOOR, OTHER, Codebook, Concept, codebook
from features.usecase import Rule, UseCase
from streams.cli.common import find_use_case, json_option, result, site_option

WHOSE = {"any": "", "other": ", the index visit left out", "own": ", of the index visit only"}
BY_KIND = {
    "encounter": "visits of this class",
    "medication_order": "every code",
    "medication_administration": "every code",
    "death": "every one",
    "merge": "every one",
}
"""Concepts that the kind of an event decides, whatever its code."""


@click.command()
@click.option("--use-case", "use_case_name", default=None, help="Name of a shipped use case, or a .toml file.")
@site_option
@json_option
def catalogue(use_case_name: str | None, as_json: bool) -> None:
    """Say what each column of a use case counts; without one, all aggregates and concepts there are.

    \b
    premonitor catalogue --use-case ed_60d_oncology
    """
    book = codebook()
    if use_case_name is None:
        document, text = _everything(book)
    else:
        document, text = _of(find_use_case(use_case_name))
    result(document, text, as_json=as_json)


def _of(use_case: UseCase) -> tuple[dict[str, Any], str]:
    """The columns of a use case and the concepts that they and its rules read."""
    book, definition = use_case.book, use_case.definition
    columns = [_column(f, book) for f in use_case.features]
    rules = [_rule(rule, use_case.plan.features[len(columns) + n], book) for n, rule in enumerate(definition.cohort)]
    numbers = {n for f in use_case.plan.features for n in f.concepts}
    concepts = [_concept(book.concepts[n], book) for n in sorted(numbers)]
    index, outcome = definition.index, definition.outcome
    offset = f", {index.offset_hours:g} h later" if index.offset_hours else ""
    asked = f"{', '.join(index.classes)} visits, at the {index.at}{offset}{', unless the patient died' if index.exclude_expired else ''}"
    how = f", told as {' or '.join(outcome.priorities)}" if outcome.priorities is not None else ""
    gap = f", from {outcome.gap_days} days on" if outcome.gap_days else ""
    awaited = f"{_labels(use_case.outcome_concepts, book)}{how}, within {outcome.horizon_days} days{gap}"
    document = {
        "use_case": definition.name, "title": definition.title, "index": asked, "outcome": awaited, "cohort": rules,
        "features": columns, "concepts": concepts, "content_hash": use_case.content_hash, "codes_hash": book.content_hash,
    }  # fmt: skip
    lines = [f"{definition.name}: {definition.title}", f"asked    {asked}", f"outcome  {awaited}"]
    lines += [f"cohort   else {rule['reason']}: {rule['says']}" for rule in rules]
    lines += ["", f"{len(columns)} columns"]
    lines += _table(
        ("column", "what it says", "unit", "topic", "null"),
        [
            (c["name"], c["says"] + (" (looks ahead)" if c["leak"] else ""), c["unit"], c["topic"], _yes(c["null_possible"]))
            for c in columns
        ],
    )
    lines += ["", f"{len(concepts)} concepts; a code that ends in * is what codes begin with, and the longest beginning wins"]
    lines += _table(
        ("concept", "unit", "normal", "codes"),
        [(c["name"], c["unit"], _normal(c["low"], c["high"]), _codes(c)) for c in concepts],
    )
    return document, "\n".join(lines)


def _everything(book: Codebook) -> tuple[dict[str, Any], str]:
    """All aggregates and all concepts with the number of their codes."""
    aggregates = [{"name": name, "says": words, "null_possible": name not in COUNTS} for name, words in WORDS.items()]
    every = [c for number, c in sorted(book.concepts.items()) if OTHER < number < CONTROL_FLOOR]
    concepts = [_concept(c, book) for c in every]
    lines = [f"{len(AGGREGATES)} aggregates, in windows of any number of days or over the whole past"]
    lines += _table(
        ("aggregate", "what it says", "null"), [(str(a["name"]), str(a["says"]), _yes(bool(a["null_possible"]))) for a in aggregates]
    )
    lines += ["", f"{len(concepts)} concepts"]
    lines += _table(
        ("concept", "what it is", "unit", "normal", "codes"),
        [(c["name"], c["label"], c["unit"], _normal(c["low"], c["high"]), _counted(c)) for c in concepts],
    )
    return {"aggregates": aggregates, "concepts": concepts, "codes_hash": book.content_hash}, "\n".join(lines)


def _column(f: Feature, book: Codebook) -> dict[str, Any]:
    return {
        "name": f.name,
        "says": f"{_labels(f.concepts, book)}: {says(f)}",
        "concepts": [book.concepts[n].name for n in f.concepts],
        "aggregate": f.aggregate,
        "unit": f.unit,
        "window_days": None if f.lookback_us is None else f.lookback_us // DAY_US,
        "episode": f.episode,
        "topic": f.topic,
        "null_possible": f.aggregate not in COUNTS,
        "leak": f.leak,
    }


def says(f: Feature) -> str:
    """What a column counts, in words: aggregate, window, and whose facts."""
    window = "in the whole past" if f.lookback_us is None else f"in the last {f.lookback_us // DAY_US} days"
    return f"{WORDS[f.aggregate]}, {window}{WHOSE[f.episode]}"


def _rule(rule: Rule, f: Feature, book: Codebook) -> dict[str, Any]:
    """A rule of the cohort: what must hold, and the reason where it does not."""
    sides = (("at least", rule.at_least), ("at most", rule.at_most))
    limits = [f"{words} {limit:g}" for words, limit in sides if limit is not None]
    null = " (null excludes)" if f.aggregate not in COUNTS and rule.missing == "exclude" else ""
    return {"reason": rule.reason, "says": f"{_labels(f.concepts, book)}: {says(f)}: {' and '.join(limits) or 'known'}{null}"}


def _concept(concept: Concept, book: Codebook) -> dict[str, Any]:
    codes = [{"system": system, "code": code} for system, code in book.codes[concept.number]]
    about = {name: getattr(concept, name) for name in ("name", "label", "kind", "unit", "low", "high", "topic")}
    return {**about, "codes": codes, "every_code": concept.kind in BY_KIND}


def _labels(numbers: Sequence[int], book: Codebook) -> str:
    """Up to four concepts by their words; more by their topics and how many they are."""
    found = [book.concepts[n] for n in numbers]
    if len(found) <= 4:
        return ", ".join(c.label for c in found)
    return f"{', '.join(dict.fromkeys(c.topic or c.kind for c in found))} ({len(found)} concepts)"


def _by_system(concept: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for code in concept["codes"]:
        found.setdefault(code["system"], []).append(code["code"])
    return found


def _codes(concept: dict[str, Any]) -> str:
    if concept["every_code"]:
        return BY_KIND[concept["kind"]]
    return " · ".join(f"{system} {', '.join(codes)}" for system, codes in _by_system(concept).items())


def _counted(concept: dict[str, Any]) -> str:
    if concept["every_code"]:
        return BY_KIND[concept["kind"]]
    counts = Counter(code["system"] for code in concept["codes"])
    return " · ".join(f"{n} {system}" for system, n in counts.items())


def _normal(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    return f"≤ {high:g}" if low is None else f"≥ {low:g}" if high is None else f"{low:g} to {high:g}"


def _yes(null_possible: bool) -> str:
    return "possible" if null_possible else "never"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their longest cell; the last one is not filled up."""
    every = [head, *rows]
    widths = [max(len(row[n]) for row in every) for n in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every]


COMMANDS: list[click.Command] = [catalogue]
