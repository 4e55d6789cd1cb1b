"""The visits to evaluate on: revision 0, in a stretch of time behind the training, label mature, each with its risk and its groups."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from features.clock import ALWAYS_US, DAY_US, NEVER_US, rfc3339, to_us
from features.codes import Codebook
from features.cohort import Chunk, chunks, index_answers
from features.errors import InputError
from features.history import NEVER
from features.log import Log
from features.outcome import DEATH, EVENT, labels
from features.progress import Progress, unheard
from features.revision import SCORED, Answers, reasons
from models.artifact import Model
from models.metrics import Bool, Float, Int
from models.score import Scorer
from models.split import HELD_OUT, numbers, share_of

Names = npt.NDArray[np.str_]
NOT_RECORDED = "not recorded"
AGE_BANDS = ((0, "under 18"), (18, "18 to 39"), (40, "40 to 64"), (65, "65 to 79"), (80, "80 and over"))
"""(first year of age, words). Age is in years of 365.25 days at the index time."""
YEAR_DAYS = 365.25
OTHER_SIDE = "patient trained or tuned the model"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One entry a visit, shape (n,)."""

    risk: Float
    flagged: Bool
    label: Float
    """1.0 or 0.0."""
    patient: Int
    index_us: Int
    groups: dict[str, Names]
    """Attribute (race, gender, ethnicity, age) → the group of each visit's patient, or `NOT_RECORDED`."""
    left_out: dict[str, int]
    """Visits of the same stretch of time that were not used, by reason."""
    seen_before: int
    """Patients of these visits who had an index visit before the stretch: training may have seen them."""
    from_us: int
    until_us: int
    """Exclusive; `NEVER_US`: the log's end."""


@dataclass(frozen=True, slots=True)
class Training:
    """What a model's file says of its training."""

    until_us: int | None
    """Index time of the last visit that it was trained on; None: not told."""
    held_out_from_us: int | None
    """Its cut and embargo: behind it the patients of the held-out share are kept for measuring; None: no split in time."""
    at_risk_us: int
    """Of its use case."""

    @property
    def first_us(self) -> int:
        """The first index time that may be evaluated on: without a split in time that at which the last visit of the training is no longer
        at risk, or one outcome would count for both."""
        if self.held_out_from_us is not None:
            return self.held_out_from_us
        return ALWAYS_US if self.until_us is None else self.until_us + self.at_risk_us


def training_of(model: Model) -> Training:
    """When a model was trained, by its file.

    Raises:
        InputError: times without a zone, or that are none.
    """
    told = model.artifact.training
    try:
        until, cut = (to_us(datetime.fromisoformat(told[name])) if name in told else None for name in ("until", "cut"))
        behind = None if cut is None else cut + round(float(told.get("embargo_days", 0)) * DAY_US)
    except (ValueError, TypeError):
        raise InputError(f"model {model.version} does not say readably when it was trained (training.until, cut). Train again") from None
    return Training(until, behind, model.use_case.at_risk_us)


def collect(log: Log, model: Model, *, from_us: int | None = None, until_us: int = NEVER_US, progress: Progress = unheard) -> HeldOut:
    """The mature visits of a log with an index time in [from, until), scored by a model.

    Of a model that was split in time (`models.split`) only the patients that it kept for measuring; of another one all, whether training
    saw their earlier visits or not (`seen_before`).

    Args:
        from_us: None: the first moment behind the training.
        until_us: Exclusive. The last `horizon` days of a log are not mature yet, and are counted under `left_out`.
    Raises:
        InputError: the stretch begins before the training ended, or holds no mature visit.
    """
    training = training_of(model)
    if from_us is None:
        from_us = training.first_us
    elif from_us < training.first_us:
        raise InputError(
            f"model {model.version} was trained on what came before {rfc3339(training.first_us)}: an evaluation from {rfc3339(from_us)} "
            "would praise it for what it has seen. Give a later --from, or train on less"
        )
    left_out: Counter[str] = Counter()
    parts = [_of_chunk(chunk, log, model, (from_us, until_us), left_out) for chunk in chunks(log, [model.use_case], progress=progress)]
    made = [part for part in parts if len(part.risk)]
    if not made:
        raise InputError(
            f"no visit to evaluate on: none from {rfc3339(from_us) if from_us > ALWAYS_US else 'the beginning'} on has a mature label in "
            f"this log. Train with an earlier --until, or give a longer log. Left out: {dict(left_out)}"
        )
    first = np.cumsum([0] + [len(np.unique(part.patient)) for part in made])
    numbered = [np.unique(part.patient, return_inverse=True)[1] + offset for part, offset in zip(made, first, strict=False)]
    return HeldOut(
        risk=np.concatenate([p.risk for p in made]),
        flagged=np.concatenate([p.flagged for p in made]),
        label=np.concatenate([p.label for p in made]),
        patient=np.concatenate(numbered),
        index_us=np.concatenate([p.index_us for p in made]),
        groups={name: np.concatenate([p.groups[name] for p in made]) for name in made[0].groups},
        left_out={reason: n for reason, n in sorted(left_out.items()) if n},
        seen_before=sum(p.seen_before for p in made),
        from_us=from_us,
        until_us=until_us,
    )


def _of_chunk(chunk: Chunk, log: Log, model: Model, stretch_us: tuple[int, int], left_out: Counter[str]) -> HeldOut:
    every, h, use_case = index_answers(chunk, model.use_case), chunk.histories, model.use_case
    from_us, until_us = stretch_us
    found = every.where((every.index_us >= from_us) & (every.index_us < until_us))
    if training_of(model).held_out_from_us is not None:
        kept_apart = share_of(numbers(chunk.patients)) == HELD_OUT
        left_out[OTHER_SIDE] += int((~kept_apart[found.seg]).sum())
        found = found.where(kept_apart[found.seg])
    episode = h.episode[found.encounter]
    told = labels(h, use_case, seg=found.seg, index_us=found.index_us, episode=episode, as_of_us=log.known_until_us)
    scorer = Scorer(model)
    logits = scorer.logits(found.matrix)
    eligible, finite = found.status == SCORED, np.isfinite(logits)
    mature = ~np.isnan(told.label) & (told.mature_us <= log.known_until_us)
    end_us = found.index_us + use_case.at_risk_us
    pending = end_us > log.known_until_us
    names = reasons(use_case)
    for number in found.reason[~eligible].tolist():
        left_out[f"excluded: {names[number]}"] += 1
    unripe = eligible & ~mature
    for reason, mask in (
        ("no finite score", eligible & mature & ~finite),
        ("pending", unripe & pending),
        ("died in the time at risk", unripe & ~pending & (told.status == DEATH)),
        ("outcome seen, follow-up incomplete", unripe & ~pending & (told.status == EVENT)),
        ("follow-up ended", unripe & ~pending & (told.status != DEATH) & (told.status != EVENT)),
    ):
        if mask.any():
            left_out[reason] += int(mask.sum())
    use = eligible & mature & finite
    kept = found.where(use)
    before = np.unique(every.seg[every.index_us < from_us])
    return HeldOut(
        risk=np.array([scorer.risk(z) for z in logits[use].tolist()]),
        flagged=logits[use] >= model.threshold_logit,
        label=told.label[use],
        patient=kept.seg,
        index_us=kept.index_us,
        groups=_groups(chunk, kept, use_case.book),
        left_out={},
        seen_before=len(np.intersect1d(before, kept.seg)),
        from_us=from_us,
        until_us=until_us,
    )


def _groups(chunk: Chunk, found: Answers, book: Codebook) -> dict[str, Names]:
    """The groups of each visit's patient, by what the log says last; age at the index time."""
    wanted = {"race": "person.race.", "ethnicity": "person.ethnicity."}
    numbers = {name: [c.number for c in book.concepts.values() if c.name.startswith(stem)] for name, stem in wanted.items()}
    numbers["gender"] = [book.by_name[name].number for name in ("person.female", "person.male")]
    made = {}
    for attribute in ("race", "gender", "ethnicity"):
        row = _last_told(chunk, numbers[attribute])[found.seg]
        words = [book.concepts[int(chunk.histories.concept[r])].label if r >= 0 else NOT_RECORDED for r in row.tolist()]
        made[attribute] = np.array(words, dtype=np.str_)
    birth = _last_told(chunk, [book.by_name["person.birth"].number])[found.seg]
    age = (found.index_us - chunk.histories.event_us[birth]) / (YEAR_DAYS * DAY_US)
    band = np.searchsorted([first for first, _ in AGE_BANDS], age, side="right") - 1
    words = [AGE_BANDS[b][1] if b >= 0 and r >= 0 else NOT_RECORDED for b, r in zip(band.tolist(), birth.tolist(), strict=True)]
    return {**made, "age": np.array(words, dtype=np.str_)}


def _last_told(chunk: Chunk, concepts: list[int]) -> Int:
    """Row of the fact of these concepts that was told last and still rules at the log's end, by patient; -1: none."""
    h = chunk.histories
    row = np.flatnonzero(h.present & (h.until == NEVER) & np.isin(h.concept, concepts))  # in log order within a patient
    last = np.full(len(chunk.patients), -1, np.int64)
    last[h.seg[row]] = row
    return last
