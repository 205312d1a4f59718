"""Where numbers go: metrics.jsonl, TensorBoard, wandb where asked for, and one progress line. Rank 0 only.

One JSON object per optimizer step, with the names that users of other trainers know; non-finite numbers are written as null.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cero_rl import redact
from cero_rl.config import Config


def _clean(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value


def truncate_jsonl(path: Path, last_step: int) -> None:
    """Drop lines after `last_step` (written after the checkpoint that a resumed run starts from) and any broken last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if entry["step"] > last_step:
            break
        kept.append(line)
    path.write_text("".join(line + "\n" for line in kept))


def append_jsonl(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps({k: _clean(v) for k, v in entry.items()}) + "\n")


class Recorder:
    """Writes each step's numbers to every sink. A tracker that fails is said once and left out; metrics.jsonl is never left out."""

    def __init__(self, run_dir: Path, config: Config, *, active: bool) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._active = active
        self._trackers: dict[str, Any] = {}
        if active and config.logging.tensorboard:
            self._guard("tensorboard", lambda: self._trackers.update(tensorboard=_tensorboard(run_dir)))
        if active and config.logging.wandb:
            self._guard("wandb", lambda: self._trackers.update(wandb=_wandb(run_dir, config)))

    def _guard(self, name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker or its network raises: the run is worth more
            self._trackers.pop(name, None)
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"{name} failed and is left out from here on ({type(error).__name__}: {first}); metrics.jsonl goes on", flush=True)

    def write(self, step: int, numbers: Mapping[str, float | int]) -> None:
        if not self._active:
            return
        append_jsonl(self._path, {"step": step, **numbers})
        for name, tracker in list(self._trackers.items()):
            self._guard(name, lambda tracker=tracker: tracker.write(step, numbers))

    def close(self) -> None:
        for name, tracker in list(self._trackers.items()):
            self._guard(name, tracker.close)


class _Tracker:
    def __init__(self, write: Callable[[int, Mapping[str, float | int]], None], close: Callable[[], None]) -> None:
        self.write, self.close = write, close


def _tensorboard(run_dir: Path) -> _Tracker:
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(run_dir / "tensorboard"))

    def write(step: int, numbers: Mapping[str, float | int]) -> None:
        for name, value in numbers.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                board.add_scalar(name, value, step)

    return _Tracker(write, board.close)


def _wandb(run_dir: Path, config: Config) -> _Tracker:
    import wandb  # pyright: ignore[reportMissingImports]  # an extra

    run = wandb.init(project="cero_rl", name=config.name, dir=str(run_dir), config=redact.tree(config.model_dump(mode="json")))
    return _Tracker(lambda step, numbers: run.log(dict(numbers), step=step), run.finish)


class Console:
    """Rank 0's words to a person: plain lines, and one progress line (live on a terminal, now and then elsewhere)."""

    _PLAIN_EVERY_SECONDS = 15.0

    def __init__(self, *, active: bool, total_rollouts: int) -> None:
        self._active = active
        self._total = total_rollouts
        self._started = time.monotonic()
        self._start_spent: int | None = None
        self._last_plain = -math.inf
        self._progress: Any = None
        self._task: Any = None
        if active and sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn

            self._progress = Progress(TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[status]}"))
            self._task = self._progress.add_task("training", total=total_rollouts, status="")

    def say(self, text: str) -> None:
        if not self._active:
            return
        if self._progress is not None and self._progress.live.is_started:
            self._progress.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def progress(self, numbers: Mapping[str, float | int], step: int) -> None:
        """One line: step, reward, live groups, budget used, tokens a second, time left at the present pace."""
        if not self._active:
            return
        spent, now = int(numbers["budget/spent_rollouts"]), time.monotonic()
        if self._start_spent is None:  # the first step is left out of the pace: it pays for warm-up
            self._start_spent, self._started = spent, now
        done = spent - self._start_spent
        left = (self._total - spent) * (now - self._started) / done if done else math.nan
        status = (
            f"step {step}  reward {numbers['reward']:.3f}  live groups {numbers['cero/effective_group_rate']:.0%}  "
            f"budget {spent}/{self._total} ({spent / self._total:.0%})  {numbers['perf/tokens_per_second']:.0f} tokens/s  "
            f"ETA {_clock(left)}"
        )
        if self._progress is not None:
            if not self._progress.live.is_started:
                self._progress.start()
            self._progress.update(self._task, completed=spent, status=status)
        elif now - self._last_plain >= self._PLAIN_EVERY_SECONDS or spent == self._total:
            self._last_plain = now
            print(status, flush=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "--:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
