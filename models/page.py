"""The page of an evaluation that a committee reads: one file of plain HTML, without script or network, for screen, phone and paper.

All text is escaped. Numbers are rounded by their interval. Meaning is never told by colour alone.
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

from models import drawing

Document = dict[str, Any]
Range = list[float | None]

CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; }
p, ul, dl { margin: 0.5rem 0; max-width: 44rem; } ul { padding-left: 1.2rem; } li { margin: 0.3rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; } dt { color: #595959; } dd { margin: 0; }
.quiet { color: #595959; } .note { background: #fff4d6; color: #7a4b00; padding: 0.5rem 0.75rem; border-left: 4px solid #7a4b00; }
.range { color: #595959; white-space: nowrap; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; color: #595959; padding: 0.25rem 0; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.5rem; border-bottom: 1px solid #ccc; font-weight: normal; }
thead th { font-weight: bold; vertical-align: bottom; border-bottom: 2px solid #1a1a1a; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
tbody tr:first-child th[colspan], th[colspan] { font-weight: bold; padding-top: 1rem; }
small { display: block; color: #595959; font-size: 0.875rem; }
figure { margin: 1rem 0; } figure svg { display: block; width: 100%; max-width: 30rem; height: auto; }
svg text { font-family: inherit; }
.split { display: grid; align-items: start; grid-template-columns: minmax(0, 1fr); gap: 1rem 2rem; }
.forest td.drawn { width: 18rem; vertical-align: middle; padding: 0.35rem 0;
  background: linear-gradient(#595959, #595959) 50% 0 / 1px 100% no-repeat; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.forest thead th:last-child { padding: 0.35rem 0; } .forest svg { display: block; width: 100%; height: auto; }
.ends { display: grid; grid-template-columns: 1fr auto 1fr; font-weight: normal; font-size: 0.875rem; }
.ends :last-child { text-align: right; }
.over-states, .under-states { color: #8a1f11; font-weight: bold; }
@media (min-width: 56rem) { .split { grid-template-columns: 30rem minmax(0, 1fr); } }
@media (max-width: 30rem) { body { padding: 0.75rem; } dl { display: block; } dd { margin-bottom: 0.4rem; }
  th, td { padding: 0.35rem 0.25rem; } table { font-size: 0.9375rem; } td .range { display: block; }
  td.number { white-space: normal; } .forest td.drawn { width: 46%; } }
@page { margin: 15mm; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } h2 { break-after: avoid; }
  .split { break-before: avoid; grid-template-columns: 8cm minmax(0, 1fr); } figure, tr, li, .note { break-inside: avoid; }
  thead { display: table-header-group; } th, td { padding: 1mm 2mm; } dl, p, ul { max-width: none; } .forest td.drawn { width: 6cm; } }
"""

BODY = "</tbody><tbody>"
SHARES, NUMBERS = "In 100", "On scales of their own"
ROWS = (  # name, words, in what
    ("prevalence", "Visits followed by it", SHARES),
    ("flagged_share", "Visits flagged", SHARES),
    ("ppv", "Flagged visits followed by it (PPV)", SHARES),
    ("npv", "Visits not flagged and not followed by it, of those not flagged (NPV)", SHARES),
    ("sensitivity", "Visits flagged, of those followed by it (sensitivity)", SHARES),
    ("specificity", "Visits not flagged, of those not followed by it (specificity)", SHARES),
    ("net_benefit", "True flags per 100 visits, less the false ones at the price that the threshold sets (net benefit)", SHARES),
    ("net_benefit_flag_all", "The same if every visit were flagged", SHARES),
    ("calibration_factor", "Mean predicted less mean seen (calibration factor; above 0 the risks over-state)", SHARES),
    ("odds_ratio", "Odds when flagged to odds when not (odds ratio; not a ratio of risks)", NUMBERS),
    ("auroc", "Pairs in which the visit followed by it has the higher risk (AUROC; ½ is chance)", NUMBERS),
    ("average_precision", "Average precision (chance: the share of visits followed by it)", NUMBERS),
    ("oe_ratio", "Seen to predicted (O/E; above 1 the risks are too low)", NUMBERS),
    ("calibration_in_the_large", "Level on the logit scale (calibration in the large; 0 is right)", NUMBERS),
    ("calibration_slope", "Spread of the risks (calibration slope; 1 is right, below 1 they are spread too far)", NUMBERS),
    ("brier", "Mean squared error (Brier)", NUMBERS),
    ("brier_scaled", "The same against the overall frequency alone (scaled Brier; 0 no better, 1 perfect)", NUMBERS),
    ("log_loss", "Log loss", NUMBERS),
)
LEFT_OUT = {
    "pending": "not over yet when the log ended",
    "died in the time at risk": "died in that time without it: neither yes nor no",
    "outcome seen, follow-up incomplete": "it was seen, but the patient was not followed to the end (death, for one); counting these alone "
    "would favour yes",
    "follow-up ended": "not followed to the end",
    "no finite score": "no score could be computed",
    "patient trained or tuned the model": "patients with whom the model was trained or its threshold chosen",
}
NOT_SHOWN = (
    "Emergency visits at places that this log does not hear of: they count as none.",
    "Whether care changed what happened. Where teams act on flags and it helps, fewer flagged visits are followed by the outcome, and the "
    "PPV falls.",
    "Groups of two attributes at once, and equal error rates between groups (classification parity).",
    "Intervals of ICI, E50 and E90: drawing again and again makes these three larger by itself.",
    "Clinical review of flagged visits, and how anything changed over time.",
)
CELL_MIN = 11
"""Of a group with fewer patients no figure is shown (the cell size rule of the US Centers for Medicare & Medicaid Services)."""
ATTRIBUTE_WORDS = {"race": "Race", "gender": "Gender", "ethnicity": "Ethnicity", "age": "Age at the visit"}


def render(document: Document) -> str:
    """The page of `models.evaluate.evaluate`'s document.

    Returns:
        A whole HTML document.
    """
    case = document["use_case"]
    title = case["title"] or case["name"]
    parts = (_head(document, title), _in_words(document), _curve(document), _groups(document), _figures(document), _left_out(document))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, '
        f'initial-scale=1">\n<title>Evaluation: {escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def summary(document: Document) -> str:
    """The same in a few lines of text, for a terminal."""
    m, counts, period, boot = (document[part] for part in ("metrics", "counts", "period", "bootstrap"))
    slope, area = (f"{_plain(m[name]['value'], 2)} ({_range(m[name]['by_patient'], 1, 2)})" if m[name]["value"] is not None else "unknown"
                   for name in ("calibration_slope", "auroc"))  # fmt: skip
    lines = [
        f"{document['model']['version']}: {counts['visits']:,} visits of {counts['patients']:,} patients, {_day(period['first_visit'])} to "
        f"{_day(period['last_visit'])}; {counts['events']:,} followed by {_outcome(document)}",
        f"of 100 visits {_share(m['prevalence'])} followed by it, {_share(m['flagged_share'])} flagged; of 100 flagged {_share(m['ppv'])} "
        f"followed by it, of 100 others {_share(_flip(m['npv']))}",
        f"AUROC {area}, calibration slope {slope}; {_level(m['calibration_factor'])}",
    ]
    for group in document["groups"]:
        if group["verdict"] != "no sign":
            lines.append(f"{ATTRIBUTE_WORDS[group['attribute']]}, {group['group']}: {_verdict(group)}")
    left_out = ", ".join(f"{reason} {n:,}" for reason, n in document["left_out"].items()) or "none"
    return "\n".join([*lines, f"left out: {left_out}", f"95 % intervals: {boot['draws']:,} draws of patients, seed {boot['seed']}"])


def _head(document: Document, title: str) -> str:
    model, counts, period = document["model"], document["counts"], document["period"]
    rows = [
        ("Model", f"{model['version']} ({model['family']})"),
        ("Trained on", f"visits until {_day(model['trained_until'])}" if model["trained_until"] else "the model's file does not say"),
        ("Evaluated on", f"{counts['visits']:,} visits of {counts['patients']:,} patients, {_day(period['first_visit'])} to "
         f"{_day(period['last_visit'])}, each as it was scored first"),
        ("Flagged from", f"{model['threshold'] * 100:.0f} in 100 on: {model['threshold_reason']}"),
        ("Race, sex, cover", f"The model reads {_list(model['reads'])}." if model["reads"] else "None of them is read by the model."),
    ]  # fmt: skip
    seen = counts["patients_seen_before"]
    if model["patients_kept_apart"]:
        note = "No visit of these patients was used to train the model or to choose its threshold."
    else:
        note = (
            f"{seen:,} of these {counts['patients']:,} patients had visits before: the model may have been trained on those. "
            "For new patients the figures can be worse."
        )
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in rows)
    few = ""
    if min(counts["patients_with_event"], counts["patients"] - counts["patients_with_event"]) < 50:
        few = f'<p class="note">Only {counts["patients_with_event"]:,} patients had the outcome: read every figure with its interval.</p>'
    return f'<h1>{escape(title)}</h1>\n<p class="quiet">How good the scores were</p>\n<dl>{listed}</dl>\n<p>{escape(note)}</p>{few}'


def _in_words(document: Document) -> str:
    m, counts = document["metrics"], document["counts"]
    it, missed = _outcome(document), _flip(m["sensitivity"])
    sentences = [
        f"Of 100 visits, {_share(m['prevalence'])} were followed by {it}.",
        f"Of 100 visits, {_share(m['flagged_share'])} were flagged.",
        f"Of 100 flagged visits, {_share(m['ppv'])} were followed by {it}. Of 100 that were not flagged, {_share(_flip(m['npv']))} were.",
        f"Of 100 visits that were followed by it, {_share(m['sensitivity'])} had been flagged and {_share(missed)} had not.",
        f"Visits are not patients: of {counts['patients']:,} patients, {counts['patients_flagged']:,} were flagged at least once, and "
        f"{counts['patients_with_event']:,} had at least one visit that was followed by it; "
        f"{counts['patients_with_event_never_flagged']:,} of these were never flagged.",
        f"On the whole, {_level(m['calibration_factor'])}",
    ]
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return (
        f"<h2>In words</h2>\n<ul>{items}</ul>\n"
        '<p class="quiet">In brackets: 95 % intervals. They come from drawing whole patients, because visits of one patient are alike.</p>'
    )


def _level(entry: Document) -> str:
    low, high = entry["by_patient"]
    value = entry["value"]
    if low is None or high is None or value is None:
        return "whether the risks are too high or too low cannot be told."
    if low <= 0 <= high:
        return f"no sign that the risks are too high or too low: {_between(low, high)}."
    words = "over-state" if value > 0 else "under-state"
    near, far = sorted((abs(low) * 100, abs(high) * 100))
    at = _places(low * 100, high * 100)
    at += round(near, at) == 0  # an interval that leaves 0 out must not print it
    return f"the risks {words} by {abs(value) * 100:.{at}f} in 100 visits ({near:.{at}f} to {far:.{at}f})."


def _between(low: float, high: float) -> str:
    at = _places(low * 100, high * 100)
    return f"between {-low * 100:.{at}f} in 100 too low and {high * 100:.{at}f} too high"


def _curve(document: Document) -> str:
    bands = document["bands"]
    figure = drawing.calibration_curve(bands, document["curve"], document["histogram"], document["model"]["threshold"])
    rows = []
    for band in bands:
        low, high = band["by_patient"]
        at = max(_places(low * 100, high * 100) if low is not None else 0, 1 if band["highest"] < 0.1 else 0)
        rows.append(
            f'<tr><th scope="row">{_plain(band["lowest"] * 100, at)}–{_plain(band["highest"] * 100, at)}</th>'
            f'<td class="number">{_plain(band["predicted"] * 100, at)}</td><td class="number">{_plain(band["observed"] * 100, at)}'
            f' <span class="range">{_range(band["by_patient"], 100)}</span></td><td class="number">{band["visits"]:,}</td></tr>'
        )
    error = document["calibration_error"]
    return (
        "<h2>Does a risk of 20 in 100 mean 20 in 100?</h2>\n"
        "<p>Each point is about a tenth of the visits. Points above the dashed line: more often than predicted. Upright lines: 95 % "
        'intervals, drawn by patient.</p>\n<div class="split"><figure>' + figure + "</figure>\n<table><thead><tr>"
        '<th scope="col">Risks, in 100</th><th scope="col" class="number">Predicted</th><th scope="col" class="number">Seen</th>'
        '<th scope="col" class="number">Visits</th></tr></thead><tbody>' + "".join(rows) + "</tbody></table></div>\n"
        f'<p class="quiet">Mean distance of a smooth curve from the dashed line {_plain(error["ici"] * 100, 1)} in 100 (ICI), median '
        f"{_plain(error['e50'] * 100, 1)} (E50), 90 % of visits under {_plain(error['e90'] * 100, 1)} (E90). The last bar also holds all "
        "visits with a higher risk.</p>"
    )


def _groups(document: Document) -> str:
    groups = document["groups"]
    told = [g for g in groups if g["verdict"] != "cannot tell"]
    reach = _reach(groups, document["tolerance"])
    rows = []
    for attribute, words in ATTRIBUTE_WORDS.items():
        mine = [g for g in groups if g["attribute"] == attribute]
        rows.append(f'{BODY}<tr><th scope="rowgroup" colspan="2">{words}</th></tr>')
        if all(g["group"] == "not recorded" for g in mine):
            rows.append('<tr><td colspan="2">Not recorded for anyone here, or in codes that are in no code set.</td></tr>')
        else:
            rows += [_group_row(g, reach) for g in mine]
    ends = f"<span>−{reach * 100:.0f}<br>too low</span><span>0</span><span>+{reach * 100:.0f}<br>too high</span>"
    return (
        "<h2>Are the risks right for every group?</h2>\n"
        "<p>The calibration factor is the mean predicted less the mean seen, in 100 visits of the group: to the right of 0 the risks "
        "over-state, to the left they under-state. Square: stands out. Dot: does not. Hollow, dashed: cannot be told yet.</p>\n"
        '<table class="forest"><thead><tr><th scope="col">Group</th>'
        f'<th scope="col"><span class="ends">{ends}</span></th></tr></thead><tbody>{"".join(rows).removeprefix(BODY)}</tbody></table>\n'
        f'<p class="quiet">{escape(document["rule"])} Of {len(told)} groups that can be told, about {0.05 * len(told):.1f} would stand '
        "out by chance alone. Attributes are taken as the log told them last. Groups of fewer than "
        f"{CELL_MIN} patients have no figures here, so that nobody can be recognised.</p>"
    )


def _group_row(group: Document, reach: float) -> str:
    (low, high), verdict, value = group["by_patient"], group["verdict"], group["calibration_factor"]
    words = _verdict(group)
    about = (
        f"{group['visits']:,} visits of {group['patients']:,} patients; predicted {group['predicted'] * 100:.0f}, "
        f"seen {group['observed'] * 100:.0f} in 100"
    )
    if group["patients"] < CELL_MIN:
        about, value = f"fewer than {CELL_MIN} patients", math.inf  # no dot either
    return (
        f'<tr><th scope="row">{escape(group["group"])}<small>{escape(about)}</small><span class="{verdict.replace(" ", "-")}">'
        f'{escape(words)}</span></th><td class="drawn">{drawing.interval(value, low, high, reach=reach, verdict=verdict)}</td></tr>'
    )


def _verdict(group: Document) -> str:
    if group["verdict"] == "cannot tell":
        return f"Cannot tell yet (needs about {group['more_visits_needed']:,} more visits)."
    if group["verdict"] == "no sign":
        return f"No sign: {_between(*group['by_patient'])}."
    return "R" + _level({"value": group["calibration_factor"], "by_patient": group["by_patient"]}).removeprefix("the r")


def _reach(groups: list[Document], tolerance: float) -> float:
    """Half of the forest plot's axis: all that can be told fits, rounded up to whole visits in 100."""
    ends: list[float] = [abs(end) for g in groups if g["verdict"] != "cannot tell" for end in g["by_patient"] if end is not None]
    return max(math.ceil(max([*ends, tolerance]) * 100 - 1e-9), 1) / 100


def _figures(document: Document) -> str:
    rows, before = [], None
    for name, words, what in ROWS:
        if what != before:
            rows.append(f'{BODY}<tr><th scope="rowgroup" colspan="4">{what}</th></tr>')
        entry, times, before = document["metrics"][name], 100 if what == SHARES else 1, what
        ends = [end for end in entry["by_patient"] if end is not None]
        at = _places(*(end * times for end in ends)) if len(ends) == 2 else 2
        value = _plain(entry["value"] * times, at) if entry["value"] is not None else "none"
        rows.append(
            f'<tr><th scope="row">{escape(words)}</th><td class="number">{value}</td>'
            f'<td class="number">{_range(entry["by_patient"], times, at)}</td>'
            f'<td class="number quiet">{_range(entry["naive"], times, at)}</td></tr>'
        )
    boot, it = document["bootstrap"], _outcome(document)
    return (
        f"<h2>All figures</h2>\n<p>“It” is {escape(it)}. Each is rounded by its interval.</p>\n"
        '<table><thead><tr><th scope="col">Figure</th><th scope="col" class="number">Value</th><th scope="col" class="number">95 % interval'
        '</th><th scope="col" class="number">If visits were independent</th></tr></thead><tbody>'
        + "".join(rows).removeprefix(BODY)
        + "</tbody></table>\n"
        f'<p class="quiet">{boot["draws"]:,} draws of patients, seed {boot["seed"]}. The last column draws visits as if each were another '
        "patient’s: it is there to compare with published tables, and mostly too narrow.</p>"
    )


def _left_out(document: Document) -> str:
    case, period = document["use_case"], document["period"]
    lines = []
    for reason, n in document["left_out"].items():
        words = LEFT_OUT.get(reason) or f"not scored ({reason.removeprefix('excluded: ').replace('_', ' ') or 'no reason told'})"
        lines.append(f'<tr><td class="number">{n:,}</td><td>{escape(words)}</td></tr>')
    what = (
        f"<p>Visits of the same stretch of time without a mature answer to “{escape(_outcome(document))}?”. The log was known until "
        f"{_day(period['log_known_until'])}; a visit needs {case['horizon_days'] + case['gap_days']} days after it.</p>"
    )
    head = '<thead><tr><th scope="col" class="number">Visits</th><th scope="col">Why</th></tr></thead>'
    listed = f"<table>{head}<tbody>{''.join(lines)}</tbody></table>" if lines else "<p>None.</p>"
    points = "".join(f"<li>{escape(words)}</li>" for words in NOT_SHOWN)
    return f"<h2>What was left out, and why</h2>\n{what}\n{listed}\n<h2>What this page cannot show</h2>\n<ul>{points}</ul>"


def _outcome(document: Document) -> str:
    case = document["use_case"]
    words = case["outcome"]
    article = "an" if words[:1].lower() in "aeiou" else "a"
    when = (
        f"within {case['horizon_days']} days"
        if not case["gap_days"]
        else f"between day {case['gap_days']} and {case['gap_days'] + case['horizon_days']}"
    )
    return f"{article} {words} {when}"


def _flip(entry: Document) -> Document:
    """The share of the others."""
    low, high = entry["by_patient"]
    turned = [None if end is None else 1 - end for end in (high, low)]
    return {"value": None if entry["value"] is None else 1 - entry["value"], "by_patient": turned}


def _share(entry: Document) -> str:
    """`26 (22–31)`, in 100."""
    low, high = entry["by_patient"]
    if entry["value"] is None:
        return "an unknown number"
    if low is None or high is None:
        return f"{entry['value'] * 100:.0f}"
    at = _places(low * 100, high * 100)
    return f"{_plain(entry['value'] * 100, at)} ({_range(entry['by_patient'], 100)})"


def _range(ends: Range, times: float, at: int | None = None) -> str:
    """`22–31`, with `at` decimals or those that it can carry."""
    low, high = ends
    if low is None or high is None:
        return "cannot be told"
    at = _places(low * times, high * times) if at is None else at
    joint = " to " if low < 0 else "–"
    return f"{_plain(low * times, at)}{joint}{_plain(high * times, at)}"


def _places(low: float, high: float) -> int:
    """Decimals that an interval can carry: its half-width has one digit that counts, 0 to 3.

    Example:
        >>> _places(22.1, 31.4), _places(0.68, 0.76), _places(16.2, 16.9)
        (0, 2, 1)
    """
    half = (high - low) / 2
    return min(max(math.ceil(-math.log10(half)), 0), 3) if half > 0 else 2


def _plain(value: float, places: int) -> str:
    text = f"{value:,.{places}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else f"{0:.{places}f}"


def _day(time: str | None) -> str:
    return "the end" if time is None else time[:10]


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
