"""The demo on a screen: rewritten in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from features.clock import from_us
from streams.demo_board import Board, in_100

PLAIN_EVERY_S = 5.0
FRAMES_A_SECOND = 5
ROWS = 5
"""Open alerts that are shown."""


class View(Protocol):
    """What the story needs of a screen."""

    def tell(self, words: str, at_s: float | None = None) -> None:
        """A line that stays."""

    def head(self, words: str) -> None:
        """A line that stands above all numbers from now on."""

    def show(self, board: Board, at_s: float, worker: str) -> None:
        """The numbers as they are now; as often as one likes."""

    def close(self) -> None:
        """Leave the last numbers where they are."""


def clock(at_s: float) -> str:
    """Seconds as on a stopwatch.

    Example:
        >>> clock(75.3)
        '1:15'
    """
    return f"{int(at_s) // 60}:{int(at_s) % 60:02}"


def numbers(board: Board) -> tuple[str, str]:
    """Counts of scores, and of alerts."""
    count = board.transitions
    scores = f"scores {len(board.scores):,}, of them revisions {board.revisions:,} · flagged visits {board.flagged:,}"
    ended = f"{count['withdrawn']:,} taken back, {count['closed']:,} closed"
    return scores, f"alerts opened {count['opened']:,}: {ended}, {len(board.open_alerts):,} open"


def delay(board: Board) -> str:
    """From feed to score."""
    told = board.delays()
    if told is None:
        return "feed → score: –"
    p50, p99, over = told
    words = f"feed → score: p50 {p50:.2f} s, p99 {p99:.2f} s"
    return words if over is None else f"{words}; longest over the kill {over:.1f} s"


def day(time_us: int | None) -> str:
    return "–" if time_us is None else f"{from_us(time_us):%-d %b %Y}"


class Plain:
    """Lines, for a file or a pipe."""

    def __init__(self, console: Console) -> None:
        self._console, self._last_s = console, 0.0

    def tell(self, words: str, at_s: float | None = None) -> None:
        self._console.print(words if at_s is None else f"{clock(at_s):>5}  {words}", soft_wrap=True)

    def head(self, words: str) -> None:
        self.tell(words)

    def show(self, board: Board, at_s: float, worker: str) -> None:
        if board.sent and at_s - self._last_s >= PLAIN_EVERY_S:
            self._last_s = at_s
            fed = ", ".join(f"{source.name} {stand.sent:,}" for source, stand in zip(board.sources, board.stands, strict=True))
            numbers_ = " · ".join((*numbers(board), delay(board)))
            self.tell(f"sent {fed} · {board.under_way:,} under way · worker {worker} · {numbers_}", at_s)

    def close(self) -> None:
        pass


class Screen:
    """A terminal: what stays scrolls up, the numbers stand below it."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._live.start()
        self._shown_s, self._head = -1.0, ""

    def tell(self, words: str, at_s: float | None = None) -> None:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=5, justify="right", style="dim")
        grid.add_column(overflow="fold")
        grid.add_row("" if at_s is None else clock(at_s), words)
        self._live.console.print(words if at_s is None else grid)

    def head(self, words: str) -> None:
        self._head = words
        self.tell(words)

    def show(self, board: Board, at_s: float, worker: str) -> None:
        if at_s - self._shown_s < 1 / FRAMES_A_SECOND:
            return
        self._shown_s = at_s
        head = [Text(self._head, "bold reverse", no_wrap=True, overflow="ellipsis")] if self._head else []
        feeds = _feeds(board, self._live.console.width)
        self._live.update(Group("", *head, feeds, "", _now(board, worker), "", _alerts(board)), refresh=True)

    def close(self) -> None:
        self._live.stop()


def _feeds(board: Board, width: int) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(width=min(max(width - 65, 5), 40))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for source, stand in zip(board.sources, board.stands, strict=True):
        bar = ProgressBar(source.events, stand.sent)
        table.add_row(source.name, bar, f"{stand.sent:,} of {source.events:,} events", f"known up to {day(stand.known_us)}")
    return table


def _now(board: Board, worker: str) -> Group:
    lines = (f"worker {worker} · {board.under_way:,} events under way", delay(board), *numbers(board))
    return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


def _alerts(board: Board) -> Table:
    several = len(board.questions) > 1  # then one patient may stand here twice
    table = Table(box=None, padding=(0, 2, 0, 0), expand=False, header_style="bold")
    table.add_column("open alerts", no_wrap=True, min_width=11)
    table.add_column("use case" if several else "source", no_wrap=True, min_width=13)
    table.add_column(board.horizon, no_wrap=True, justify="right")
    table.add_column("goes with")
    shown = board.open_alerts[:ROWS]
    for alert in shown:
        whose = alert.use_case if several else board.source_of(alert.patient_id)
        table.add_row(alert.patient_id, whose, in_100(alert.risk), board.reasons(alert))
    for n in range(len(shown), ROWS):  # the lines keep their places
        table.add_row("" if n else "none", "", "", "")
    return table


def screen(console: Console) -> View:
    """The view for a console."""
    return Screen(console) if console.is_terminal and not console.is_dumb_terminal else Plain(console)
