"""How many rewards were missing lately, and when that is too many to go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cero_rl.config.reward import RewardConfig


@dataclass
class MissingRewards:
    """The newest steps that hold reward.missing_window_rollouts rollouts between them, as
    [rollouts, rollouts without a reward] each. Of all ranks, so the same on every rank."""

    steps: list[list[int]] = field(default_factory=list)

    def add(self, rollouts: int, missing: int, settings: RewardConfig) -> None:
        """Take a step in, and let go of the old ones that the window no longer needs."""
        self.steps.append([rollouts, missing])
        newer = sum(n for n, _ in self.steps[1:])
        while newer >= settings.missing_window_rollouts:
            self.steps.pop(0)
            newer = sum(n for n, _ in self.steps[1:])

    def too_many(self, settings: RewardConfig, *, last: bool) -> str | None:
        """What is wrong, or None. A window is judged when it is full; the `last` of a run as it
        is."""
        rollouts = sum(n for n, _ in self.steps)
        missing = sum(m for _, m in self.steps)
        if not missing or (rollouts < settings.missing_window_rollouts and not last):
            return None
        return _beyond(rollouts, missing, settings.max_missing_rate)

    def forget(self) -> None:
        """A run that ended for its window begins another when it goes on: its reward is mended, or
        ends it again."""
        self.steps.clear()

    def state(self) -> list[list[int]]:
        return [list(step) for step in self.steps]


def _beyond(rollouts: int, missing: int, most: float) -> str | None:
    if missing / rollouts <= most:  # most * rollouts may round to below what is allowed
        return None
    return (
        f"{missing} of the last {rollouts} rollouts have no reward ({missing / rollouts:.0%}, "
        f"reward.max_missing_rate = {most:.0%})"
    )


def first_reason(errors: Sequence[str | None]) -> str:
    """The first failure that any rank met, in words; time-outs have none."""
    said = next((error for error in errors if error), None)
    return f"the first: {said}" if said else "they ran out of time (reward.timeout_seconds)"
