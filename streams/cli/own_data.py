"""What `premonitor import csv` and `import events` do besides building the log: where the mappings are, drafts, what is not read."""

from __future__ import annotations

from pathlib import Path

import click

from features.codes import codebook
from features.importers.build import Events
from streams.cli.common import here, result, say


def mapping_folder(kind: str, told: Path | None) -> Path:
    """The folder of mappings: as told, else that of the site folder, else `mapping` here."""
    if kind != "csv" and told is not None:
        raise click.UsageError(f"--mapping is for csv: {kind} needs none")
    site = here()
    folder = told or (site.folder if site else Path()) / "mapping"
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def events(kind: str, source: Path, mapping: Path) -> Events:
    """The events of a site's own data."""
    from features.importers import csv_files  # here, as the others: only this command needs them
    from features.importers import events as json_lines

    if kind == "events":
        return json_lines.events(source)
    told = csv_files.events(source, mapping, codebook())
    unread = csv_files.unread(source, mapping)
    if unread:
        say(f"not read, as no mapping names them: {', '.join(unread)}")
    return told


def suggest(kind: str, source: Path, mapping: Path, *, as_json: bool) -> None:
    """Draft mappings and say what is left to do."""
    from features.importers import csv_suggest
    from features.importers.csv_mapping import TODO

    if kind != "csv":
        raise click.UsageError(f"--suggest is for csv: {kind} needs no mapping")
    drafts = csv_suggest.drafts(source, mapping)
    csv_suggest.write(drafts)
    lines = [f"wrote {draft.path}" + (f"   {TODO}: {', '.join(draft.todo)}" if draft.todo else "") for draft in drafts]
    lines.append(f"next: read them, mend each {TODO}, then premonitor import csv {source} --mapping {mapping} --check")
    result({"drafts": [{"path": str(draft.path), "todo": draft.todo} for draft in drafts]}, "\n".join(lines), as_json=as_json)
