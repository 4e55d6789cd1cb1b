"""Labels: whether the outcome came in the time at risk, and when we could know (question first, answer when it was known)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features import fact
from features.clock import ALWAYS_US, DAY_US, NEVER_US
from features.history import NEVER, Histories, Int
from features.merge import moves
from features.usecase import UseCase

EVENT, NO_EVENT, DEATH, CENSORED = range(4)
STATUS_NAMES = ("event", "no_event", "death", "censored")


@dataclass(frozen=True, slots=True)
class Labels:
    """One entry a question, shape (n,). Times in µs; `NEVER_US`: none."""

    status: Int
    label_known_us: Int
    """event: when the first sufficient fact was known. no_event: `mature_us`. Else none."""
    mature_us: Int
    """End of the time at risk, where the patient was followed until then; else none. Metrics use mature labels only."""

    @property
    def label(self) -> npt.NDArray[np.float64]:
        """1.0, 0.0 or NaN."""
        return np.where(self.status == EVENT, 1.0, np.where(self.status == NO_EVENT, 0.0, np.nan))


def labels(
    h: Histories, use_case: UseCase, *, seg: Int, index_us: Int, episode: npt.NDArray[np.uint64], as_of_us: int = NEVER_US
) -> Labels:
    """The labels of questions, from all that was ever told (hindsight is what a label is).

    The time at risk is `(index_time + gap, index_time + gap + horizon]`; an event exactly at its end counts, one at its start does not.

    Args:
        h: Folded histories.
        use_case: Gives the outcome.
        seg: Patient of each question, shape (n,), with its index time and the episode of its encounter.
        as_of_us: Nothing behind it was observed: coverage that lasts ends here.
    """
    outcome = use_case.definition.outcome
    final = h.present & (h.until == NEVER)
    sufficient = h.present & (h.status != fact.PLANNED) & use_case.is_outcome(h.concept, h.flags)
    begin_us = index_us + outcome.gap_days * DAY_US
    end_us = begin_us + use_case.horizon_us
    known_us = np.full(len(seg), NEVER_US)
    for i in np.flatnonzero(sufficient & final).tolist():
        part = slice(int(np.searchsorted(seg, h.seg[i])), int(np.searchsorted(seg, h.seg[i], side="right")))
        hit = np.ones(part.stop - part.start, bool)
        version = i
        while version >= 0:  # back to the first version that said so
            said = (h.event_us[version] > begin_us[part]) & (h.event_us[version] <= end_us[part])
            if not outcome.own_episode:
                said &= (episode[part] != h.episode[version]) | (h.episode[version] == 0)
            if version == i:
                hit = said
            if sufficient[version]:
                said &= hit
                known_us[part][said] = np.minimum(known_us[part][said], h.known_us[version])
            version = int(h.earlier[version])
    followed_us, death_us = _followed_until(h, final, use_case, as_of_us)
    status = np.where(followed_us[seg] >= end_us, NO_EVENT, np.where(death_us[seg] <= end_us, DEATH, CENSORED))
    status[known_us < NEVER_US] = EVENT
    mature_us = np.where(followed_us[seg] >= end_us, end_us, NEVER_US)
    return Labels(status, np.where(status == EVENT, known_us, np.where(status == NO_EVENT, mature_us, NEVER_US)), mature_us)


def _followed_until(h: Histories, final: npt.NDArray[np.bool_], use_case: UseCase, as_of_us: int) -> tuple[Int, Int]:
    """(end of follow-up, death) of each patient. Death ends follow-up."""
    patients = len(h.start) - 1
    followed, death, moved_us = np.full(patients, ALWAYS_US), np.full(patients, NEVER_US), np.full(patients, NEVER_US)
    cover = final & (h.concept == use_case.follow_up_concept)
    end = np.where(np.isnan(h.value[cover]), as_of_us, h.event_us[cover] + np.nan_to_num(h.value[cover]).astype(np.int64))
    np.maximum.at(followed, h.seg[cover], end)
    died = final & (h.concept == use_case.book.by_name["death"].number)
    np.minimum.at(death, h.seg[died], h.event_us[died])
    for patient, move in moves(h):
        if move.undone < 0:  # what came later was told of the other patient
            moved_us[patient] = h.known_us[move.row]
    last = np.full(patients, ALWAYS_US)
    happened = final & (h.status != fact.PLANNED)
    np.maximum.at(last, h.seg[happened], h.event_us[happened])
    followed = np.minimum(np.where(followed == ALWAYS_US, last, followed), moved_us)
    return np.minimum(followed, np.where(death < NEVER_US, death, followed)), death
