"""Tables of the view: cells that are never markup, and a cursor that stays on its row.

In: rows of text. Out: a DataTable that is written anew when the run has grown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text
from textual.widgets import DataTable

_PADDING = 2  # of a cell
_BAR = 2  # for scrolling

Row = tuple[str, Sequence[str]]  # its key, and its cells


@dataclass(frozen=True)
class Column:
    """width: of numbers, in characters; of texts (share > 0), the least, beside their share of what
    the numbers leave of the screen."""

    name: str
    width: int
    share: float = 0.0


class Rows(DataTable[Text]):
    """Columns with headings; numbers stand right."""

    def __init__(self, columns: Sequence[Column], *, id: str) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=True)
        self._wanted = columns

    def on_mount(self) -> None:
        for column in self._wanted:
            self.add_column(Text(column.name), width=column.width, key=column.name)

    def write(self, rows: Sequence[Row], sorted_by: str = "", *, to_top: bool = False) -> None:
        """Anew; the cursor stays on the row of the same key, or near where it was."""
        before, at = self.chosen, self.cursor_row
        self.clear()
        self._fit(sorted_by)
        for key, cells in rows:
            shown = [
                Text(cell, justify="left" if column.share else "right", no_wrap=True, end="")
                for cell, column in zip(cells, self._wanted)
            ]
            self.add_row(*shown, key=key)
        if self.row_count:
            keys = [key for key, _ in rows]
            row = keys.index(before) if before in keys else min(at, self.row_count - 1)
            self.move_cursor(row=0 if to_top else row, animate=False)

    def _fit(self, sorted_by: str) -> None:
        """Widths for the screen as it is, and headings."""
        room = self.app.size.width - _BAR
        room -= sum(c.width * (not c.share) + _PADDING for c in self._wanted)
        for wanted, column in zip(self._wanted, self.ordered_columns):
            if wanted.share:
                column.width = max(wanted.width, int(wanted.share * room))
            name = f"{wanted.name}↓" if wanted.name == sorted_by else wanted.name
            column.label = Text(name, justify="left" if wanted.share else "right")

    @property
    def chosen(self) -> str:
        """The key of the cursor's row; empty where there is none."""
        if not self.is_valid_row_index(self.cursor_row):
            return ""
        return self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value or ""
