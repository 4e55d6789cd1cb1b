"""The published figures of the use case, by arithmetic (E5): which tables of visits print them, and what interval those tables have.

A share printed as 7 % is any that rounds half up to it, in whole numbers; odds ratios and intervals print one decimal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from models import metrics

Counts = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tables:
    """Tables of visits, shape (tables,)."""

    tp: Counts
    fp: Counts
    fn: Counts
    tn: Counts

    @property
    def odds_ratio(self) -> Float:
        return self.tp * self.tn / (self.fp * self.fn)

    @property
    def wald(self) -> tuple[Float, Float]:
        half = metrics.Z95 * np.sqrt(1 / self.tp + 1 / self.fp + 1 / self.fn + 1 / self.tn)
        return self.odds_ratio * np.exp(-half), self.odds_ratio * np.exp(half)

    def where(self, mask: npt.NDArray[np.bool_]) -> Tables:
        return Tables(self.tp[mask], self.fp[mask], self.fn[mask], self.tn[mask])

    def rows(self) -> list[tuple[int, int, int, int]]:
        return list(zip(*(column.tolist() for column in (self.tp, self.fp, self.fn, self.tn)), strict=True))


def percent(part: Counts, whole: Counts | int) -> Counts:
    """Whole percent, halves up, in whole numbers."""
    return (200 * part + whole) // (2 * whole)


def one_decimal(x: Float) -> Float:
    """Tenths as a whole number, halves up."""
    return np.floor(10 * x + 0.5)


def all_tables(n: int, *, prevalence: int, flagged: int, ppv: int, npv: int) -> Tables:
    """Every table of n visits that prints these four percentages."""
    tp, fp, fn = [], [], []
    every = np.arange(n + 1)
    for f in every[percent(every, n) == flagged].tolist():
        true_flags, missed = np.arange(f + 1), np.arange(n - f + 1)
        true_flags = true_flags[percent(true_flags, f) == ppv]
        missed = missed[percent(n - f - missed, n - f) == npv]
        t, m = np.meshgrid(true_flags, missed, indexing="ij")
        fits = percent(t + m, n) == prevalence
        tp.append(t[fits])
        fp.append(f - t[fits])
        fn.append(m[fits])
    made = [np.concatenate(column) for column in (tp, fp, fn)]
    return Tables(*made, n - sum(made))


@pytest.fixture(scope="module")
def prospective() -> Tables:
    found = [all_tables(n, prevalence=7, flagged=10, ppv=22, npv=95) for n in range(560, 681)]
    return Tables(*(np.concatenate([getattr(t, name) for t in found]) for name in ("tp", "fp", "fn", "tn")))


@pytest.fixture(scope="module")
def retrospective() -> Tables:
    return all_tables(28_433, prevalence=10, flagged=8, ppv=26, npv=91)


def visits(tp: int, fp: int, fn: int, tn: int) -> tuple[npt.NDArray[np.bool_], Float]:
    """(flagged, label) of a table."""
    return np.repeat([True, True, False, False], [tp, fp, fn, tn]), np.repeat([1.0, 0.0, 1.0, 0.0], [tp, fp, fn, tn])


def test_tables_of_the_prospective_study(prospective: Tables) -> None:
    """1,971 tables print the four percentages, 225 an odds ratio of 5.4, and two its interval too."""
    assert len(prospective.tp) == 1_971
    assert (prospective.odds_ratio.min().round(4), prospective.odds_ratio.max().round(4)) == (4.7166, 5.8974)
    printed = one_decimal(prospective.odds_ratio) == 54
    assert printed.sum() == 225
    low, high = prospective.wald
    assert prospective.where(printed & (one_decimal(low) == 26) & (one_decimal(high) == 110)).rows() == [
        (13, 46, 28, 531),
        (13, 47, 28, 542),
    ]
    n = prospective.tp + prospective.fp + prospective.fn + prospective.tn
    assert (n == 618).sum() == 14


@pytest.mark.parametrize(
    ("table", "want"),
    [
        ((13, 46, 28, 531), (5.359472, 2.599649, 11.049159)),
        ((13, 47, 28, 542), (5.354103, 2.600503, 11.023413)),
        ((592, 1683, 2354, 23804), (3.556977, 3.209536, 3.942030)),
        ((592, 1683, 2389, 23769), (3.499712, 3.158228, 3.878120)),
    ],
)
def test_wald_intervals(table: tuple[int, int, int, int], want: tuple[float, float, float]) -> None:
    """To six digits, and the same odds ratio from the visits themselves."""
    found = metrics.odds_ratio_wald(*table)
    assert tuple(round(x, 6) for x in found) == want
    assert float(metrics.odds_ratio(*visits(*table))) == pytest.approx(found[0], rel=1e-12)


def test_the_table_of_618_visits() -> None:
    """Sensitivity, specificity, PPV, NPV and net benefit of the one table of the middle size."""
    flagged, label = visits(13, 46, 28, 531)
    shares = (metrics.sensitivity, metrics.specificity, metrics.ppv, metrics.npv)
    assert [round(float(share(flagged, label)), 6) for share in shares] == [0.317073, 0.920277, 0.220339, 0.949911]
    assert float(metrics.net_benefit(flagged, label, 0.20)) == pytest.approx(0.00242718, abs=5e-9)


def test_tables_of_the_retrospective_study(retrospective: Tables) -> None:
    """1,099,181 tables; of those that print 3.5 none has an interval narrower than 0.69, and 3.4 to 3.5 is 0.2 wide at most."""
    assert len(retrospective.tp) == 1_099_181
    ratio = retrospective.odds_ratio
    assert (ratio.min().round(4), ratio.max().round(4)) == (3.3463, 3.881)
    printed = retrospective.where(one_decimal(ratio) == 35)
    assert len(printed.tp) == 219_025
    low, high = printed.wald
    assert [round(float(x), 4) for x in ((high - low).min(), (high - low).max())] == [0.6958, 0.7559]
    assert [round(float(x), 3) for x in (low.min(), low.max(), high.min(), high.max())] == [3.103, 3.211, 3.816, 3.947]
    sensitivity, specificity = printed.tp / (printed.tp + printed.fn), printed.tn / (printed.tn + printed.fp)
    assert [round(float(x), 4) for x in (sensitivity.min(), sensitivity.max())] == [0.1858, 0.2120]
    assert [round(float(x), 4) for x in (specificity.min(), specificity.max())] == [0.9294, 0.9383]
    benefit = printed.tp / 28_433 - printed.fp / 28_433 / 4
    assert [round(float(x), 5) for x in (benefit.min(), benefit.max())] == [0.00516, 0.00647]


def test_how_many_visits_the_published_interval_needs() -> None:
    """About 357,000: half of the widest interval that prints 3.4 to 3.5, on the log scale, against that of the central table."""
    tp, fp, fn, tn = 592, 1683, 2354, 23804
    half = metrics.Z95 * math.sqrt(1 / tp + 1 / fp + 1 / fn + 1 / tn)
    widest = math.log(3.55 / 3.35) / 2
    assert 28_433 * (half / widest) ** 2 == pytest.approx(357_335, abs=1)


def test_the_central_table_with_an_odds_ratio_of_three_and_a_half() -> None:
    """Shares with their Wilson intervals, and the net benefit of flagging as it did and of flagging all."""
    flagged, label = visits(592, 1683, 2389, 23769)
    want = {
        metrics.sensitivity: (0.198591, (592, 2981), (0.184662, 0.213296)),
        metrics.specificity: (0.933876, (23769, 25452), (0.930757, 0.936863)),
        metrics.ppv: (0.260220, (592, 2275), (0.242605, 0.278643)),
        metrics.npv: (0.908670, (23769, 26158), (0.905119, 0.912102)),
    }
    for share, (value, (events, n), interval) in want.items():
        assert round(float(share(flagged, label)), 6) == value
        assert tuple(round(x, 6) for x in metrics.wilson(events, n)) == interval
    assert float(metrics.net_benefit(flagged, label, 0.20)) == pytest.approx(0.00602293, abs=5e-9)
    assert round(float(metrics.net_benefit(np.ones(len(label), bool), label, 0.20)), 6) == -0.118946


def test_the_clinical_accuracy() -> None:
    """76 % (0.62-0.89) is 31 of 41 by the Wald formula, and no share at all by Wilson's."""
    wald, wilson = [], []
    for n in range(10, 301):
        for k in range(1, n):
            p = k / n
            if not 0.755 <= p < 0.765:
                continue
            half = metrics.Z95 * math.sqrt(p * (1 - p) / n)
            for found, (low, high) in ((wald, (p - half, p + half)), (wilson, metrics.wilson(k, n))):
                if (math.floor(100 * low + 0.5), math.floor(100 * high + 0.5)) == (62, 89):
                    found.append((k, n))
    assert (wald, wilson) == ([(31, 41)], [])
