"""TOML files that people write: read, checked against a class, and refused with file, line, key, what came and what is allowed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from features.errors import InputError

Checked = TypeVar("Checked", bound=BaseModel)
Place = tuple[int | str, ...]
"""Keys and numbers of list items from the top of the file."""


def read(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: it is not there, not readable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: not readable: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8. Save it as UTF-8 text") from None


def raw(text: str, *, source: str) -> dict[str, Any]:
    """The tables of a text, unchecked. `source` names it in errors.

    Raises:
        InputError: it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source}: not TOML: {error}") from None


def parse(text: str, cls: type[Checked], *, source: str, show_values: bool = True) -> Checked:
    """The checked object of a text.

    Args:
        text: Of the whole file.
        cls: What it must be; unknown keys are refused where the class forbids them.
        source: Names the file in errors.
        show_values: Whether an error repeats what came; no, where a secret may stand in the wrong place.
    Raises:
        InputError: file:line, key, rule and what is allowed, of the first fault.
    """
    tables = raw(text, source=source)
    try:
        return cls.model_validate(tables)
    except ValidationError as error:
        raise InputError(_sentence(source, text, tables, error, cls, show_values)) from None


def line_of(text: str, place: Place) -> int:
    """The line of a key, from 1: tomllib keeps no positions, so follow the table headers.

    Example:
        >>> line_of('site = "a"\\n\\n[kafka]\\nbootstrap = "b"', ("kafka", "bootstrap"))
        4
    """
    lines = text.splitlines()
    at, table, begun, keys = 0, -1, 0, [step for step in place if isinstance(step, str)]
    depth = 0
    for n, step in enumerate(place):  # `table`: line of the header that was entered last; it has the first `begun` of `keys`
        if not isinstance(step, str):
            continue
        depth += 1
        rest = range(max(at, table + 1), len(lines))
        end = next((i for i in range(table + 1, len(lines)) if _HEADER.match(lines[i])), len(lines))
        own = next((i for i in rest if i < end and re.match(rf"\s*{_dotted(keys[begun:depth])}\s*[.=]", lines[i])), None)
        if own is not None:
            at = own
            continue
        headers = [i for i in rest if re.match(rf"\s*\[+\s*{_dotted(keys[:depth])}\s*\]", lines[i])]
        below = [i for i in rest if re.match(rf"\s*\[+\s*{_dotted(keys[:depth])}\s*\.", lines[i])]
        if headers:
            item = place[n + 1] if n + 1 < len(place) else 0
            at = table = headers[min(item, len(headers) - 1) if isinstance(item, int) else 0]
            begun = depth
        elif below:  # named only as a part of another table's name
            at = below[0]
    return at + 1


_HEADER = re.compile(r"\s*\[{1,2}[\w\s.\"'-]+\]{1,2}\s*(#.*)?$")


def _dotted(names: list[str]) -> str:
    return r"\s*\.\s*".join(map(re.escape, names))


def _sentence(source: str, text: str, tables: dict[str, Any], error: ValidationError, cls: type[BaseModel], show_values: bool) -> str:
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(step) for step in fault["loc"]) or "the file"
    came: Any = tables
    for step in fault["loc"]:
        if isinstance(came, list):
            came = came[int(step)]
        else:
            came = came.get(step) if isinstance(came, dict) else None
    shown = f", got {came!r}" if show_values and isinstance(came, (str, int, float, bool)) else ""
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    words = (
        f"there is no such key; known here: {', '.join(_keys(cls, fault['loc']))}" if fault["type"] == "extra_forbidden" else fault["msg"]
    )
    return f"{source}:{line_of(text, fault['loc'])} {place}: {words}{shown}{more}"


def _keys(cls: type[BaseModel], place: Place) -> list[str]:
    """The keys that are known beside the last one of a place."""
    for step in place[:-1]:
        if isinstance(step, str):
            annotation: Any = cls.model_fields[step].annotation
            inner = (annotation, *get_args(annotation))
            cls = next(part for part in inner if isinstance(part, type) and issubclass(part, BaseModel))
    return list(cls.model_fields)
