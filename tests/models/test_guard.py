"""The guard: what is refused before a fit, by which sentence, and the leakage report against logs whose known times were really moved."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from features import clinic, fact, history
from features.clock import HOUR_US, NEVER_US
from features.codes import codebook
from features.errors import InputError
from features.history import NEVER
from features.importers.build import build_log
from features.revision import answers
from models import guard, split
from models import train as training
from models.split import Split
from streams.cli import main
from tests.models.test_score import use_case

CHECKED = settings(max_examples=200, deadline=None, print_blob=True)
NAMES = ["first", "second", "third"]
T_US = 1_777_798_800_000_000


def world(n: int = 60) -> dict[str, Any]:
    """What `guard.check` accepts: every third visit has the event, labels settled by 100."""
    rng = np.random.default_rng(1)
    patient = np.arange(n) // 2 * 7  # two visits each; the share of a patient is its number modulo 5
    return {
        "split": split.by_patient(patient),
        "matrix": rng.normal(size=(n, 3)),
        "label": (np.arange(n) % 3 == 0).astype(np.float64),
        "patient": patient,
        "settled_us": np.full(n, 100),
        "until_us": 100,
        "names": NAMES,
        "leaks": [],
    }


def checked(**changes: Any) -> list[str]:
    return guard.check(**(world() | changes))


def refused(words: str, **changes: Any) -> None:
    with pytest.raises(InputError, match=words):
        checked(**changes)


# --- refusals, each beside what is just accepted ---------------------------------------------------------------------------------------


def test_what_is_in_order_is_accepted() -> None:
    assert checked() == []


def test_columns_that_look_ahead_are_refused() -> None:
    refused(r"columns look at the future \(leak\): ahead_count\. Take them out", leaks=["ahead_count"])
    refused(r"a, b, c, d, e and 2 more", leaks=list("abcdefg"))


@pytest.mark.parametrize("side", ["train", "tuning"])
def test_labels_that_were_not_settled_are_refused(side: str) -> None:
    """Settled exactly at the limit is in time, a microsecond later is not; a visit that is in no part of the split does not matter."""
    told = world()
    one = int(np.flatnonzero(getattr(told["split"], side))[0])
    late = told["settled_us"].copy()
    late[one] = 101
    refused("labels not mature: 1 visits have a label that was not settled by 1970-01-01T00:00:00.000100Z", settled_us=late)
    assert checked(settled_us=late, until_us=101) == []
    mask = getattr(told["split"], side).copy()
    mask[one] = False
    assert checked(settled_us=late, split=replace(told["split"], **{side: mask})) == []
    unknown = told["label"].copy()
    unknown[one] = np.nan
    refused("labels not mature: 1 visits", label=unknown)


def test_with_a_cut_labels_must_be_settled_at_it() -> None:
    """Those of held-out visits at the end only."""
    told = world()
    is_held = split.share_of(told["patient"]) == split.HELD_OUT
    tuning = told["split"].tuning
    parts = Split(~is_held & ~tuning, tuning, is_held, {}, cut_us=50)
    settled = np.where(is_held, 100, 50)
    assert checked(split=parts, settled_us=settled) == []
    refused("labels not mature: 48 visits", split=parts, settled_us=settled + ~is_held)
    refused("labels not mature: 12 visits", split=parts, settled_us=settled + is_held)


@pytest.mark.parametrize(("one", "other"), [("train", "tuning"), ("train", "held_out"), ("tuning", "held_out")])
def test_a_patient_on_two_sides_is_refused(one: str, other: str) -> None:
    """One visit of a patient on each."""
    nobody = np.zeros(60, bool)
    masks = {"train": world()["split"].train.copy(), "tuning": nobody.copy(), "held_out": nobody.copy()}
    masks["train"][[0, 1, 2, 3]] = False
    for name, visit in ((one, 2), (other, 3)):  # visits 2 and 3 are those of one patient
        masks[name][visit] = True
    words = {"train": "training", "tuning": "tuning", "held_out": "held-out"}
    refused(f"1 patients are on both sides of the split, {words[one]} and {words[other]}", split=Split(**masks, left_out={}))
    masks[other][3] = False
    assert checked(split=Split(**masks, left_out={})) == []


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_values_are_refused_by_column(value: float) -> None:
    """The largest float is not infinite, and null is not either."""
    matrix = world()["matrix"]
    matrix[4, 0], matrix[5, 1], matrix[6, 2] = 1.7976931348623157e308, value, math.nan
    refused(r"infinite values in second, 1 rows", matrix=matrix)
    matrix[5, 1] = math.copysign(1.7e308, value)
    assert checked(matrix=matrix) == []


@pytest.mark.parametrize(("label", "words"), [(0.0, "all without an event"), (1.0, "all with an event")])
def test_one_class_is_refused(label: float, words: str) -> None:
    """In the training visits; one visit of the other kind is enough here, and what tunes does not matter."""
    told = world()
    labels = np.where(told["split"].train, label, 1.0 - label)
    refused(f"one class only: the training visits have 48 visits, {words}", label=labels)
    labels[np.flatnonzero(told["split"].train)[0]] = 1.0 - label
    assert checked(label=labels) == []


def test_a_fold_of_one_class_is_named() -> None:
    """Whether it is the part that is fitted on or the part that is measured on."""
    label, rows = np.array([1.0, 0.0, 0.0, 0.0]), np.arange(4)
    good, bad = (rows[[0, 1]], rows[[0, 2]]), (rows[[0, 1]], rows[[2, 3]])
    guard.refuse_one_class_folds(label, [good, good])
    with pytest.raises(InputError, match="fold 2 of 3, the part to measure on, have 2 visits, all without an event"):
        guard.refuse_one_class_folds(label, [good, bad, good])
    with pytest.raises(InputError, match="fold 1 of 1, the part to fit on, have 2 visits, all without an event"):
        guard.refuse_one_class_folds(label, [(bad[1], bad[0])])


def test_constant_columns_are_named() -> None:
    """One value, or none, in all training visits; a null beside a value is two things. All columns constant: nothing to learn."""
    matrix, train = world()["matrix"], world()["split"].train
    matrix[train, 0], matrix[train, 1] = 5.0, np.nan
    assert checked(matrix=matrix) == ["first", "second"]
    matrix[np.flatnonzero(train)[0], 0] = np.nan
    assert checked(matrix=matrix) == ["second"]
    refused("every column is constant", matrix=np.zeros((60, 3)))


# --- the leakage report ----------------------------------------------------------------------------------------------------------------


@CHECKED
@given(st.lists(st.tuples(st.one_of(st.just(math.nan), st.integers(0, 5).map(float)), st.booleans()), min_size=1, max_size=60))
def test_a_column_alone_is_judged_by_its_values_or_by_its_nulls(rows: list[tuple[float, bool]]) -> None:
    """The larger AUROC of the two, in either direction; of fewer than ten visits of either label nothing is said."""
    column, label = np.array([x for x, _ in rows]), np.array([float(y) for _, y in rows])
    null, best = np.isnan(column), 0.5
    for value, of in ((column[~null], label[~null]), (null.astype(float), label)):
        if 10 <= of.sum() <= len(of) - 10:
            best = max(best, roc_auc_score(of, value), 1 - roc_auc_score(of, value))
    assert guard.auroc_alone(column, label) == pytest.approx(best, abs=1e-12)


def test_what_moved_and_what_knows_the_label_alone() -> None:
    """Null to null has not moved, null to value has; a column with an AUROC of exactly the limit is not yet named."""
    label = np.array([1.0] * 20 + [0.0] * 20)
    knows, limit = label.copy(), np.zeros(40)
    limit[:18] = 1.0  # 18 of 20 events, no other: AUROC 0.95
    matrix = np.column_stack([knows, limit, np.full(40, np.nan)])
    delayed = matrix.copy()
    delayed[:10, 0], delayed[0, 2] = 0.0, 3.0
    found = guard.leakage(matrix, delayed, label, np.arange(40), names=NAMES, leaks=["third"])
    assert found.moved == [("first", 0.25), ("third", 0.025)]
    assert guard.auroc_alone(limit, label) == pytest.approx(0.95) and guard.SUSPICIOUS_AUROC == 0.95
    assert found.alone == [("first", 1.0)] and found.looks_ahead == ["third"]
    text = guard.sentences(found, 1.0)
    assert " 25.0% of rows  first" in text and "declared to look ahead: third" in text and "first 1.000" in text


def record(source: str, concept: int, event_us: int, stamp_us: int, *, value: float = math.nan, status: int = 5) -> dict[str, Any]:
    """A fact, as arguments of `fact.pack`."""
    identity = fact.fact_id("fact", source)
    return {"identity": identity, "concept": concept, "event_us": event_us, "stamp_us": stamp_us, "value": value, "status": status}


def packed(facts: list[dict[str, Any]], visits: list[dict[str, Any]]) -> bytes:
    """One history in log order: by stamp, index encounters behind other facts of the same instant."""
    ordered = sorted([(f["stamp_us"], 0, n, f) for n, f in enumerate(facts)] + [(v["stamp_us"], 1, n, v) for n, v in enumerate(visits)])
    parts = []
    for place, (_, is_visit, n, told) in enumerate(ordered):
        parts.append(fact.pack(**told, place=place) + (fact.name_records(f"E{n}".encode(), place=place) if is_visit else b""))
    return b"".join(parts)


hours = st.integers(-100, 0)


@CHECKED
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["hemoglobin", "visit.emergency"]), hours, hours, st.integers(5, 15)), max_size=8), max_size=3
    ),
    st.lists(hours, min_size=1, max_size=4, unique=True),
    st.integers(1, 60),
)
def test_a_delay_gives_the_rows_of_a_log_in_which_everything_was_told_later(
    told: list[list[tuple[str, int, int, int]]], asked: list[int], delay_h: int
) -> None:
    """The twin moves the stamps of all facts and asks the same questions at the same instants; rows are equal by bits."""
    concept = {name: codebook().by_name[name].number for name in ("hemoglobin", "visit.emergency")}
    visits = [record(f"E{h}", 1, T_US + h * HOUR_US, T_US + h * HOUR_US, status=fact.STATUS["in-progress"]) for h in asked]
    before, after = [], []
    for patient, rows in enumerate([*told, []]):
        facts = [
            record(f"{patient}-{n}", concept[name], T_US + at * HOUR_US, T_US + known * HOUR_US, value=float(value))
            for n, (name, at, known, value) in enumerate(rows)
        ]
        before.append(packed(facts, visits))
        after.append(packed([f | {"stamp_us": f["stamp_us"] + delay_h * HOUR_US} for f in facts], visits))

    def asked_of(stored: list[bytes]) -> tuple[Any, Any]:
        h = history.read(stored)
        every = answers(h, use_case(), since=np.zeros(len(stored), np.int64), until=np.full(len(stored), NEVER))
        return h, every.where(every.revision == 0)

    (h, found), (_, expected) = asked_of(before), asked_of(after)
    assert found.index_us.tolist() == expected.index_us.tolist() and len(found.seg) == len(asked) * len(before)
    assert training._delayed(h, use_case(), found, delay_h * HOUR_US).tobytes() == expected.matrix.tobytes()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard") / "log"
    span = {"start": datetime(2025, 1, 1, tzinfo=UTC), "end": datetime(2025, 10, 1, tzinfo=UTC)}
    build_log(clinic.events(patients=120, seed=1, **span), folder, book=codebook(), source="clinic")
    return folder


def leaky(folder: Path) -> Path:
    """A use case with one column that counts the outcome itself."""
    file = folder / "leaky.toml"
    file.write_text(
        'name = "leaky"\n[index]\nclasses = ["ambulatory"]\n[outcome]\nconcepts = ["visit.emergency"]\nhorizon_days = 60\n'
        '[[features]]\nname = "hemoglobin"\nconcepts = ["hemoglobin"]\naggregates = ["last"]\n'
        '[[features]]\nname = "ahead"\nconcepts = ["visit.emergency"]\naggregates = ["count"]\nleak = true\n'
    )
    return file


def test_the_command_names_what_moves_and_fails_on_what_looks_ahead(log: Path, tmp_path: Path) -> None:
    """Exit 0 where features merely move, 1 where a column is declared to look ahead; the same in JSON."""
    said = CliRunner().invoke(main, ["leakage", str(log), "--use-case", "ed_60d_any", "--json"])
    document = json.loads(said.stdout)
    assert said.exit_code == 0 and document["looks_ahead"] == [] == document["alone"]
    moved = dict(document["moved"])
    assert 0 < moved["hemoglobin_last"] < 0.5 and "age_days_since_first" not in moved, "a birth is known long before"
    longer = CliRunner().invoke(main, ["leakage", str(log), "--use-case", "ed_60d_any", "--delay-days", "5", "--json"])
    assert all(dict(json.loads(longer.stdout)["moved"])[name] >= share for name, share in moved.items() if name == "hemoglobin_count_5d")
    said = CliRunner().invoke(main, ["leakage", str(log), "--use-case", str(leaky(tmp_path))])
    assert "declared to look ahead: ahead_count" in said.stdout and said.exit_code == 1
    out = tmp_path / "model.json"
    said = CliRunner().invoke(main, ["train", str(log), "--use-case", str(leaky(tmp_path)), "--out", str(out)])
    assert said.exit_code != 0 and isinstance(said.exception, InputError) and "ahead_count" in str(said.exception) and not out.exists()


def test_a_log_without_mature_labels_has_no_report(log: Path) -> None:
    from features.log import Log

    with pytest.raises(InputError, match="nothing to look at: no visit of test has a mature label"):
        training.leakage(Log(log, codebook()), use_case(), until_us=-NEVER_US)
