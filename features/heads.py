"""Heads as columns, and the names that stand beside them: what histories are folded from, be they bytes of a store or part of a log."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from features import codes, fact

Int = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]


class Names(Protocol):
    """The source ids of stored records; `at` says where each was stored, shape (n,). Ask only for what `is_named`."""

    def texts(self, at: Int) -> list[str]:
        """They themselves."""

    def joined(self, at: Int) -> tuple[fact.Buffer, Int]:
        """In UTF-8, end to end: (all of them, where each begins and the last ends, shape (n + 1,))."""


_WIDENED = ("place", "ordinal", "version", "concept", "status")
_KINDS = {name: np.dtype(np.int64) if name in _WIDENED else fact.HEAD[name] for name in fact.HEAD.names or ()}
"""Of the columns of records: as wide as histories want them, so that nothing is copied twice."""


class Heads(NamedTuple):
    """The fields of `fact.HEAD`, each an array of shape (n,) of any type of integer that holds it; `value` float64."""

    id_hi: Numbers
    id_lo: Numbers
    event_us: Numbers
    stamp_us: Numbers
    value: Numbers
    episode: Numbers
    place: Numbers
    ordinal: Numbers
    version: Numbers
    concept: Numbers
    status: Numbers
    flags: Numbers
    merge: Numbers

    @classmethod
    def of(cls, records: npt.NDArray[np.void]) -> Heads:
        """The columns of records, copied: whoever keeps them need not keep the records."""
        return cls(*(records[name].astype(kind) for name, kind in _KINDS.items()))

    def take(self, which: Int) -> Heads:
        """These of them."""
        return Heads(*(column.take(which) for column in self))

    def part(self, of: slice) -> Heads:
        """A stretch of them; views, not copies."""
        return Heads(*(column[of] for column in self))

    def records(self) -> npt.NDArray[np.void]:
        """They as records."""
        made = np.empty(len(self.id_lo), fact.HEAD)
        for name, column in zip(self._fields, self, strict=True):
            made[name] = column
        return made

    def head(self, row: int) -> bytes:
        """One of them as stored."""
        return np.array([tuple(column[row] for column in self)], fact.HEAD).tobytes()


def joined(parts: list[Heads]) -> Heads:
    """All of them, one after the other."""
    return Heads(*map(np.concatenate, zip(*parts, strict=True)))


def is_visit(concept: Numbers) -> npt.NDArray[np.bool_]:
    """Which concepts are those of encounters."""
    visit: npt.NDArray[np.bool_] = (concept > 0) & (concept <= codes.LAST_VISIT)
    return visit


def is_named(concept: Numbers) -> npt.NDArray[np.bool_]:
    """Behind which records of a history a name stands: encounters, and what a merge says but its ticks."""
    of_merge = (concept >= codes.MERGE) & (concept <= codes.CARRIED_MODEL) & (concept != codes.CARRIED_TICK)
    named: npt.NDArray[np.bool_] = is_visit(concept) | of_merge
    return named


class Texts:
    """Texts that stand end to end: the names of what was read from a log, and whatever else becomes a column.

    Args:
        content: They in UTF-8, shape (bytes,).
        edges: Where each begins and the last ends, shape (n + 1,).

    Example:
        >>> Texts.of(["one", "", "three"]).texts(np.array([2, 0]))
        ['three', 'one']
    """

    def __init__(self, content: npt.NDArray[np.uint8], edges: Numbers) -> None:
        self._begin, self._size = edges[:-1], np.diff(edges)
        self._width = int(self._size.max(initial=1))
        self._content = np.concatenate([content, np.zeros(self._width, np.uint8)])

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """They, put end to end."""
        content, sizes = "".join(texts).encode(), list(map(len, texts))
        if sum(sizes) < len(content):  # some letters are more than a byte
            sizes = [len(text.encode()) for text in texts]
        return cls(np.frombuffer(content, np.uint8), np.cumsum([0, *sizes]))

    def texts(self, at: Int) -> list[str]:
        """As `Names`."""
        content, edges = self.joined(at)
        raw = bytes(content)
        return [raw[begin:end].decode() for begin, end in pairwise(edges.tolist())]

    def joined(self, at: Int) -> tuple[fact.Buffer, Int]:
        """As `Names`."""
        size = self._size.take(at)
        wide = fact.cut(self._content, self._begin.take(at), self._width).view(np.uint8)
        if (size < self._width).any():
            wide = wide[(np.arange(self._width) < size[:, None]).ravel()]
        return wide, np.append(0, np.cumsum(size, dtype=np.int64))


class StoredNames:
    """Names as they stand in histories: in the records behind the one that they name.

    Args:
        records: Of all patients, names among them.
    """

    def __init__(self, records: npt.NDArray[np.void]) -> None:
        self._records = records

    def texts(self, at: Int) -> list[str]:
        """As `Names`."""
        chunk = fact.take(self._records, at + 1)
        raw, size = chunk.tobytes(), chunk["version"].tolist()
        if fact.NAME_CHUNK in size:  # a long one continues in the next record
            return [fact.name_at(self._records, row) for row in (at + 1).tolist()]
        return [raw[64 * n : 64 * n + length].decode() for n, length in enumerate(size)]

    def joined(self, at: Int) -> tuple[bytes, Int]:
        """As `Names`."""
        names = [name.encode() for name in self.texts(at)]
        return b"".join(names), np.cumsum([0, *map(len, names)])
