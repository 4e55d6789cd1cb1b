"""Print what a model trained on the simulated clinic finds, beside the published figures, and how fast its events are made: `make clinic`.

python -m tests.bench.clinic                     12,000 patients to train on, as many to evaluate on as were published (minutes)
python -m tests.bench.clinic --patients 1000     a quick look: a smaller model is a worse one
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from features import clinic, usecase
from features.clinic.people import CANCERS
from features.clock import DAY_US, NEVER_US, to_us
from features.codes import codebook
from features.cohort import chunks, index_answers
from features.importers.build import build_log
from features.log import Log
from features.outcome import labels
from features.revision import SCORED
from models import families, metrics, train
from models.artifact import Model
from models.bootstrap import Metric, intervals
from models.score import Scorer

Float = npt.NDArray[np.float64]
USE_CASE, THRESHOLD = "ed_60d_oncology", 0.20
TRAIN_FROM, TRAIN_UNTIL = datetime(2016, 1, 1, tzinfo=UTC), datetime(2018, 1, 1, tzinfo=UTC)
TOLD_FROM, FROM, UNTIL, TOLD_UNTIL = (datetime(*day, tzinfo=UTC) for day in ((2018, 9, 1), (2019, 3, 1), (2019, 10, 1), (2019, 12, 15)))
EVALUATED_ON = 3_300
"""Patients who ever appear, of whom about 2,385 have a mature visit in the seven months."""
PAPER: dict[str, tuple[str, float, float]] = {
    "encounters a patient": ("11.9", 10.9, 12.9),
    "prevalence": ("10 %", 0.095, 0.105),
    "flagged at 0.20": ("8 %, set to 10 %", 0.075, 0.105),
    "PPV": ("26 %", 0.2426, 0.2786),
    "NPV": ("91 %", 0.905, 0.915),
    "odds ratio": ("3.5", 3.158, 3.878),
}
"""As published, and between which values ours should lie: Wilson and Wald intervals of the published table, or what rounds to it."""


@dataclass(frozen=True)
class Visits:
    """Mature index visits with what is true of them. Shapes (n, p) and (n,)."""

    matrix: Float
    label: Float
    patient: npt.NDArray[np.int64]
    index_us: npt.NDArray[np.int64]
    risk: Float
    """True."""
    state: Float
    """The true features, shape (n, q)."""

    def between(self, begin: datetime, end: datetime) -> Visits:
        k = (self.index_us >= to_us(begin)) & (self.index_us < to_us(end))
        return Visits(**{name: getattr(self, name)[k] for name in self.__dataclass_fields__})


def state_of(truth: clinic.Truth) -> Float:
    """What decides the hazard, as columns of a matrix."""
    who = truth.people
    columns = [who.frailty, truth.state == 1, truth.state == 2, truth.excited, who.metastatic, who.treated, who.cover == 0, who.age_days]
    return np.column_stack([*columns, who.conditions, *(who.cancer == k for k in range(len(CANCERS)))]).astype(np.float64)


def visits(made: clinic.Clinic, log: Log, use_case: usecase.UseCase) -> Visits:
    """The mature index visits of a log that are in the truth."""
    true = {id: (risk, state) for t in made.truths() for id, risk, state in zip(t.encounter_id, t.risk, state_of(t), strict=True)}
    parts: list[tuple[Any, ...]] = []
    for chunk in chunks(log, [use_case]):
        found, h = index_answers(chunk, use_case), chunk.histories
        told = labels(h, use_case, seg=found.seg, index_us=found.index_us, episode=h.episode[found.encounter], as_of_us=log.known_until_us)
        mature = (found.status == SCORED) & ~np.isnan(told.label) & (told.mature_us < NEVER_US)
        ids = h.names(found.encounter)
        k = [i for i in np.flatnonzero(mature).tolist() if ids[i] in true]
        patients = np.array([int(chunk.patients[s][1:]) for s in found.seg[k].tolist()], np.int64)
        risk, state = (np.array([true[ids[i]][n] for i in k]) for n in (0, 1))
        parts += [(found.matrix[k], told.label[k], patients, found.index_us[k], risk, state)] if k else []
    return Visits(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def figures(risk: Float, seen: Visits) -> list[str]:
    """Our figures, with 95 % intervals by patient, beside the published ones; and what is expected under the true risk, which has less
    noise than what happened."""
    flagged = risk >= THRESHOLD

    def of(label: Float) -> dict[str, Metric]:
        return {
            "prevalence": lambda w: metrics.prevalence(label, w),
            "flagged at 0.20": lambda w: metrics.flagged_share(flagged, w),
            "PPV": lambda w: metrics.ppv(flagged, label, w),
            "NPV": lambda w: metrics.npv(flagged, label, w),
            "odds ratio": lambda w: metrics.odds_ratio(flagged, label, w),
        }

    ours, expected, alone = of(seen.label), of(seen.risk), np.ones((1, len(seen.label)))
    found = intervals(ours, seen.patient, draws=500, seed=1)
    patients = len(np.unique(seen.patient))
    lines = [f"{len(seen.label):,} visits of {patients:,} patients (published: 28,433 of 2,385)"]
    values = {"encounters a patient": (len(seen.label) / patients, "", "")}
    for name, metric in ours.items():
        between = f"({found[name][0].low:.3f} to {found[name][0].high:.3f})"
        values[name] = float(metric(alone)[0]), between, f"expected {float(expected[name](alone)[0]):.3f}"
    for name, (value, between, wanted) in values.items():
        words, low, high = PAPER[name]
        verdict = "inside" if low <= value <= high else "OUTSIDE"
        lines.append(f"{name:<22}{value:8.3f} {between:<18} {wanted:<15}  published {words:<17} {verdict} {low:g} to {high:g}")
    return lines


def areas(risk: Float, of_state: Float, seen: Visits) -> list[str]:
    """AUROC of the truth and of both models: by what happened, and expected under the true risk, which has far less noise."""
    rows = {"true risk": seen.risk, "model on true features": of_state, f"model on {USE_CASE}": risk}
    lines = [f"{'':<28}AUROC happened   expected   expected, less than the truth's"]
    best = float(metrics.auroc(seen.risk, seen.risk))
    for name, column in rows.items():
        expected = float(metrics.auroc(column, seen.risk))
        lines.append(f"{name:<28}{float(metrics.auroc(column, seen.label)):14.4f} {expected:10.4f} {best - expected:10.4f}")
    return lines


def speed(patients: int) -> str:
    """Patient-years a minute, of events alone."""
    made = clinic.Clinic(patients, datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC), 3)
    begin_s, cpu_s = time.perf_counter(), time.process_time()
    events = sum(1 for _ in made.events())
    took_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - cpu_s
    _, course = made.live(np.arange(patients))
    days = np.minimum(np.minimum(course.death_us, course.left_us), made.end_us) - course.registered_us
    years = float(days.sum()) / DAY_US / 365.25
    a_minute = f"{years / took_s * 60:,.0f} patient-years a minute ({years / cpu_s * 60:,.0f} of CPU)"
    return f"{events:,} events of {years:,.0f} patient-years in {took_s:.1f} s: {a_minute}"


@click.command(help=__doc__)
@click.option("--patients", default=12_000, show_default=True, help="Who ever appear in the two years of training.")
@click.option("--seed", default=1, show_default=True)
def main(patients: int, seed: int) -> None:
    """Train, evaluate, print."""
    click.echo(speed(4_000))
    book = codebook()
    use_case = usecase.load(USE_CASE, book)
    trained = clinic.Clinic(patients, TRAIN_FROM, TRAIN_UNTIL, seed)
    tested = replace(trained, patients=EVALUATED_ON, start=TOLD_FROM, end=TOLD_UNTIL, seed=seed + 1)
    with tempfile.TemporaryDirectory() as folder:
        logs = []
        for name, made in (("train", trained), ("test", tested)):
            build_log(made.events(), Path(folder, name), book=book, source="simulated")
            logs.append(Log(Path(folder, name), book))
        model = Model(train.train(logs[0], use_case), use_case)
        seen = visits(tested, logs[1], use_case).between(FROM, UNTIL)
    told = model.artifact.training
    click.echo(
        f"trained on {told['encounters']:,} visits of {told['patients']:,} patients, {told['events']:,} events; seeds {seed}, {seed + 1}"
    )
    scorer = Scorer(model)
    risk = 1 / (1 + np.exp(-scorer.logits(seen.matrix)))
    truths = list(trained.truths())
    known = [(state_of(t)[t.followed], t.event[t.followed], t.people.number[t.followed]) for t in truths]
    state, event, patient = (np.concatenate(column) for column in zip(*known, strict=True))
    of_state = families.fit(families.LOGISTIC, state, event.astype(np.float64), patient)
    click.echo("\n".join([*figures(risk, seen), *areas(risk, of_state.risk(seen.state), seen)]))


if __name__ == "__main__":
    main()
