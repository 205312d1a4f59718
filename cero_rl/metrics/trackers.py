"""Trackers beside metrics.jsonl: TensorBoard, wandb, trackio, behind one small protocol.

A tracker is a class and its line in TRACKERS; the key of its name in `logging` turns it on. All of
them go on where a resumed run does: TensorBoard is told from which step on earlier points are void,
wandb and trackio get the run's id or name again. Addresses and logins are the environment's, as
each tracker's own documentation has them.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cero_rl import redact
from cero_rl.checkpoint.lineage import origin_of
from cero_rl.config import Config
from cero_rl.errors import ConfigError
from cero_rl.metrics.alerts import Alert

Numbers = Mapping[str, float | int]


@dataclass(frozen=True)
class Job:
    """What a tracker is opened for. first_step: the first that this job will write."""

    run_dir: Path
    config: Config
    first_step: int

    @property
    def settings(self) -> dict[str, Any]:
        return redact.tree(self.config.model_dump(mode="json"))

    @property
    def run_id(self) -> str:
        """The same at every start of a run, and of no other."""
        return f"{self.config.name}-{origin_of(self.run_dir).id}"


class Tracker(Protocol):
    """Opened with a Job; raises what it likes, which is said once and ends it alone."""

    def write(self, step: int, numbers: Numbers) -> None: ...

    def alert(self, alert: Alert) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, job: Job) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(job.run_dir / "tensorboard"), purge_step=job.first_step)

    def write(self, step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._board.add_scalar(name, value, step)

    def alert(self, alert: Alert) -> None:
        self._board.add_text("alerts", str(alert), alert.step)

    def close(self) -> None:
        self._board.close()


class Wandb:
    """The same run of wandb at every start. Its points carry the step themselves: wandb's own
    counter drops what is older than its newest point, and a resumed run begins with such."""

    def __init__(self, job: Job) -> None:
        import wandb  # pyright: ignore[reportMissingImports]  # an extra

        wanted = job.config.logging
        self._run: Any = wandb.init(
            project=wanted.wandb_project or os.environ.get("WANDB_PROJECT") or "cero_rl",
            entity=wanted.wandb_entity,
            group=wanted.group,
            tags=wanted.tags or None,
            name=job.config.name,
            id=os.environ.get("WANDB_RUN_ID") or job.run_id,
            resume="allow",
            dir=str(job.run_dir),
            config=job.settings,
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: Numbers) -> None:
        self._run.log({"step": step, **numbers})

    def alert(self, alert: Alert) -> None:
        self._run.alert(title=f"{alert.name}, step {alert.step}", text=str(alert), level="WARN")

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """The same run of trackio at every start, by its name; where trackio keeps it is trackio's
    (TRACKIO_DIR). It forgets no point: those that a resume left stay beside the new ones."""

    def __init__(self, job: Job) -> None:
        import trackio  # pyright: ignore[reportMissingImports]  # an extra

        self._trackio: Any = trackio
        trackio.init(
            project=job.config.logging.trackio_project,
            name=job.run_id,
            group=job.config.logging.group,
            config=job.settings,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, step: int, numbers: Numbers) -> None:
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        self._trackio.log(finite, step=step)

    def alert(self, alert: Alert) -> None:
        with redirect_stdout(io.StringIO()):  # it prints alerts too, and the run has said it
            self._trackio.alert(title=f"{alert.name}, step {alert.step}", text=str(alert))

    def close(self) -> None:
        self._trackio.finish()


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}
_BY_DEFAULT = "tensorboard"  # nobody asked for it by name


def wanted(config: Config) -> list[str]:
    """Names of the trackers that the configuration turns on."""
    return [name for name in TRACKERS if getattr(config.logging, name)]


def refuse_missing(config: Config) -> None:
    """Raises ConfigError for a tracker that was asked for and whose package is not installed."""
    for name in wanted(config):
        if name != _BY_DEFAULT and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"logging.{name}: true, but the package {name} is not installed; "
                f"pip install 'cero_rl[{name}]', or set it to false"
            )
