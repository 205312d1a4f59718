"""Prompts -> completions with rewards, in two looks that share no draw: one for the gradient, as a
step would see it, and one to say how often the prompt is passed.

In: a pool, the sampler, the rewards. Out: `Looks`. Draws are a function of the seed, the prompt and
its number, far from those of training and evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cero_rl.data.pool import Pool
from cero_rl.rewards.missing import first_reason
from cero_rl.rewards.scoring import score_groups
from cero_rl.rewards.several import Judge
from cero_rl.rollout.protocol import RolloutEngine, RolloutRequest
from cero_rl.types import RolloutGroup

DIAGNOSIS_STREAM = 2**41  # beside evaluation's
_CHUNK_PROMPTS = 256
Rewards = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Looks:
    """N prompts: the first `first` completions of each are one look, the others the second."""

    ids: npt.NDArray[np.int64]  # [N] in the pool
    groups: list[RolloutGroup]  # N, all completions
    rewards: list[Rewards]  # N, nan where missing
    first: int
    missing: int
    reason: str  # why they are missing, in words
    evidence: list[Rewards] | None = None  # N, what the posterior reads of them; None: the same

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def rollouts(self) -> int:
        return sum(len(r) for r in self.rewards)

    def trained(self) -> tuple[list[RolloutGroup], list[Rewards]]:
        """The first look, as a step's groups."""
        n = self.first
        cut = [replace(g, completions=g.completions[:n]) for g in self.groups]
        return cut, [r[:n] for r in self.rewards]

    def rates(self, look: int | None = None) -> Floats:
        """Mean reward f64[N] of the first look (0), the second (1) or both; nan where none is
        known."""
        return np.array([known.mean() if known.size else np.nan for known in self._known(look)])

    def variances(self, look: int | None = None) -> Floats:
        """Variance of a reward f64[N], unbiased: p (1 - p) where rewards are 0 and 1; nan with
        fewer than two."""
        return np.array(
            [known.var(ddof=1) if known.size > 1 else np.nan for known in self._known(look)]
        )

    def live(self) -> npt.NDArray[np.bool_]:
        """bool[N]: do the rewards of the first look differ?"""
        return np.array([known.size > 0 and known.min() != known.max() for known in self._known(0)])

    def _known(self, look: int | None) -> list[Floats]:
        n = self.first
        part = {None: slice(None), 0: slice(0, n), 1: slice(n, None)}[look]
        read = self.rewards if self.evidence is None else self.evidence
        return [r[part][~np.isnan(r[part])].astype(np.float64) for r in read]


def take_looks(
    pool: Pool,
    ids: Sequence[int],
    engine: RolloutEngine,
    rewards: Judge,
    *,
    first: int,
    second: int,
    temperature: float,
    episodes: bool,
    tell: Tell,
) -> Looks:
    """Sample and score first + second completions of each prompt of `ids`, `episodes` where there
    is an environment; `tell` hears of progress in words. Raises EngineError, RewardError."""
    groups: list[RolloutGroup] = []
    values: list[Rewards] = []
    evidence: list[Rewards] = []
    missing, errors = 0, []
    for start in range(0, len(ids), _CHUNK_PROMPTS):
        requests = [
            RolloutRequest(
                i,
                pool.tokens[i],
                first + second,
                int(pool.prompts[i].key, 16),
                task=pool.prompts[i] if episodes else None,
            )
            for i in ids[start : start + _CHUNK_PROMPTS]
        ]
        made = engine.generate(requests, stream=DIAGNOSIS_STREAM, temperature=temperature)
        scores = score_groups(made, pool.prompts, rewards)
        missing += sum(int(np.isnan(v).sum()) for v in scores.values)
        errors.append(scores.first_error)
        groups += made
        values += scores.values
        evidence += scores.evidence
        tell(f"{len(groups)} of {len(ids)} prompts sampled")
    chosen = np.array(list(ids), dtype=np.int64)
    return Looks(chosen, groups, values, first, missing, first_reason(errors), evidence)
