"""When a run saves, and what a failed save means: it is said, counted and tried again, and ends the
run after a few in a row.

The last save of a run is tried again at once. An asynchronous writer's error is met here as well,
at the edge of a later step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cero_rl.checkpoint.commit import Checkpoints, RunState
from cero_rl.checkpoint.retention import Score
from cero_rl.config import Config
from cero_rl.distributed.group import Group
from cero_rl.errors import CheckpointError


class Saver:
    """`step_done` at the edge of every step; a collective. Raises CheckpointError after
    checkpoint.max_failures failures in a row.

    `identity` is what the manifest says of the run: settings, the content of what they name, and
    what the checkpoint does not hold itself.
    """

    def __init__(
        self,
        run_dir: Path,
        group: Group,
        ds_engine: Any,
        config: Config,
        identity: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self.identity = identity
        self.failed_saves = 0  # in a row
        self._saved_step: int | None = None
        self._settings = config.checkpoint
        self._say = say
        self._checkpoints = Checkpoints(run_dir, group, ds_engine, config.checkpoint, self.identity)

    def goes_on_from(self, directory: Path) -> None:
        """The checkpoint that this job resumed from."""
        self._checkpoints.goes_on_from(directory)
        self._saved_step = self._checkpoints.committed_step

    def step_done(
        self, step: int, state: Callable[[], RunState], score: Score | None, *, last: bool
    ) -> None:
        """Save if it is time to, if the save before failed, if this is the `last` chance to, or if
        the step has a score and the best are kept."""
        score = _number(score)
        self._try(lambda: self._checkpoints.poll(wait=last))
        every, scored = self._settings.every_steps, score is not None and self._settings.keep_best
        if not (last or self.failed_saves or scored or (every and step % every == 0)):
            return
        if self._saved_step == step:
            return
        while (
            not self._try(lambda: self._checkpoints.save(step, state(), score, wait=last)) and last
        ):
            pass

    def scored(self, score: Score | None) -> None:
        """What the newest checkpoint is worth, measured after it was saved. A collective."""
        if (score := _number(score)) is not None and self._saved_step is not None:
            self._say_only(lambda: self._checkpoints.rescore(score), "accuracy not written down")
            self._say_only(self._checkpoints.tidy, "old checkpoints not removed")

    def _say_only(self, action: Callable[[], None], what: str) -> None:
        try:
            action()
        except CheckpointError as error:
            self._say(f"{what}: {error}")

    def _try(self, action: Callable[[], bool]) -> bool:
        try:
            action()
        except CheckpointError as error:
            self.failed_saves += 1
            if self.failed_saves >= self._settings.max_failures:
                raise
            self._say(
                f"not saved ({self.failed_saves} of checkpoint.max_failures = "
                f"{self._settings.max_failures}): {error}"
            )
            return False
        committed = self._checkpoints.committed_step
        if committed != self._saved_step:  # also one that a later save waited for
            self.failed_saves = 0
            self._saved_step = committed
            self._say_only(self._checkpoints.tidy, "old checkpoints not removed")
        return True


def _number(score: Score | None) -> Score | None:
    """None also where no reward was known: such a score compares with nothing."""
    return score if score is not None and math.isfinite(score.value) else None
