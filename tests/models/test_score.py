"""Models: what a score says, that it does not depend on its batch, what a model file is refused for, and how one is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import clinic, fact, history, usecase
from features.clock import DAY_US, TIME_MIN_US
from features.codes import Codebook, codebook
from features.errors import InputError
from features.importers.build import build_log
from features.log import Log
from features.usecase import UseCase
from models import artifact, families, score
from models import train as training
from models.artifact import FORMAT, Artifact, Column, Model, version_of
from models.score import Desk, Float, Score, Scorer
from streams.backfill import backfill

CHECKED = settings(max_examples=100, deadline=None, print_blob=True)
BOOK = codebook()
T_US = 1_777_798_800_000_000
FEATURES = """
    {name = "hemoglobin", concepts = ["hemoglobin"], aggregates = ["any_abnormal", "count", "sum"], days = [30, 90]},
    {name = "hemoglobin", concepts = ["hemoglobin"], aggregates = ["last", "days_since_last"]},
    {name = "ed_visits", concepts = ["visit.emergency"], aggregates = ["count"], days = [30, 90]},
    {name = "weight", concepts = ["weight"], aggregates = ["percent_change"], days = [90]},
"""


@cache
def use_case(name: str = "test", *, features: str = "", header: str = "", more: str = "") -> UseCase:
    text = f'name = "{name}"\n{header}\nfeatures = [{FEATURES}{features}]\n[index]\nclasses = ["ambulatory", "inpatient"]\n'
    return usecase.parse(f'{text}[outcome]\nconcepts = ["visit.emergency"]\nhorizon_days = 60\n{more}', source="test.toml", book=BOOK)


def sealed(case: UseCase, columns: list[Column], *, intercept: float = -1.5, threshold: float = 0.2, **more: Any) -> Artifact:
    """A model by hand, with its version."""
    draft = Artifact(
        format=FORMAT, version="", family="by hand", use_case=case.definition.model_dump(mode="json"), use_case_hash=case.content_hash,
        threshold=threshold, threshold_reason="", intercept=intercept, columns=columns, training={},
    )  # fmt: skip
    draft = msgspec.structs.replace(draft, **more)
    return msgspec.structs.replace(draft, version=version_of(draft))


def by_hand(case: UseCase | None = None, *, seed: int = 0, **more: Any) -> Model:
    """A model with random coefficients."""
    case, rng = case or use_case(), np.random.default_rng(seed)
    columns = [
        Column(name, *(float(x) for x in rng.normal(0, 1, 4)), scale=float(rng.uniform(0.5, 3)), missing_rate=float(rng.choice([0.0, 0.3])))
        for name in case.feature_names
    ]
    return Model(sealed(case, columns, **more), case)


numbers = st.one_of(st.just(math.nan), st.floats(-1e6, 1e6), st.sampled_from([0.0, -0.0, 1.0, 1e-300]))
models = st.builds(by_hand, seed=st.integers(0, 1_000))


@st.composite
def matrices(draw: st.DrawFn) -> Float:
    rows = draw(st.lists(st.lists(numbers, min_size=11, max_size=11), min_size=1, max_size=9))
    return np.array(rows, np.float64)


# --- one score -------------------------------------------------------------------------------------------------------------------------


@CHECKED
@given(models, matrices())
def test_contributions_and_base_add_up_to_the_logit(model: Model, matrix: Float) -> None:
    """By topic, to 1e-12 of the largest of them; the logit is the formula of the model file, column by column."""
    scorer = Scorer(model)
    shares, logits = scorer.contributions(matrix), scorer.logits(matrix)
    expected = np.full(len(matrix), model.artifact.intercept)
    for x, c in zip(matrix.T, model.artifact.columns, strict=True):
        expected += (np.where(np.isnan(x), c.fill, x) - c.mean) / c.scale * c.coefficient + np.isnan(x) * c.missing_coefficient
    size = 1.0 + np.abs(shares).max(axis=1)
    assert (np.abs(scorer.base + shares.sum(axis=1) - logits) <= 1e-12 * size).all()
    assert (np.abs(expected - logits) <= 1e-9 * size).all()
    assert shares.shape == (len(matrix), len(scorer.topics))


@CHECKED
@given(models, matrices(), st.data())
def test_s6_rows_have_the_same_bits_in_any_batch(model: Model, matrix: Float, data: st.DataObject) -> None:
    """Alone, in any order, among 2,000 others: contributions, logit and risk are equal by bits."""
    scorer = Scorer(model)
    order = data.draw(st.permutations(range(len(matrix))))
    for batch, rows in ((matrix[order], order), (np.resize(matrix, (2_000, 11)), [n % len(matrix) for n in range(2_000)])):
        logits, shares = scorer.logits(batch), scorer.contributions(batch)
        for n, row in enumerate(rows[:20]):
            alone = matrix[row : row + 1]
            assert logits[n].tobytes() == scorer.logits(alone)[0].tobytes()
            assert shares[n].tobytes() == scorer.contributions(alone)[0].tobytes()
            assert scorer.risk(float(logits[n])) == scorer.risk(float(scorer.logits(alone)[0]))


@pytest.mark.parametrize(
    ("logit", "risk"), [(0.0, 0.5), (800.0, 1.0), (-800.0, 0.0), (-700.0, 0.0), (-699.0, math.exp(-699.0)), (2e308, 1.0)]
)
def test_a_risk_is_a_probability_whatever_the_logit(logit: float, risk: float) -> None:
    assert Scorer(by_hand()).risk(logit) == risk


@CHECKED
@given(matrices())
def test_topics_of_which_nothing_is_known(matrix: Float) -> None:
    """A topic is missing when all of its columns that can be null are; counts never are, so they do not speak for their topic."""
    nullable = [n.endswith(("sum_30d", "sum_90d", "last", "change_90d")) for n in use_case().feature_names]
    made = zip(by_hand().artifact.columns, nullable, strict=True)
    columns = [msgspec.structs.replace(c, missing_rate=0.3 if null else 0.0, missing_coefficient=0.0) for c, null in made]
    scorer = Scorer(Model(sealed(use_case(), columns), use_case()))
    for topic, said in zip(scorer.topics, scorer.unknown_topics(matrix).T, strict=True):
        mine = [j for j, f in enumerate(use_case().features) if f.topic == topic and nullable[j]]
        assert said.tolist() == [bool(mine) and bool(np.isnan(row[mine]).all()) for row in matrix]


# --- score records ---------------------------------------------------------------------------------------------------------------------


def visit(source: str, after_us: int, *, place: int, version: int = 1) -> bytes:
    identity, at_us, status = fact.fact_id("encounter", source), T_US + after_us, fact.STATUS["in-progress"]
    head = fact.pack(identity=identity, event_us=at_us, stamp_us=at_us, place=place, version=version, concept=1, status=status)
    return head + fact.name_records(source.encode(), place=place)


def lab(source: str, value: float, *, place: int, version: int = 1, after_us: int = -DAY_US) -> bytes:
    identity = fact.fact_id("lab", source)
    return fact.pack(identity=identity, event_us=T_US + after_us, stamp_us=T_US, place=place, version=version, concept=20, value=value)


def issued(patients: dict[str, bytes], *models: Model, since: int = 0) -> list[Score]:
    """What the desk issues; the first model is champion from the beginning, the others are shadows."""
    n = len(patients)
    roles = [{**score.activation(m, number=k, role="shadow" if k else "champion"), "place": -1} for k, m in enumerate(models)]
    limits = {"owner": np.zeros(n, np.int64), "since": np.full(n, since), "until": np.full(n, history.NEVER)}
    names, histories = [patient.encode() for patient in patients], history.read(list(patients.values()))
    return [one.score for one in Desk(models).issue(histories, names, [roles], **limits)]


def constant(logit: float, threshold: float) -> Model:
    """A model that gives every row the same logit."""
    columns = [Column(name, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0) for name in use_case().feature_names]
    return Model(sealed(use_case(), columns, intercept=logit, threshold=threshold), use_case())


@CHECKED
@given(st.floats(0.001, 0.999))
def test_s6_a_flag_is_decided_on_the_logit(threshold: float) -> None:
    """The logit of the threshold itself is flagged, the number below it is not, although their risks may be equal."""
    limit = constant(0.0, threshold).threshold_logit
    flags = []
    for logit in (math.nextafter(limit, -math.inf), limit, math.nextafter(limit, math.inf)):
        (record,) = issued({"p": visit("E", 0, place=0)}, constant(logit, threshold))
        flags.append(record.flagged)
    assert flags == [False, True, True]


def test_a_record_says_what_was_computed() -> None:
    """Risk, reasons by topic, largest first, and the digest of the row; a record that is not scored has none of them."""
    model = by_hand(
        use_case(more='[[cohort]]\nreason = "no_ed"\nconcepts = ["visit.emergency"]\naggregate = "count"\nat_most = 5\n'), seed=3
    )
    (record,) = issued({"p": lab("L", 9.0, place=0) + visit("E", 0, place=1)}, model)
    scorer = Scorer(model)
    row = np.array([[1, 1, 1, 1, 9, 9, 9, 1, 0, 0, np.nan]])
    assert (record.risk, len(record.row_digest)) == (scorer.risk(float(scorer.logits(row)[0])), 16)
    shares = [share for _, share in record.contributions]
    assert sorted(map(abs, shares), reverse=True) == list(map(abs, shares))
    assert dict(record.contributions) == pytest.approx(
        dict(zip(scorer.topics, scorer.contributions(row)[0].tolist(), strict=True)), abs=1e-6
    )
    assert (record.patient_id, record.encounter_id, record.revision, record.status, record.role) == ("p", "E", 0, "scored", "champion")
    assert score.decode(score.encode(record)) == record


def test_a_withdrawn_record_has_no_risk() -> None:
    """Neither flag nor reasons nor row."""
    gone = fact.pack(identity=fact.fact_id("encounter", "E"), event_us=T_US, stamp_us=T_US, place=1, version=2, concept=1, status=9)
    gone += fact.name_records(b"E", place=1)
    record = issued({"p": visit("E", 0, place=0) + gone}, constant(5.0, 0.2))[1]
    assert (record.status, record.reason, record.revision) == ("withdrawn", "retracted", 1)
    assert (record.risk, record.flagged, record.contributions, record.missing, record.row_digest) == (None, False, [], [], "")


def test_s8_score_ids_tell_records_apart() -> None:
    """Another model, encounter, trigger or version of it is another id; the same again is the same id and bytes."""
    patient = {"p": visit("E", 0, place=0) + visit("F", 0, place=1) + lab("L", 9.0, place=2) + lab("L", 13.0, place=3, version=2)}
    both = issued(patient, by_hand(seed=1), by_hand(seed=2))
    assert [s.revision for s in both if s.encounter_id == "E" and s.role == "champion"] == [0, 1, 2]
    assert len({s.score_id for s in both}) == len(both) == 12
    assert both == issued(patient, by_hand(seed=1), by_hand(seed=2))
    renamed = issued(patient, by_hand(use_case("other"), seed=1))
    assert not {s.score_id for s in renamed} & {s.score_id for s in both}
    assert issued(patient, by_hand(seed=1), since=2) == [s for s in issued(patient, by_hand(seed=1)) if s.revision]


def test_s8_score_ids_tell_patients_apart() -> None:
    """An encounter that a source told under the wrong patient, then under the right one, gives two records with two ids."""
    records = issued({"wrong": visit("E", 0, place=0), "right": visit("E", 0, place=1)}, by_hand())
    assert len({s.score_id for s in records}) == 2, "verify would call one of them different and the other missing"


@pytest.mark.parametrize("value", [1.7e308, -1.7e308])
def test_no_value_of_a_feed_stops_the_scoring(value: float) -> None:
    """A number that the contract admits, however absurd, must not raise: the same record would stop its partition for ever."""
    records = issued({"p": lab("L", value, place=0) + lab("M", value, place=1) + visit("E", 0, place=2)}, by_hand())
    assert [s.encounter_id for s in records] == ["E"]


# --- the model file --------------------------------------------------------------------------------------------------------------------


def test_a_model_file_is_read_back(tmp_path: Path) -> None:
    """Every number to its last bit, by file or by folder, and the site's own use case fits."""
    made = by_hand(seed=5).artifact
    artifact.save(made, tmp_path / "deep" / "model.json")
    for path in (tmp_path / "deep", tmp_path / "deep" / "model.json"):
        assert artifact.load(path, BOOK, use_case=use_case()).artifact == made
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model.json"]


def refused(tmp_path: Path, content: bytes | Artifact, words: str, **more: Any) -> None:
    file = tmp_path / "model.json"
    if isinstance(content, Artifact):
        artifact.save(content, file)
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match=words):
        artifact.load(file, BOOK, **more)


def _column(made: Artifact, **change: Any) -> list[Column]:
    return [msgspec.structs.replace(made.columns[0], **change), *made.columns[1:]]


TAMPERED: list[Callable[[Artifact], dict[str, Any]]] = [
    lambda a: {"threshold": math.nextafter(a.threshold, 1.0)},
    lambda a: {"intercept": math.nextafter(a.intercept, 0.0)},
    lambda a: {"columns": _column(a, coefficient=a.columns[0].coefficient + 1e-9)},
    lambda a: {"columns": a.columns[1:]},
    lambda a: {"use_case": a.use_case | {"settle_minutes": 11}},
    lambda a: {"use_case_hash": "0"},
    lambda a: {"version": "test-000000000000"},
]


@pytest.mark.parametrize("change", TAMPERED)
def test_a_file_that_was_changed_is_refused(tmp_path: Path, change: Callable[[Artifact], dict[str, Any]]) -> None:
    """The version is a hash of all the rest."""
    made = by_hand().artifact
    refused(tmp_path, msgspec.structs.replace(made, **change(made)), "was changed after it was saved")


RESEALED: list[tuple[Callable[[Artifact], dict[str, Any]], str]] = [
    (lambda a: {"format": 2}, "format 2"),
    (lambda a: {"columns": a.columns[1:]}, "columns are not those of its use case"),
    (lambda a: {"columns": a.columns[::-1]}, "columns are not those of its use case"),
    (lambda a: {"columns": _column(a, name="other")}, "columns are not those of its use case"),
    (lambda a: {"columns": _column(a, scale=0.0)}, "scale"),
    (lambda a: {"threshold": 0.0}, "threshold"),
    (lambda a: {"threshold": 1.0}, "threshold"),
    (lambda a: {"use_case_hash": "0"}, "Train again"),
    (lambda a: {"use_case": {}}, "use case"),
    (lambda a: {"use_case": a.use_case | {"settle_minutes": -1}}, "use case"),
]


@pytest.mark.parametrize(("change", "words"), RESEALED)
def test_a_sealed_file_that_does_not_fit_is_refused(tmp_path: Path, change: Callable[[Artifact], dict[str, Any]], words: str) -> None:
    """Its hash is right, yet format, columns, threshold, scale or use case cannot be used."""
    changed = msgspec.structs.replace(by_hand().artifact, **change(by_hand().artifact))
    refused(tmp_path, msgspec.structs.replace(changed, version=version_of(changed)), words)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"not JSON", b"\xff\xfe", b'{"family": "\xff"}'])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path, content, "is not a model")


def test_another_use_case_or_code_set_is_refused(tmp_path: Path) -> None:
    """Equal hash: equal questions and equal rows. A model does not answer other ones."""
    refused(tmp_path, by_hand().artifact, "this site has", use_case=use_case(header="capacity = 0.2"))
    refused(tmp_path, by_hand().artifact, "this site has", use_case=use_case("other"))
    other = Codebook()
    other.content_hash = "0123456789abcdef"
    with pytest.raises(InputError, match="Train again"):
        artifact.load(tmp_path, other)
    with pytest.raises(InputError, match="no such model"):
        artifact.load(tmp_path / "nowhere", BOOK)


# --- training --------------------------------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """A simulated year of 150 patients and the model that was trained on it."""

    log: Log
    rows: training.Rows
    made: Artifact
    end_us: int


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    span = {"start": datetime(2025, 1, 1, tzinfo=UTC), "end": datetime(2026, 1, 1, tzinfo=UTC)}
    build_log(clinic.events(patients=150, seed=1, **span), folder / "log", book=BOOK, source="clinic")
    log = Log(folder / "log", BOOK)
    end_us = max(record.stamp_us for record in log.records())
    return Site(log, training.collect(log, use_case()), training.train(log, use_case()), end_us)


def test_a_patient_is_trained_on_or_tuned_on(site: Site) -> None:
    """Never both; about one in five tunes."""
    tuning, fitted = set(site.rows.patient[site.rows.is_tuning].tolist()), set(site.rows.patient[~site.rows.is_tuning].tolist())
    assert tuning and fitted and not tuning & fitted
    assert 0.1 < len(tuning) / len(tuning | fitted) < 0.3
    assert site.made.training["patients"] == len(fitted)
    assert site.made.training["encounters"] == int((~site.rows.is_tuning).sum())
    assert site.made.training["events"] == int(site.rows.label[~site.rows.is_tuning].sum())
    assert not np.isnan(site.rows.label).any()


def test_the_threshold_flags_at_most_the_capacity(site: Site) -> None:
    """Counted as scores are flagged, on the logit, on any tuning visits: never more than the team can review."""
    too_many = []
    for seed in range(40):
        tuning = np.random.default_rng(seed).permutation(len(site.rows.label))[:300]
        draft = Model(site.made, use_case())
        threshold, _ = training._threshold(Scorer(draft), site.rows.matrix[tuning], 0.1)
        model = Model(msgspec.structs.replace(site.made, threshold=threshold), use_case())
        flagged = int((Scorer(model).logits(site.rows.matrix[tuning]) >= model.threshold_logit).sum())
        if flagged > 30:
            too_many.append((seed, flagged))
    assert too_many == [], "(seed, flagged visits of 300; capacity 10 %)"


def test_the_written_out_model_is_the_fitted_one(site: Site) -> None:
    """The pipeline of scikit-learn and our scorer give the same probability, to 1e-9, on seen and on unseen patients."""
    fit = ~site.rows.is_tuning
    pipeline = families.logistic_pipeline(0.1).fit(site.rows.matrix[fit], site.rows.label[fit])
    columns, intercept = training._written_out(pipeline, site.rows.matrix[fit], use_case().feature_names)
    scorer = Scorer(Model(sealed(use_case(), columns, intercept=intercept), use_case()))
    ours = [scorer.risk(x) for x in scorer.logits(site.rows.matrix).tolist()]
    np.testing.assert_allclose(ours, pipeline.predict_proba(site.rows.matrix)[:, 1], rtol=0, atol=1e-9)


def test_nothing_is_trained_on_before_its_time_at_risk_is_over(site: Site) -> None:
    """A visit a week before the end of the log has no label of 60 days, although its patient's coverage is open-ended."""
    ends_us = site.rows.index_us + use_case().horizon_us
    early = int((ends_us > site.end_us).sum())
    assert early == 0, f"{early} of {len(ends_us)} rows have a time at risk that ends after the log"


def test_labels_of_one_day_are_not_positive_only(site: Site) -> None:
    """Events are known before the time at risk is over, their absence after it: until then neither may be used."""
    until_us = site.end_us - 120 * DAY_US
    rows = training.collect(site.log, use_case(), until_us=until_us)
    early = rows.index_us + use_case().horizon_us > until_us
    assert not early.any(), f"{int(early.sum())} rows whose time at risk is not over; {rows.label[early].mean():.0%} of them are events"


def test_what_cannot_be_trained_is_refused_with_a_sentence(site: Site) -> None:
    """Columns that look ahead, one class only, no rows."""
    ahead = use_case(features='{name = "ahead", concepts = ["hemoglobin"], aggregates = ["count"], leak = true}')
    with pytest.raises(InputError, match=r"look at the future \(leak\): ahead_count"):
        training.train(site.log, ahead)
    never = use_case().definition.model_copy(
        update={"outcome": use_case().definition.outcome.model_copy(update={"concepts": ["visit.home"]})}
    )
    with pytest.raises(InputError, match=r"too little to train on: \d+ encounters with 0 events"):
        training.train(site.log, usecase.bind(never, source="test", book=BOOK))
    with pytest.raises(InputError, match="too little to train on: 0 encounters"):
        training.train(site.log, use_case(), until_us=TIME_MIN_US)


def test_backfilled_scores_of_the_trained_model_are_unique(site: Site) -> None:
    """Each score id of a whole log stands for one record; every eligible visit has exactly one revision 0."""
    scores = [one for batch in backfill(site.log, [Model(site.made, use_case())]) for one, _ in batch]
    assert len({one.score_id for one in scores}) == len(scores) > 300
    first = [(one.patient_id, one.encounter_id) for one in scores if one.revision == 0]
    assert len(set(first)) == len(first)
