"""How a figure is drawn: a canvas that becomes SVG, its colours, short numbers and safe words.
matplotlib (extra `report`) is imported when the first is drawn."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cero_rl.errors import ConfigError
from cero_rl.scheduler.posterior import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#1f5fa8", "#c2571a", "#3c7d3c", "#7a4ea3", "#8a6d00", "#a83246", "#3b8686", "#555555")
GREY = "#9a9a9a"
_MOST_POINTS = 400  # of a line
_STYLE: Any = {
    "font.size": 9.0,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "cero_rl",
    "figure.facecolor": "white",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Figure:
    name: str  # unique on the page
    title: str
    aid: str  # how to read it, in one line
    svg: str


def need_matplotlib() -> None:
    """Raises ConfigError where the extra is not installed."""
    try:
        import jinja2
        import matplotlib  # noqa: F401

        assert jinja2.__version__
    except ImportError as error:
        raise ConfigError(
            f"report: {error.name} is not installed; pip install 'cero_rl[report]', or ask for "
            "--format json or md, which need neither"
        ) from None


class _Canvas:
    """One pair of axes and the SVG that becomes of it."""

    def __init__(self, axis: Axes, figure: Any) -> None:
        self.axis, self._figure = axis, figure
        self.svg = ""

    def finish(self) -> None:
        out = io.StringIO()
        self._figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        text = re.sub(r"<[^>]+>", _shorter, out.getvalue())
        self.svg = text[text.index("<svg") :]

    def legend(self) -> None:
        """Above the axes, where it hides nothing."""
        self._figure.legend(loc="outside upper left", ncols=2)


@contextmanager
def canvas(width: float = 4.7, height: float = 2.9) -> Iterator[_Canvas]:
    """Inches; the page scales what comes out."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context(_STYLE):
        drawing = Drawing(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(drawing)
        made = _Canvas(drawing.add_subplot(), drawing)
        yield made
        made.finish()


def smooth(at: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Means of blocks, so that a line has at most 100 points."""
    known = np.isfinite(values)
    at, values = at[known], values[known]
    blocks = min(at.size, 100)
    cut = np.arange(at.size) * blocks // max(at.size, 1)
    size = np.bincount(cut)
    return np.bincount(cut, weights=at) / size, np.bincount(cut, weights=values) / size


def thin(size: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, _MOST_POINTS)).astype(np.int64))


def _shorter(tag: re.Match[str]) -> str:
    """Coordinates to the hundredth of a point; what stands between tags is text."""
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0])


def thousands(axis: Axes) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))


def short(value: float) -> str:
    """1,200 -> 1.2k."""
    if not math.isfinite(value):
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def plain(text: str, most: int) -> str:
    """For a figure: no mathematics of matplotlib's, no control characters, and short."""
    kept = "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")
    return kept if len(kept) <= most else kept[: most - 1] + "…"
