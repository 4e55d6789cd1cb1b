"""The tests can fail: each rule, broken on purpose in the source of the kernel, the fold or the revisions, is caught by the tests it names.

A mutant is a module with one piece of text replaced. It is loaded in a process of its own, in which the named tests must all fail.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import multiprocessing
import os
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
HISTORY, WINDOWS, REVISION = (f"tests/features/test_{name}.py" for name in ("history", "windows", "revision"))
MERGES = "tests/streams/test_merges.py"
KERNEL = f"{WINDOWS}::test_s5_the_kernel_agrees_with_the_oracle"
FOLD = f"{HISTORY}::test_s4_the_fold_agrees_with_the_oracle"
ANSWERS = f"{REVISION}::test_s8_answers_agree_with_the_oracle"


class Mutant(NamedTuple):
    """`old`, which stands exactly once in the module, becomes `new`, and every one of `caught_by` fails."""

    rule: str
    module: str
    old: str
    new: str
    caught_by: tuple[str, ...]


MUTANTS = [
    Mutant(
        "S5: the left edge is open for a window beside a longer one",
        "features.windows",
        "pairs.age_us <= (lookback_us or 0)",
        "pairs.age_us < (lookback_us or 0)",
        (f"{WINDOWS}::test_s5_edges", KERNEL),
    ),
    Mutant(
        "S5: the left edge is open for the longest window",
        "features.windows",
        "since = q.event_us - part.longest_us if",
        "since = q.event_us - part.longest_us + 1 if",
        (f"{WINDOWS}::test_s5_edges", KERNEL),
    ),
    Mutant(
        "S5: the right edge is closed",
        "features.windows",
        "_edges(h.seg[seen], time, q.seg, since, q.event_us)",
        "_edges(h.seg[seen], time, q.seg, since, q.event_us + 1)",
        (f"{WINDOWS}::test_s5_edges", f"{WINDOWS}::test_s5_the_whole_past_ends_at_the_index", KERNEL),
    ),
    Mutant(
        "S5: of facts at one instant the source's order is reversed",
        "features.windows",
        "np.lexsort((h.id_lo[index], h.id_hi[index], h.ordinal[index], time, seg))",
        "np.lexsort((h.id_lo[index], h.id_hi[index], -h.ordinal[index], time, seg))",
        (f"{WINDOWS}::test_s5_last_is_by_event_time_then_ordinal_then_id", f"{WINDOWS}::test_s6_sums_run_in_the_order_of_time", KERNEL),
    ),
    Mutant(
        "S5: of facts at one instant and ordinal the log's order decides, not the id",
        "features.windows",
        "np.lexsort((h.id_lo[index], h.id_hi[index], h.ordinal[index], time, seg))",
        "np.lexsort((h.ordinal[index], time, seg))",
        (f"{WINDOWS}::test_s5_last_is_by_event_time_then_ordinal_then_id",),
    ),
    Mutant(
        "S5: the index visit's own facts count as other's",
        "features.windows",
        "~own | (episode == 0)",
        "~own | own",
        (f"{WINDOWS}::test_s5_not_own", KERNEL),
    ),
    Mutant(
        "S6: sums run backwards",
        "features.windows",
        "np.bincount(cell, weights=self._value, minlength=size)",
        "np.bincount(cell[::-1], weights=self._value[::-1], minlength=size)",
        (f"{WINDOWS}::test_s6_sums_run_in_the_order_of_time",),
    ),
    Mutant(
        "S2: a fact is seen one place early",
        "features.windows",
        "h.place.take(seen).take(pick) <= q.place.take(ask)\n",
        "h.place.take(seen).take(pick) <= q.place.take(ask) + 1\n",
        (f"{WINDOWS}::test_s2_what_is_known_at_a_place", KERNEL),
    ),
    Mutant(
        "S4: what was amended still rules at the place of the amendment",
        "features.windows",
        "q.place.take(ask) < until.take(pick)",
        "q.place.take(ask) <= until.take(pick)",
        (f"{WINDOWS}::test_s2_what_is_known_at_a_place", KERNEL),
    ),
    Mutant(
        "S4: the version told last rules, not the highest",
        "features.history",
        "if best is not None and version[best] > version[i]:",
        "if best is not None and version[best] > 65_535:",
        (f"{HISTORY}::test_s4_a_lower_version_that_comes_later_has_no_effect", f"{HISTORY}::test_s4_order_of_told_does_not_matter", FOLD),
    ),
    Mutant(
        "S4: of equal versions the last one told counts",
        "features.history",
        "        if first != i:",
        "        if False:",
        (
            f"{HISTORY}::test_s4_idempotent_under_repeats",
            f"{HISTORY}::test_s4_other_content_under_one_version_is_a_conflict_without_effect",
        ),
    ),
    Mutant(
        "S4: patients share ids",
        "features.history",
        "identity = (int(seg[i]), ",
        "identity = (0, ",
        (f"{HISTORY}::test_s4_patients_do_not_mix", f"{REVISION}::test_s6_answers_do_not_depend_on_the_batch"),
    ),
    Mutant(
        "S3: known time is at least the event time",
        "features.history",
        "known_us=_running_max(heads.stamp_us, seg, start)",
        "known_us=_running_max(np.maximum(heads.stamp_us, heads.event_us), seg, start)",
        (f"{HISTORY}::test_s3_known_time_is_not_clamped_to_event_time", f"{HISTORY}::test_s3_known_time_is_the_greatest_stamp_so_far"),
    ),
    Mutant(
        "S3: known time goes back with the stamps",
        "features.history",
        "    if len(back):",
        "    if False:",
        (f"{HISTORY}::test_s3_known_time_is_the_greatest_stamp_so_far", f"{REVISION}::test_s7_a_stamp_that_went_back_keeps_a_visit_due"),
    ),
    Mutant(
        "S7: a visit is due at its index time, not five minutes before",
        "features.revision",
        "stints.index_us[index] - fact.FUTURE_TOLERANCE_US",
        "stints.index_us[index]",
        (f"{REVISION}::test_s7_due", f"{REVISION}::test_s7_a_booked_visit_waits_until_it_is_due", ANSWERS),
    ),
    Mutant(
        "S8: revise_for is open",
        "features.revision",
        "(h.known_us[record] <= latest_us[group[which]])",
        "(h.known_us[record] < latest_us[group[which]])",
        (f"{REVISION}::test_s8_revisions_end_with_revise_for", ANSWERS),
    ),
    Mutant(
        "S8: an amendment out of the window goes unnoticed",
        "features.revision",
        "seen[amends] |= _visible(",
        "seen[amends] &= _visible(",
        (f"{REVISION}::test_s8_an_amendment_leaves_a_window_on_both_edges", ANSWERS),
    ),
    Mutant(
        "S8: news on the closed edge of the longest window goes unnoticed",
        "features.revision",
        "time >= index_us - plan.longest_us",
        "time > index_us - plan.longest_us",
        (f"{REVISION}::test_s8_an_amendment_leaves_a_window_on_both_edges",),
    ),
    Mutant(
        "S9: what a merge brings takes effect at once, each record for itself",
        "features.merge",
        "            kept[i] = False\n",
        "            kept[i] = True\n",
        (f"{MERGES}::test_without_an_end_nothing_takes_effect",),
    ),
    Mutant(
        "S9: a carried encounter begins anew under the second patient",
        "features.revision",
        "if due[g] < 0 or h.place[due[g]] >= h.place[end]:",
        "if due[g] < 0:",
        (f"{MERGES}::test_row_12_of_the_worked_example", f"{MERGES}::test_a_visit_that_was_due_before_keeps_its_model_and_its_count"),
    ),
    Mutant(
        "S9: the first patient goes on",
        "features.revision",
        "until[patient] = min(until[patient], move.place)",
        "until[patient] = until[patient]",
        (
            "tests/streams/test_merge_faults.py::test_no_answer_is_given_under_a_name_that_went_over",
            f"{MERGES}::test_from_the_redirect_on_the_first_patient_issues_nothing",
        ),
    ),
    Mutant(
        "S9: later facts stay with the first patient",
        "features.merge",
        "packed=False), _name(h, row))",
        "packed=True), _name(h, row)[:0])",
        (f"{MERGES}::test_from_the_redirect_on_the_first_patient_issues_nothing",),
    ),
]


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Fresh processes, forked from one that has imported the libraries but nothing of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hypothesis", "msgspec", "numpy", "pydantic", "pytest"])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)  # theirs is the path of this process: they import this file by its name
        yield context


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.rule for mutant in MUTANTS])
def test_the_mutant_is_caught(processes: ForkServerContext, mutant: Mutant) -> None:
    """Each of the tests that the mutant names fails on it by an assertion."""
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=report, args=(mutant, sender))
    process.start()
    sender.close()
    failed, output = receiver.recv()  # an EOFError: the process ended before it could tell, see what it wrote
    process.join()
    missed = set(mutant.caught_by) - failed
    assert not missed, f"{mutant.rule}: not caught by {sorted(missed)}\n{output}"


def test_a_mutant_without_its_text_is_refused() -> None:
    """A replacement that finds nothing, or more than one place, is an error: it would prove nothing."""
    for old in ("no such text", "np.where"):
        with pytest.raises(LookupError, match="stands"):
            load(Mutant("none", "features.windows", old, "", ()))


class Failed:
    """Collects the tests that failed by an assertion."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and report.when == "call" and "AssertionError" in report.longreprtext:
            self.names.add(report.nodeid.partition("[")[0])


def load(mutant: Mutant) -> None:
    """Put the mutant in place of its module, before anything imports it."""
    spec = importlib.util.find_spec(mutant.module)
    if spec is None or spec.origin is None:
        raise LookupError(f"{mutant.module} is no module")
    source = Path(spec.origin).read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        raise LookupError(f"{mutant.module}: {mutant.old!r} stands {source.count(mutant.old)} times, should be once: update the mutant")
    module = importlib.util.module_from_spec(spec)
    sys.modules[mutant.module] = module
    exec(compile(source.replace(mutant.old, mutant.new), spec.origin, "exec"), module.__dict__)
    package, _, name = mutant.module.rpartition(".")
    setattr(sys.modules[package], name, module)


def run(mutant: Mutant) -> tuple[set[str], str]:
    """Run on the mutant the tests that it names: (those that failed, what pytest wrote)."""
    os.environ["PREMONITOR_HYPOTHESIS"] = "mutants"
    load(mutant)
    failed, paths = Failed(), [str(ROOT / name) for name in mutant.caught_by]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        pytest.main([f"--rootdir={ROOT}", "-p", "no:cacheprovider", "--assert=plain", "--tb=native", *paths], plugins=[failed])
    return failed.names, output.getvalue()


def report(mutant: Mutant, sender: Connection) -> None:
    """Run in a process of its own."""
    sender.send(run(mutant))
