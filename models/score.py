"""Scores: the risk of each answer, its reasons by topic, and the record that is issued (S6, S8).

All arithmetic is column by column in the order of the features, on numpy alone: a row has the same bits whatever batch it is in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from features import codes, fact
from features.clock import DAY_US, rfc3339_many
from features.errors import InputError
from features.history import Histories, Int, stretches
from features.revision import SCORED, STATUS_NAMES, Answers, answers, reasons
from features.usecase import UseCase
from models.artifact import Model

Float = npt.NDArray[np.float64]


class Score(msgspec.Struct, frozen=True, gc=False):
    """One score record, as issued. Nothing issued is ever edited; a later revision has its own record."""

    score_id: str
    """Hash of use case, model, patient, encounter, trigger and its version (S8). The patient is in it because a source that corrects
    a visit to another patient tells the same encounter under both."""
    patient_id: str
    encounter_id: str
    use_case: str
    model_version: str
    role: str
    """`champion`, or `shadow` for a model that only watches."""
    index_time: str
    known_time: str
    """known(k) of the record that triggered it (S3)."""
    revision: int
    trigger: str
    """Id of that record."""
    status: str
    """`scored`, `excluded`, `withdrawn`, `failed`."""
    reason: str
    risk: float | None
    flagged: bool
    contributions: list[tuple[str, float]]
    """(topic, share of the logit against the reference patient), largest first. They and the base add up to the logit."""
    missing: list[str]
    """Topics of which nothing was known."""
    row_digest: str


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Score).decode


class Scorer:
    """A model made ready to score rows."""

    def __init__(self, model: Model) -> None:
        self.model = model
        columns = model.artifact.columns
        self.topics = sorted({f.topic for f in model.use_case.features})
        topic_of = {topic: n for n, topic in enumerate(self.topics)}
        self._topic = [topic_of[f.topic] for f in model.use_case.features]
        names = ("fill", "mean", "scale", "coefficient", "missing_coefficient", "missing_rate")
        self._fill, self._mean, self._scale, self._coefficient, self._missing_coefficient, self._missing_rate = (
            np.array([getattr(c, name) for c in columns], np.float64) for name in names
        )
        used = [j for j, c in enumerate(columns) if c.coefficient != 0.0 or c.missing_coefficient != 0.0]
        self._used = [[j for j in used if self._topic[j] == n] for n in range(len(self.topics))]
        self.base = model.artifact.intercept
        for c in columns:
            self.base += c.missing_coefficient * c.missing_rate
        nullable = [np.isnan(c.fill) or c.missing_rate > 0 or c.missing_coefficient != 0 for c in columns]
        self._nullable = [[j for j, t in enumerate(self._topic) if t == n and nullable[j]] for n in range(len(self.topics))]

    def contributions(self, matrix: Float) -> Float:
        """Share of the logit by topic, shape (n, topics); with `base` they add up to the logit.

        Args:
            matrix: Rows of the use case's features, float64, shape (n, p); NaN is null.
        """
        null = np.isnan(matrix)
        z = (np.where(null, self._fill, matrix) - self._mean) / self._scale
        parts = z * self._coefficient + (null - self._missing_rate) * self._missing_coefficient
        shares = np.zeros((len(matrix), len(self.topics)))
        for n, columns_used in enumerate(self._used):
            if columns_used:  # column after column, never pairwise: the order of the additions is part of the result (S6)
                shares[:, n] += np.add.accumulate(parts[:, columns_used], axis=1)[:, -1]
        return shares

    def logits(self, matrix: Float) -> Float:
        """The logit of each row, shape (n,)."""
        return self._add_up(self.contributions(matrix))

    def _add_up(self, shares: Float) -> Float:
        logit = np.full(len(shares), self.base)
        for n in range(shares.shape[1]):
            logit += shares[:, n]
        return logit

    def risk(self, logit: float) -> float:
        """Probability of a logit; math.exp, because numpy's differs between its vector and its scalar path."""
        return 1.0 / (1.0 + math.exp(-logit)) if logit > -700.0 else 0.0

    def unknown_topics(self, matrix: Float) -> npt.NDArray[np.bool_]:
        """Topics all of whose nullable features are null, shape (n, topics)."""
        out = np.zeros((len(matrix), len(self.topics)), bool)
        for n, columns in enumerate(self._nullable):
            if columns:
                out[:, n] = np.isnan(matrix[:, columns]).all(axis=1)
        return out

    def records(self, h: Histories, found: Answers, patients: Sequence[bytes], role: str) -> list[tuple[Score, bytes]]:
        """The records of answers, in their order, each with its bytes: made at once, while all that they are made of is near in memory."""
        shares = self.contributions(found.matrix)
        largest = np.argsort(-np.abs(shares), axis=1, kind="stable")
        topics, reason_name = self.topics, reasons(self.model.use_case)
        sets = [bytes(row) for row in self.unknown_topics(found.matrix)]
        lists_of = {some: [topic for topic, is_unknown in zip(topics, some, strict=True) if is_unknown] for some in set(sets)}
        ids = np.empty((len(shares), 4), np.uint64)
        ids[:, 0], ids[:, 1] = h.id_hi[found.encounter], h.id_lo[found.encounter]
        ids[:, 2], ids[:, 3] = h.id_hi[found.trigger], h.id_lo[found.trigger]
        times = rfc3339_many(np.concatenate([found.index_us, h.known_us[found.trigger]]))
        bits = np.ascontiguousarray(found.matrix).view(f"V{found.matrix.shape[1] * 8}")[:, 0], ids.view("V32")[:, 0]
        # Columns as lists of plain values: taken one by one out of arrays they would cost more than all the rest.
        numbers = found.seg, found.revision, found.status, found.reason, h.version[found.trigger], self._add_up(shares)
        lists = (column.tolist() for column in (*numbers, *bits, np.round(shares, 6), largest))
        texts = h.names(found.encounter), times[: len(ids)], times[len(ids) :]
        name, model_version, threshold_logit = self.model.use_case.name, self.model.version, self.model.threshold_logit
        salted, empty = blake2b(f"{name}|{model_version}|".encode(), digest_size=16), blake2b(digest_size=8)
        made = []
        for seg, revision, status, reason, version, logit, row, four, share, order, encounter, index, known, missing in zip(
            *lists, *texts, map(lists_of.__getitem__, sets), strict=True
        ):
            patient = patients[seg]
            scored = status == SCORED and math.isfinite(logit)  # a value at the end of the floats must not stop the stream
            failed = status == SCORED and not scored
            score_id, row_digest = salted.copy(), empty.copy()
            score_id.update(b"%b|%b|%d" % (patient, four, version))
            row_digest.update(row)
            score = Score(
                score_id=score_id.hexdigest(),
                patient_id=patient.decode(),
                encounter_id=encounter,
                use_case=name,
                model_version=model_version,
                role=role,
                index_time=index,
                known_time=known,
                revision=revision,
                trigger=four[16:].hex(),
                status="failed" if failed else STATUS_NAMES[status],
                reason="not_finite" if failed else reason_name[reason],
                risk=self.risk(logit) if scored else None,
                flagged=scored and logit >= threshold_logit,
                contributions=[(topics[n], share[n]) for n in order] if scored else [],
                missing=missing if scored else [],
                row_digest=row_digest.hexdigest() if scored else "",
            )
            made.append((score, encode(score)))
        return made


class Issued(NamedTuple):
    """A score record with where it belongs."""

    seg: int
    """Number of the patient."""
    patient: bytes
    place: int
    """Place of its trigger."""
    encounter: bytes
    """Id of the encounter, 16 bytes."""
    episode: int
    index_us: int
    known_us: int
    told: bool
    """It is issued. Else it was, under another name: a merge brought its encounter, and only the alert need know."""
    fresh: bool
    """May raise an alert (S12): its encounter became due within `fresh_for` of the index time, and neither a death nor the outcome
    itself is known."""
    score: Score
    value: bytes
    """The score as issued."""


class Desk:
    """Issues the score records of several models, each from the place at which it was activated (S7)."""

    def __init__(self, models: Iterable[Model]) -> None:
        self.scorers = {m.version: Scorer(m) for m in models}

    @property
    def use_cases(self) -> list[Any]:
        return [s.model.use_case for s in self.scorers.values()]

    def issue(
        self, h: Histories, patients: Sequence[bytes], activations: Sequence[Activations], *, owner: Int, since: Int, until: Int
    ) -> list[Issued]:
        """Everything that is issued at places in `[since, until)`, by patient in place order.

        Args:
            h: Folded histories of `patients`.
            activations: For each partition, payloads of `activate` with their places, in order; the model of an encounter is the
                last before it was due.
            owner: Which partition each patient belongs to, an index into `activations`, shape (patients,).
            since: First place of interest for each patient, shape (patients,); `until` likewise, exclusive.
        Raises:
            InputError: a model is active in the log that was not loaded.
        """
        for activation in (a for partition in activations for a in partition):
            if activation["model_version"] not in self.scorers:
                raise InputError(f"the log activates model {activation['model_version']}, which was not given with --model")
        made: list[Issued] = []
        by_use_case: dict[str, list[Scorer]] = {}
        for scorer in self.scorers.values():
            by_use_case.setdefault(scorer.model.use_case.content_hash, []).append(scorer)
        for scorers in by_use_case.values():
            found = answers(h, scorers[0].model.use_case, since=since, until=until)
            if not len(found.seg):
                continue
            where, due_place, there = _active_where(h, found, activations, owner)
            for scorer in scorers:
                for role, mask in _active(scorer.model, there, due_place, where):
                    part = found if mask.all() else found.where(mask)
                    if len(part.seg):
                        made += _issued(scorer, h, part, patients, role)
        made.sort(key=_IN_ORDER)
        return made


_IN_ORDER = attrgetter("seg", "place", "told")


def _issued(scorer: Scorer, h: Histories, part: Answers, patients: Sequence[bytes], role: str) -> Iterator[Issued]:
    scores, values = zip(*scorer.records(h, part, patients, role), strict=True)
    ids = np.stack([h.id_hi[part.encounter], h.id_lo[part.encounter]], axis=1).view("V16")[:, 0].tolist()
    fresh = part.due_known_us - part.index_us <= scorer.model.use_case.fresh_for_us
    flagged = np.flatnonzero([score.flagged for score in scores])
    if len(flagged):
        fresh[flagged] &= ~_is_over(h, scorer.model.use_case, part, flagged)
    columns = (h.place[part.trigger], part.index_us, h.known_us[part.trigger], h.episode[part.encounter], part.told, fresh)
    place, index, known, episode, told, new = (column.tolist() for column in columns)
    seg = part.seg.tolist()
    return map(Issued, seg, map(patients.__getitem__, seg), place, ids, episode, index, known, told, new, scores, values)


def _is_over(h: Histories, use_case: UseCase, found: Answers, some: Int) -> npt.NDArray[np.bool_]:
    """Whether there is nothing left to warn of: at the place of each of these answers the patient is known to be dead, or to have had
    the outcome."""
    begin = h.start[found.seg[some]]
    of, row = stretches(begin, h.start[found.seg[some] + 1] - begin)
    place = h.place[found.trigger[some]][of]
    known = (h.place[row] <= place) & (h.until[row] > place) & (h.status[row] < fact.GONE)
    of, row = of[known], row[known]
    outcome = use_case.definition.outcome
    after_us = h.event_us[row] - found.index_us[some][of] - outcome.gap_days * DAY_US
    over = use_case.is_outcome(h.concept[row], h.flags[row]) & (h.status[row] != fact.PLANNED)
    over &= (after_us > 0) & (after_us <= use_case.horizon_us)
    if not outcome.own_episode:
        over &= (h.episode[row] != h.episode[found.encounter[some]][of]) | (h.episode[row] == 0)
    over |= h.concept[row] == codes.DEATH
    return np.bincount(of[over], minlength=len(some)) > 0


Activations = Sequence[dict[str, Any]]


def _active_where(h: Histories, found: Answers, activations: Sequence[Activations], owner: Int) -> tuple[Int, Int, list[Activations]]:
    """Whose activations count for each answer, its place among them, and all of them: a carried encounter keeps the model of its first
    patient (S9)."""
    where, due_place, there = owner[found.seg], found.due_place.copy(), list(activations)
    for packet in np.unique(found.packet[found.packet >= 0]).tolist() if h.packets else ():
        _, end, rows = h.packets[packet]
        markers = [row for row in rows.tolist() if h.concept[row] == codes.CARRIED_MODEL]
        mine = found.packet == packet
        if markers:
            there.append([{**msgspec.json.decode(h.name(row)), "place": int(h.heads.place[row])} for row in markers])
            where[mine] = len(there) - 1
        else:  # carried in a log from history: what was active when they came
            due_place[mine] = h.place[end]
    return where, due_place, there


def _active(model: Model, activations: Sequence[Activations], due_place: Int, owner: Int) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Where the model is champion and where it is shadow, by the place at which an encounter became due."""
    champion = np.zeros(len(due_place), bool)
    shadow = np.zeros(len(due_place), bool)
    for n, partition in enumerate(activations):
        for activation in partition:
            if activation["use_case"] != model.use_case.name:
                continue
            after = (due_place > activation["place"]) & (owner == n)
            mine = activation["model_version"] == model.version
            if activation["role"] == "champion":
                champion = np.where(after, mine, champion)
                shadow &= ~(after & mine)
            elif mine:
                shadow |= after & ~champion
    return [("champion", champion), ("shadow", shadow)]


def activation(model: Model, *, number: int, role: str = "champion") -> dict[str, Any]:
    """Payload of the control record that makes a model active from its place on. `number` counts a log's activations."""
    return {
        "id": number,
        "use_case": model.use_case.name,
        "use_case_hash": model.use_case.content_hash,
        "model_version": model.version,
        "role": role,
    }
