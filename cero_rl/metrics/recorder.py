"""Where numbers go: metrics.jsonl, TensorBoard, and wandb where asked for. Rank 0 only.

One JSON object per optimizer step, with the names that users of other trainers know; non-finite
numbers are written as null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cero_rl import redact
from cero_rl.config import Config
from cero_rl.errors import first_line
from cero_rl.files.jsonl import append_jsonl


class Recorder:
    """Writes each step's numbers to every sink. A tracker that fails is said once and left out;
    metrics.jsonl is never left out."""

    def __init__(self, run_dir: Path, config: Config, *, active: bool) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._active = active
        self._trackers: dict[str, Any] = {}
        if active and config.logging.tensorboard:
            self._guard(
                "tensorboard", lambda: self._trackers.update(tensorboard=_tensorboard(run_dir))
            )
        if active and config.logging.wandb:
            self._guard("wandb", lambda: self._trackers.update(wandb=_wandb(run_dir, config)))

    def _guard(self, name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        # whatever a tracker or its network raises: the run is worth more
        except Exception as error:
            self._trackers.pop(name, None)
            first = first_line(error)
            print(
                f"{name} failed and is left out from here on ({type(error).__name__}: "
                f"{first}); metrics.jsonl goes on",
                flush=True,
            )

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
    def __init__(
        self, write: Callable[[int, Mapping[str, float | int]], None], close: Callable[[], None]
    ) -> None:
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

    run = wandb.init(
        project="cero_rl",
        name=config.name,
        dir=str(run_dir),
        config=redact.tree(config.model_dump(mode="json")),
    )
    return _Tracker(lambda step, numbers: run.log(dict(numbers), step=step), run.finish)
