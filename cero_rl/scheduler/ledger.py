"""The run's one budget: every rollout generated for training is booked here, kept or dropped, and
nothing else is.

Spent is what was generated, refunded what an engine failed to deliver (it is available again).
Evaluation is not booked.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Ledger:
    """Rollouts. Invariant: 0 <= spent <= total; raises ValueError on an entry that would break
    it."""

    total_rollouts: int
    spent_rollouts: int = 0
    refunded_rollouts: int = 0
    # what an environment's episodes took: answers of the model, and tokens behind the prompt
    spent_turns: int = 0
    spent_tokens: int = 0

    @property
    def remaining_rollouts(self) -> int:
        return self.total_rollouts - self.spent_rollouts

    def book(self, generated: int, failed: int = 0, *, turns: int = 0, tokens: int = 0) -> None:
        """Book one batch: `generated` rollouts were delivered, `failed` were asked for and never
        came; `turns` and `tokens` of episodes."""
        if generated < 0 or failed < 0 or self.spent_rollouts + generated > self.total_rollouts:
            raise ValueError(
                f"ledger: booking {generated} rollouts ({failed} failed) on "
                f"{self.spent_rollouts} of {self.total_rollouts} spent"
            )
        self.spent_rollouts += generated
        self.refunded_rollouts += failed
        self.spent_turns += turns
        self.spent_tokens += tokens

    def leftover(self) -> str | None:
        """At a run's end, in words: what was not spent, and why. None if nothing is left."""
        if not self.remaining_rollouts:
            return None
        why = "no round asked for them"
        if self.refunded_rollouts:
            why = (
                f"{self.refunded_rollouts} failed on the way, and the rounds left had no room for "
                "all of them (scheduler.capacity_rollouts)"
            )
        return f"{self.remaining_rollouts} rollouts of the budget were not spent: {why}"

    def metrics(self) -> dict[str, int]:
        numbers = {
            "budget/total_rollouts": self.total_rollouts,
            "budget/spent_rollouts": self.spent_rollouts,
            "budget/remaining_rollouts": self.remaining_rollouts,
            "budget/refunded_rollouts": self.refunded_rollouts,
        }
        if self.spent_turns:
            numbers["budget/spent_turns"] = self.spent_turns
            numbers["budget/spent_tokens"] = self.spent_tokens
        return numbers

    def state(self) -> dict[str, int]:
        """For a checkpoint and a line of ledger.jsonl; with turns and tokens of episodes."""
        without = () if self.spent_turns else ("spent_turns", "spent_tokens")
        return {name: value for name, value in asdict(self).items() if name not in without}
