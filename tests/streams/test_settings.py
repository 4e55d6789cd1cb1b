"""Settings: bounds on both sides, where values come from, secrets that are never shown, and names of topics."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from annotated_types import Ge, Le
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import InputError
from features.event import FEEDS
from streams.settings import Settings, Stage, load
from streams.topics import TOPICS, Names

CHECKED = settings(max_examples=100, deadline=None, print_blob=True)
SECRET = "correct-horse-battery"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests must not decide them."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"PREMONITOR_{name.upper()}", raising=False)


def bounds() -> list[tuple[str, float, float, type]]:
    """(name, least, most, type) of every number that can be set."""
    out = []
    for name, field in Settings.model_fields.items():
        least = [rule.ge for rule in field.metadata if isinstance(rule, Ge)]
        most = [rule.le for rule in field.metadata if isinstance(rule, Le)]
        kinds = get_args(field.annotation) or (field.annotation,)
        if int in kinds or float in kinds:
            assert least and most, f"{name} has no bounds: a limit on everything"
            out.append((name, float(least[0]), float(most[0]), int if int in kinds else float))  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize(("name", "least", "most", "kind"), bounds(), ids=[name for name, *_ in bounds()])
def test_every_number_has_bounds_on_both_sides(name: str, least: float, most: float, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds themselves are allowed, what lies beyond is refused, by flag and by environment; the error names the setting."""
    step = 1 if kind is int else 1e-6
    for value in (kind(least), kind(most)):
        assert getattr(load(**{name: value}), name) == value
    for value in (kind(least - step), kind(most + step), "nan", "inf", "-inf", "many", ""):
        with pytest.raises(InputError, match=f"^{name}: "):
            load(**{name: value})
        monkeypatch.setenv(f"PREMONITOR_{name.upper()}", str(value))
        with pytest.raises(InputError, match=f"^{name}: "):
            load()
        monkeypatch.delenv(f"PREMONITOR_{name.upper()}")


def test_flags_win_over_the_environment_and_it_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that was not given is None and decides nothing."""
    assert (load().polls_ahead, load().known_time, load().stages) == (1, "append", ["admit", "score"])
    monkeypatch.setenv("PREMONITOR_POLLS_AHEAD", "5")
    monkeypatch.setenv("PREMONITOR_KNOWN_TIME", "given")
    assert (load().polls_ahead, load(polls_ahead=None, known_time=None).known_time) == (5, "given")
    assert (load(polls_ahead=7).polls_ahead, load(known_time="append").known_time) == (7, "append")


BAD: list[tuple[str, Any]] = [
    ("kafka_bootstrap", "ab"), ("kafka_mechanism", "GSSAPI"), ("known_time", "now"), ("worker_name", ""), ("worker_name", "a b"),
    ("worker_name", "x" * 65), ("worker_name", "a\n"), ("worker_name", "../x"), ("stages", ["admit", "guess"]), ("stages", "admit"),
    ("kafka_tls", "perhaps"), ("batch_records_max", 1.5), ("health_port", -1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_wrong_value_is_refused_by_name_and_not_repeated(name: str, value: Any) -> None:
    """The sentence names the setting and the rule; the value may be a secret in the wrong place."""
    with pytest.raises(InputError, match=f"^{name}") as caught:
        load(**{name: value})
    assert not isinstance(value, str) or len(value) < 5 or value not in str(caught.value)


@pytest.mark.parametrize("text", ["admit", "[", '["guess"]', '{"admit": 1}', "5"])
def test_stages_from_the_environment_are_refused_with_a_sentence(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list is written as JSON there; whatever else it says is an InputError, never a traceback."""
    monkeypatch.setenv("PREMONITOR_STAGES", text)
    with pytest.raises(InputError, match="stages"):
        load()


@pytest.mark.parametrize("stage", get_args(Stage))
def test_stages_from_the_environment(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREMONITOR_STAGES", f'["{stage}"]')
    assert load().stages == [stage]


# --- secrets ---------------------------------------------------------------------------------------------------------------------------


def test_a_password_over_an_open_line_is_refused() -> None:
    """SASL without TLS, unless it was asked for in words."""
    with pytest.raises(InputError, match=r"in the clear.*PREMONITOR_KAFKA_TLS"):
        load(kafka_user="u", kafka_password=SECRET)
    asked = load(kafka_user="u", kafka_password=SECRET, kafka_allow_plaintext_sasl=True)
    assert asked.kafka()["security_protocol"] == "SASL_PLAINTEXT"
    assert load(kafka_user="u", kafka_password=SECRET, kafka_tls=True).kafka()["security_protocol"] == "SASL_SSL"


def test_what_a_kafka_client_is_told() -> None:
    """Nothing but the address without TLS and user; a context that checks the server's certificate with TLS."""
    assert load().kafka() == {"bootstrap_servers": "127.0.0.1:9092"}
    tls = load(kafka_tls=True).kafka()
    assert (tls["security_protocol"], tls["ssl_context"].verify_mode, tls["ssl_context"].check_hostname) == ("SSL", ssl.CERT_REQUIRED, True)
    both = load(kafka_tls=True, kafka_user="u", kafka_password=SECRET, kafka_mechanism="PLAIN").kafka()
    assert (both["sasl_mechanism"], both["sasl_plain_username"], both["sasl_plain_password"]) == ("PLAIN", "u", SECRET)


@pytest.mark.parametrize("name", ["kafka", "redis"])
def test_secrets_come_from_a_file_or_the_environment(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file wins; the line's end that an editor leaves is no part of it."""

    def secret() -> Any:
        found = load(kafka_user="u", kafka_tls=True)
        return found.redis_secret() if name == "redis" else found.kafka()["sasl_plain_password"]

    if name == "redis":
        assert secret() is None
    monkeypatch.setenv(f"PREMONITOR_{name.upper()}_PASSWORD", "from the environment")
    assert secret() == "from the environment"
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv(f"PREMONITOR_{name.upper()}_PASSWORD_FILE", str(tmp_path / "secret"))
    assert secret() == SECRET


MISSING: list[tuple[dict[str, Any], Callable[[Settings], Any]]] = [
    ({"kafka_user": "u", "kafka_tls": True, "kafka_password_file": "/nowhere/secret"}, Settings.kafka),
    ({"redis_password_file": "/nowhere/secret"}, Settings.redis_secret),
    ({"kafka_tls": True, "kafka_ca_file": "/nowhere/ca.pem"}, Settings.kafka),
    ({"kafka_user": "u", "kafka_tls": True}, Settings.kafka),
]


@pytest.mark.parametrize(("flags", "use"), MISSING, ids=["kafka password", "redis password", "certificates", "user without password"])
def test_a_secret_that_is_not_there_is_a_sentence(flags: dict[str, Any], use: Callable[[Settings], Any]) -> None:
    """A night-shift engineer reads which file is missing or what to set, not a traceback."""
    with pytest.raises(InputError):
        use(load(**flags))


def test_secrets_are_never_shown() -> None:
    """Not in the text of the settings, nor in the error of another setting, nor of their own."""
    shown = load(kafka_password=SECRET, redis_password=SECRET)
    assert SECRET not in f"{shown!r} {shown} {shown.model_dump()} {shown.model_dump_json()}"
    for flags in (
        {"kafka_user": "u", "kafka_password": SECRET},
        {"kafka_password": SECRET, "polls_ahead": 99},
        {"worker_name": f"{SECRET}!"},
    ):
        with pytest.raises(InputError) as caught:
            load(**flags)
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None


def test_settings_do_not_change_while_a_worker_runs() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().polls_ahead = 3  # type: ignore[misc]


# --- names of topics -------------------------------------------------------------------------------------------------------------------

WORD = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)*", fullmatch=True)
REFUSED = [
    "prod", "Prod.", "pro_d.", "prod..", ".", "..", "...", ".prod.", "-.", "-prod.", "prod-.", "prod. ", "p rod.", "prød.", "a/b.",
    "prod.\n", "pr*d.", "x" * 300 + ".",
]  # fmt: skip


def test_a_prefix_that_is_not_of_words_is_refused() -> None:
    """Lower-case words joined by hyphens, each ending in a dot, and short enough for a topic's name."""
    accepted = []
    for prefix in REFUSED:
        with suppress(InputError):
            accepted.append(Names(prefix).facts)
    assert accepted == []


@CHECKED
@given(st.lists(WORD.filter(lambda word: len(word) < 30), max_size=4))
def test_names_begin_with_the_prefix(words: list[str]) -> None:
    """Every topic of a generation has its own name under it, and no name of ours is that of another generation."""
    prefix = "".join(f"{word}." for word in words)
    names = Names(prefix)
    mine = [names.facts, names.scores, names.alerts, names.dead_letters, names.controls, *names.feeds]
    assert mine == [prefix + one for one in ("facts", "scores", "alerts", "dead-letters", "controls", *FEEDS)]
    assert set(mine) >= {prefix + topic.name for topic in TOPICS}
    assert len(set(mine)) == len(mine)
    assert names.feeds == {prefix + feed: feed for feed in FEEDS}
    assert max(map(len, mine)) <= 249
    assert not set(mine) & {Names(f"{prefix}x.").facts, *Names(f"{prefix}x.").feeds}


def test_the_log_is_kept_for_ever_and_stamped_by_the_broker() -> None:
    """Known time is the append time of `facts` and of the controls; nothing of ours expires."""
    for topic in TOPICS:
        assert (topic.config["retention.ms"], topic.config["retention.bytes"]) == ("-1", "-1"), topic.name
        assert topic.config.get("message.timestamp.type") == ("LogAppendTime" if topic.name in ("facts", "controls") else None), topic.name
    assert [topic.partitions for topic in TOPICS if topic.name == "controls"] == [1], "controls have one order"
