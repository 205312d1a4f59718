"""A trace of chosen steps by torch's profiler, for chrome://tracing or Perfetto: profile.steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cero_rl.config.run import ProfileConfig
from cero_rl.errors import first_line

FOLDER = "profile"


class StepProfiler:
    """Of rank 0. A trace that cannot be written is said, and the run goes on."""

    def __init__(
        self, config: ProfileConfig, run_dir: Path, say: Callable[[str], None], *, active: bool
    ) -> None:
        self._steps = config.steps if active else None
        self._folder = run_dir / FOLDER
        self._say = say
        self._running: Any = None
        self._first = self._last = 0

    def before(self, step: int) -> None:
        """The step begins."""
        if self._steps is None or not self._steps[0] <= step <= self._steps[1]:
            return
        self._last = step
        if self._running is None:
            self._first = step
            self._running = torch.profiler.profile(record_shapes=True)
            self._running.start()

    def after(self, step: int) -> None:
        """The step is done, its save included."""
        if self._steps is not None and step == self._steps[1]:
            self.close()

    def close(self) -> None:
        """Write what was traced; nothing where nothing was."""
        if self._running is None:
            return
        running, self._running = self._running, None
        path = self._folder / f"steps_{self._first}-{self._last}.json.gz"
        try:
            running.stop()
            self._folder.mkdir(exist_ok=True)
            running.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            self._say(f"profile.steps: no trace was written ({first_line(error)})")
        else:
            self._say(f"trace of steps {self._first} to {self._last}: {path}")
