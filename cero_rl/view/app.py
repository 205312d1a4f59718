"""The screen of `cero-rl view`: four tabs over one `Picture`, read again when the run has grown.

In: a run's directory and its first picture. Out: a textual application. Reading happens in a thread
of its own; what fails there is said on the screen, which keeps what it showed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.widgets import DataTable, Footer, Input, RichLog, Static, TabbedContent, TabPane

from cero_rl.errors import CeroError, first_line
from cero_rl.legible import legible, one_line
from cero_rl.report.samples import Sample, in_order
from cero_rl.view.overview import overview
from cero_rl.view.picture import Picture, look, stamp_of
from cero_rl.view.prompts import SORTS
from cero_rl.view.screens import PromptScreen, SampleScreen
from cero_rl.view.tables import Column, Row, Rows
from cero_rl.view.words import figure

_MOST_ROWS = 500  # of a table; what is left out is said
_MOST_LINES = 5_000  # of the log
_READ_SHARE = 5.0  # waits at least so many times as long as reading took
_PROMPTS = (
    Column("prompt", 22, share=0.6),
    Column("spent", 6),
    Column("pass", 5),
    Column("variance", 9),
    Column("expected", 8),
    Column("worth", 6),
    Column("age", 5),
    Column("looks", 5),
    Column("label", 12, share=0.4),
)
_SAMPLES = (
    Column("step", 5),
    Column("reward", 7),
    Column("expected", 8),
    Column("surprise", 9),
    Column("worth", 6),
    Column("prompt", 10, share=0.35),
    Column("completion", 12, share=0.65),
)
_FILTER = "words of text or label   enter: to the table, escape: no filter"
_SAMPLE_SORTS = {"t": "step", "r": "reward", "w": "worth", "s": "surprise"}


class RunView(App[None]):
    """One run."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "cero-rl view"
    CSS = """
    #overview, #sample { padding: 1 2; }
    #note { height: 1; padding: 0 1; color: $text-muted; }
    #head { padding: 0 1; max-height: 8; }
    #log { padding: 0 1; }
    #filter { height: 1; padding: 0 1; }
    TabbedContent, TabPane { height: 1fr; }
    .aid { height: 1; padding: 0 1; color: $text-muted; }
    #history { height: 1fr; }
    #detail-box { height: auto; max-height: 50%; padding: 0 1; border-top: solid $primary; }
    TabPane { padding: 0; }
    Rows { height: 1fr; }
    """
    BINDINGS: ClassVar = [
        Binding("1", "tab('tab-overview')", "overview"),
        Binding("2", "tab('tab-prompts')", "prompts"),
        Binding("3", "tab('tab-samples')", "samples"),
        Binding("4", "tab('tab-log')", "log"),
        Binding("slash", "filter", "filter"),
        Binding("u", "reread", "update"),
        Binding("q", "quit", "quit"),
        Binding("escape", "leave_filter", "no filter"),
        *(Binding(key, f"sort('{key}')", show=False) for key in {*SORTS, *_SAMPLE_SORTS}),
    ]

    def __init__(self, path: Path, picture: Picture, every_seconds: float) -> None:
        super().__init__()
        self._path, self._picture, self._every = path, picture, every_seconds
        self._sort, self._falling = "spent", True
        self._sample_sort, self._sample_falling = "step", True
        self._words = ""
        self._reading = False
        self._lines: list[str] = []
        self._shown: dict[str, Sample] = {}

    def compose(self) -> ComposeResult:
        with TabbedContent(id="tabs"):
            with TabPane("Overview", id="tab-overview"), VerticalScroll():
                yield Static(id="overview", markup=False)
            with TabPane("Prompts", id="tab-prompts"):
                yield Static(id="prompts-aid", classes="aid", markup=False)
                yield Input(placeholder=_FILTER, id="filter", compact=True)
                yield Rows(_PROMPTS, id="prompts")
            with TabPane("Samples", id="tab-samples"):
                yield Static(id="samples-aid", classes="aid", markup=False)
                yield Rows(_SAMPLES, id="samples")
            with TabPane("Log", id="tab-log"):
                yield RichLog(id="log", max_lines=_MOST_LINES, markup=False, highlight=False)
        yield Static(id="note", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#filter", Input).display = False
        self.show(self._picture)
        self.set_interval(max(self._every, 0.05), self._poll)

    # --- what is shown

    def show(self, picture: Picture) -> None:
        """A new reading, in every tab."""
        self._picture = picture
        self._show_state()
        self._show_prompts()
        self._show_samples()
        self._show_log()

    def _show_state(self) -> None:
        """The first tab and the line at the bottom, as they are now: a run that was killed does not
        grow."""
        picture = self._picture
        self.query_one("#overview", Static).update(overview(picture, self.size.width))
        step = int(picture.run.steps[-1]["step"])
        self._note(f"{self._path}: {picture.state}; read up to step {step}")

    def on_resize(self) -> None:
        """Widths follow the screen's."""
        if self.is_mounted:
            self.show(self._picture)

    def _note(self, text: str) -> None:
        self.query_one("#note", Static).update(Text(one_line(text, 300)))

    def _show_prompts(self, *, to_top: bool = False) -> None:
        prompts = self._picture.prompts
        ids = prompts.ids(self._sort, falling=self._falling, words=self._words)
        self.query_one("#prompts", Rows).write(
            [self._prompt_row(prompt) for prompt in ids[:_MOST_ROWS].tolist()],
            self._sort,
            to_top=to_top,
        )
        found = f"{min(ids.size, _MOST_ROWS):,} of {self._picture.run.num_prompts:,} prompts"
        if self._words and ids.size > _MOST_ROWS:
            found = f"{_MOST_ROWS} of {ids.size:,} found"
        said = _aid(found, SORTS, falling=self._falling, enter="history")
        self.query_one("#prompts-aid", Static).update(Text(said))

    def _prompt_row(self, prompt: int) -> Row:
        prompts = self._picture.prompts

        def cell(name: str, how: str) -> str:
            return figure(float(prompts.columns[name][prompt]), how)

        age = prompts.columns["age"][prompt]
        return str(prompt), (
            prompts.text(prompt),
            cell("spent", ",.0f"),
            cell("pass", ".2f"),
            cell("variance", ".3f"),
            cell("expected", ".2f"),
            cell("worth", ".3f"),
            "never" if age == float("inf") else f"{age:,.0f}",
            cell("looks", ",.0f"),
            prompts.labels(prompt),
        )

    def _show_samples(self, *, to_top: bool = False) -> None:
        sign = 1.0 if self._sample_falling else -1.0
        column = self._sample_sort
        chosen = in_order(self._picture.samples, lambda s: sign * float(getattr(s, column)))
        known = len(self._picture.samples)
        self._shown = {str(i): sample for i, sample in enumerate(chosen[:_MOST_ROWS])}
        rows = [(key, _sample_row(sample)) for key, sample in self._shown.items()]
        self.query_one("#samples", Rows).write(rows, column, to_top=to_top)
        found = f"{len(rows):,} of {known:,} samples"
        said = _aid(found, _SAMPLE_SORTS, falling=self._sample_falling, enter="text")
        self.query_one("#samples-aid", Static).update(Text(said))

    def _show_log(self) -> None:
        log, lines = self.query_one(RichLog), list(self._picture.log)
        old = self._lines
        if lines[: len(old)] == old:
            fresh = lines[len(old) :]
        else:  # a resumed run, or an end that came to be known
            log.clear()
            fresh = lines
        for line in fresh[-_MOST_LINES:]:
            log.write(Text(legible(line, 400)))
        self._lines = lines

    # --- keys

    def action_tab(self, name: str) -> None:
        self.query_one(TabbedContent).active = name
        self._focus_tab(name)

    def on_tabbed_content_tab_activated(self, event: TabbedContent.TabActivated) -> None:
        self._focus_tab(event.pane.id or "")

    def _focus_tab(self, name: str) -> None:
        target = {"tab-prompts": "#prompts", "tab-samples": "#samples", "tab-log": "#log"}.get(name)
        if target is not None:
            self.query_one(target).focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Sorting and filtering belong to their tabs, and to the main screen."""
        if len(self.screen_stack) > 1 and action in ("tab", "sort", "filter", "reread"):
            return False
        if action == "filter":
            return self._active == "tab-prompts"
        if action == "leave_filter":
            return self._active == "tab-prompts" and self.query_one("#filter").display
        return True

    @property
    def _active(self) -> str:
        return self.query_one(TabbedContent).active if self.is_mounted else ""

    def action_sort(self, key: str) -> None:
        """The same key again turns the order round."""
        if self._active == "tab-prompts" and key in SORTS:
            name = SORTS[key]
            self._falling = not self._falling if name == self._sort else True
            self._sort = name
            self._show_prompts(to_top=True)
        elif self._active == "tab-samples" and key in _SAMPLE_SORTS:
            name = _SAMPLE_SORTS[key]
            self._sample_falling = not self._sample_falling if name == self._sample_sort else True
            self._sample_sort = name
            self._show_samples(to_top=True)

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()
        self.refresh_bindings()

    def action_leave_filter(self) -> None:
        """Back to the table, with no filter."""
        field = self.query_one("#filter", Input)
        field.value, field.display = "", False
        self._focus_tab(self._active)
        self.refresh_bindings()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._words = event.value
        self._show_prompts(to_top=True)

    def on_input_submitted(self) -> None:
        self.query_one("#prompts").focus()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        key = event.row_key.value or ""
        if event.data_table.id == "prompts":
            self.push_screen(PromptScreen(self._picture, int(key)))
        elif event.data_table.id == "samples":
            self.push_screen(SampleScreen(self._shown[key]))

    # --- a run that grows

    def _poll(self) -> None:
        if self._reading:
            return
        if stamp_of(self._path) != self._picture.stamp:
            self.action_reread()
        elif not self._picture.run.finished:
            self._show_state()

    def action_reread(self) -> None:
        if not self._reading:
            self._reading = True
            self._read()

    @work(thread=True)
    def _read(self) -> None:
        try:
            picture = look(self._path)
        except (CeroError, OSError) as error:
            said = f"cannot be read now ({first_line(error)}); what is shown is older"
            self.call_from_thread(self._done, partial(self._note, said), self._every)
        else:
            wait = _READ_SHARE * picture.read_seconds
            self.call_from_thread(self._done, partial(self.show, picture), wait)

    def _done(self, showing: partial[None], wait_seconds: float) -> None:
        """Show it, and read no more for a while: reading must not take a training run's cores."""
        showing()
        self.set_timer(wait_seconds, self._may_read)

    def _may_read(self) -> None:
        self._reading = False


def _aid(found: str, sorts: Mapping[str, str], *, falling: bool, enter: str) -> str:
    """One line: what is shown, and the keys."""
    keys = " ".join(f"{key}:{name}" for key, name in sorts.items())
    return f"{found}{'' if falling else ', least first'}  {keys}  enter:{enter}"


def _sample_row(sample: Sample) -> tuple[str, ...]:
    return (
        f"{sample.step}",
        figure(sample.reward),
        figure(sample.expected, ".2f"),
        figure(sample.surprise, ".2f"),
        figure(sample.worth),
        sample.asked,
        sample.first,
    )
