"""The hot twin of `features.event`: msgspec decoders derived from the pydantic fields, so that there is one definition.

Both give the same verdict on the same bytes (tests/features/test_decode.py compares them on generated input).
"""

from __future__ import annotations

import types
from datetime import datetime
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import msgspec
from pydantic.fields import FieldInfo

from features import event
from features.errors import Rejected

RECORD_BYTES_MAX = 64 * 1024
"""A longer feed record is refused unread: one event is a few hundred bytes."""


def _annotation(annotation: Any, metadata: list[Any]) -> Any:
    """The msgspec form of a pydantic annotation with its bounds."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        flat = [y for x in more for y in (x.metadata if isinstance(x, FieldInfo) else [x])]
        return _annotation(inner, [*flat, *metadata])
    if origin in (Union, types.UnionType):
        return Union[tuple(_annotation(x, metadata) for x in get_args(annotation))]  # noqa: UP007 (built from values)
    if annotation is type(None) or origin is Literal or annotation is bool or annotation is float:
        return annotation
    if annotation is datetime:
        return Annotated[datetime, msgspec.Meta(tz=True)]
    bounds: dict[str, Any] = {}
    for rule in metadata:
        match rule:
            case annotated_types.MinLen(n):
                bounds["min_length"] = n
            case annotated_types.MaxLen(n):
                bounds["max_length"] = n
            case annotated_types.Ge(n):
                bounds["ge"] = n
            case annotated_types.Le(n):
                bounds["le"] = n
    return Annotated[annotation, msgspec.Meta(**bounds)] if bounds else annotation


def _struct(cls: type[event.Event]) -> type[msgspec.Struct]:
    fields: list[Any] = []
    for name, field in cls.model_fields.items():
        annotation = _annotation(field.annotation, field.metadata)
        fields.append((name, annotation) if field.is_required() else (name, annotation, field.default))
    return msgspec.defstruct(cls.__name__, fields, frozen=True, gc=False, kw_only=True)


STRUCTS: dict[str, type[msgspec.Struct]] = {feed: _struct(cls) for feed, cls in event.FEEDS.items()}
_DECODERS = {feed: msgspec.json.Decoder(struct) for feed, struct in STRUCTS.items()}


def decode(feed: str, value: bytes | None) -> Any:
    """The event in one feed record, as a struct with the fields of `features.event`.

    Raises:
        Rejected: with a stable reason code and the path of the field, never its content.
    """
    if value is None:
        raise Rejected("empty", "a record without a value; to take a fact back send a retraction")
    if len(value) > RECORD_BYTES_MAX:
        raise Rejected("too-large", f"{len(value)} bytes; at most {RECORD_BYTES_MAX} are read")
    try:
        return _DECODERS[feed].decode(value)
    except msgspec.ValidationError as error:
        raise _verdict(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Rejected("not-json", "the value is not one JSON object in UTF-8") from None


def _verdict(error: msgspec.ValidationError) -> Rejected:
    """msgspec names rule and path but not the input; sort its sentence into our reason codes."""
    text = str(error)
    if text.startswith("Invalid enum value"):  # it repeats the word that came: keep the path only
        path = text.rpartition(" - at ")[2]
        return Rejected("unknown-version" if path == "`$.schema_version`" else "bad-value", f"a word outside the list - at {path}")
    if "missing required field" in text:
        reason = "missing-field"
    elif "$.schema_version" in text:
        reason = "unknown-version"
    elif "timezone" in text or "RFC3339" in text:
        reason = "bad-time"
    else:
        reason = "bad-value"
    return Rejected(reason, text)
