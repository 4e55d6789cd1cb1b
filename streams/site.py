"""The site folder: `premonitor.toml` and the use cases, mappings and codes of one site. Where it is, what it says, how it begins."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from features import toml, usecase
from features.codes import Codebook
from features.errors import InputError
from streams.topics import Names

FILE = "premonitor.toml"
NO_SITE = "none"
"""As `--site` or PREMONITOR_SITE: without a site folder, even where there is one upwards."""
SITE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("not the name of a time zone, such as Europe/Berlin") from None
    return name


def _prefix(prefix: str) -> str:
    try:
        Names(prefix)
    except InputError:
        raise ValueError("lower-case words joined by hyphens, each ending in a dot, such as prod.") from None
    return prefix


def _redis_url(url: str) -> str:
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("an address of Redis, such as redis://127.0.0.1:6379/0")
    return url


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Kafka(_Part):
    """Settings that begin with `kafka_`."""

    bootstrap: str | None = Field(default=None, min_length=3)
    tls: bool | None = None
    ca_file: Path | None = None
    user: str | None = None
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None


class Redis(_Part):
    """Settings that begin with `redis_`."""

    url: Annotated[str, AfterValidator(_redis_url)] | None = None
    user: str | None = None
    ca_file: Path | None = None


class Definition(_Part):
    """The whole file. Paths are relative to the site folder."""

    site: str = Field(pattern=SITE_NAME)
    """Name of the site."""
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    """Of times that are shown to people."""
    use_case: str | None = Field(default=None, pattern=usecase.NAME)
    models: list[Path] = []
    """The first of a use case is champion, others are shadows."""
    topic_prefix: Annotated[str, AfterValidator(_prefix)] | None = None
    """Of topics and keys; a generation."""
    kafka: Kafka = Kafka()
    redis: Redis = Redis()


@dataclass(frozen=True)
class Site:
    """A site folder that was found and read."""

    folder: Path
    definition: Definition
    text: str
    """Of the file."""

    @property
    def settings(self) -> dict[str, Any]:
        """Setting → value, of the settings that the file makes."""
        told: dict[str, Any] = {} if self.definition.topic_prefix is None else {"prefix": self.definition.topic_prefix}
        for section in ("kafka", "redis"):
            for key, value in getattr(self.definition, section):
                if value is not None:
                    told[f"{section}_{key}"] = self.folder / value if isinstance(value, Path) else value
        return told

    @property
    def models(self) -> tuple[Path, ...]:
        """Paths of the models; whether they exist is not looked at."""
        return tuple(self.folder / path for path in self.definition.models)

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.definition.timezone)

    def where(self, *place: str) -> str:
        """file:line of a key of the file."""
        return f"{FILE}:{toml.line_of(self.text, place)}"

    def has_use_case(self, name: str) -> bool:
        """Whether the site has a use case of its own of this name."""
        return re.fullmatch(usecase.NAME, name) is not None and self._use_case_file(name).is_file()

    def use_case(self, name: str, book: Codebook) -> usecase.UseCase:
        """The site's own use case of a name, or else the shipped one, or that of a path.

        Raises:
            InputError: there is none, it is wrong, or its file has another name than it says.
        """
        if not self.has_use_case(name):
            return usecase.load(name, book)
        file = self._use_case_file(name)
        found = usecase.load(file, book)
        if found.name != name:
            raise InputError(f"{file}: its name is '{found.name}'. Name the file {found.name}.toml, or write name = \"{name}\"")
        return found

    def _use_case_file(self, name: str) -> Path:
        return self.folder / "usecases" / f"{name}.toml"


def find(told: str | None, start: Path) -> Site | None:
    """The site folder.

    Args:
        told: What `--site` or PREMONITOR_SITE says: a folder, or `none`.
        start: Where it says nothing: the nearest folder with the file, this one or above it.
    Returns:
        None where there is none.
    Raises:
        InputError: the folder that was told is none, or its file is wrong.
    """
    if told == NO_SITE:
        return None
    if told is not None:
        if not (start / told / FILE).is_file():
            raise InputError(f"{told} is no site folder: it has no {FILE}. Make one with: premonitor init {told}")
        return read(start / told)
    folder = next((folder for folder in (start, *start.parents) if (folder / FILE).is_file()), None)
    return read(folder) if folder is not None else None


def read(folder: Path) -> Site:
    """Read and check the file of a site folder.

    Raises:
        InputError: file:line, key and rule; never a value, because secrets may stand in the wrong place.
    """
    source = str(folder / FILE)
    text = toml.read(folder / FILE)
    for place, service in _secrets(toml.raw(text, source=source)):
        name = f"PREMONITOR_{service}_PASSWORD"
        raise InputError(
            f"{source}:{toml.line_of(text, place)} {'.'.join(map(str, place))}: secrets have no place in this file, which is kept in git. "
            f"Set {name}, or {name}_FILE to the path of a file that holds it"
        )
    return Site(folder, toml.parse(text, Definition, source=source, show_values=False), text)


_SECRET_KEY = re.compile(r"passw|passphrase|secret|token|credential|api_?key|private_?key", re.IGNORECASE)


def _secrets(tables: Any, place: toml.Place = ()) -> Iterator[tuple[toml.Place, str]]:
    """(place, service) of what is a secret by its key, or of an address with a password in it."""
    if isinstance(tables, dict | list):
        for step, value in tables.items() if isinstance(tables, dict) else enumerate(tables):
            service = "REDIS" if "redis" in str((*place, step)).lower() else "KAFKA"
            if isinstance(step, str) and _SECRET_KEY.search(step):
                yield (*place, step), service
            else:
                yield from _secrets(value, (*place, step))
    elif isinstance(tables, str) and _has_password(tables):
        yield place, "REDIS" if "redis" in f"{place} {tables.partition('://')[0]}".lower() else "KAFKA"


def _has_password(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return "@" in address
    return ":" in parts.netloc.rpartition("@")[0] or "password" in parts.query


# --- a new one ------------------------------------------------------------------------------------------------------------------------

_TOML = """\
# The site folder of premonitor: commands that run here or in a folder below take their defaults from this file.
# Flags win over PREMONITOR_* variables of the environment, and these over this file: `premonitor settings show` says what counts.
# Secrets have no place here, because this folder is for git: PREMONITOR_REDIS_PASSWORD, PREMONITOR_REDIS_PASSWORD_FILE and their like.
site = "{site}"
timezone = "UTC"                     # of the times that `premonitor status` shows
use_case = "{use_case}"
models = ["models/v1"]               # paths from this folder; the first of a use case is champion, others are shadows
topic_prefix = ""                    # of topics and of keys in Redis, such as "prod."

[kafka]
bootstrap = "127.0.0.1:9092"

[redis]
url = "redis://127.0.0.1:6379/0"
"""
_README = """\
# {site}

A site folder of premonitor. In git: `premonitor.toml`, `usecases/`, `mapping/`, `codes/`. Not in git: `log/`, `models/`, `scores/`.

```
premonitor import csv ~/export --suggest      # drafts mapping/*.toml; TODO where it could not tell
premonitor import csv ~/export --out log      # --check instead of --out only counts
premonitor train log --out models/v1          # with {use_case}, as usecases/{use_case}.toml says
premonitor demo --log log                     # its last 20,000 events through a real worker, on this machine alone
premonitor topics --create                    # on the Kafka of premonitor.toml
premonitor worker                             # scores until it is stopped
```

`premonitor settings show` prints every setting and where it came from.
A worker refuses a model that was trained with another version of `usecases/{use_case}.toml`.
"""
_MAPPING = "Mappings of this site's own tables to events, one TOML file a table: `premonitor import csv ~/export --suggest` drafts them.\n"
_CODES = "local_code,system,code,unit\n"
_IGNORED = "log/\nmodels/\nscores/\n"


def begin(folder: Path, use_case: str) -> list[Path]:
    """Write a new site folder; returns its files.

    Args:
        folder: Must not exist, or be empty.
        use_case: Name of a shipped use case, of which the site gets a copy.
    Raises:
        InputError: the folder is not empty, cannot be written, or there is no such use case.
    """
    shipped = usecase.shipped(use_case)
    site = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-")[:64] or "site"
    names = {"site": site, "use_case": use_case}
    texts = {
        FILE: _TOML.format(**names),
        "README.md": _README.format(**names),
        ".gitignore": _IGNORED,
        f"usecases/{use_case}.toml": shipped,
        "mapping/README.md": _MAPPING,
        "codes/local.csv": _CODES,
    }
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is not empty: give the name of a new folder")
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    return [folder / name for name in texts]
