"""A CSV export as rows of texts: its encoding and delimiter told or found, read in a stream, packed or not."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from features.errors import InputError

_VALUE = re.compile("[<>=]*[0-9][0-9.,:/ T+Z-]*")
"""A number or a time: no name of a column."""
DELIMITERS = (",", ";", "\t", "|")
_PIECE_BYTES = 1 << 20

Row = list[str]


class CsvTable:
    """One file whose first line names its columns.

    Args:
        path: The file; one that ends in .gz is unpacked while it is read.
        encoding: None finds it: UTF-16 by its mark, UTF-8 where all bytes are, else Windows-1252 (a superset of Latin-1 in print).
        delimiter: None takes the one of `DELIMITERS` that cuts the first line into most columns.
        quote: Around fields; "" for none.
    Raises:
        InputError: the file is empty, two columns have one name, or it cannot be read.
    """

    def __init__(self, path: Path, *, encoding: str | None = None, delimiter: str | None = None, quote: str = '"') -> None:
        self.path, self.quote = path, quote
        with self._readable():
            self.encoding = _with_mark(encoding) if encoding else _found_encoding(path)
            with self._text() as text:
                first = text.readline()
                self.delimiter = delimiter or _found_delimiter(first, quote)
                header: Row = next(_reader(chain([first], text), self.delimiter, quote), [])  # a quoted name may go on in the next line
        self.columns = [name.strip() for name in header]
        if not any(self.columns) or any(map(_VALUE.fullmatch, self.columns)):  # what stands there may be a person's: it is not repeated
            raise InputError(f"{path} has no first line with the names of its columns: export it with a header")
        twice = [name for name, n in Counter(self.columns).items() if n > 1 and name]
        if twice:
            raise InputError(f"{path} has two columns {twice[0]}: nothing says which one is meant; rename one in the export")

    def rows(self) -> Iterator[Row]:
        """The fields of each row below the header, as they stand; a row may have too few or too many. Empty lines are none.

        Raises:
            InputError: bytes outside the encoding, a damaged file, a field of more than 131,072 characters.
        """
        with self._readable(), self._text() as text:
            reader = _reader(text, self.delimiter, self.quote)
            next(reader)
            yield from filter(None, reader)

    @contextmanager
    def _text(self) -> Iterator[TextIO]:
        with _binary(self.path) as binary, io.TextIOWrapper(binary, encoding=self.encoding, newline="") as text:
            yield text

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path} is not {error.encoding} throughout: name the encoding of the export in the mapping, "
                'such as encoding = "latin-1"'
            ) from None
        except csv.Error:
            raise InputError(
                f'{self.path} has a field that is too long to be one: a quote opens and does not close. Set quote = "" in the mapping '
                "where the export does not quote, or mend the line"
            ) from None
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{self.path} cannot be read: is it whole? Copy it anew ({type(error).__name__})") from None


def _binary(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _with_mark(encoding: str) -> str:
    """UTF-8 with or without the mark that Windows programs write at its start."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _found_encoding(path: Path) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _binary(path) as binary:
        piece = binary.read(_PIECE_BYTES)
        if piece.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        try:
            while piece:
                decoder.decode(piece)
                piece = binary.read(_PIECE_BYTES)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8-sig"


def _found_delimiter(first: str, quote: str) -> str:
    return max(DELIMITERS, key=lambda delimiter: len(next(_reader([first], delimiter, quote), [])))


def _reader(lines: Iterable[str], delimiter: str, quote: str) -> Any:
    """The reader of the standard library, whose class has no public name."""
    if quote:
        return csv.reader(lines, delimiter=delimiter, quotechar=quote)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
