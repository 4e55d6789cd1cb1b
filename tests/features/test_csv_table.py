"""A CSV file is read as it was written: delimiters, encodings, packed or not; and what is no table is refused with a remedy."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import InputError
from features.importers.csv_table import DELIMITERS, CsvTable

CHECKED = settings(max_examples=100, deadline=None, print_blob=True)
texts = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]) | st.sampled_from('",;|\n'), max_size=8)


def written(rows: list[list[str]], delimiter: str) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows)
    return text.getvalue()


@CHECKED
@given(
    rows=st.lists(st.lists(texts, min_size=3, max_size=3), max_size=6),
    delimiter=st.sampled_from(DELIMITERS),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
    packed=st.booleans(),
)
def test_what_was_written_is_read(rows: list[list[str]], delimiter: str, encoding: str, packed: bool) -> None:
    """Nothing is told but the encoding where bytes alone cannot tell it: Latin-1 text may be UTF-8 by chance."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("t.csv.gz" if packed else "t.csv")
        data = written([["a", "b", "c"], *rows], delimiter).encode(encoding)
        path.write_bytes(gzip.compress(data) if packed else data)
        table = CsvTable(path, encoding="latin-1" if encoding == "latin-1" else None)
        assert (table.columns, table.delimiter, list(table.rows())) == (["a", "b", "c"], delimiter, rows)


FOUND = [
    ("Ä", "utf-8", "utf-8-sig"),
    ("Ä", "utf-8-sig", "utf-8-sig"),
    ("Ä", "latin-1", "cp1252"),
    ("€", "cp1252", "cp1252"),
    ("Ä", "utf-16", "utf-16"),
]


@pytest.mark.parametrize(("text", "encoding", "found"), FOUND)
def test_the_encoding_is_found_even_if_only_the_last_line_tells_it(tmp_path: Path, text: str, encoding: str, found: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(("a,b\n" + "x,y\n" * 300_000 + f"{text},y\n").encode(encoding))
    table = CsvTable(path)
    *_, last = table.rows()
    assert (table.encoding, last) == (found, [text, "y"])


def test_bytes_that_end_within_a_letter_are_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a\n\xc3")
    assert CsvTable(tmp_path / "t.csv").encoding == "cp1252"


def test_rows_are_read_as_they_stand_and_empty_lines_are_none(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a|b|\n1|"2\n3"|\n\n4\n5|6|7|8\n')
    assert CsvTable(path).columns == ["a", "b", ""]
    assert list(CsvTable(path).rows()) == [["1", "2\n3", ""], ["4"], ["5", "6", "7", "8"]]
    assert list(CsvTable(path, quote="").rows())[:2] == [["1", '"2'], ['3"', ""]]


BROKEN = [
    (b"", "no first line with the names"),
    (b"\n1,2\n", "no first line with the names"),
    (b"1001,Doe,2026-05-03 08:00\n", "no first line with the names"),
    (b"a,b,a\n", "two columns a"),
    (b'a,b\n1,"' + b"x\n" * 70_000, "a quote opens and does not close"),
]


@pytest.mark.parametrize(("data", "message"), BROKEN)
def test_what_is_no_table_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(CsvTable(path).rows())


def test_a_quoted_name_may_have_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('"a\n(mg)",b\n1,2\n')
    assert (CsvTable(path).columns, list(CsvTable(path).rows())) == (["a\n(mg)", "b"], [["1", "2"]])


def test_bytes_outside_a_told_encoding_are_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("a\nx\nÄ\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"is not utf-8 throughout: name the encoding .* encoding = \"latin-1\""):
        list(CsvTable(path, encoding="utf-8").rows())


@pytest.mark.parametrize("data", [b"a,b\n", gzip.compress(b"a,b\n" + b"1,2\n" * 9_000)[:-20]])
def test_a_damaged_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(data)
    with pytest.raises(InputError, match="is it whole"):
        list(CsvTable(path).rows())
