"""Style is a test: sizes, layers, doors, banned calls and dead files. Each message says what to do instead.

A check is a function from a file to its problems; the last tests feed each one a bad snippet, to show that it can fail.
"""

from __future__ import annotations

import ast
import builtins
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase as matches
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("features", "models", "streams")
"""Lowest first: each may import itself and those before it."""
FILE_LINES_MAX, BODY_LINES_MAX = 400, 60

DOORS = {
    "redis": ["streams/store_redis.py"],
    "faust": ["streams/app.py", "streams/agents.py", "streams/intake.py"],
    "mode": ["streams/app.py"],
    "aiokafka": ["streams/bus.py", "streams/intake.py", "streams/reader.py", "streams/topics.py"],
    "sklearn": ["models/families.py"],
    "pandas": ["features/importers/*"],
    "prometheus_client": ["streams/metrics.py"],
    "pyarrow": ["features/log.py", "features/tables.py", "features/importers/meds.py"],
    "confluent_kafka": ["streams/demo.py"],
    "fakeredis": ["streams/demo.py"],
}
"""Library → the only files that may import it. One that no longer does is a dead door: strike it out."""

ENTRY_POINTS = ["streams.cli"]  # started, not imported


class Ban(NamedTuple):
    """Patterns of `names` that may not be used in the folders `where`, except in files matching `but`."""

    names: str
    instead: str
    but: str = ""
    where: tuple[str, ...] = PACKAGES

    def applies(self, path: str) -> bool:
        return path.partition("/")[0] in self.where and not matches(path, self.but)


BANS = [
    Ban("datetime.datetime.now datetime.datetime.utcnow datetime.datetime.today", "use Clock.now_us", but="features/clock.py"),
    Ban("datetime.date.today time.time time.time_ns", "use Clock.now_us", but="features/clock.py"),
    Ban("random.* numpy.random.[a-z]*", "pass a numpy Generator"),
    Ban("os.environ os.environb os.getenv os.getenvb os.putenv", "add a setting", but="streams/settings.py"),
    Ban("pickle.* joblib.* *.read_pickle *.to_pickle", "write readable JSON"),
    Ban("eval exec", "parse the text"),
    Ban("print", "use click.echo", but="streams/cli/*"),
    Ban("time.sleep", "await an event", where=("tests",)),
]
ALLOWED = "numpy.random.default_rng"  # makes a Generator from a seed


class Import(NamedTuple):
    """`line`, the dotted `origin`, the local `name` and what it `means`: after `import a.b`, `a` means `a`."""

    line: int
    origin: str
    name: str
    means: str

    @property
    def top(self) -> str:
        return self.origin.partition(".")[0]


@dataclass(frozen=True)
class Source:
    """One file: its path from the root, with slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def is_product(self) -> bool:
        return self.path.startswith(tuple(f"{package}/" for package in PACKAGES))

    @cached_property
    def imports(self) -> list[Import]:
        """Every import, wherever in the file it stands."""
        found: list[Import] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.partition(".")[0]
                    found.append(Import(node.lineno, alias.name, alias.asname or top, alias.name if alias.asname else top))
            elif isinstance(node, ast.ImportFrom):
                here = self.path.split("/")[: -node.level] if node.level else []
                origin = ".".join([*here, *filter(None, [node.module])])
                found += [Import(node.lineno, f"{origin}.{a.name}", a.asname or a.name, f"{origin}.{a.name}") for a in node.names]
        return found

    def uses(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of each use of an import or a builtin: after `import numpy as np`, `np.rot90` is `numpy.rot90`."""
        meaning = {name: name for name in dir(builtins)} | {found.name: found.means for found in self.imports}

        def dotted(node: ast.expr) -> str:
            if isinstance(node, ast.Attribute):
                return f"{dotted(node.value)}.{node.attr}"
            return meaning.get(node.id, "?") if isinstance(node, ast.Name) else "?"

        return ((node.lineno, dotted(node)) for node in ast.walk(self.tree) if isinstance(node, ast.Attribute | ast.Name))


def sources(*folders: str) -> list[Source]:
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text()) for path in paths]


def long_files(file: Source) -> Iterator[str]:
    lines = file.text.count("\n")
    if lines > FILE_LINES_MAX:
        yield f"{file.path}: {lines} lines, at most {FILE_LINES_MAX}: split it by noun"


def long_bodies(file: Source) -> Iterator[str]:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > BODY_LINES_MAX:
                yield f"{file.path}:{node.lineno} {node.name}: body of {lines} lines, at most {BODY_LINES_MAX}: name its steps"


def docstrings(file: Source) -> Iterator[str]:
    first_line = (ast.get_docstring(file.tree) or "").partition("\n")[0]
    if file.is_product and not first_line.endswith("."):
        yield f"{file.path}: no docstring whose first line is a sentence with its period: say what the file is for"


def layers(file: Source) -> Iterator[str]:
    package = file.path.partition("/")[0]
    above = PACKAGES[PACKAGES.index(package) + 1 :] if file.is_product else ()
    for found in file.imports:
        if found.top in above:
            yield f"{file.path}:{found.line} imports {found.origin}: {package} may not know {' or '.join(above)}; pass it in"


def doors(file: Source) -> Iterator[str]:
    for found in file.imports:
        allowed = DOORS.get(found.top, ["*"]) if file.is_product else ["*"]
        if not any(matches(file.path, door) for door in allowed):
            yield f"{file.path}:{found.line} imports {found.top}: only {', '.join(allowed)} may; go through there"


def banned(file: Source) -> Iterator[str]:
    bans = [ban for ban in BANS if ban.applies(file.path)]
    for line, used in file.uses():
        for ban in bans:
            if used != ALLOWED and any(matches(used, name) for name in ban.names.split()):
                yield f"{file.path}:{line} {used} is banned: {ban.instead}"


def asserts(file: Source) -> Iterator[str]:
    for node in ast.walk(file.tree):
        if file.is_product and isinstance(node, ast.Assert):
            yield f"{file.path}:{node.lineno} assert vanishes under python -O: raise"


def dead_doors(files: list[Source], table: Mapping[str, list[str]]) -> Iterator[str]:
    used = {(found.top, file.path) for file in files for found in file.imports}
    for library, allowed in table.items():
        for door in allowed:
            if not any(library == top and matches(path, door) for top, path in used):
                yield f"dead door: {door} does not import {library}; strike it out of DOORS"


def dead_files(files: list[Source], entry_points: Iterable[str]) -> Iterator[str]:
    """Modules of the product that no other file of it reaches; a test alone keeps nothing alive."""
    reached = set(entry_points)
    for file in files:
        origins = {found.origin for found in file.imports}
        texts = {node.value for node in ast.walk(file.tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        by_name = {text.partition(":")[0] for text in texts}  # loaded when asked for: "streams.cli.data:check"
        reached |= (origins | {origin.rpartition(".")[0] for origin in origins} | by_name) - {file.module}
    for file in files:
        if file.module not in reached and not file.path.endswith("/__init__.py"):
            yield f"{file.path}: nothing imports it; use it, delete it or enter it in ENTRY_POINTS"
    for module in set(entry_points) - {file.module for file in files}:
        yield f"dead entry point: {module} is no module; strike it out of ENTRY_POINTS"


def foreign_names(distributions: Mapping[str, list[str]]) -> Iterator[str]:
    """`features`, `models` and `streams` are names that others may take too: whoever installs both gets a mixture."""
    for package in PACKAGES:
        owners = set(distributions.get(package, []))
        if owners != {"premonitor"}:
            yield f"{package} is provided by {sorted(owners)}, should be premonitor alone: use a clean environment"


Check = Callable[[Source], Iterator[str]]


def assert_none(problems: Iterable[str]) -> None:
    found = list(problems)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("check", [long_files, long_bodies, docstrings, layers, doors, banned, asserts])
def test_the_files_are_tidy(check: Check) -> None:
    assert_none(problem for file in sources(*PACKAGES, "tests") for problem in check(file))


def test_no_door_is_dead() -> None:
    assert_none(dead_doors(sources(*PACKAGES), DOORS))


def test_no_file_is_dead() -> None:
    assert_none(dead_files(sources(*PACKAGES), ENTRY_POINTS))


def test_no_other_distribution_takes_our_names() -> None:
    assert_none(foreign_names(importlib.metadata.packages_distributions()))


BAD = [
    (long_files, "tests/x.py", "x = 1\n" * 401, "401 lines"),
    (long_bodies, "streams/x.py", 'def f():\n    """Doc."""\n' + "    x = 1\n" * 61, "body of 61 lines"),
    (docstrings, "models/x.py", "x = 1", "no docstring"),
    (docstrings, "models/x.py", '"""About x\n\nmore."""', "no docstring"),
    (layers, "features/x.py", "from models import score", "features may not know models or streams"),
    (layers, "models/x.py", "def f():\n    import streams.bus", "models may not know streams"),
    (doors, "streams/x.py", "import redis.asyncio as redis", "only streams/store_redis.py may"),
    (doors, "features/importers/x.py", "from sklearn.svm import SVC", "only models/families.py may"),
    (banned, "streams/x.py", "from datetime import datetime\ndatetime.now(UTC)", "x.py:2 datetime.datetime.now is banned: use Clock"),
    (banned, "streams/x.py", "import datetime as dt\ndt.date.today()", "use Clock.now_us"),
    (banned, "streams/x.py", "from time import time as now\ndef f(clock=now): ...", "time.time is banned: use Clock.now_us"),
    (banned, "features/x.py", "import random\nrandom.choice([1])", "pass a numpy Generator"),
    (banned, "features/x.py", "import numpy as np\nnp.random.rand(3)", "numpy.random.rand is banned: pass a numpy Generator"),
    (banned, "streams/x.py", "import os\nos.environ.get('A')", "os.environ is banned: add a setting"),
    (banned, "models/x.py", "import pickle\npickle.loads(b'')", "write readable JSON"),
    (banned, "models/x.py", "frame().to_pickle('x')", "write readable JSON"),
    (banned, "models/x.py", "eval('1')", "parse the text"),
    (banned, "models/x.py", "print(1)", "use click.echo"),
    (banned, "tests/x.py", "import time\ntime.sleep(1)", "await an event"),
    (asserts, "models/x.py", "assert rows", "raise"),
]


@pytest.mark.parametrize(("check", "path", "text", "message"), BAD)
def test_each_check_can_fail(check: Check, path: str, text: str, message: str) -> None:
    (problem,) = check(Source(path, text))
    assert message in problem


GOOD = [
    (long_files, "tests/x.py", "x = 1\n" * 400),
    (long_bodies, "streams/x.py", "def f():\n" + '    """' + "long\n" * 50 + '    """\n' + "    x = 1\n" * 60),
    (layers, "streams/x.py", "from models import score\nfrom . import bus"),
    (doors, "streams/store_redis.py", "import redis"),
    (banned, "features/clock.py", "import time\ntime.time_ns()"),
    (banned, "features/x.py", "import numpy as np\nrng: np.random.Generator = np.random.default_rng(1)\nrng.random()"),
    (banned, "streams/cli/x.py", "print(1)"),
    (banned, "models/x.py", "clock.time()\nmodel.eval()"),
]


@pytest.mark.parametrize(("check", "path", "text"), GOOD)
def test_each_check_can_pass(check: Check, path: str, text: str) -> None:
    assert list(check(Source(path, text))) == []


def test_a_dead_door_is_found() -> None:
    files = [Source("streams/a.py", "import redis"), Source("streams/b.py", "import os")]
    problems = list(dead_doors(files, {"redis": ["streams/a.py", "streams/b.py", "streams/gone.py"]}))
    assert [problem.split()[2] for problem in problems] == ["streams/b.py", "streams/gone.py"]


def test_a_dead_file_is_found() -> None:
    texts = {"a": "from features import b", "b": "from . import c", "c": "'features.d:run'", "d": "", "e": "import features.e"}
    files = [Source(f"features/{name}.py", text) for name, text in texts.items()]
    problems = list(dead_files(files, ["features.a", "features.gone"]))
    assert [problem.split(":")[0] for problem in problems] == ["features/e.py", "dead entry point"]


def test_a_foreign_name_is_found() -> None:
    distributions = {"features": ["premonitor"], "models": ["other", "premonitor"]}
    assert [problem.split()[0] for problem in foreign_names(distributions)] == ["models", "streams"]
