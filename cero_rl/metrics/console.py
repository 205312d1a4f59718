"""Rank 0's words to a person: plain lines, and one progress line."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cero_rl.metrics.completions import CompletionRow

_HEAD = ("prompt", "completion", "reward", "advantage", "expected")
_LOG, _LEAST = 90, 50  # columns of a table's cells where there is no terminal, and at least


class Console:
    """Rank 0's words to a person: plain lines, and one progress line (live on a terminal, now and
    then elsewhere)."""

    _PLAIN_EVERY_SECONDS = 15.0

    def __init__(self, active: bool, total_rollouts: int) -> None:
        self._active = active
        self._total = total_rollouts
        self._started = time.monotonic()
        self._start_spent: int | None = None
        self._last_plain = -math.inf
        self._progress: Any = None
        self._task: Any = None
        if active and sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[status]}"),
            )
            self._task = self._progress.add_task("training", total=total_rollouts, status="")

    def say(self, text: str) -> None:
        if not self._active:
            return
        if self._progress is not None and self._progress.live.is_started:
            self._progress.console.print(_printable(text), highlight=False, markup=False)
        else:
            print(_printable(text), flush=True)

    def progress(
        self,
        step: int,
        spent_rollouts: int,
        *,
        reward: float,
        signal: str,
        tokens_per_second: float,
    ) -> None:
        """One line: step, reward, what share has `signal`, budget used, tokens a second, time left
        at the present pace."""
        if not self._active:
            return
        spent, now = spent_rollouts, time.monotonic()
        if self._start_spent is None:  # the first step is left out of the pace: it pays for warm-up
            self._start_spent, self._started = spent, now
        done = spent - self._start_spent
        left = (self._total - spent) * (now - self._started) / done if done else math.nan
        said = step_in_words(step, reward, signal, spent, self._total, tokens_per_second)
        status = f"{said}  ETA {_clock(left)}"
        if self._progress is not None:
            if not self._progress.live.is_started:
                self._progress.start()
            self._progress.update(self._task, completed=spent, status=status)
        elif now - self._last_plain >= self._PLAIN_EVERY_SECONDS or spent == self._total:
            self._last_plain = now
            print(status, flush=True)

    def completions(self, step: int, rows: Sequence[CompletionRow]) -> None:
        """A table of some of a step's completions."""
        title = f"step {step}: some completions of rank 0"
        if not self._active:
            return
        if self._progress is None:
            self.say("\n".join([title, *_plain_table(rows)]))
            return
        from rich.table import Table
        from rich.text import Text

        console = self._progress.console
        table = Table(title=Text(title), title_justify="left")
        for name in _HEAD:
            table.add_column(name, justify="left" if name in _HEAD[:2] else "right", no_wrap=True)
        for cells in _table(rows, max(console.width - 3 * len(_HEAD) - 1, _LEAST)):
            table.add_row(*(Text(_printable(cell)) for cell in cells))
        console.print(table)

    def ending(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """The run's last words: a line, and what stands behind it."""
        if not self._active:
            return
        if self._progress is None:
            width = max(len(name) for name, _ in rows)
            self.say("\n".join([title, *(f"  {name:{width}}  {text}" for name, text in rows)]))
            return
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        for name, text in rows:
            grid.add_row(Text(name, style="bold"), Text(_printable(text)))
        self._progress.stop()
        head = Text(_printable(title))
        self._progress.console.print(Panel(grid, title=head, title_align="left"))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _printable(text: str) -> str:
    """With a question mark for what standard output's encoding does not have: a completion in
    another script must not end a run under a locale of Latin letters."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def step_in_words(
    step: int, reward: float, signal: str, spent: int, total: int, tokens_per_second: float
) -> str:
    """Spent and total are rollouts of the budget."""
    return (
        f"step {step}  reward {reward:.3f}  {signal}  budget {spent}/{total} ({spent / total:.0%})"
        f"  {tokens_per_second:.0f} tokens/s"
    )


def signal_in_words(numbers: Mapping[str, float | int]) -> str:
    """Of a line of metrics.jsonl: the share of its groups, or of its rollouts, that teaches."""
    if "baseline/signal_share" in numbers:  # a group of one is never live, and teaches
        return f"with signal {numbers['baseline/signal_share']:.0%}"
    return f"live groups {numbers['cero/effective_group_rate']:.0%}"


def _cells(row: CompletionRow) -> list[str]:
    return [row.prompt, row.completion, *map(_number, (row.reward, row.advantage, row.expected))]


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _plain_table(rows: Sequence[CompletionRow]) -> list[str]:
    """Of the width of an ordinary log."""
    head, *lines = _table([None, *rows], _LOG)
    return ["  " + "  ".join(cells) for cells in (head, *lines)]


def _table(rows: Sequence[CompletionRow | None], width: int) -> list[list[str]]:
    """Cells of so many columns of a terminal in all, two fifths of what the numbers leave
    for the prompt; None: the headings."""
    room = width - sum(map(len, _HEAD[2:]))
    widths = room * 2 // 5, room - room * 2 // 5
    lines = []
    for prompt, completion, *numbers in (
        list(_HEAD) if row is None else _cells(row) for row in rows
    ):
        texts = [_cut(text, size) for text, size in zip((prompt, completion), widths)]
        figures = [f"{text:>{len(name)}}" for text, name in zip(numbers, _HEAD[2:])]
        lines.append([*texts, *figures])
    return lines


def _cut(text: str, width: int) -> str:
    """To so many columns of a terminal; both ends stay."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return set_cell_size(text, width)
    last = width // 3
    return set_cell_size(text, width - last - 1) + "…" + set_cell_size(text[::-1], last)[::-1]


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "--:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
