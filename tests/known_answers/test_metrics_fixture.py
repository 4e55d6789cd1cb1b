"""Every metric against reference packages (E6) on 1,513 invented scores of 300 patients, most of them tied, to the printed digits.

The values come from scikit-learn 1.9.1, statsmodels 0.15.0 and scipy 1.17.1. Of E6 are not asked, because nothing here computes them:
the equal-width and equal-count calibration errors, the local quadratic fit, Mantel-Haenszel, survival and drift.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass

import numpy as np
import pytest

from models import metrics
from tests.known_answers.conftest import DATA

DIGITS = 1e-10
"""Ten decimals are printed."""


@dataclass(frozen=True)
class Scores:
    risk: metrics.Float
    label: metrics.Float
    patient: metrics.Int

    @property
    def flagged(self) -> metrics.Bool:
        return self.risk >= 0.20


@pytest.fixture(scope="module")
def scores() -> Scores:
    with (DATA / "metrics_fixture" / "scores.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    risk, label = (np.array([float(row[name]) for row in rows]) for name in ("score", "y"))
    return Scores(risk, label, np.unique([row["patient"] for row in rows], return_inverse=True)[1])


def test_the_fixture_is_the_one_that_was_asked(scores: Scores) -> None:
    """Rows, patients, events, and scores that repeat another."""
    distinct = len(np.unique(scores.risk))
    found = (len(scores.risk), len(np.unique(scores.patient)), int(scores.label.sum()), len(scores.risk) - distinct)
    assert found == (1_513, 300, 210, 1_236)


def test_order(scores: Scores) -> None:
    """AUROC with both standard errors, average precision."""
    area, se = float(metrics.auroc(scores.risk, scores.label)), metrics.auroc_se_delong(scores.risk, scores.label)
    assert area == pytest.approx(0.7226619888, abs=DIGITS)
    assert se == pytest.approx(0.0182910488, abs=DIGITS)
    assert (area - metrics.Z95 * se, area + metrics.Z95 * se) == pytest.approx((0.6868121919, 0.7585117857), abs=DIGITS)
    assert metrics.auroc_se_clustered(scores.risk, scores.label, scores.patient) == pytest.approx(0.0206500951, abs=DIGITS)
    assert float(metrics.average_precision(scores.risk, scores.label)) == pytest.approx(0.2947676986, abs=DIGITS)


def test_level(scores: Scores) -> None:
    """Brier, log loss, and the two calibration models with their standard errors."""
    risk, label = scores.risk, scores.label
    found = [float(f(risk, label)) for f in (metrics.brier, metrics.brier_scaled, metrics.log_loss)]
    assert found == pytest.approx([0.1114411732, 0.0676911196, 0.3707106666], abs=DIGITS)
    assert float(metrics.calibration_in_the_large(risk, label)) == pytest.approx(-0.0580639705, abs=DIGITS)
    assert metrics.calibration_in_the_large_se(risk, label) == pytest.approx(0.0754567216, abs=DIGITS)
    assert [float(x) for x in metrics.calibration_line(risk, label)] == pytest.approx([1.1789278305, 1.7599674278], abs=DIGITS)
    assert metrics.calibration_slope_se(risk, label) == pytest.approx(0.1780618546, abs=DIGITS)
    assert metrics.calibration_slope_se(risk, label, scores.patient) == pytest.approx(0.2065535010, abs=DIGITS)
    assert float(metrics.calibration_factor(risk, label)) == pytest.approx(0.006874421678783882, abs=1e-15)
    assert float(metrics.oe_ratio(risk, label)) == pytest.approx(0.9528087440619597, abs=1e-15)


def test_smooth_calibration(scores: Scores) -> None:
    """ICI, E50 and E90 of lowess: span 0.75, local lines, tricube, no robustness steps."""
    seen = metrics.smooth_calibration(scores.risk, scores.label)
    assert metrics.calibration_error(scores.risk, seen) == pytest.approx((0.0316276342, 0.0305144790, 0.0457370442), abs=DIGITS)


def test_flags_at_twenty_in_a_hundred(scores: Scores) -> None:
    """The table, PPV with Wilson's interval, odds ratio with Wald's."""
    found = tuple(int(x) for x in metrics.table(scores.flagged, scores.label))
    assert found == (82, 193, 128, 1110)
    assert float(metrics.ppv(scores.flagged, scores.label)) == pytest.approx(0.2981818182, abs=DIGITS)
    assert metrics.wilson(82, 275) == pytest.approx((0.2471966555, 0.3547276764), abs=DIGITS)
    assert metrics.odds_ratio_wald(*found) == pytest.approx((3.6844235751, 2.6846051796, 5.0566009423), abs=DIGITS)


@pytest.mark.parametrize(
    ("threshold", "benefit"),
    [(0.05, 0.0942011340), (0.10, 0.0588969670), (0.15, 0.0387232223), (0.20, 0.0223066755), (0.30, 0.0044377301)],
)
def test_net_benefit(scores: Scores, threshold: float, benefit: float) -> None:
    """Flagged at or above the threshold."""
    assert float(metrics.net_benefit(scores.risk >= threshold, scores.label, threshold)) == pytest.approx(benefit, abs=DIGITS)
