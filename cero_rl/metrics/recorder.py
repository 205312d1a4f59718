"""Where numbers go: metrics.jsonl, and the trackers that were asked for. Rank 0 only.

One JSON object per optimizer step and a `final` one at the end of the run, with the names that
users of other trainers know; non-finite numbers are written as null.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cero_rl.config import Config
from cero_rl.errors import first_line
from cero_rl.files.jsonl import append_jsonl, lines_up_to
from cero_rl.metrics.alerts import Alert, Watch
from cero_rl.metrics.trackers import TRACKERS, Job, Tracker, wanted


class Recorder:
    """Writes each step's numbers to every sink. A tracker that fails is said once and left out;
    metrics.jsonl is never left out. first_step: the first that this job will write."""

    def __init__(self, run_dir: Path, config: Config, *, active: bool, first_step: int = 0) -> None:
        self._job = Job(run_dir, config, first_step)
        self._path = run_dir / "metrics.jsonl"
        self._active = active
        self._open = False
        self._trackers: dict[str, Tracker] = {}
        self._watch = Watch(config.parity_bound)

    def _begin(self) -> None:
        """At the first line: a finished run that is started again leaves everything as it is."""
        self._open = True
        if self._job.first_step and self._path.exists():  # what was said before is not said again
            for line in lines_up_to(self._path, self._job.first_step - 1).kept:
                with suppress(ValueError, AttributeError):
                    self._watch.look(json.loads(line))
        for name in wanted(self._job.config):
            self._guard(name, lambda name=name: self._start(name))

    def _start(self, name: str) -> None:
        self._trackers[name] = TRACKERS[name](self._job)  # pyright: ignore[reportCallIssue]

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

    def write(
        self, step: int, numbers: Mapping[str, float | int], *, final: bool = False
    ) -> Sequence[Alert]:
        """`final`: the run's last line, beside that of its last step. Returns what a person should
        be told of it, which the trackers know by then."""
        if not self._active:
            return ()
        if not self._open:
            self._begin()
        append_jsonl(self._path, {"step": step, **({"final": True} if final else {}), **numbers})
        alerts = self._watch.look({"step": step, **numbers})
        for name, tracker in list(self._trackers.items()):
            self._guard(name, lambda tracker=tracker: tracker.write(step, numbers))
            for alert in alerts:
                if name in self._trackers:
                    self._guard(name, lambda t=tracker, alert=alert: t.alert(alert))
        return alerts

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
