"""The site folder: what is found, what wins, what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from features import toml, usecase
from features.errors import CheckFailed, PremonitorError
from models import artifact
from streams import site, status
from streams.cli import live, main, model
from streams.settings import Settings
from tests.stand_in import any_visit, stand_in
from tests.test_docs import leaves

FULL = """\
site = "clinic"
timezone = "Europe/Berlin"
use_case = "ed_60d_any"
models = ["models/v1", "/srv/v2"]
topic_prefix = "prod."

[kafka]
bootstrap = "kafka:9092"
tls = true
ca_file = "tls/ca.pem"

[redis]
url = "rediss://cache:6379/0"
"""


def clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests must not decide them."""
    for name in (*Settings.model_fields, "site", "model", "use_case"):
        monkeypatch.delenv(f"PREMONITOR_{name.upper()}", raising=False)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clear(monkeypatch)


@pytest.fixture
def clinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site folder with everything in its file, which is the working directory."""
    (tmp_path / "clinic").mkdir()
    (tmp_path / "clinic" / site.FILE).write_text(FULL)
    monkeypatch.chdir(tmp_path / "clinic")
    return tmp_path / "clinic"


def run(*words: str, code: int = 0) -> Result:
    """One command; an error with a sentence has its exit code, as the installed command gives it."""
    done = CliRunner().invoke(main, list(words))
    came = done.exception.exit_code if isinstance(done.exception, PremonitorError) else done.exit_code
    assert came == code, f"{done.output} {done.exception!r}"
    return done


def shown(*words: str) -> dict[str, tuple[Any, str]]:
    """Setting → (value, where it came from)."""
    rows = json.loads(run("settings", "show", "--json", *words).stdout)["settings"]
    return {name: (row["value"], row["from"]) for name, row in rows.items()}


# --- where it is ----------------------------------------------------------------------------------------------------------------------


def test_the_nearest_folder_upwards_is_found(clinic: Path) -> None:
    """In the folder, below it, and an inner one before an outer one; a folder of the file's name is no file."""
    inner = clinic / "a" / "b"
    inner.mkdir(parents=True)
    (clinic / "a" / "b" / site.FILE).mkdir()
    for start in (clinic, clinic / "a", inner):
        found = site.find(None, start)
        assert found is not None
        assert found.folder == clinic
    (clinic / "a" / site.FILE).write_text('site = "inner"')
    assert [site.find(None, start).definition.site for start in (clinic, clinic / "a", inner)] == ["clinic", "inner", "inner"]  # type: ignore[union-attr]
    assert site.find(None, clinic.parent) is None


def test_flag_and_environment_name_another_folder(clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--site` over PREMONITOR_SITE over what is found; `none` is none; a folder without the file is refused."""
    for name in ("other", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / site.FILE).write_text(f'site = "{name}"\ntopic_prefix = "{name}."')
    assert (shown()["site"], shown()["site_folder"]) == (("clinic", "premonitor.toml:1"), (str(clinic), "found upwards"))
    monkeypatch.setenv("PREMONITOR_SITE", str(tmp_path / "other"))
    assert (shown()["prefix"], shown()["site_folder"][1]) == (("other.", "premonitor.toml:2"), "env PREMONITOR_SITE")
    told = shown("--site", "../third")
    assert (told["site"][0], told["prefix"][0], told["site_folder"][1]) == ("third", "third.", "flag")
    assert "site" not in shown("--site", "none")
    monkeypatch.setenv("PREMONITOR_SITE", "none")
    assert "site" not in shown()
    said = run("settings", "show", "--site", str(tmp_path), code=2)
    assert re.search(r"is no site folder: it has no premonitor\.toml\. Make one with: premonitor init ", str(said.exception))


def test_every_command_that_takes_defaults_has_the_option_once() -> None:
    """Those with --kafka, --model or --use-case; not the demo, which stands alone, nor init, which makes one."""
    for path, command in leaves(main).items():
        options = [word for parameter in command.params for word in parameter.opts]
        wanted = bool({"--kafka", "--model", "--use-case"} & set(options)) and path not in (("demo",), ("init",))
        assert options.count("--site") == 1 or not wanted, path


# --- what wins ------------------------------------------------------------------------------------------------------------------------


def test_flag_over_environment_over_file_over_default(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step, one after the other, for a setting of each kind; and each says where it came from."""
    assert shown("--site", "none")["kafka_bootstrap"] == ("127.0.0.1:9092", "default")
    told = shown()
    assert told["kafka_bootstrap"] == ("kafka:9092", "premonitor.toml:8")
    assert told["kafka_tls"] == (True, "premonitor.toml:9")
    assert told["redis_url"] == ("rediss://cache:6379/0", "premonitor.toml:13")
    assert told["prefix"] == ("prod.", "premonitor.toml:5")
    assert told["timezone"] == ("Europe/Berlin", "premonitor.toml:2")
    assert told["use_case"] == ("ed_60d_any", "premonitor.toml:3")
    assert told["models"] == ([str(clinic / "models/v1"), "/srv/v2"], "premonitor.toml:4")
    assert told["attempts_max"] == (8, "default")
    (clinic / "m.json").write_text("{}")
    for name, value in (("KAFKA_BOOTSTRAP", "e:1"), ("REDIS_URL", "redis://e"), ("PREFIX", ""), ("MODEL", "m.json"), ("USE_CASE", "e")):
        monkeypatch.setenv(f"PREMONITOR_{name}", value)
    told = shown()
    assert told["kafka_bootstrap"] == ("e:1", "env PREMONITOR_KAFKA_BOOTSTRAP")
    assert told["redis_url"] == ("redis://e", "env PREMONITOR_REDIS_URL")
    assert told["prefix"] == ("", "env PREMONITOR_PREFIX"), "an empty variable says: no prefix"
    assert told["models"] == (["m.json"], "env PREMONITOR_MODEL")
    assert told["use_case"] == ("e", "env PREMONITOR_USE_CASE")
    assert told["kafka_tls"] == (True, "premonitor.toml:9"), "what the environment does not say stays as the file says"
    (clinic / "f.json").write_text("{}")
    told = shown("--kafka", "f:1", "--redis", "redis://f", "--prefix", "f.", "--model", "f.json", "--use-case", "f")
    assert [told[name] for name in ("kafka_bootstrap", "redis_url", "prefix", "models", "use_case")] == [
        ("f:1", "flag"), ("redis://f", "flag"), ("f.", "flag"), (["f.json"], "flag"), ("f", "flag"),
    ]  # fmt: skip


def test_paths_are_relative_to_the_site_folder(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From wherever the command is run; absolute ones stay."""
    (clinic / "deep").mkdir()
    monkeypatch.chdir(clinic / "deep")
    told = shown()
    assert told["kafka_ca_file"] == (str(clinic / "tls/ca.pem"), "premonitor.toml:10")
    assert told["models"][0] == [str(clinic / "models/v1"), "/srv/v2"]
    assert toml.line_of(FULL, ("kafka", "ca_file")) == 10


def test_secrets_are_told_as_set_or_not_set(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value is in neither form of the answer."""
    assert [shown()[f"{service}_password"][0] for service in ("kafka", "redis")] == ["not set", "not set"]
    monkeypatch.setenv("PREMONITOR_REDIS_PASSWORD", "hunter2")
    assert shown()["redis_password"] == ("set", "env PREMONITOR_REDIS_PASSWORD")
    for flags in ([], ["--json"]):
        assert "hunter2" not in run("settings", "show", *flags).output


# --- the commands ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Started:
    """What a worker would have been started with."""

    settings: Settings | None = None
    versions: tuple[str, ...] = ()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Stops a worker where it would look at its services."""
    seen = Started()

    async def prepare(settings: Settings, models: list[artifact.Model], *_: object) -> None:
        seen.settings, seen.versions = settings, tuple(m.version for m in models)
        raise CheckFailed("far enough")

    monkeypatch.setattr(live.preflight, "prepare", prepare)
    return seen


def test_a_worker_alone_takes_all_from_the_site(clinic: Path, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """`premonitor worker` without a flag, in a folder below; without a site folder it asks for a model, as ever."""
    (clinic / "models" / "v1").mkdir(parents=True)
    made = stand_in(any_visit()).artifact
    artifact.save(made, clinic / "models" / "v1" / "model.json")
    (clinic / site.FILE).write_text(FULL.replace(', "/srv/v2"', ""))
    monkeypatch.chdir(clinic / "models")
    run("worker", code=1)
    assert started.settings is not None
    assert started.versions == (made.version,)
    told = started.settings
    assert (told.kafka_bootstrap, told.redis_url, told.prefix) == ("kafka:9092", "rediss://cache:6379/0", "prod.")
    assert (told.kafka_tls, told.kafka_ca_file, told.stages) == (True, clinic / "tls/ca.pem", ["admit", "score"])
    assert "Missing option '--model'." in run("worker", "--site", "none", code=2).output


def test_a_model_of_the_file_that_is_not_there_is_a_sentence(clinic: Path) -> None:
    """With its path; and only where a model is needed."""
    said = str(run("worker", code=2).exception)
    assert said.startswith(f"{clinic / 'models/v1'}: no such model. Make one with: premonitor train")
    assert "models" in shown()


def test_a_worker_refuses_a_model_of_another_version_of_the_sites_use_case(
    clinic: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same name and another content; a title is no content. Proofs of what was issued earlier still take it."""
    artifact.save(stand_in(any_visit()).artifact, clinic / "m.json")
    own = clinic / "usecases" / "ed_60d_any.toml"
    own.parent.mkdir()
    own.write_text(usecase.shipped("ed_60d_any").replace("within 60 days of any visit", "soon"))
    run("worker", "--model", "m.json", code=1)
    own.write_text(usecase.shipped("ed_60d_any").replace("capacity = 0.10", "capacity = 0.20"))
    said = str(run("worker", "--model", "m.json", code=2).exception)
    assert re.search(r"was trained with use case ed_60d_any [0-9a-f]{16}, this site has [0-9a-f]{16}\. Train again", said)
    run("worker", "--model", "m.json", "--site", "none", code=1)
    taken: list[artifact.Model] = []
    monkeypatch.setattr(model, "Log", lambda *_: None)
    monkeypatch.setattr(model, "backfill_log", lambda log, models: taken.extend(models) or [])
    assert "gives no scores" in str(run("backfill", ".", "--model", "m.json", "--out", "s.parquet", code=2).exception)
    assert len(taken) == 1


def test_a_sites_own_use_case_wins_over_a_shipped_one(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name: its own, else the shipped one; by path: that file. Without the option that of the file."""
    own = clinic / "usecases" / "ed_60d_any.toml"
    own.parent.mkdir()
    shipped = usecase.shipped("ed_60d_any")
    own.write_text(shipped.replace("horizon_days = 60", "horizon_days = 61"))
    (clinic / "x.toml").write_text(shipped.replace("horizon_days = 60", "horizon_days = 62"))
    (clinic / "usecases" / "ours.toml").write_text(
        shipped.replace('"ed_60d_any"', '"ours"').replace("horizon_days = 60", "horizon_days = 63")
    )
    (clinic / "usecases" / "false.toml").write_text(shipped)
    asked: list[int] = []

    def labels_table(log: object, use_case: usecase.UseCase, *_: object) -> int:
        asked.append(use_case.definition.outcome.horizon_days)
        return 0

    monkeypatch.setattr(model, "Log", lambda *_: None)
    monkeypatch.setattr(model.tables, "labels_table", labels_table)
    ways: list[list[str]] = [[], ["--use-case", "ed_60d_any"], ["--use-case", "x.toml"], ["--use-case", "ours"]]
    for flags in (*ways, ["--site", "none", "--use-case", "ed_60d_any"]):
        run("labels", ".", "--out", "l.parquet", *flags)
    assert asked == [61, 61, 62, 63, 60]
    assert "its name is 'ed_60d_any'" in str(run("labels", ".", "--out", "l.parquet", "--use-case", "false", code=2).exception)
    assert "Missing option '--use-case'." in run("labels", ".", "--out", "l.parquet", "--site", "none", code=2).output
    assert "use case '../x' is not known" in str(run("labels", ".", "--out", "l.parquet", "--use-case", "../x", code=2).exception)


def test_a_replay_goes_to_kafka_only_when_told(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site's broker does not turn a replay in one process into one that writes."""
    artifact.save(stand_in(any_visit()).artifact, clinic / "m.json")
    monkeypatch.setattr(live, "Log", lambda *_: None)

    async def in_process(*_: object, **__: object) -> None:
        raise CheckFailed("in this process")

    async def into_facts(log: object, models: object, settings: Settings, **_: object) -> None:
        raise CheckFailed(f"into {settings.kafka_bootstrap} {settings.prefix}")

    monkeypatch.setattr(live.replay, "replay_in_process", in_process)
    monkeypatch.setattr(live.replay, "replay_into_facts", into_facts)
    assert str(run("replay", ".", "--model", "m.json", code=1).exception) == "in this process"
    said = run("replay", ".", "--model", "m.json", "--kafka", "k:1", "--prefix", "replay.", code=1)
    assert str(said.exception) == "into k:1 replay."


def test_status_names_the_site_and_shows_its_time(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In text with the zone's offset, in JSON as UTC; the same instant, in winter and in summer."""
    at = {"winter": 1_768_000_000, "summer": 1_784_000_000}
    stands = [status.Stand(name, 1, 0, seconds * 1_000_000 + 5) for name, seconds in at.items()]

    async def now(_: Settings) -> status.Status:
        return status.Status(stands, [], [], [], {})

    monkeypatch.setattr(status, "status", now)
    text = run("status").stdout
    assert text.startswith("site clinic\n\n")
    assert "2026-01-10T00:06:40+01:00" in text
    assert "2026-07-14T05:33:20+02:00" in text
    document = json.loads(run("status", "--json").stdout)
    assert (document["site"], document["feeds"][0]["last_record"][:20]) == ("clinic", "2026-01-09T23:06:40.")
    without = run("status", "--site", "none").stdout
    assert without.startswith("feed ")
    assert "2026-01-09T23:06:40Z" in without
