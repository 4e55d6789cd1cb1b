"""A simulated oncology clinic with known truth: its feeds, and the true risk behind each visit."""

from features.clinic.clinic import Clinic, Told, Truth, events
from features.clinic.scenario import Knobs, Scenario

__all__ = ["Clinic", "Knobs", "Scenario", "Told", "Truth", "events"]
