"""A model whose coefficients are drawn from a seed: for tests that need scores, not a good model."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from features import usecase
from features.codes import codebook
from features.usecase import UseCase
from models.artifact import FORMAT, Artifact, Column, Model, version_of


def stand_in(use_case: UseCase, *, seed: int = 1, threshold: float = 0.2) -> Model:
    """Random small coefficients; about a fifth of the rows are flagged."""
    rng = np.random.default_rng(seed)
    columns = [
        Column(
            name=name,
            coefficient=float(rng.normal(0, 0.4)),
            missing_coefficient=float(rng.normal(0, 0.2)),
            fill=1.0,
            mean=1.0,
            scale=float(rng.uniform(0.5, 3.0)) * (1_000.0 if "days" in name else 1.0),
            missing_rate=0.3,
        )
        for name in use_case.feature_names
    ]
    return Model(sealed(use_case, columns, intercept=-1.8, threshold=threshold), use_case)


def sealed(use_case: UseCase, columns: list[Column], *, intercept: float, threshold: float) -> Artifact:
    """An artifact with its version."""
    draft = Artifact(
        format=FORMAT,
        version="",
        family="stand-in",
        use_case=use_case.definition.model_dump(mode="json"),
        use_case_hash=use_case.content_hash,
        threshold=threshold,
        threshold_reason="test",
        intercept=intercept,
        columns=columns,
        training={},
    )
    return msgspec.structs.replace(draft, version=version_of(draft))


def any_visit(**changes: Any) -> UseCase:
    """The shipped use case `ed_60d_any`."""
    return usecase.load("ed_60d_any", codebook())
