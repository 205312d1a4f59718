"""What opens on Enter: one prompt's history, and one sample's text.

In: `Picture`, and which prompt or sample. Out: screens that Escape closes.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static

from cero_rl.legible import legible, one_line
from cero_rl.report.samples import Sample
from cero_rl.view.picture import Picture
from cero_rl.view.reasons import price_at, reason_of
from cero_rl.view.tables import Column, Row, Rows
from cero_rl.view.words import counted, figure

_MOST_TEXT = 8_000  # characters of a text
_HISTORY = (
    Column("step", 5),
    Column("size", 4),
    Column("rewards", 8),
    Column("expected", 8),
    Column("worth", 5),
    Column("slope", 5),
    Column("price", 5),
    Column("why", 20, share=1.0),
)
_BACK = Binding("escape,backspace", "app.pop_screen", "back")


class PromptScreen(Screen[None]):
    """Every group of one prompt, and why it had its size."""

    BINDINGS: ClassVar = [_BACK]

    def __init__(self, picture: Picture, prompt: int) -> None:
        super().__init__()
        self._picture, self._prompt = picture, prompt
        groups = picture.run.groups
        self._groups = np.flatnonzero(groups.prompt == prompt)[::-1].tolist()  # the latest first
        self._samples = {s.group: s for s in picture.samples if s.group >= 0}

    def compose(self) -> ComposeResult:
        yield Static(self._head(), id="head", markup=False)
        yield Rows(_HISTORY, id="history")
        with VerticalScroll(id="detail-box", can_focus=False):
            yield Static(id="detail", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        table = self.query_one(Rows)
        table.write([self._row(index) for index in self._groups])
        table.focus()
        if not self._groups:
            said = "No group yet: the run has never given this prompt a rollout."
            self.query_one("#detail", Static).update(Text(said))

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        if event.row_key.value:
            detail = self._detail(int(event.row_key.value))
            self.query_one("#detail", Static).update(detail)

    def _head(self) -> Text:
        prompts, prompt = self._picture.prompts, self._prompt
        known = self._picture.run.prompts
        text, answer = prompts.text(prompt), ""
        if prompt < len(known):
            text = legible(known[prompt].asked, 600)
            answer = f"   answer {one_line(known[prompt].answer, 120)}"
        spent, rate = (float(prompts.columns[name][prompt]) for name in ("spent", "pass"))
        had = f"{counted(spent, 'rollout')} in {counted(len(self._groups), 'group')}"
        numbers = f"#{prompt} {prompts.labels(prompt)}   {had}, pass rate {figure(rate, '.2f')}"
        numbers += answer
        return Text.assemble((numbers, "bold"), "\n", text)

    def _row(self, index: int) -> Row:
        groups = self._picture.run.groups
        missing = int(groups.generated[index] - groups.trials[index])
        rewards = f"{groups.successes[index]:g}/{groups.trials[index]}"
        cells = (
            f"{groups.step[index]}",
            f"{groups.generated[index]}",
            f"{rewards} -{missing}" if missing else rewards,
            figure(float(groups.expected[index])),
            figure(float(groups.worth[index])),
            figure(float(groups.slope[index]), ".2f"),
            figure(price_at(self._picture.run, int(groups.step[index])), ".2f"),
            reason_of(self._picture.run, index).short,
        )
        return str(index), cells

    def _detail(self, index: int) -> Text:
        groups = self._picture.run.groups
        head = f"step {groups.step[index]}, round {groups.round[index]}: "
        said = Text.assemble((head, "bold"), reason_of(self._picture.run, index).text)
        if (sample := self._samples.get(index)) is not None:
            said.append(f"\n\nOne of its completions, reward {figure(sample.reward)}:\n", "bold")
            said.append(sample.completion)
        return said


class SampleScreen(Screen[None]):
    """The whole text of a sample."""

    BINDINGS: ClassVar = [_BACK]

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self._sample = sample

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="sample"):
            yield Static(self._text(), markup=False)
        yield Footer()

    def _text(self) -> Text:
        s = self._sample
        numbers = (
            f"step {s.step}   reward {figure(s.reward)}   expected {figure(s.expected)}   "
            f"worth {figure(s.worth)}   ended by {s.finish}"
        )
        said = Text.assemble((numbers, "bold"))
        for name, text in (
            ("prompt", s.prompt),
            ("completion", s.completion),
            ("answer", s.answer),
        ):
            said.append(f"\n\n{name}\n", "bold cyan")
            said.append(text or "(empty)")
        return said
