"""Evaluation: which visits it stands on, when it says that it cannot tell, and what the page does with hostile words."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from features import clinic, tables, usecase
from features.clock import DAY_US, SECOND_US, rfc3339, to_us
from features.codes import codebook
from features.errors import InputError
from features.importers.build import build_log
from features.log import Log
from models import artifact, evaluate, held_out, page
from models import train as training
from models.artifact import Artifact, Model
from models.bootstrap import Interval
from models.held_out import HeldOut
from models.split import HELD_OUT, share_of
from streams.backfill import backfill
from streams.cli import main

BOOK = codebook()
TRAINED_US = to_us(datetime(2025, 5, 1, tzinfo=UTC))
FIELDS = ("risk", "flagged", "label", "patient", "index_us")


@dataclass(frozen=True)
class Site:
    log: Log
    model: Model
    model_file: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two years of 200 invented patients of whom nobody told the ethnicity, and a model of the first sixteen months."""
    folder = tmp_path_factory.mktemp("evaluate")
    span = datetime(2024, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    told = clinic.events(patients=200, start=span[0], end=span[1], seed=3)
    some = (pair for pair in told if pair[1].get("code_system") != "ethnicity")
    build_log(some, folder / "log", book=BOOK, source="test", tick_us=DAY_US)
    log = Log(folder / "log", BOOK)
    made = training.train(log, usecase.load("ed_60d_any", BOOK), until_us=TRAINED_US)
    artifact.save(made, folder / "model.json")
    return Site(log, artifact.load(folder / "model.json", BOOK), folder / "model.json")


def told_again(model: Model, **training: Any) -> Model:
    """The model with another record of its training."""
    return Model(msgspec.structs.replace(model.artifact, training=training), model.use_case)


def rows(visits: HeldOut) -> Counter[tuple[float, bool, float, int]]:
    return Counter(zip(*(getattr(visits, name).tolist() for name in ("risk", "flagged", "label", "index_us")), strict=True))


# --- the visits


def test_the_visits_are_those_of_labels_and_backfill(site: Site, tmp_path: Path) -> None:
    """Revision 0 as backfilled, label as in the table of labels where it is mature, index behind the training; and no other visit."""
    tables.labels_table(site.log, site.model.use_case, tmp_path / "labels.parquet", lambda n: None)
    label = {(row["patient_id"], row["encounter_id"]): row for row in pq.read_table(tmp_path / "labels.parquet").to_pylist()}
    training_us = held_out.training_of(site.model).first_us
    want: Counter[tuple[float, bool, float, int]] = Counter()
    for batch in backfill(site.log, [site.model]):
        for score, _ in batch:
            index_us = to_us(datetime.fromisoformat(score.index_time))
            row = label[score.patient_id, score.encounter_id]
            if (
                score.revision == 0
                and score.status == "scored"
                and index_us >= training_us
                and row["mature_time"]
                and row["label"] is not None
            ):
                assert score.risk is not None
                want[score.risk, score.flagged, float(row["label"]), index_us] += 1
    visits = held_out.collect(site.log, site.model)
    assert rows(visits) == want
    assert len(visits.risk) > 300
    assert sum(visits.left_out.values()) > 0


def test_the_stretch_of_time_is_closed_at_its_start_and_open_at_its_end(site: Site) -> None:
    """A visit exactly at `from` is in it, one exactly at `until` is not; two stretches that meet make the whole."""
    whole = held_out.collect(site.log, site.model)
    at_us = int(np.sort(whole.index_us)[len(whole.index_us) // 2])
    before, after = held_out.collect(site.log, site.model, until_us=at_us), held_out.collect(site.log, site.model, from_us=at_us)
    assert before.index_us.max() < at_us == after.index_us.min()
    assert rows(before) + rows(after) == rows(whole)


def test_what_was_trained_on_is_not_evaluated_on(site: Site) -> None:
    """No outcome counts for the training and for the evaluation: from the moment on at which the last visit of the training is no longer
    at risk; a microsecond earlier is refused."""
    last_us = held_out.training_of(site.model).until_us
    assert last_us is not None
    free_us = last_us + site.model.use_case.at_risk_us
    with pytest.raises(InputError, match="praise it for what it has seen"):
        held_out.collect(site.log, site.model, from_us=free_us - 1)
    assert held_out.collect(site.log, site.model, from_us=free_us).index_us.min() >= free_us
    assert held_out.collect(site.log, site.model).from_us == free_us


def test_a_split_in_time_keeps_its_patients_and_its_embargo(site: Site) -> None:
    """With a cut only the patients of the held-out share count, from cut and embargo on."""
    model = told_again(site.model, until=rfc3339(TRAINED_US - 60 * DAY_US), cut=rfc3339(TRAINED_US), embargo_days=60.0)
    visits, whole = held_out.collect(site.log, model), held_out.collect(site.log, site.model, from_us=TRAINED_US + 60 * DAY_US)
    assert visits.from_us == TRAINED_US + 60 * DAY_US
    collected = training.collect(site.log, site.model.use_case)
    mine = (share_of(collected.patient) == HELD_OUT) & (collected.index_us >= visits.from_us)
    assert sorted(visits.index_us.tolist()) == sorted(collected.index_us[mine].tolist())
    assert 0 < len(visits.risk) < len(whole.risk)
    assert visits.left_out[held_out.OTHER_SIDE] > 0
    with pytest.raises(InputError, match="was trained on what came before"):
        held_out.collect(site.log, model, from_us=visits.from_us - 1)


def test_nothing_to_evaluate_on_is_said(site: Site) -> None:
    """Only visits that are not mature yet: refused with the counts; a file that tells times without a zone likewise."""
    with pytest.raises(InputError, match=r"no visit to evaluate on.*pending"):
        held_out.collect(site.log, site.model, from_us=site.log.known_until_us - 30 * DAY_US)
    with pytest.raises(InputError, match="does not say readably when it was trained"):
        held_out.collect(site.log, told_again(site.model, until="last spring"))


def test_groups_are_as_the_log_told_them_last(site: Site) -> None:
    """Gender and age of the clinic's patients; ages in their band at the index; nobody has an ethnicity."""
    visits = held_out.collect(site.log, site.model)
    assert set(visits.groups) == set(evaluate.ATTRIBUTES)
    assert set(visits.groups["gender"].tolist()) <= {"female", "male", held_out.NOT_RECORDED}
    assert {"female", "male"} < set(visits.groups["gender"].tolist()) | {held_out.NOT_RECORDED}
    assert set(visits.groups["age"].tolist()) <= {words for _, words in held_out.AGE_BANDS} | {held_out.NOT_RECORDED}
    assert set(visits.groups["ethnicity"].tolist()) == {held_out.NOT_RECORDED}
    for patient in np.unique(visits.patient):
        assert len(set(visits.groups["gender"][visits.patient == patient].tolist())) == 1


# --- what is said of them


def invented(n: int = 3_000, *, patients: int = 600, shift: float = 0.0, seed: int = 8) -> HeldOut:
    """Visits whose labels follow the risks, less a shift."""
    rng = np.random.default_rng(seed)
    risk = rng.uniform(0.05, 0.45, n)
    label = (rng.uniform(size=n) < risk - shift).astype(np.float64)
    names = {name: np.full(n, "all") for name in evaluate.ATTRIBUTES}
    patient = np.arange(n) % patients
    return HeldOut(risk, risk >= 0.3, label, patient, np.arange(n) * SECOND_US, names, {}, 0, 0, 10**15)


def group(visits: HeldOut, mask: Any, *, draws: int = 200) -> dict[str, Any]:
    """What is said of the visits under the mask as a group of their own."""
    marked = replace(visits, groups=visits.groups | {"race": np.where(mask, "marked", "all")})
    found = evaluate.measure(marked, threshold=0.3, draws=draws, seed=1)
    return next(g for g in found["groups"] if g["group"] == "marked")


def test_risks_that_are_right_show_no_sign_and_wrong_ones_do() -> None:
    """Too high by 10 in 100: over-states; too low: under-states; the sign of the factor says the same."""
    assert group(invented(), invented().patient % 2 == 0)["verdict"] == "no sign"
    for shift, verdict in ((0.1, "over-states"), (-0.1, "under-states")):
        found = group(invented(shift=shift), invented().patient % 2 == 0)
        assert found["verdict"] == verdict
        assert math.copysign(1, found["calibration_factor"]) == math.copysign(1, shift)
        assert found["more_visits_needed"] == 0


def test_few_patients_cannot_be_told_however_many_visits() -> None:
    """29 patients with a hundred visits each are too few, 30 are not."""
    visits = invented(6_000, patients=60)
    few, enough = (group(visits, visits.patient < n, draws=50) for n in (29, 30))
    assert (few["patients"], few["verdict"], few["by_patient"]) == (29, "cannot tell", [None, None])
    assert few["more_visits_needed"] == 100
    assert (enough["patients"], enough["verdict"]) == (30, "no sign")


def test_a_group_without_any_event_is_not_certain() -> None:
    """No draw differs by label, so the drawn interval is narrow; chance alone would make it wide."""
    visits = invented(3_000)
    mask = visits.patient < 40
    visits = replace(visits, label=np.where(mask & (visits.index_us < 60 * SECOND_US), 0.0, visits.label))
    mask &= visits.index_us < 60 * SECOND_US
    found = group(visits, mask)
    assert (found["visits"], found["events"]) == (40, 0)
    assert (found["verdict"], found["by_patient"]) == ("cannot tell", [None, None])


@pytest.mark.parametrize(("half", "needed"), [(0.05, 0), (0.0501, 5), (0.10, 3_000)])
def test_the_width_that_can_be_told(half: float, needed: int) -> None:
    """Exactly the tolerance is told, more is not; twice the width needs four times the visits."""
    risk = np.full(1_000, 0.2)
    assert evaluate._visits_needed(risk, 200, Interval(-half, half), 0.05) == needed


def test_the_tolerance_follows_a_rare_outcome() -> None:
    """Half of the outcome's frequency, 5 in 100 at most."""
    visits = invented()
    for share, want in ((0.02, 0.01), (0.10, 0.05), (0.30, 0.05)):
        label = (np.arange(3_000) < share * 3_000).astype(np.float64)
        assert evaluate._tolerance(replace(visits, label=label)) == pytest.approx(want)


def test_bands_cover_every_visit_once() -> None:
    """Equal risks stay together, also where they fill several bands; a band without events has an interval that is no point."""
    visits = invented()
    risk = np.round(visits.risk, 1)
    visits = replace(visits, risk=risk, label=np.where(risk == 0.1, 0.0, visits.label))
    found = evaluate.measure(visits, threshold=0.3, draws=50, seed=1)
    assert sum(band["visits"] for band in found["bands"]) == 3_000 == sum(found["histogram"]["visits"])
    assert all(one["highest"] < other["lowest"] for one, other in zip(found["bands"], found["bands"][1:], strict=False))
    low, high = next(band for band in found["bands"] if not band["events"])["by_patient"]
    assert 0 == low < high


def test_the_document_is_plain_and_depends_on_the_seed_alone() -> None:
    """The same seed, the same bytes; no NaN, also where nothing was flagged and nothing happened."""
    visits = invented(400, patients=80)
    same, again, other = (evaluate.measure(visits, threshold=0.3, draws=50, seed=seed) for seed in (1, 1, 2))
    assert same == again
    assert same["metrics"] != other["metrics"]
    silent = evaluate.measure(replace(visits, label=np.zeros(400), flagged=np.zeros(400, bool)), threshold=0.3, draws=20, seed=1)
    json.dumps(silent, allow_nan=False)
    assert silent["metrics"]["ppv"] == {"value": None, "by_patient": [None, None], "naive": [None, None]}


# --- the page


class Reader(HTMLParser):
    """Checks that what is opened is closed, and gathers text and attributes."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    return reader


@pytest.fixture(scope="module")
def document(site: Site) -> dict[str, Any]:
    return evaluate.evaluate(site.log, site.model, draws=100, seed=1)


def test_the_page_says_the_figures_in_words(document: dict[str, Any]) -> None:
    """Whole sentences with the figures of the document, what was left out, and no script, link or picture from elsewhere."""
    text = page.render(document)
    reader = read(text)
    ppv = document["metrics"]["ppv"]["value"] * 100
    assert f"Of 100 flagged visits, {ppv:.0f}" in reader.words
    assert f"{document['counts']['visits']:,} visits of {document['counts']['patients']:,} patients" in reader.words
    assert f"{document['left_out']['pending']:,}" in reader.words
    assert "Not recorded for anyone here" in reader.words
    assert not {"script", "link", "img", "iframe"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on") or name in ("src", "href")]
    assert "url(" not in text


def test_the_page_escapes_what_a_site_named(document: dict[str, Any]) -> None:
    """Tags in a title, an outcome, a group, a reason and a threshold's words come out as text."""
    evil = "<script>alert(1)</script><b onclick=x>&"
    bad: dict[str, Any] = json.loads(json.dumps(document))
    bad["use_case"] |= {"title": evil, "outcome": evil}
    bad["model"] |= {"version": evil, "threshold_reason": evil, "family": evil}
    bad["left_out"]["excluded: " + evil] = 3
    bad["groups"][0]["group"] = evil
    reader = read(page.render(bad))
    assert "script" not in reader.tags
    assert "onclick" not in dict(reader.attributes)
    assert reader.words.count(evil) >= 6


def test_a_group_that_cannot_be_told_says_how_many_visits_more(document: dict[str, Any]) -> None:
    changed: dict[str, Any] = json.loads(json.dumps(document))
    changed["groups"][0] |= {"verdict": "cannot tell", "more_visits_needed": 1_240}
    changed["groups"][1] |= {"verdict": "under-states", "calibration_factor": -0.032, "by_patient": [-0.061, -0.003]}
    words = read(page.render(changed)).words
    assert "Cannot tell yet (needs about 1,240 more visits)." in words
    assert "Risks under-state by 3.2 in 100 visits (0.3 to 6.1)." in words


def test_a_group_of_few_patients_shows_no_figure(document: dict[str, Any]) -> None:
    """Ten patients could be recognised, eleven are shown."""
    named = []
    for patients, is_shown in ((10, False), (11, True)):
        changed: dict[str, Any] = json.loads(json.dumps(document))
        changed["groups"][0] |= {"patients": patients, "visits": 7_777, "verdict": "cannot tell", "by_patient": [None, None]}
        words = read(page.render(changed)).words
        assert (f"7,777 visits of {patients} patients" in words) is is_shown
        named.append(words.count("fewer than 11 patients"))
    assert named[0] == named[1] + 1


def test_a_page_of_nothing_flagged_can_be_made(document: dict[str, Any]) -> None:
    """Metrics that are not told, bands without an interval."""
    visits = invented(200, patients=50)
    bare = evaluate.measure(replace(visits, label=np.zeros(200), flagged=np.zeros(200, bool)), threshold=0.9, draws=20, seed=1)
    words = read(page.render(document | bare | {"left_out": {}})).words
    assert "an unknown number" in words
    assert "None." in words
    assert page.summary(document | bare)


# --- the command


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_command_writes_json_and_page(site: Site, tmp_path: Path) -> None:
    """One sorted document with its format and seed; the page appears; neither is overwritten; a second run says the same."""
    out = tmp_path / "pages" / "evaluation.html"
    words = ("evaluate", site.log.path, "--model", site.model_file, "--from", "2025-06-01", "--until", "2025-09-01", "--seed", "5")
    done = run(*words, "--json", "--out", out)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert list(found) == sorted(found)
    assert (found["format"], found["bootstrap"]["seed"]) == (1, 5)
    assert found["period"]["first_visit"] >= "2025-06-01"
    assert found["period"]["last_visit"] < "2025-09-01"
    assert read(out.read_text(encoding="utf-8")).tags["svg"] > 2
    assert run(*words, "--json").stdout == done.stdout
    assert run(*words, "--out", out).exit_code == 2
    text = run(*words)
    assert "seed 5" in text.stdout
    assert "of 100 flagged" in text.stdout


def test_a_model_without_a_record_of_its_training_is_evaluated_on_all(site: Site) -> None:
    """And the page says that the file does not tell."""
    made: Artifact = msgspec.structs.replace(site.model.artifact, training={})
    found = evaluate.evaluate(site.log, Model(made, site.model.use_case), draws=20, seed=1)
    assert found["model"]["trained_until"] is None
    assert found["counts"]["patients_seen_before"] == 0
    assert "file does not say" in page.render(found)


def test_who_waits_is_told_how_far_it_is(site: Site) -> None:
    """Patients read, and samples drawn, by patient and then naively: each count ends at what there is."""
    patients: list[int] = []
    drawn: list[int] = []
    evaluate.evaluate(site.log, site.model, draws=30, seed=1, reading=patients.append, drawing=drawn.append)
    assert patients == sorted(patients) and drawn == sorted(drawn)
    assert patients[-1] == sum(len(site.log.facts(file).patients) for file in site.log.bucket_files()) and drawn[-1] == 60
