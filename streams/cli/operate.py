"""OPERATE: doctor, status, dead-letters, rebuild, settings."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import click
from click.core import ParameterSource
from pydantic import SecretStr

from features.clock import SystemClock
from features.codes import codebook
from features.errors import CheckFailed, ServiceError
from streams import dead_letters, state_check
from streams import doctor as doctor_checks
from streams import settings as config
from streams import status as status_of
from streams.cli.common import (
    Progress,
    here,
    json_option,
    kafka_option,
    load_models,
    load_settings,
    model_option,
    result,
    say,
    use_case_option,
)
from streams.site import Site

redis_option = click.option("--redis", "redis_url", default=None, metavar="URL", help="[env: PREMONITOR_REDIS_URL]")
models_option = model_option(required=False, help="May be given again.")
SHOWN_MAX = 50
SECRETS = {name for name, field in config.Settings.model_fields.items() if SecretStr in get_args(field.annotation)}
"""Settings that are never shown."""


@click.command()
@kafka_option
@redis_option
@models_option
@json_option
def doctor(kafka_bootstrap: str | None, prefix: str | None, redis_url: str | None, models: tuple[Path, ...], as_json: bool) -> None:
    """Check what a worker stands on; each fault comes with its remedy. Nothing is changed.

    Exit code 1 at a fault, 3 where Kafka or Redis is out of reach.

    \b
    premonitor doctor --kafka localhost:9092 --redis redis://localhost:6379/0 --model model.json
    """
    told = load_settings(kafka_bootstrap=kafka_bootstrap, prefix=prefix, redis_url=redis_url)
    lines = asyncio.run(doctor_checks.examine(told, models, codebook()))
    result({"checks": [line.document() for line in lines]}, "\n".join(line.text() for line in lines), as_json=as_json)
    wrong = [line for line in lines if line.good is False]
    if wrong:
        words = f"{len(wrong)} of {len(lines)} checks failed: see ✗ above"
        raise ServiceError(words) if any(line.unreachable for line in wrong) else CheckFailed(words)


@click.command()
@kafka_option
@json_option
def status(kafka_bootstrap: str | None, prefix: str | None, as_json: bool) -> None:
    """Show feeds with their lag and last record, what came out, what was refused, and the active models.

    \b
    premonitor status --kafka localhost:9092
    """
    told = load_settings(kafka_bootstrap=kafka_bootstrap, prefix=prefix)
    found = asyncio.run(status_of.status(told))
    site, now_us = here(), SystemClock().now_us()
    if site is None:
        result(found.document(), found.text(now_us), as_json=as_json)
        return
    name = site.definition.site
    result({"site": name, **found.document()}, f"site {name}\n\n{found.text(now_us, site.zone)}", as_json=as_json)


@click.group("dead-letters")
def dead_letters_() -> None:
    """List, explain and retry the feed records that could not become facts."""


@dead_letters_.command("list")
@click.option("--reason", default=None, help="Only this reason, and each dead letter by itself.")
@kafka_option
@json_option
def list_(reason: str | None, kafka_bootstrap: str | None, prefix: str | None, as_json: bool) -> None:
    """Count dead letters by reason and feed; never what they say.

    A position of a feed counts once, however often it was written after restarts.

    \b
    premonitor dead-letters list --kafka localhost:9092
    """
    told = load_settings(kafka_bootstrap=kafka_bootstrap, prefix=prefix)
    letters = asyncio.run(dead_letters.read(told))
    rows = letters.table(reason)
    each = letters.of(reason) if reason else []
    text = [f"{'reason':<18} {'feed':<28} {'count':>9} {'retried':>9}  newest"]
    text += [f"{r.reason:<18} {r.feed:<28} {r.count:>9,} {r.retried:>9,}  {r.newest}" for r in rows]
    text += ["", *(_letter_line(found) for found in each[-SHOWN_MAX:])] if each else []
    if len(each) > SHOWN_MAX:
        say(f"the newest {SHOWN_MAX} of {len(each):,} are shown one by one; all with --json")
    document = {"dead_letters": [asdict(row) for row in rows], "letters": [_letter_document(found) for found in each]}
    result(document, "\n".join(text) if rows else "no dead letters", as_json=as_json)


def _letter_line(found: dead_letters.Found) -> str:
    retried = f"  retried as {found.again}" if found.again else ""
    return f"{found.letter.id}  {found.letter.where:<28}  {found.letter.detail}{retried}"


def _letter_document(found: dead_letters.Found) -> dict[str, Any]:
    letter = found.letter
    return {
        "id": letter.id, "where": letter.where, "feed": letter.feed, "reason": letter.reason, "detail": letter.detail,
        "remedy": dead_letters.remedy(letter), "retried_as": found.again or None, "payload_kept": found.held,
    }  # fmt: skip


@dead_letters_.command()
@click.argument("name", metavar="ID|WHERE")
@click.option("--show-payload", is_flag=True, help="Also print the record itself: patient data.")
@kafka_option
@json_option
def explain(name: str, show_payload: bool, kafka_bootstrap: str | None, prefix: str | None, as_json: bool) -> None:
    """Say where one dead letter came from, which rule refused it and what to do.

    \b
    premonitor dead-letters explain 'labs[0]@12' --kafka localhost:9092
    """
    told = load_settings(kafka_bootstrap=kafka_bootstrap, prefix=prefix)
    found = asyncio.run(dead_letters.read(told, lambda letter: name in (letter.id, letter.where))).named(name)
    document, text = _letter_document(found), dead_letters.explain(found, told, codebook())
    if show_payload:
        document["payload"] = dead_letters.readable(found.letter.payload) if found.held else None
        text += f"\npayload {document['payload'] if found.held else 'is not kept here'}"
    result(document, text, as_json=as_json)


@dead_letters_.command()
@click.argument("names", metavar="[ID|WHERE]...", nargs=-1)
@click.option("--reason", default=None, help="All with this reason.")
@kafka_option
@json_option
def retry(names: tuple[str, ...], reason: str | None, kafka_bootstrap: str | None, prefix: str | None, as_json: bool) -> None:
    """Put dead letters on their feeds again, once each, after the cause was mended.

    What is refused again is a dead letter of its own, at its new position; `premonitor verify` counts it as one more record read.

    \b
    premonitor dead-letters retry --reason unit --kafka localhost:9092
    """
    if bool(names) == (reason is not None):
        raise click.UsageError("say which: ids or positions, or else --reason REASON; premonitor dead-letters list shows the reasons")
    told = load_settings(kafka_bootstrap=kafka_bootstrap, prefix=prefix)
    progress = Progress("retried")
    done = asyncio.run(dead_letters.retry(told, names, reason, codebook(), progress))
    progress.done()
    result(asdict(done), done.sentence(), as_json=as_json)


@click.command()
@click.option("--partition", "partitions", type=click.IntRange(0), multiple=True, help="Of facts; may be given again.")
@click.option("--all", "all_", is_flag=True, help="Every partition.")
@click.option("--check", is_flag=True, help="Compare only; exit 1 where a history differs. Needs the worker's --model.")
@models_option
@kafka_option
@redis_option
@json_option
def rebuild(
    partitions: tuple[int, ...],
    all_: bool,
    check: bool,
    models: tuple[Path, ...],
    kafka_bootstrap: str | None,
    prefix: str | None,
    redis_url: str | None,
    as_json: bool,
) -> None:
    """Make the state in Redis anew from facts, or compare it with them (--check).

    Drops the state of a partition: both kinds of histories, and how far they go. No worker needs to be stopped. A live one finds the gap
    within a second, reads the partition again from its beginning and issues the same scores and alerts under the same ids; its scores are
    late until it is through. A stopped one does so at its next start. With --check nothing is changed and a live worker is not disturbed.

    \b
    premonitor rebuild --partition 17 --kafka localhost:9092 --redis redis://localhost:6379/0
    premonitor rebuild --check --model model.json --kafka localhost:9092 --redis redis://localhost:6379/0
    """
    if (partitions and all_) or not (partitions or all_ or check):
        raise click.UsageError("say which: --partition N (may be given again), or --all")
    told = load_settings(kafka_bootstrap=kafka_bootstrap, prefix=prefix, redis_url=redis_url)
    if check:
        _check(told, models, partitions, as_json)
        return
    dropped = asyncio.run(state_check.drop(told, partitions, say))
    text = f"partitions dropped: {len(dropped)}; about {sum(dropped.values()):,} facts will be read again"
    result({"partitions": sorted(dropped), "facts": sum(dropped.values())}, text, as_json=as_json)


def _check(told: config.Settings, models: tuple[Path, ...], partitions: tuple[int, ...], as_json: bool) -> None:
    if not models:
        raise click.UsageError(
            "--check needs --model, once for each model of the worker: histories hold the ticks that their use cases wait for"
        )
    progress = Progress("histories")
    use_cases = [model.use_case for model in load_models(models)]
    found = asyncio.run(state_check.check(told, use_cases, partitions, progress))
    progress.done()
    wrong = [one for one in found if not one.good]
    total = sum(one.histories for one in found)
    text = [one.sentence() for one in wrong] or [f"{total:,} histories in {len(found)} partitions are those that facts gives"]
    result({"histories": total, "partitions": [one.document() for one in found]}, "\n".join(text), as_json=as_json)
    if wrong:
        which = " ".join(f"--partition {one.partition}" for one in wrong)
        raise CheckFailed(f"{len(wrong)} of {len(found)} partitions differ from facts. Make them anew: premonitor rebuild {which}")


@click.group("settings")
def settings_() -> None:
    """Show the settings."""


@settings_.command()
@kafka_option
@redis_option
@models_option
@use_case_option(required=False)
@json_option
def show(models: tuple[Path, ...], use_case_name: str | None, as_json: bool, **flags: str | None) -> None:
    """Show each setting, its value and where it came from: flag, environment, site folder or default. Of secrets only whether they are set.

    \b
    premonitor settings show --kafka localhost:9092
    """
    site, ctx = here(), click.get_current_context()
    rows = describe(load_settings(**flags), {name for name, value in flags.items() if value is not None}, site)
    if site is not None:
        rows["site"] = (site.definition.site, site.where("site"))
        rows["site_folder"] = (str(site.folder), _origin(ctx, "site", "PREMONITOR_SITE") or "found upwards")
        rows["timezone"] = (site.definition.timezone, _in_file(site, "timezone"))
    from_site = _in_file(site, "models") if site else "default"
    rows["models"] = ([str(path) for path in models], _origin(ctx, "models", "PREMONITOR_MODEL") or from_site)
    from_site = _in_file(site, "use_case") if site else "default"
    rows["use_case"] = (use_case_name, _origin(ctx, "use_case_name", "PREMONITOR_USE_CASE") or from_site)
    lines = [f"{name:<28} {_shown(value):<44} {source}" for name, (value, source) in rows.items()]
    result({"settings": {name: {"value": v, "from": s} for name, (v, s) in rows.items()}}, "\n".join(lines), as_json=as_json)


def _origin(ctx: click.Context, option: str, variable: str) -> str:
    """Where an option came from, if it was given."""
    named = {ParameterSource.COMMANDLINE: "flag", ParameterSource.ENVIRONMENT: f"env {variable}"}
    return named.get(ctx.get_parameter_source(option) or ParameterSource.DEFAULT, "")


def _in_file(site: Site, key: str) -> str:
    return site.where(key) if key in site.definition.model_fields_set else "default"


def _shown(value: Any) -> str:
    return "–" if value in (None, []) else "''" if value == "" else " ".join(value) if isinstance(value, list) else str(value)


def describe(told: config.Settings, flags: set[str], site: Site | None = None) -> dict[str, tuple[Any, str]]:
    """Setting → (value to be shown, where it came from: flag, the environment variable, file:line or default)."""
    rows = {}
    environment, in_file = config.environment(), site.settings if site else {}
    for name in type(told).model_fields:
        value: Any = getattr(told, name)
        if name in SECRETS:
            value = "not set" if value is None else "set"
        elif name == "redis_url":
            value = without_secrets(value)
        elif isinstance(value, Path):
            value = str(value)
        if name in flags:
            source = "flag"
        elif name in environment:
            source = f"env PREMONITOR_{name.upper()}"
        elif site and name in in_file:
            source = site.where(*(("topic_prefix",) if name == "prefix" else name.split("_", 1)))
        else:
            source = "default"
        rows[name] = (value, source)
    return rows


def without_secrets(url: str) -> str:
    """An address without its user, password and query.

    Example:
        >>> without_secrets("rediss://me:secret@host:6379/0?password=secret"), without_secrets("redis://host/0")
        ('rediss://***@host:6379/0?***', 'redis://host/0')
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "***"
    host = "***@" + parts.netloc.rpartition("@")[2] if "@" in parts.netloc else parts.netloc
    return parts._replace(netloc=host, query="***" if parts.query else "", fragment="").geturl()


COMMANDS: list[click.Command] = [doctor, status, dead_letters_, rebuild, settings_]
