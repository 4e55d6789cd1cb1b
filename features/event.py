"""The contract of the feeds: what a hospital sends, one class per kind of event, as JSON on one topic per feed.

These classes are the one definition: `premonitor schema` exports them as JSON Schema, and `features.decode` derives its fast
decoder from their fields. `event_time` is when it was true at the bedside, `known_time` when we were told; both with a zone.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

ID_LENGTH_MAX = 64


def _aware(value: object) -> object:
    """One reading of RFC 3339 for both decoders: a date without a clock time or a zone is refused by both."""
    if not isinstance(value, str):
        raise ValueError("expected a text such as 2026-05-03T09:00:00+02:00")
    try:
        return msgspec.convert(value, datetime)
    except msgspec.ValidationError:
        raise ValueError("expected RFC 3339 with a zone, such as 2026-05-03T09:00:00+02:00") from None


def _zoned(value: object) -> object:
    moment = _aware(value)
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError("the zone is missing: write 2026-05-03T09:00:00+02:00 or ...Z")
    return moment


def _whole(value: object) -> object:
    """`True` and 1.0 equal 1 in Python; in the contract they do not."""
    if type(value) is not int:
        raise ValueError("expected a whole number")
    return value


Id = Annotated[str, Field(min_length=1, max_length=ID_LENGTH_MAX)]
"""An identifier of the source, 1 to 64 characters; it means the same thing for ever."""
Time = Annotated[datetime, BeforeValidator(_zoned)]
"""An instant with a zone."""
VERSION_MAX = 65_535
Version = Annotated[int, Field(ge=1, le=VERSION_MAX)]
Ordinal = Annotated[int, Field(ge=0, le=2**32 - 1)]
Code = Annotated[str, Field(min_length=1, max_length=128)]
Word = Annotated[str, Field(max_length=128)]
Number = Annotated[float, Field(allow_inf_nan=False)]

ResultStatus = Literal["preliminary", "final", "amended", "corrected", "cancelled", "entered-in-error"]
RecordStatus = Literal["final", "amended", "cancelled", "entered-in-error"]


class Event(BaseModel):
    """What every event of every feed has. Unknown fields are ignored, so that a source may send more."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, hide_input_in_errors=True)

    schema_version: Annotated[Literal[1], BeforeValidator(_whole)] = 1
    """Version of this contract; another one is refused, never guessed."""
    id: Id
    """The source's identifier of this fact, unique among its kind. The same id with a higher `version` amends it."""
    patient_id: Id
    """The person. The record key of `facts`; a feed may be keyed by anything."""
    version: Version = 1
    """Counts up with each amendment. Of equal versions the first one told counts."""
    event_time: Time
    """When it was true at the bedside: the draw of a lab, the start of a visit."""
    known_time: Time | None = None
    """When the source filed it. Used where the log is built from history; a live log uses its own append time."""
    ordinal: Ordinal = 0
    """The source's own order among facts with equal `event_time`; 0 where it has none."""
    episode_id: Id | None = None
    """Ties the records of one visit. Encounters without one are their own episode."""


class Encounter(Event):
    """A visit or stay. Topic `encounters`. `event_time` is its start. Every one gets a score record."""

    kind: Literal["encounter"] = "encounter"
    encounter_class: Literal["ambulatory", "emergency", "inpatient", "observation", "home", "virtual"]
    status: Literal["planned", "in-progress", "finished", "cancelled", "entered-in-error"] = "in-progress"
    end_time: Time | None = None
    """End or discharge; None while it goes on. Must not be before `event_time`."""
    priority: Literal["emergency", "urgent", "elective"] | None = None
    """How it came about (HL7 v3 ActPriority EM, UR, EL); None where the source does not say."""
    expired: bool = False
    """The patient died during it."""
    facility: Word = ""


class Lab(Event):
    """A resulted laboratory test. Topic `labs`. `event_time` is the draw, `known_time` the filing of the result."""

    kind: Literal["lab"] = "lab"
    code: Code
    code_system: Word = "loinc"
    value: Number | None = None
    """In `unit`. None: resulted without a number; never imputed here."""
    comparator: Literal["<", "<=", ">", ">="] | None = None
    """The value is a limit of what the laboratory measures."""
    unit: Word = ""
    """UCUM. Needed with a value, where the code is one that features read."""
    status: ResultStatus = "final"


class Vital(Event):
    """A bedside measurement: weight, height. Topic `vitals`."""

    kind: Literal["vital"] = "vital"
    code: Code
    code_system: Word = "loinc"
    value: Number | None = None
    comparator: Literal["<", "<=", ">", ">="] | None = None
    unit: Word = ""
    status: ResultStatus = "final"


class MedicationOrder(Event):
    """An order or prescription. Topic `medication-orders`. `event_time` is when it was written."""

    kind: Literal["medication_order"] = "medication_order"
    code: Code
    code_system: Word = "rxnorm"
    status: RecordStatus = "final"


class MedicationAdministration(Event):
    """A dose that was given. Topic `medication-administrations`."""

    kind: Literal["medication_administration"] = "medication_administration"
    code: Code
    code_system: Word = "rxnorm"
    status: RecordStatus = "final"


class Condition(Event):
    """A coded diagnosis. Topic `conditions`. `known_time` is the recording, never the onset."""

    kind: Literal["condition"] = "condition"
    code: Code
    code_system: Word = "icd10cm"
    status: RecordStatus = "final"


class Coverage(Event):
    """A stretch of time in which we would have been told. Topic `coverage`: insurance, enrolment or observation."""

    kind: Literal["coverage"] = "coverage"
    code: Code
    """`medicaid`, `medicare`, `commercial`, or `observed` for a source that only says from when to when it looked."""
    code_system: Word = "coverage"
    end_time: Time | None = None
    """None while it lasts."""
    status: RecordStatus = "final"


class Person(Event):
    """One attribute of a person. Topic `persons`: `code_system` names it (sex, race, ethnicity, birth), `code` its value."""

    kind: Literal["person"] = "person"
    code: Code
    code_system: Word
    status: RecordStatus = "final"


class Death(Event):
    """The person died at `event_time`. Topic `deaths`."""

    kind: Literal["death"] = "death"
    status: RecordStatus = "final"


class Retraction(Event):
    """Takes back what was told under `id` as `target_kind`: "this was never true". Topic `retractions`."""

    kind: Literal["retraction"] = "retraction"
    version: Version = VERSION_MAX
    """The version that says so. Without one it is the last: nothing told under this id can follow."""
    target_kind: Literal[
        "encounter", "lab", "vital", "medication_order", "medication_administration", "condition", "coverage", "person", "death"
    ]


class Merge(Event):
    """`from_patient_id` turned out to be `patient_id`. Topic `merges`. Told again with a higher version as `entered-in-error`, it is
    undone; the same two are merged again under a new `id`."""

    kind: Literal["merge"] = "merge"
    from_patient_id: Id
    status: Literal["final", "entered-in-error"] = "final"


FEEDS: dict[str, type[Event]] = {
    "encounters": Encounter,
    "labs": Lab,
    "vitals": Vital,
    "medication-orders": MedicationOrder,
    "medication-administrations": MedicationAdministration,
    "conditions": Condition,
    "coverage": Coverage,
    "persons": Person,
    "deaths": Death,
    "retractions": Retraction,
    "merges": Merge,
}
"""Feed (topic name without prefix) → its event class."""

KINDS: dict[str, type[Event]] = {cls.model_fields["kind"].default: cls for cls in FEEDS.values()}
FEED_OF_KIND: dict[str, str] = {cls.model_fields["kind"].default: feed for feed, cls in FEEDS.items()}


def validate(feed: str, value: bytes) -> Event:
    """The event in one feed record, by the written contract.

    Raises:
        msgspec.DecodeError: not one JSON object in UTF-8; what stands in unknown fields is skipped unread.
        pydantic.ValidationError: not an event of this feed.
    """
    cls = FEEDS[feed]
    parts = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
    return cls.model_validate({name: msgspec.json.decode(raw) for name, raw in parts.items() if name in cls.model_fields})


def json_schema() -> dict[str, Any]:
    """JSON Schema of every feed, by feed name."""
    return {feed: cls.model_json_schema() for feed, cls in FEEDS.items()}
