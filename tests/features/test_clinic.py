"""The clinic behind the feeds: the truth is true, each knob does what it says, and nobody comes after death."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest

from features.clinic import Clinic, Knobs, Scenario, Truth, events, illness, scenario, truth
from features.clinic.draws import Draws
from features.clinic.scenario import Change, Outage
from features.clock import DAY_US, to_us
from features.decode import decode
from features.errors import InputError
from tests.oracle import clinic as oracle

START, MIDDLE, END = (datetime(2025, month, 1, tzinfo=UTC) for month in (1, 5, 9))
NO_TROUBLE: dict[str, float] = dict.fromkeys(Knobs.__dataclass_fields__, 0.0)
QUIET = Knobs(**NO_TROUBLE)
Told = list[dict[str, Any]]


def clinic(patients: int = 300, seed: int = 5, knobs: Knobs = QUIET, **world: Any) -> Clinic:
    return Clinic(patients, START, END, seed, knobs, Scenario(**world))


def told(patients: int = 300, knobs: Knobs = QUIET, **world: Any) -> Told:
    """All events, with their feed, known time and event time."""
    times = ("known_time", "event_time")
    made = clinic(patients, knobs=knobs, **world).events()
    return [{**e, "feed": feed, **{name: datetime.fromisoformat(e[name]) for name in times}} for feed, e in made]


@cache
def plain() -> Told:
    return told()


def truths(made: Clinic) -> Truth:
    """The truth of a clinic whose patients fit into one piece."""
    (one,) = made.truths()
    return one


def without_feed(e: dict[str, Any]) -> str:
    return repr(sorted(e.items()))


# --- the truth ------------------------------------------------------------------------------------------------------------------------


def test_the_true_risk_agrees_with_its_twin() -> None:
    """The forward equation says what many drawn futures say, in each state, right after an emergency visit and long after."""
    made = clinic(400)
    who, course = made.live(np.arange(400))
    stops = course.stops[course.stops["kind"] == illness.AMBULATORY]
    excited, state = stops["excited"], stops["state"]
    some = [np.flatnonzero((state == s) & fresh)[7] for s in range(3) for fresh in (excited > 0.4, excited < 0.01)]
    exact = truth.true_risk(who, illness.Hazard(who, Scenario(), made.start_us), stops[some], start_us=made.start_us)
    rng, futures = np.random.default_rng(11), 3_000
    weekday = (made.start_us // DAY_US + 3) % 7
    for risk, stop in zip(exact.tolist(), stops[some], strict=True):
        drawn = oracle.risk(who, stop, weekday_of_start=weekday, start_us=made.start_us, futures=futures, rng=rng)
        assert abs(drawn - risk) < 4 * np.sqrt(risk * (1 - risk) / futures), (risk, drawn)
    assert len(set(exact.round(6).tolist())) == len(exact)


@pytest.mark.parametrize(
    "world",
    [
        Scenario(),
        Scenario(drift=(Change(2.0, to_us(MIDDLE)),), slope=(Change(0.5, to_us(MIDDLE)),)),
        Scenario(case_mix=(Change(1.0),), bias=(("medicaid", 1.6),)),
    ],
    ids=["stable", "drift", "other people"],
)
def test_the_true_risk_is_calibrated(world: Scenario) -> None:
    """Mean risk and share of events are equal, in all visits and in tenths by risk, within four standard errors by patient."""
    parts = list(Clinic(12_000, START, END, 2, QUIET, world).truths())
    kept = [p.followed for p in parts]
    risk, event = (np.concatenate([getattr(p, name)[k] for p, k in zip(parts, kept, strict=True)]) for name in ("risk", "event"))
    patient = np.concatenate([p.people.number[k] for p, k in zip(parts, kept, strict=True)])
    assert len(risk) > 50_000 and len(kept) > 1
    tenth = np.searchsorted(np.quantile(risk, np.arange(1, 10) / 10), risk)
    for mask in (np.ones(len(risk), bool), *(tenth == k for k in range(10))):
        excess = np.bincount(patient[mask], (event - risk)[mask])
        z = excess.sum() / np.sqrt((excess**2).sum())
        assert abs(z) < 4, (z, risk[mask].mean(), event[mask].mean())


def test_the_truth_names_the_visits_that_are_told() -> None:
    """Each ambulatory visit that took place has a truth with its start, and nothing else has one."""
    knobs = replace(QUIET, booked=0.5, cancelled=0.3, rescheduled=0.3)
    rows = told(knobs=knobs)
    true = truths(clinic(knobs=knobs))
    starts = {
        e["id"]: (e["patient_id"], to_us(e["event_time"]))
        for e in rows
        if e.get("encounter_class") == "ambulatory" and e["status"] == "in-progress"
    }
    said = dict(zip(true.encounter_id, zip(true.patient_id, true.index_us.tolist(), strict=True), strict=True))
    assert len(said) == len(true.encounter_id) > 2_000
    assert starts.items() <= said.items()
    untold = {at_us for id, (_, at_us) in said.items() if id not in starts}
    assert all(at_us > to_us(END) - 10 * 60 * 10**6 for at_us in untold), "only the last minutes are not told before the end"


def test_events_of_the_truth_are_those_of_the_feed() -> None:
    """`event`: whether an emergency visit began in (t, t + 60 days], counted from what was told."""
    true, came = truths(clinic()), {}
    for e in plain():
        if e.get("encounter_class") == "emergency" and e["version"] == 1:
            came.setdefault(e["patient_id"], []).append(to_us(e["event_time"]))
    counted = [
        any(0 < at - t <= 60 * DAY_US for at in came.get(p, [])) for p, t in zip(true.patient_id, true.index_us.tolist(), strict=True)
    ]
    k = true.followed
    assert np.array(counted)[k].tolist() == true.event[k].tolist()
    assert 0.03 < true.event[k].mean() < 0.25


def test_nobody_comes_after_death() -> None:
    """Nor after leaving; and no visit begins before the third day."""
    made = clinic(3_000, seed=9)
    _, course = made.live(np.arange(3_000))
    gone_us = np.minimum(course.death_us, course.left_us)[course.stops["who"]]
    assert (course.death_us < to_us(END)).sum() > 50
    assert (course.stops["start_us"] < gone_us).all()
    assert (course.stops["start_us"] >= made.start_us + 2 * DAY_US).all()
    died = {f"p{n:06d}": us for n, us in enumerate(course.death_us.tolist())}
    for feed, e in made.events():
        if feed in ("encounters", "labs", "vitals"):
            assert to_us(datetime.fromisoformat(e["event_time"])) <= died[e["patient_id"]]


def test_the_sick_are_seen_more_often_and_emergency_visits_cluster() -> None:
    """The hazard at visits is higher than on all days; two weeks after an emergency visit another is likelier than a month later."""
    made = clinic(12_000)
    who, course = made.live(np.arange(12_000), keep_hazard=True)
    assert course.hazard is not None
    visits = course.stops[course.stops["kind"] == illness.AMBULATORY]
    at_visits = truth.hazard_now(illness.Hazard(who, Scenario(), made.start_us), visits)
    assert at_visits.mean() > 1.15 * np.nanmean(course.hazard)
    weekday = (visits["day"] + made.start_us // DAY_US + 3) % 7
    assert 0.02 < (weekday >= 5).mean() < 0.12
    came = course.stops[course.stops["kind"] == illness.EMERGENCY]
    apart = np.diff(came["start_us"])[np.diff(came["who"]) == 0] / DAY_US
    assert (apart <= 14).sum() > 1.3 * ((apart > 28) & (apart <= 42)).sum()


def test_frailty_shows_in_albumin() -> None:
    """Patient by patient, so that a model can find it."""
    who, _ = clinic().live(np.arange(300))
    values: dict[int, list[float]] = {}
    for e in plain():
        if e.get("code") == "1751-7" and "value" in e:
            values.setdefault(int(e["patient_id"][1:]), []).append(e["value"] if e["unit"] == "g/dL" else e["value"] / 10)
    mean = {n: sum(v) / len(v) for n, v in values.items()}
    assert len(mean) > 200
    assert np.corrcoef(list(mean.values()), who.frailty[list(mean)])[0, 1] < -0.85


# --- chance ---------------------------------------------------------------------------------------------------------------------------


def test_chance_by_counters_is_even_and_unlike_its_neighbours() -> None:
    """Means, and correlation between patients, indices, purposes and seeds, lie within five standard errors of 0."""
    n = 40_000
    who = np.arange(n)
    first = Draws(3).uniform("a", who) - 0.5
    assert abs(first.mean()) < 5 / np.sqrt(12 * n)
    others = [Draws(3).uniform("a", who + 1), Draws(3).uniform("a", who, 1), Draws(3).uniform("b", who), Draws(4).uniform("a", who)]
    for other in others:
        assert abs((first * (other - 0.5)).mean()) < 5 / (12 * np.sqrt(n))
    assert abs(Draws(3).normal("a", who).std() - 1) < 5 / np.sqrt(2 * n)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    """With all kinds of trouble at once."""
    knobs = Knobs(merges=0.2, missing=0.1)
    raw = [msgspec.json.encode(list(clinic(40, seed, knobs, sites=2).events())) for seed in (5, 5, 6)]
    assert raw[0] == raw[1] != raw[2]


def test_more_patients_do_not_change_the_first_ones() -> None:
    """All that is told of the first 40 is told of them among 60, byte for byte."""
    knobs = Knobs(merges=0.2)
    few, many = ([msgspec.json.encode(pair) for pair in clinic(n, knobs=knobs).events()] for n in (40, 60))
    ids = tuple(f'_id":"{letter}{n:06d}"'.encode() for letter in "pq" for n in range(40))
    assert few == [raw for raw in many if any(id in raw for id in ids)]


# --- knobs ----------------------------------------------------------------------------------------------------------------------------


def emergencies(world: Scenario, patients: int = 6_000) -> Any:
    """Day and patient of each emergency visit, and who the patients are."""
    made = Clinic(patients, START, END, 4, QUIET, world)
    who, course = made.live(np.arange(patients))
    came = course.stops[course.stops["kind"] == illness.EMERGENCY]
    return came, who, made


def test_a_drift_multiplies_the_hazard_from_its_date_on() -> None:
    """Before it nothing changes; on its day each hazard is 1.5 times what it was; then there are more visits, in its group alone."""
    day = (MIDDLE - START).days
    hazards = [clinic(500, drift=drift).live(np.arange(500), keep_hazard=True)[1].hazard for drift in ((), (Change(1.5, to_us(MIDDLE)),))]
    assert np.array_equal(hazards[0][:day], hazards[1][:day], equal_nan=True)
    assert np.nanmax(np.abs(hazards[1][day] / hazards[0][day] - 1.5)) < 1e-5
    plain_came, who, _ = emergencies(Scenario())
    came, _, _ = emergencies(Scenario(drift=(Change(2.0, to_us(MIDDLE), "female"),)))
    for group, low, high in (("female", 1.8, 2.6), ("male", 1.0, 1.0)):
        counts = [(who.group(group)[c["who"]] & (c["day"] >= day)).sum() for c in (came, plain_came)]
        assert low <= counts[0] / counts[1] <= high, (group, counts)


def test_a_bias_is_a_factor_for_a_group() -> None:
    """Of its hazard, and of nothing else about its people."""
    hazards = [clinic(800, bias=bias).live(np.arange(800), keep_hazard=True) for bias in ((), (("hispanic", 1.7),))]
    who = hazards[0][0]
    assert all(np.array_equal(getattr(who, name), getattr(hazards[1][0], name)) for name in ("frailty", "log_hazard", "visits_daily"))
    ratio = np.nanmax(hazards[1][1].hazard[2], axis=None, initial=0, where=False) + hazards[1][1].hazard[2] / hazards[0][1].hazard[2]
    group = who.group("hispanic")
    assert np.nanmax(np.abs(ratio[group] - 1.7)) < 1e-5 and np.nanmax(np.abs(ratio[~group] - 1)) < 1e-6 and group.sum() > 30


def test_a_slope_spreads_or_narrows_the_hazards() -> None:
    """Of log hazards on a day, the spread is so many times as wide, and the events stay about as many."""
    hazards = [clinic(2_000, slope=slope).live(np.arange(2_000), keep_hazard=True)[1].hazard[2] for slope in ((), (Change(0.5),))]
    spreads = [np.nanstd(np.log(hazard)) for hazard in hazards]
    assert abs(spreads[1] / spreads[0] - 0.5) < 1e-5
    counts = [len(emergencies(Scenario(slope=slope))[0]) for slope in ((), (Change(0.7),))]
    assert 0.75 < counts[1] / counts[0] < 1.3, counts


def test_a_case_mix_changes_who_enrols_from_its_date_on() -> None:
    """Those who enrol later are frailer by so many standard deviations; those who were there are who they were."""
    made = [clinic(2_000, case_mix=mix).live(np.arange(2_000))[0] for mix in ((), (Change(0.8, to_us(MIDDLE)),))]
    later = made[0].enrol_day >= (MIDDLE - START).days
    assert later.sum() > 100
    assert np.allclose(made[1].frailty - made[0].frailty, np.where(later, 0.8, 0.0))


def test_the_volume_is_that_of_ambulatory_visits_only() -> None:
    """Twice as many of them; the hazard stays as it is."""
    counts = [Counter(e["encounter_class"] for e in rows if e.get("status") == "in-progress") for rows in (told(volume=2.0), plain())]
    assert 1.75 < counts[0]["ambulatory"] / counts[1]["ambulatory"] < 2.1
    assert counts[0]["emergency"] == counts[1]["emergency"]


def test_sites_share_the_patients() -> None:
    """Each patient has one, all are used; sites are groups."""
    rows = told(sites=3)
    sites = {(e["patient_id"], e["facility"]) for e in rows if "facility" in e}
    assert {"site-1", "site-2", "site-3"} == {site for _, site in sites}
    assert len(sites) == len({patient for patient, _ in sites})
    assert {"site-1"} == {e["facility"] for e in plain() if "facility" in e}


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 1.0, 1.0), (0.5, 0.45, 0.55), (1.0, 0.0, 0.0)])
def test_missing_takes_panels_and_weights_away(share: float, low: float, high: float) -> None:
    kept, every = (Counter(e["kind"] for e in rows) for rows in (told(knobs=replace(QUIET, missing=share)), plain()))
    for kind in ("lab", "vital"):
        assert low <= kept[kind] / every[kind] <= high
    assert kept["encounter"] == every["encounter"]


def test_a_merge_says_whose_the_second_id_is() -> None:
    """Half of these patients' visits before it stand under the second id, none after it, and each fact is told once."""
    rows = told(knobs=replace(QUIET, merges=0.3))
    merges = {e["patient_id"]: e for e in rows if e["kind"] == "merge"}
    assert 0.2 < len(merges) / 300 < 0.4
    assert all(e["from_patient_id"] == "q" + patient[1:] for patient, e in merges.items())
    second = [e for e in rows if e["patient_id"].startswith("q")]
    assert all(e["known_time"] < merges["p" + e["patient_id"][1:]]["known_time"] for e in second)
    before = [
        e
        for e in rows
        if e["kind"] == "encounter"
        and "p" + e["patient_id"][1:] in merges
        and e["known_time"] < merges["p" + e["patient_id"][1:]]["known_time"]
    ]
    assert 0.35 < sum(e["patient_id"].startswith("q") for e in before) / len(before) < 0.55
    assert Counter(e["kind"] for e in rows if e["kind"] != "merge") == Counter(e["kind"] for e in plain())


def test_a_feed_falls_silent_or_loses_half() -> None:
    """Between two days, closed and open; the other feeds and days lose nothing."""
    during = Outage("labs", to_us(MIDDLE), to_us(MIDDLE + timedelta(days=30)))

    def in_it(rows: Told) -> list[str]:
        return [without_feed(e) for e in rows if e["feed"] == "labs" and MIDDLE <= e["known_time"] < MIDDLE + timedelta(days=30)]

    silent, half = told(silent=(during,)), told(half_lost=(during,))
    every = {without_feed(e) for e in plain()}
    lost = every - {without_feed(e) for e in silent}
    assert lost == set(in_it(plain())) and len(lost) > 500
    assert 0.4 < len(in_it(half)) / len(lost) < 0.6
    assert every - {without_feed(e) for e in half} <= lost


def test_a_unit_change_moves_the_values_of_one_site_and_keeps_the_label() -> None:
    rows = told(sites=2, unit_change=(Change(2, to_us(MIDDLE)),))
    true = told(sites=2)
    site = {e["patient_id"]: e["facility"] for e in true if "facility" in e}
    changed = [(was, now) for was, now in zip(true, rows, strict=True) if was != now]
    assert len(changed) > 200
    for was, now in changed:
        assert now["code"] == "718-7" and now["unit"] == "g/dL" and now["known_time"] >= MIDDLE
        assert now["value"] == pytest.approx(10 * was["value"])
    named = [(was, now) for was, now in changed if was["patient_id"] in site]
    assert {site[was["patient_id"]] for was, _ in named} == {"site-2"}
    expected = sum(
        e.get("code") == "718-7" and "value" in e and e["known_time"] >= MIDDLE and site.get(e["patient_id"]) == "site-2" for e in true
    )
    assert len(named) == expected


def test_every_event_of_every_knob_passes_the_contract() -> None:
    knobs = Knobs(*[0.3] * 15)
    during = Outage("labs", to_us(MIDDLE), to_us(END))
    world = {"sites": 3, "volume": 1.5, "half_lost": (during,), "unit_change": (Change(1),), "drift": (Change(3.0),)}
    before = START
    for feed, e in clinic(40, knobs=knobs, **world).events():
        decoded = decode(feed, msgspec.json.encode(e))
        assert before <= decoded.known_time < END
        before = decoded.known_time


# --- words ----------------------------------------------------------------------------------------------------------------------------


def test_changes_are_read_from_text() -> None:
    assert scenario.change("1.5@2025-05-01") == Change(1.5, to_us(MIDDLE))
    assert scenario.change("black:0.8") == Change(0.8, group="black")
    assert scenario.outage("labs@2025-05-01..2025-09-01") == Outage("labs", to_us(MIDDLE), to_us(END))
    assert scenario.bias("site-2=1.3") == ("site-2", 1.3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: scenario.change("much"), "'much' is not of the form 1.5@2025-03-01"),
        (lambda: scenario.outage("labs@2025-05-01"), "is not of the form labs@"),
        (lambda: Scenario(silent=(Outage("blood", 0, 1),)), "feed blood is not known; expected one of encounters, labs"),
        (lambda: Scenario(silent=(Outage("labs", 1, 1),)), "an outage ends after it begins"),
        (lambda: Scenario(unit_change=(Change(2),)), "sites are numbered from 1 to 1"),
        (lambda: Scenario(drift=(Change(0.0),)), "a factor of the hazard lies above 0"),
        (lambda: Scenario(slope=(Change(-1.0),)), "slope -1.0: a factor of log hazards lies between 0 and 10"),
        (lambda: Scenario(case_mix=(Change(1.0, group="female"),)), "for all who enrol"),
        (lambda: clinic(bias=(("tall", 2.0),)), "group tall is not known; expected one of female, male"),
        (lambda: Scenario(sites=0), "at least one site"),
    ],
)
def test_wrong_words_are_refused_in_a_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence.replace("(", r"\(")):
        make()


def test_a_clinic_that_starts_within_a_day_begins_at_the_next_midnight() -> None:
    late = START + timedelta(hours=15, minutes=7)
    first = next(events(patients=3, start=late, end=END, seed=1))[1]
    assert START + timedelta(days=1) <= datetime.fromisoformat(first["known_time"]) < START + timedelta(days=2)
