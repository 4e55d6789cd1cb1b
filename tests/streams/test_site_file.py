"""The file of a site folder and a new folder: what is refused with its line, secrets above all, and what init writes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from zoneinfo import available_timezones

import click
import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from features import toml, usecase
from features.codes import codebook
from features.errors import InputError
from streams import site
from streams.cli import main
from streams.settings import Settings
from tests.streams.test_site import clear, run, shown
from tests.test_docs import leaves

LEAST = 'site = "clinic"\n'


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clear(monkeypatch)


# --- what is refused ------------------------------------------------------------------------------------------------------------------

WRONG = [
    ("name = 1\n", r":1 .*there is no such key; known here: site, timezone|:1 site: Field required"),
    (LEAST + "\n[kafka]\nbootstap = 'k:1'\n", r":4 kafka\.bootstap: there is no such key; known here: bootstrap, tls, ca_file, user"),
    (LEAST + "[feeds.labs]\ntopic = 'lab-results'\n", r":2 feeds: there is no such key; known here: site, timezone, use_case, models"),
    (LEAST + "colour = 'red'\n", r":2 colour: there is no such key"),
    ("", r":1 site: Field required$"),
    ("site = 'a clinic'\n", r":1 site: String should match"),
    (LEAST + "# zone\ntimezone = 'Berlin'\n", r":3 timezone: .*such as Europe/Berlin$"),
    (LEAST + "timezone = '../x'\n", r":2 timezone: "),
    (LEAST + "timezone = ''\n", r":2 timezone: "),
    (LEAST + "topic_prefix = 'prod'\n", r":2 topic_prefix: .*ending in a dot, such as prod\.$"),
    (LEAST + "use_case = 'ed 60'\n", r":2 use_case: String should match"),
    (LEAST + "models = 'v1'\n", r":2 models: Input should be a valid list$"),
    (LEAST + "[kafka]\nbootstrap = 'ab'\n", r":3 kafka\.bootstrap: String should have at least 3"),
    (LEAST + "[redis]\nurl = 'cache:6379'\n", r":3 redis\.url: .*such as redis://127"),
    (LEAST + "kafka = 'k:1'\n", r":2 kafka: "),
    ("site = \n", r": not TOML: .*line 1"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[text.strip().splitlines()[-1] if text else "empty" for text, _ in WRONG])
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    """file:line, key and rule."""
    (tmp_path / site.FILE).write_text(text)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / site.FILE)) + f"(?:{words})"):
        site.read(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / site.FILE).write_bytes(b"site = '\xff'")
    with pytest.raises(InputError, match="not UTF-8"):
        site.read(tmp_path)


SECRETS = [
    ("[redis]\nurl = 'redis://h'\npassword = 'hunter2'", 4, "REDIS"),
    ("[redis]\nurl = 'redis://:hunter2@h/0'", 3, "REDIS"),
    ("[redis]\nurl = 'redis://me:hunter2@h/0'", 3, "REDIS"),
    ("[redis]\nurl = 'redis://h/0?password=hunter2'", 3, "REDIS"),
    ("redis = 'redis://:hunter2@h/0'", 2, "REDIS"),
    ("[kafka]\npassword_file = 'hunter2'", 3, "KAFKA"),
    ("[kafka]\nbootstrap = 'k:1'\nsasl_PASSWORD = 'hunter2'", 4, "KAFKA"),
    ("kafka_password = 'hunter2'", 2, "KAFKA"),
    ("redis_password = 'hunter2'", 2, "REDIS"),
    ("api_token = 'hunter2'", 2, "KAFKA"),
    ("kafka.password = 'hunter2'", 2, "KAFKA"),
]


@pytest.mark.parametrize(("text", "line", "service"), SECRETS)
def test_a_secret_in_the_file_is_refused_and_not_repeated(tmp_path: Path, text: str, line: int, service: str) -> None:
    """Whatever else is wrong; the sentence says where secrets go."""
    (tmp_path / site.FILE).write_text(f"{LEAST}{text}\n")
    with pytest.raises(InputError, match=rf":{line} .*secrets have no place in this file.*PREMONITOR_{service}_PASSWORD_FILE") as caught:
        site.read(tmp_path)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["kafka = 'hunter2'", "topic_prefix = 'hunter2'", "timezone = 'hunter2'", "[kafka]\nmechanism = 'hunter2'", "x = 'hunter2'"]
)
def test_no_value_is_repeated(tmp_path: Path, text: str) -> None:
    """What stands in the wrong place may be a secret."""
    (tmp_path / site.FILE).write_text(f"{LEAST}{text}\n")
    with pytest.raises(InputError) as caught:
        site.read(tmp_path)
    assert "hunter2" not in str(caught.value)


def test_a_user_without_a_password_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / site.FILE).write_text(LEAST + "[redis]\nurl = 'rediss://me@h:6379/0'\n[kafka]\nuser = 'me'\ntls = true\n")
    assert site.read(tmp_path).settings == {"redis_url": "rediss://me@h:6379/0", "kafka_user": "me", "kafka_tls": True}


def test_every_key_of_the_file_is_a_setting_or_an_option() -> None:
    """Nothing is accepted that does nothing: kafka and redis keys are settings of the same name and kind."""
    sections = {"kafka": site.Kafka, "redis": site.Redis}
    keys = {f"{section}_{key}" for section, cls in sections.items() for key in cls.model_fields}
    assert keys <= set(Settings.model_fields)
    assert set(site.Definition.model_fields) == {"site", "timezone", "use_case", "models", "topic_prefix", *sections}


@checked(max_examples=100, deadline=None, print_blob=True)
@given(
    zone=st.sampled_from(sorted(available_timezones())), models=st.lists(st.from_regex(r"[a-z]{1,9}(/[a-z0-9]{1,9}){0,3}", fullmatch=True))
)
def test_what_is_written_is_what_is_read(zone: str, models: list[str]) -> None:
    """Any zone there is, any paths; and lines lead back to their keys."""
    text = f'site = "a"\ntimezone = "{zone}"\n\nmodels = {json.dumps(models)}\n[redis]\n# url = 1\nurl = "redis://h"\n'
    found = site.Site(Path("/s"), toml.parse(text, site.Definition, source="x"), text)
    assert (str(found.zone), found.models) == (zone, tuple(Path("/s") / m for m in models))
    assert [found.where(*p) for p in (["timezone"], ["models"], ["redis", "url"])] == [f"premonitor.toml:{n}" for n in (2, 4, 7)]


# --- init -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ed_60d_any", "readmission_30d"])
def test_init_writes_a_folder_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every file that is promised; its settings are those of no site folder, until they are changed."""
    monkeypatch.chdir(tmp_path)
    before = shown()
    done = run("init", "my clinic", "--use-case", name, "--json")
    folder = tmp_path / "my clinic"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    wanted = {site.FILE, "README.md", ".gitignore", f"usecases/{name}.toml", "mapping/README.md", "codes/local.csv"}
    assert files == {str(Path(path).relative_to("my clinic")) for path in json.loads(done.stdout)["files"]} == wanted
    assert (folder / "codes/local.csv").read_text() == "local_code,system,code,unit\n"
    assert (folder / ".gitignore").read_text().split() == ["log/", "models/", "scores/"]
    found = site.read(folder)
    assert (found.definition.site, found.definition.use_case, found.models) == ("my-clinic", name, (folder / "models/v1",))
    assert found.has_use_case(name)
    assert found.use_case(name, codebook()).content_hash == usecase.load(name, codebook()).content_hash
    monkeypatch.chdir(folder)
    assert {key: value for key, (value, _) in shown().items() if key in before and key not in ("models", "use_case")} == {
        key: value for key, (value, _) in before.items() if key not in ("models", "use_case")
    }


def test_the_commands_of_a_new_folder_are_commands(tmp_path: Path) -> None:
    """Each line of its README: a command, its options, and no argument missing but those that the site gives."""
    site.begin(tmp_path, "ed_60d_any")
    lines = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("premonitor ")]
    assert len(lines) == 6
    every = leaves(main)
    for line in lines:
        _, name, *words = shlex.split(line, comments=True)
        command = every[(name,)]
        known = {word for parameter in command.params for word in parameter.opts}
        given_ = {word for word in words if word.startswith("--")}
        needed = {p.opts[0] for p in command.params if p.required and isinstance(p, click.Option)}
        assert needed <= given_ <= known, line


def test_init_refuses_what_is_there(tmp_path: Path) -> None:
    """A folder with anything in it, a file, an unknown use case; nothing is written. An empty folder is welcome."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".hidden").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        assert "is not empty" in str(run("init", str(tmp_path / name), code=2).exception)
    assert "Shipped: " in str(run("init", str(tmp_path / "new"), "--use-case", "no_such", code=2).exception)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".hidden", "file", "full"]
    (tmp_path / "empty").mkdir()
    run("init", str(tmp_path / "empty"))
    run("init", str(tmp_path / "empty"), code=2)


def test_a_foreign_features_folder_does_no_harm(tmp_path: Path) -> None:
    """The installed command in a site folder that has packages of our names, and a site folder whose packages fail to import."""
    command = str(Path(sys.executable).with_name("premonitor"))

    def premonitor(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([command, *words], cwd=cwd, capture_output=True, text=True, timeout=120)

    assert premonitor("init", "clinic", cwd=tmp_path).returncode == 0
    clinic = tmp_path / "clinic"
    for name in ("features", "models", "streams", "site"):
        (clinic / name).mkdir()
        (clinic / name / "__init__.py").write_text("raise RuntimeError('the foreign package was imported')\n")
    done = premonitor("settings", "show", cwd=clinic / "features")
    assert (done.returncode, done.stderr) == (0, "")
    assert "premonitor.toml:4" in done.stdout
    (clinic / site.FILE).write_text(LEAST + "[kafka]\npassword = 'hunter2'\n")
    done = premonitor("topics", cwd=clinic)
    assert (done.returncode, done.stdout, "hunter2" in done.stderr) == (2, "", False)
    assert "premonitor.toml:3 kafka.password" in done.stderr
