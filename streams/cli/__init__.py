"""The command line: verbs in groups, each with one example; results on stdout, words on stderr."""

from __future__ import annotations

import logging
import sys

import click

from features.errors import PremonitorError
from streams.cli import catalogue, check, data, demo, live, model, operate, prove, simulate, start

GROUPS = {
    "START": [*start.COMMANDS, *demo.COMMANDS],
    "DATA": [*data.COMMANDS, *simulate.COMMANDS, *check.COMMANDS],
    "MODEL": [*catalogue.COMMANDS, *model.COMMANDS],
    "LIVE": live.COMMANDS,
    "OPERATE": operate.COMMANDS,
    "PROVE": prove.COMMANDS,
}


class Grouped(click.Group):
    """Lists the commands by group, as `premonitor --help` shows them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(c.name or "", c.get_short_help_str(90)) for c in commands])


@click.group(cls=Grouped, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="premonitor")
def main() -> None:
    """Streaming clinical risk scores that can be proved: live, replayed and backfilled alike."""


for _commands in GROUPS.values():
    for _command in _commands:
        main.add_command(_command)


def run() -> None:
    """Entry point: every error a person may meet is one sentence and an exit code (0 good, 1 found, 2 wrong, 3 service, 130 stop)."""
    logging.getLogger("aiokafka").setLevel(logging.ERROR)  # what it warns of while it connects is said in our own sentences
    try:
        main.main(standalone_mode=False)
    except PremonitorError as error:
        click.echo(f"premonitor: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("premonitor: interrupted; nothing half-written is left", err=True)
        sys.exit(130)
