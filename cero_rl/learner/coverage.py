"""Coverage: how much right answers are reinforced, so that the policy's entropy stays where it is
asked to.

In: the entropy of the tokens that trained, a mean over all ranks, step by step. Out: the factor of
advantages above 0, in [least, 1]. What is reinforced becomes more likely and entropy falls, and
with it pass@k; wrong answers alone hardly lower it (arXiv 2506.01347). To hold a target by the size
of an entropy term: Skywork-OR1, arXiv 2505.22312; by this factor: ours.

Entropy adds up what the factor does step by step, so a rule that adds up its error as well would
swing for ever: here the sum moves slowly and the error itself damps it (a PI controller).
"""

from __future__ import annotations

from cero_rl.scheduler.sizes import StateDict, require
from cero_rl.scheduler.state import read_scalar

SMOOTHING = 0.8  # of the entropy, from step to step
SHARE = 2.0  # of the relative error that the factor moves by at once
RATE = 0.05  # and that it goes on moving by, an update at the full learning rate


class EntropyControl:
    """Holds the entropy of a token (nats) at `target` from below: above it the factor is 1. least:
    the smallest factor. The same numbers on every rank give the same factor."""

    def __init__(self, target: float, least: float) -> None:
        self.target = target
        self.least = least
        self._entropy = target  # smoothed
        self._sum = 1.0

    @property
    def _error(self) -> float:
        """Relative, in [-1, 1]: below 0 where there is too little entropy."""
        return max(-1.0, min(self._entropy / self.target - 1.0, 1.0))

    @property
    def positive_weight(self) -> float:
        """Factor of advantages above 0 of the next step."""
        return self._bounded(self._sum + SHARE * self._error)

    def _bounded(self, factor: float) -> float:
        return max(self.least, min(factor, 1.0))

    def observe(self, entropy: float, updates: float) -> None:
        """A step's tokens had this mean entropy, and its optimizer steps were worth `updates` at
        the full learning rate."""
        self._entropy = SMOOTHING * self._entropy + (1.0 - SMOOTHING) * entropy
        self._sum = self._bounded(self._sum + RATE * updates * self._error)

    def metrics(self) -> dict[str, float]:
        """Under the names of metrics.jsonl: of the step that is about to train."""
        return {
            "coverage/positive_weight": self.positive_weight,
            "coverage/entropy_target": self.target,
        }

    def state_dict(self) -> StateDict:
        return {"entropy": self._entropy, "sum": self._sum}

    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError for a damaged state."""
        entropy, total = (float(read_scalar(state, name)) for name in ("entropy", "sum"))
        require(
            entropy >= 0.0 and self.least <= total <= 1.0,
            f"entropy control: entropy {entropy:g} and factor {total:g}, wanted >= 0 and in "
            f"[{self.least:g}, 1]",
        )
        self._entropy, self._sum = entropy, total
