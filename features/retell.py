"""Retell: from a record of a log back to the event that its source told; the inverse of `fact.convert`."""

from __future__ import annotations

from typing import Any, get_args

from features import codes, event, fact
from features.clock import TIME_MAX_US, rfc3339
from features.errors import InputError

_CLASS = {concept: name for name, concept in codes.VISIT_CONCEPTS.items()}
_PRIORITY = {flag: name for name, flag in fact.PRIORITY.items()}
_TARGETS: tuple[str, ...] = get_args(event.Retraction.model_fields["target_kind"].annotation)
_CONCEPT, _MERGE = slice(59, 61), slice(63, 65)
"""Where they stand in a record of `facts`."""


def is_told(value: bytes) -> bool:
    """Whether a source told this record: it is no control, and no copy of a fact that a merge carried to another patient (S9)."""
    return int.from_bytes(value[_CONCEPT], "little") < codes.CONTROL_FLOOR and value[_MERGE] == b"\0\0"


def retell(patient_id: str, value: bytes) -> tuple[str, dict[str, Any]]:
    """The event of a record of `facts`, as (feed, event in the JSON form of `features.event`).

    Decoded and converted again it gives the same bytes but the number of the feed record (`Told.told`), flags of the way and, where
    the stamp was an append time, the stamp. Not told again, because a fact does not hold it: the zone in which a time was written (all
    are UTC here), fields that the contract does not know, whether a default was written out, and the microseconds of an end more than
    285 years after its start. A retraction's kind of target is in no field: it is the one that gives the record its id.

    Args:
        patient_id: The patient under whom it stands in the log.
        value: A record that `is_told`.
    Raises:
        InputError: nobody told it, or its kind is unknown to this version.
    """
    told = fact.told(value) if is_told(value) else None
    if told is None or told.kind not in event.KINDS:
        raise InputError("a record of facts that is no event of a feed cannot be told again: controls, carried facts, unknown kinds")
    head = {name: field.item() for name, field in zip(fact.HEAD.names or (), fact.heads([value])[0], strict=True)}
    source, merge = fact.source_id(value).decode(), told.kind == "merge"
    fields = event.KINDS[told.kind].model_fields
    said = {
        "id": told.code if merge else source,
        "patient_id": source if merge else patient_id,
        "from_patient_id": patient_id,
        "version": head["version"],
        "event_time": rfc3339(head["event_us"]),
        "known_time": None if told.known_us is None else rfc3339(told.known_us),
        "ordinal": head["ordinal"],
        "episode_id": told.episode_id,
        "encounter_class": _CLASS.get(head["concept"]),
        "status": fact.STATUS_NAME.get(head["status"]),
        "end_time": _end(head["event_us"], head["value"]) if "end_time" in fields else None,
        "priority": _PRIORITY[head["flags"] & fact.PRIORITY_MASK],
        "expired": bool(head["flags"] & fact.EXPIRED),
        "facility": told.facility,
        "code": told.code,
        "code_system": told.code_system,
        "value": told.value,
        "comparator": told.comparator,
        "unit": told.unit,
        "target_kind": _target(value[1:17], source) if "target_kind" in fields else None,
    }
    return event.FEED_OF_KIND[told.kind], {name: said[name] for name in fields if said.get(name) is not None}


def _end(event_us: int, length_us: float) -> str | None:
    """When it ended, from its length; NaN: it goes on. A length of centuries was rounded: its end stays one that is admitted."""
    return rfc3339(min(event_us + int(length_us), TIME_MAX_US - 1)) if length_us == length_us else None


def _target(identity: bytes, source: str) -> str | None:
    return next((kind for kind in _TARGETS if fact.fact_id(kind, source) == identity), None)
