"""The rows of the table: what runs in each, and what its results are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from features import codes, fact
from models import score
from streams.admit import CONTROLS
from tests.bench import measure, plain
from tests.bench.generation import Generation
from tests.bench.ground import OUTPUTS, PARTITIONS, Ground
from tests.bench.measure import Run

TOLERANCE = 1e-12
ROUNDED = 1.5e-6
"""Shares of the logit have six decimals: the last may differ."""
FAUST_EVENTS = 8_000
"""The plain Faust worker is given so many events, the first ones."""
Expected = dict[tuple[str, int], plain.Answer]
"""(encounter, revision) → answer."""


def compare(given: Iterable[plain.Answer | score.Score], expected: Expected, *, reasons: bool = True) -> tuple[int, str]:
    """How many scores are wrong, and the sentence about it; a repeat counts as one too many."""
    seen: dict[tuple[str, int], plain.Answer | score.Score] = {}
    repeats = 0
    for one in given:
        key = one.encounter_id, one.revision
        repeats += key in seen
        seen[key] = one
    missing, extra = len(expected.keys() - seen.keys()), len(seen.keys() - expected.keys()) + repeats
    different = sum(not _equal(seen[key], expected[key], reasons) for key in expected.keys() & seen.keys())
    return missing + extra + different, f"{len(seen):,} scores: missing {missing:,}, extra {extra:,}, different {different:,}"


def _equal(one: plain.Answer | score.Score, expected: plain.Answer, reasons: bool) -> bool:
    """Whether a score says what is expected: the risk, and where reasons are asked for the flag and the reasons, rounded as they are."""
    if one.risk is None or abs(one.risk - expected.risk) > TOLERANCE:
        return False
    if not reasons:
        return True
    shares, others = dict(one.contributions), dict(expected.contributions)
    near = shares.keys() == others.keys() and all(abs(shares[topic] - others[topic]) < ROUNDED for topic in shares)
    return near and one.flagged == expected.flagged and one.missing == expected.missing


@dataclass
class Bench:
    """The rows over one ground, with the answers that each must give."""

    ground: Ground
    expected: Expected
    revise: bool = True
    """Whether Bytewax makes revisions too."""
    peer_default_memory: bool = False
    """Whether Bytewax keeps the memory settings of Python and the C library."""
    batch: int = 0
    """Records of a poll of the worker; 0: its default."""

    def floor(self) -> Run:
        """Bare aiokafka over a ready log."""
        made = self.ground.generation("floor")
        records = self.ground.fill_facts(made)
        told = ("--records", str(records), "--events", str(len(self.ground.told)))
        run = measure.of_child("floor", self.ground, "floor", "--topic", made.names.facts, *told)
        self.ground.drop(made)
        return run

    def bytewax(self, *, reasons: bool = True) -> Run:
        """Bytewax over all events, its state in memory."""
        expected = self.expected if self.revise else {key: answer for key, answer in self.expected.items() if key[1] == 0}
        flags = ["--revise" if self.revise else "--no-revise", *(["--default-memory"] if self.peer_default_memory else [])]
        flags += [] if reasons else ["--no-reasons"]
        return self._peer("bytewax", self.ground.merged, len(self.ground.told), expected, *flags, reasons=reasons)

    def risk(self) -> Run:
        """The same with less to do: no reasons, the risk alone."""
        run = self.bytewax(reasons=False)
        run.row = "risk"
        return run

    def faust(self) -> Run:
        """Plain Faust with Redis, on the head of the events, revision 0 only."""
        n = min(FAUST_EVENTS, len(self.ground.told))
        expected = plain.answers([e.value for e in self.ground.told[:n]], self.ground.model, revise=False)
        self.ground.redis.empty()
        return self._peer("faust", self.ground.head(n), n, expected, "--redis", self.ground.redis.url)

    def _peer(self, name: str, read: str, events: int, expected: Expected, *flags: str, reasons: bool = True) -> Run:
        self.ground.runs += 1
        write = f"{name}-{OUTPUTS}-{self.ground.runs}"
        self.ground.make_topics([write])
        told = ("--read", read, "--write", write, "--events", str(events))
        run = measure.of_child(name, self.ground, f"peer_{name}", *told, *flags)
        answers = [msgspec.json.decode(value, type=plain.Answer) for value in self.ground.values(write)]
        run.wrong, run.check = compare(answers, expected, reasons=reasons)
        self.ground.delete([write])
        return run

    def score(self) -> Run:
        """The worker's score stage over a ready log."""
        made = self.ground.generation("score")
        facts = made.names.facts
        records = {facts: self.ground.fill_facts(made)}
        before = self.ground.redis.used_bytes()
        run = measure.of_worker("score", self.ground, made, ["score"], {"score": records}, *self._flags())
        n = len(self.ground.told)
        run.more["redis_bytes_a_fact"] = (self.ground.redis.used_bytes() - before) / n
        run.more["topic_bytes_a_fact"] = self.ground.kafka.log_bytes(facts) / n
        self._prove(run, made, fed=False)
        return run

    def both(self) -> Run:
        """The worker with both stages in one process over the feeds."""
        made = self.ground.generation("both")
        records = {"admit": self._fed(made), "score": {made.names.facts: self._facts()}}
        run = measure.of_worker("both", self.ground, made, ["admit", "score"], records, *self._flags())
        self._prove(run, made, fed=True)
        return run

    def admit(self) -> Run:
        """The worker's admission alone."""
        made = self.ground.generation("admit")
        run = measure.of_worker("admit", self.ground, made, ["admit"], {"admit": self._fed(made)}, *self._flags())
        self._check_order(run, made)
        self.ground.drop(made)
        return run

    def _flags(self) -> list[str]:
        return ["--batch", str(self.batch)] if self.batch else []

    def _fed(self, made: Generation) -> dict[str, int]:
        """Fill the feeds; topic → how many records it holds."""
        records = self.ground.fill_feeds(made)
        labs = sum(e.feed == "labs" for e in self.ground.told)
        of_feed = {"labs": labs, "encounters": len(self.ground.told) - labs, CONTROLS: records - len(self.ground.told)}
        return {made.prefix + feed: n for feed, n in of_feed.items()}

    def _facts(self) -> int:
        """How many records `facts` will hold: each control stands in every partition."""
        return len(self.ground.told) + PARTITIONS * self.ground.controls

    def _prove(self, run: Run, made: Generation, *, fed: bool) -> None:
        """`premonitor verify` on the archive of the run, its conservation lines, and the plain reading of the task."""
        issued = made.issued()
        wrong, words = compare([score.decode(value) for _, value in issued], self.expected)
        unproved, proof = made.proof(self.ground.model, issued, fed=fed)
        run.wrong, run.check = wrong + unproved, f"{words}; {proof}"
        self.ground.drop(made)

    def _check_order(self, run: Run, made: Generation) -> None:
        """Every patient's facts must stand in `facts` once, in known-time order."""
        wanted: dict[str, list[bytes]] = {}
        for event in self.ground.told:
            told = plain.decode(event.value)
            wanted.setdefault(told.patient_id, []).append(told.id.encode())
        came: dict[str, list[bytes]] = {}
        for key, value in self.ground.records(made.names.facts):
            if int.from_bytes(value[59:61], "little") < codes.CONTROL_FLOOR:
                came.setdefault((key or b"").decode(), []).append(fact.source_id(value))
        wrong = sum(came.get(patient) != ids for patient, ids in wanted.items()) + len(came.keys() - wanted.keys())
        run.wrong = wrong
        run.check = f"{sum(map(len, came.values())):,} facts: {wrong:,} patients out of order"
