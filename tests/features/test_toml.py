"""Files that people write: the line of every key, and sentences that say what is known."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from features import toml, usecase
from features.codes import codebook
from features.errors import InputError

CASE = """\
name = "x"            # 1
# [index]
[index]
classes = ["ambulatory"]
[outcome]             # 5
concepts = ["visit.emergency"]
horizon_days = 60

[[features]]
name = "a"            # 10
concepts = ["albumin"]
aggregates = ["count"]

[[features]]
name = "b"            # 15
concepts = ["albumin"]
aggregates = ["count"]
days = [5, 30]
"""
FAULTS = [
    ("", "", 'colour = "red"\n' + CASE, ":1 colour: there is no such key; known here: name, title, capacity"),
    ("horizon_days = 60", "horizon_days = 0", None, ":7 outcome.horizon_days: Input should be greater than or equal to 1, got 0"),
    ("[5, 30]", "[5, 0]", None, ":18 features.1.days.1: "),
    ('["albumin"]\naggregates = ["count"]\n\n', '["albumin"]\naggregates = ["count", "cnt"]\n\n', None, ":12 features.0.aggregates.1: "),
    ('name = "a"            # 10\n', "", None, ":9 features.0.name: Field required"),
    ("days = [5, 30]", "day = [5, 30]", None, ":18 features.1.day: there is no such key; known here: name, concepts, aggregates, days"),
    ('[index]\nclasses = ["ambulatory"]\n[', "[", None, ":1 index: Field required"),
    ("[outcome] ", "[outcomes] ", None, ":1 outcome: Field required"),
]


@pytest.mark.parametrize(("old", "new", "text", "words"), FAULTS, ids=[words for *_, words in FAULTS])
def test_a_fault_of_a_use_case_is_said_with_its_line(old: str, new: str, text: str | None, words: str) -> None:
    """Also where the key is missing, or stands in the first of two tables of one name."""
    with pytest.raises(InputError) as caught:
        usecase.parse(text or CASE.replace(old, new, 1), source="x.toml", book=codebook())
    assert str(caught.value).startswith(f"x.toml{words}")


def test_what_is_no_file_is_a_sentence(tmp_path: Path) -> None:
    """Not there, a folder, not UTF-8, not TOML."""
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe4'")
    for name, words in (("none.toml", "not readable: No such file"), (".", "not readable: "), ("latin.toml", "not UTF-8")):
        with pytest.raises(InputError, match=words):
            toml.read(tmp_path / name)
    with pytest.raises(InputError, match=r"^x: not TOML: .*line 2"):
        toml.raw("a = 1\nb = \nc = 2", source="x")


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    word: str = ""


def test_values_are_shown_only_where_they_may_be() -> None:
    """Off for files in which a secret may stand in the wrong place."""
    for show in (True, False):
        for text in ("word = 17", "ward = 17"):
            with pytest.raises(InputError) as caught:
                toml.parse(text, Part, source="x", show_values=show)
            assert ("17" in str(caught.value)) is show


# --- lines ----------------------------------------------------------------------------------------------------------------------------

KEY = st.sampled_from(["a", "b", "a-b", "ab", "url", "kafka"])
TABLE = st.dictionaries(KEY, st.integers(0, 9), max_size=3)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, list[tuple[toml.Place, int]]]:
    """A file of tables, lists of tables, nested and dotted ones, with the place and line of each key."""
    lines: list[str] = []
    places: list[tuple[toml.Place, int]] = []

    def put(text: str, place: toml.Place | None = None) -> None:
        lines.extend(draw(st.lists(st.sampled_from(["", "# a = 1", "# [a]"]), max_size=1)))
        lines.append(f"{draw(st.sampled_from(['', '  ']))}{text}{draw(st.sampled_from(['', '  # a = 2']))}")
        if place is not None:
            places.append((place, len(lines)))

    def body(table: dict[str, int], place: toml.Place) -> None:
        for key, value in table.items():
            put(f"{key} = {value}", (*place, key))

    top = draw(TABLE)
    body(top, ())
    names = [name for name in ("a", "b", "url", "kafka") if name not in top]
    for name in draw(st.permutations(names)):
        match draw(st.sampled_from(["table", "list", "nested", "inner"])):
            case "table":
                put(f"[{name}]", (name,))
                body(draw(TABLE), (name,))
            case "list":
                for n in range(draw(st.integers(1, 3))):
                    put(f"[[ {name} ]]", (name, n))
                    body(draw(TABLE), (name, n))
            case "nested":
                put(f"[{name}.a]", (name, "a"))
                body(draw(TABLE), (name, "a"))
            case "inner":
                put(f"[{name}]", (name,))
                put("a.b = 1", (name, "a", "b"))
                put("a.url = 1", (name, "a", "url"))
    return "\n".join(lines), places


def at(tables: Any, place: toml.Place) -> Any:
    for step in place:
        tables = tables[step]
    return tables


def below(tables: Any, place: toml.Place = ()) -> Iterator[toml.Place]:
    """Every place of a file, found by walking what tomllib makes of it."""
    if isinstance(tables, dict | list):
        for step, value in tables.items() if isinstance(tables, dict) else enumerate(tables):
            yield (*place, step)
            yield from below(value, (*place, step))


@settings(max_examples=200, deadline=None, print_blob=True)
@given(documents())
def test_the_line_of_every_key_is_found(document: tuple[str, list[tuple[toml.Place, int]]]) -> None:
    """Each key leads to its own line, whatever other tables have keys of the same name; no place fails."""
    text, places = document
    tables = tomllib.loads(text)
    for place, line in places:
        at(tables, place)
        assert toml.line_of(text, place) == line, place
    for place in below(tables):
        assert 1 <= toml.line_of(text, place) <= text.count("\n") + 1
