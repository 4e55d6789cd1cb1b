"""The model as a readable JSON file, bound to its use case by a hash; loading refuses what does not fit."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError

from features import codes
from features.errors import InputError
from features.usecase import Definition, UseCase, bind

FORMAT = 1


class Column(msgspec.Struct, frozen=True):
    """What the model does with one feature: z = (x − mean) / scale, x = `fill` where it is null."""

    name: str
    coefficient: float
    """Of z."""
    missing_coefficient: float
    """Of the indicator that x is null."""
    fill: float
    mean: float
    scale: float
    missing_rate: float
    """Share of null in training: the reference patient of the reasons."""


class Artifact(msgspec.Struct, frozen=True):
    """The whole file. `version` is a hash of all the rest, so that equal versions are equal models."""

    format: int
    version: str
    family: str
    use_case: dict[str, Any]
    """The definition, as in the TOML file."""
    use_case_hash: str
    threshold: float
    """Flagged at or above it."""
    threshold_reason: str
    intercept: float
    columns: list[Column]
    training: dict[str, Any]
    """From when to when, how many encounters, patients and events, and how the penalty was chosen."""


class Model:
    """A loaded model with its use case."""

    def __init__(self, artifact: Artifact, use_case: UseCase) -> None:
        self.artifact, self.use_case = artifact, use_case
        self.threshold_logit = math.log(artifact.threshold / (1.0 - artifact.threshold))

    @property
    def version(self) -> str:
        return self.artifact.version


def version_of(artifact: Artifact) -> str:
    """Name of the use case and a hash of the content."""
    content = msgspec.json.encode(msgspec.structs.replace(artifact, version=""), order="sorted")
    return f"{artifact.use_case.get('name')}-{hashlib.blake2b(content, digest_size=6).hexdigest()}"


def save(artifact: Artifact, path: Path) -> None:
    """Write the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(artifact, order="sorted"), indent=1) + b"\n")
    part.replace(path)


def load(path: Path, book: codes.Codebook, *, use_case: UseCase | None = None) -> Model:
    """Read a model.

    Args:
        path: The JSON file, or a folder that holds `model.json`.
        book: The code sets of this version.
        use_case: The site's own use case, if it has one: must be the one the model was trained with.
    Raises:
        InputError: not a model, another format, a content that does not match its version, another use case or other code sets.
    """
    file = path / "model.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{path}: no such model. Make one with: premonitor train LOG --use-case NAME --out {path}")
    try:
        artifact = msgspec.json.decode(file.read_bytes(), type=Artifact)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a model: {error}") from None
    if artifact.format != FORMAT:
        raise InputError(f"{file} has format {artifact.format}, this version reads {FORMAT}")
    if artifact.version != version_of(artifact):
        raise InputError(f"{file} was changed after it was saved: its content is {version_of(artifact)}, it says {artifact.version}")
    try:
        bound = bind(Definition.model_validate(artifact.use_case), source=str(file), book=book)
    except ValidationError:
        raise InputError(f"{file} holds a use case that this version cannot read. Train again") from None
    if bound.content_hash != artifact.use_case_hash:
        raise InputError(f"{file} was trained with other code sets or another version of the features. Train again")
    if use_case is not None and use_case.content_hash != artifact.use_case_hash:
        raise InputError(
            f"model {artifact.version} was trained with use case {bound.name} {artifact.use_case_hash}, "
            f"this site has {use_case.content_hash}. Train again, or check out that file"
        )
    names = [c.name for c in artifact.columns]
    if names != bound.feature_names:
        raise InputError(f"{file}: its columns are not those of its use case: {len(names)} and {len(bound.feature_names)} names differ")
    if not 0.0 < artifact.threshold < 1.0 or not all(c.scale > 0 for c in artifact.columns):
        raise InputError(f"{file}: a threshold must lie between 0 and 1 and every scale above 0")
    return Model(artifact, bound)
