"""The errors a person may meet: each says where, which rule, what came and what to do; never a patient's data."""

from __future__ import annotations


class PremonitorError(Exception):
    """Base of all errors with a sentence for a person. `exit_code` is what the command line returns."""

    exit_code = 2


class InputError(PremonitorError):
    """A wrong argument, file, setting or row: nothing was written, mend it and run again."""


class CheckFailed(PremonitorError):
    """A check ran to its end and found something: a difference, a gap, a damaged value."""

    exit_code = 1


class ServiceError(PremonitorError):
    """Kafka or Redis is out of reach or refuses: the same call may succeed later."""

    exit_code = 3


class Rejected(Exception):
    """One feed record that cannot become a fact. `reason` is a stable code, `detail` a sentence without patient data."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
