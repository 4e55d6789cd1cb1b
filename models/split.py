"""Which visits train, which choose the threshold and which are held out: by patient, and in time with an embargo between.

                               cut              cut + embargo
    train, tuning  ─────────────)[── embargo ────)[─────── held out
    index time < cut,                              index time ≥ cut + embargo
    label settled ≤ cut

A patient has one role for good, given by the hash of the name: training anew with more data moves nobody from one side to the other.
Whoever has visits on both sides of the cut counts on the side of the role only, because choosing by the visits would let the future
decide who is trained on. Pure functions; nothing here is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.clock import DAY_US
from features.errors import InputError
from features.fact import hash64

Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

SHARES = 5
"""Patients are dealt into so many equal shares: one chooses the threshold, one is held out where there is a cut, the others train."""
TUNING, HELD_OUT = 0, 1
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Split:
    """Masks over the visits, shape (n,). A visit is in one of them or, for a reason that is counted, in none."""

    train: Bool
    tuning: Bool
    """Chooses the threshold; never trained on."""
    held_out: Bool
    """Measures; empty without a cut."""
    left_out: dict[str, int]
    cut_us: int | None = None
    embargo_us: int = 0
    warning: str = ""
    """A sentence where the embargo is too short; else empty."""


def numbers(patients: Sequence[str]) -> Int:
    """The hash of each patient's name, never negative: the same in training and in evaluation, or the held-out side would leak."""
    return np.array([hash64(name) % 2**62 for name in patients], np.int64)


def share_of(patient: Int) -> Int:
    """The share (0 … 4) that a patient is dealt into, shape (n,). `patient` is a hash that is never negative."""
    return (patient // 7) % SHARES


def by_patient(patient: Int) -> Split:
    """All visits train, but for those of the tuning patients; nothing is held out."""
    tuning = share_of(patient) == TUNING
    return Split(~tuning, tuning, np.zeros(len(patient), bool), {})


def in_time(patient: Int, index_us: Int, settled_us: Int, *, cut_us: int, embargo_us: int, at_risk_us: int) -> Split:
    """Train and tune before the cut, hold out other patients behind it and the embargo.

    Args:
        patient: Hash of each visit's patient, shape (n,).
        index_us: Index time of each visit.
        settled_us: When its label was both known and mature (`train.Rows.settled_us`): a label that settles exactly at the cut counts.
        cut_us: A visit exactly at it is behind it.
        embargo_us: Left empty behind the cut; a visit exactly at its end is held out.
        at_risk_us: End of the time at risk after the index time: gap and horizon.
    Raises:
        InputError: a negative embargo.
    """
    if embargo_us < 0:
        raise InputError(f"an embargo of {embargo_us / DAY_US:g} days would hold out visits before the cut: give 0 or more")
    share, before = share_of(patient), index_us < cut_us
    settled, behind = settled_us <= cut_us, index_us >= cut_us + embargo_us
    learns = share != HELD_OUT
    usable = learns & before & settled
    left_out = {
        "label not settled at the cut": learns & before & ~settled,
        "in the embargo": ~before & ~behind,
        "patient of the other side of the cut": (learns & behind) | (~learns & before),
    }
    counts = {reason: int(mask.sum()) for reason, mask in left_out.items()}
    return Split(
        train=usable & (share != TUNING),
        tuning=usable & (share == TUNING),
        held_out=~learns & behind,
        left_out=counts,
        cut_us=cut_us,
        embargo_us=embargo_us,
        warning=_too_short(embargo_us, at_risk_us),
    )


def _too_short(embargo_us: int, at_risk_us: int) -> str:
    if embargo_us >= at_risk_us:
        return ""
    gap_days, at_risk_days = embargo_us / DAY_US, at_risk_us / DAY_US
    return (
        f"the gap between training and held-out visits is {gap_days:g} days, shorter than the time at risk of {at_risk_days:g} days: "
        f"what is measured may be too good. Give an embargo of at least {at_risk_days:g} days"
    )


def folds(patient: Int, label: npt.NDArray[np.float64], n: int = FOLDS) -> list[tuple[Int, Int]]:
    """Cross-validation: (rows to fit on, rows to measure on) of each fold, patients kept together, each patient measured once.

    Patients with an event and patients without are dealt round by their hash, so that the folds are alike and do not depend on the order
    of the rows. Fewer patients than `n`: as many folds as patients.
    """
    names, number = np.unique(patient, return_inverse=True)
    n = min(n, len(names))
    has_event = np.bincount(number, weights=label, minlength=len(names)) > 0
    order = np.lexsort((names, ~has_event))
    fold_of = np.empty(len(names), np.int64)
    fold_of[order] = np.arange(len(names)) % max(n, 1)
    fold = fold_of[number]
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n)]
