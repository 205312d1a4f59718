"""Where numbers go: metrics.jsonl, TensorBoard, and wandb where asked for. Rank 0 only.

One JSON object per optimizer step and a `final` one at the end of the run, with the names that
users of other trainers know; non-finite numbers are written as null. A resumed run goes on in the
same trackers: TensorBoard is told from which step on the earlier points are void, wandb gets the
run's id again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cero_rl import redact
from cero_rl.checkpoint.lineage import origin_of
from cero_rl.config import Config
from cero_rl.errors import first_line
from cero_rl.files.jsonl import append_jsonl, lines_up_to


class Recorder:
    """Writes each step's numbers to every sink. A tracker that fails is said once and left out;
    metrics.jsonl is never left out. first_step: the first that this job will write."""

    def __init__(self, run_dir: Path, config: Config, *, active: bool, first_step: int = 0) -> None:
        self._run_dir, self._config, self._first_step = run_dir, config, first_step
        self._path = run_dir / "metrics.jsonl"
        self._active = active
        self._open = False
        self._trackers: dict[str, Any] = {}

    def _open_trackers(self) -> None:
        """At the first line: a finished run that is started again leaves them as they are."""
        self._open = True
        run_dir, config, add = self._run_dir, self._config, self._trackers.update
        if config.logging.tensorboard:
            first = self._first_step
            self._guard("tensorboard", lambda: add(tensorboard=_tensorboard(run_dir, first)))
        if config.logging.wandb:
            self._guard("wandb", lambda: add(wandb=_wandb(run_dir, config)))

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

    def write(self, step: int, numbers: Mapping[str, float | int], *, final: bool = False) -> None:
        """`final`: the run's last line, beside that of its last step."""
        if not self._active:
            return
        append_jsonl(self._path, {"step": step, **({"final": True} if final else {}), **numbers})
        if not self._open:
            self._open_trackers()
        for name, tracker in list(self._trackers.items()):
            self._guard(name, lambda tracker=tracker: tracker.write(step, numbers))

    def is_final(self, step: int) -> bool:
        """Has the run ended at `step` before? False on other ranks than 0."""
        if not self._active or not self._path.exists():
            return False
        for line in lines_up_to(self._path, step).kept:
            with suppress(ValueError, AttributeError):
                entry = json.loads(line)
                if entry.get("final") is True and entry.get("step") == step:
                    return True
        return False

    def close(self) -> None:
        for name, tracker in list(self._trackers.items()):
            self._guard(name, tracker.close)


class _Tracker:
    def __init__(
        self, write: Callable[[int, Mapping[str, float | int]], None], close: Callable[[], None]
    ) -> None:
        self.write, self.close = write, close


def _tensorboard(run_dir: Path, first_step: int) -> _Tracker:
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step)

    def write(step: int, numbers: Mapping[str, float | int]) -> None:
        for name, value in numbers.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                board.add_scalar(name, value, step)

    return _Tracker(write, board.close)


def _wandb(run_dir: Path, config: Config) -> _Tracker:
    """The same run of wandb at every start. Its points carry the step themselves: wandb's own
    counter drops what is older than its newest point, and a resumed run begins with such."""
    import wandb  # pyright: ignore[reportMissingImports]  # an extra

    project = config.logging.wandb_project or os.environ.get("WANDB_PROJECT") or "cero_rl"
    run = wandb.init(
        project=project,
        name=config.name,
        id=os.environ.get("WANDB_RUN_ID") or f"{config.name}-{origin_of(run_dir).id}",
        resume="allow",
        dir=str(run_dir),
        config=redact.tree(config.model_dump(mode="json")),
    )
    run.define_metric("*", step_metric="step")
    return _Tracker(lambda step, numbers: run.log({"step": step, **numbers}), run.finish)
