"""Simulated prompt pools: who solves what, how that drifts, and how training on a prompt raises
it and its neighbours.

In: a PoolSpec and a seed. Out: a World that answers rollouts with rewards and takes back the
signal that was trained on. Everything is a function of (spec, seed, what was sampled); the m-th
rollout of a prompt meets the same luck whoever asks for it and when (common random numbers), so
allocators are compared on paired worlds.

What the learning model assumes, and training need not: the policy is one logit per prompt,

    logit p_i = difficulty_i + learnability_i * (own_i + skill_s(i))

A group of rewards r moves the logit of a one-parameter Bernoulli policy by a step times sum_j
A_j (r_j - mean): with centred advantages that is the sum of squared advantages, the group's
signal. The optimizer normalises a round's gradient: were the rollouts' score vectors orthogonal,
its length would be the root of the round's total signal, so a group's step is its signal over
that root (`normalise`; without it signals simply add up). `own` takes the step in full; the
skill (the prompt's neighbours and the held-out prompts) takes it worn by exp(-steps so far /
wear): a prompt teaches others only so much. Prompts answered by luck, and impossible ones, have
learnability 0: they lengthen the gradient and teach nothing. Late skills (`late`) are 8 logits out
of reach, prompts and held-out ones, until their round of `opening` comes, the same for every
allocator: an allocator that has judged them dead by then must look again. No interference between
skills, no forgetting of what was learned, no clipping, no response lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids

KINDS = ("solved", "impossible", "luck", "learnable")
Dynamics = Literal["static", "drift", "learning"]
_CLOSED = -8.0  # logits
_GOLDEN, _MIX1, _MIX2 = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pool. Shares are by kind, in the order of KINDS, and sum to 1. Raises ValueError naming
    the field."""

    name: str
    prompts: int = 2400
    shares: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    dynamics: Dynamics = "static"
    skills: int = 12
    heldout: int = 600
    difficulty_mean: float = -0.5  # logit of the learnable prompts
    difficulty_spread: float = 1.3  # standard deviation, logits
    drift: float = 0.0  # standard deviation of a logit's step, per round
    own_rate: float = 1.0  # logits per step
    skill_rate: float = 2.0  # logits per step and prompt of the skill
    wear: float = 8.0  # steps after which a prompt teaches its neighbours 1/e as much
    normalise: bool = True  # does the optimizer divide by the length of the round's gradient?
    late: float = 0.0  # share of the skills that are out of reach in the beginning
    opening: tuple[int, int] = (40, 80)  # rounds in which the late ones come into reach, one by one

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.heldout < 1 or not 1 <= self.skills <= self.prompts:
            raise ValueError(
                f"pool {self.name!r}: prompts {self.prompts}, heldout {self.heldout}, "
                f"skills {self.skills} are too few"
            )
        if (
            len(self.shares) != len(KINDS)
            or min(self.shares) < 0.0
            or abs(sum(self.shares) - 1.0) > 1e-9
        ):
            raise ValueError(
                f"pool {self.name!r}: shares {self.shares}, wanted {len(KINDS)} numbers >= "
                "0 that sum to 1"
            )
        if self.dynamics not in ("static", "drift", "learning"):
            raise ValueError(
                f"pool {self.name!r}: dynamics {self.dynamics!r}, wanted 'static', 'drift' "
                "or 'learning'"
            )
        if min(self.drift, self.own_rate, self.skill_rate) < 0.0 or self.wear <= 0.0:
            raise ValueError(f"pool {self.name!r}: drift and rates must be >= 0, wear > 0")
        if not 0.0 <= self.late <= 1.0 or not 0 <= self.opening[0] <= self.opening[1]:
            raise ValueError(
                f"pool {self.name!r}: late {self.late:g}, opening {self.opening}; wanted a share "
                "and two rounds in order"
            )


def uniforms(seed: int, prompt: Ids, index: Ids) -> Floats:
    """f64[n] in [0, 1): the luck of rollout `index` of `prompt` under `seed` (splitmix64 of the
    three)."""
    with np.errstate(over="ignore"):
        x = (
            np.uint64(seed) * _MIX1
            + prompt.astype(np.uint64) * _GOLDEN
            + index.astype(np.uint64) * _MIX2
            + _GOLDEN
        )
        x = (x ^ (x >> np.uint64(30))) * _MIX1
        x = (x ^ (x >> np.uint64(27))) * _MIX2
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sigmoid(logit: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logit))


class World:
    """One simulated run's prompts. rates f64[P] are this round's true success rates; kind i8[P]
    indexes KINDS (-1: unknown)."""

    def __init__(self, rates: Floats, kind: npt.NDArray[np.int8], seed: int) -> None:
        self.rates, self.kind, self.seed = rates, kind, seed
        self._drawn: Ids = np.zeros(rates.shape[0], dtype=np.int64)

    @property
    def static(self) -> bool:
        return True

    def draw(self, ids: Ids, rollouts: Ids) -> Floats:
        """Rewards f64[R] in {0, 1} of the groups ids i64[G] with rollouts i64[G], group after
        group."""
        prompt = np.repeat(ids, rollouts)
        first = np.cumsum(rollouts) - rollouts
        index = self._drawn[prompt] + np.arange(prompt.shape[0]) - np.repeat(first, rollouts)
        self._drawn[ids] += rollouts
        return (uniforms(self.seed, prompt, index) < self.rates[prompt]).astype(np.float64)

    def lengths(self, ids: Ids, rollouts: Ids) -> Ids:
        """i64[R] response tokens of the same groups, 50..450 whatever the reward."""
        prompt = np.repeat(ids, rollouts)
        return (
            50.0
            + 400.0
            * uniforms(self.seed + 1, prompt, self._drawn[prompt] - np.arange(prompt.shape[0]))
        ).astype(np.int64)

    def finish_round(self, ids: Ids, signal: Floats) -> None:
        """The round trained on prompts ids i64[G] with signal f64[G], the sum of squared centred
        advantages."""

    def ability(self) -> float:
        """Mean success rate on held-out prompts (here: on the pool)."""
        return float(self.rates.mean())


class DriftingWorld(World):
    """Logits walk at random, the same walk for every allocator."""

    def __init__(self, rates: Floats, kind: npt.NDArray[np.int8], seed: int, step: float) -> None:
        super().__init__(rates, kind, seed)
        self._logit = np.log(rates) - np.log1p(-rates)
        self._rng = np.random.default_rng([seed, 3])
        self._step = step

    @property
    def static(self) -> bool:
        return False

    def finish_round(self, ids: Ids, signal: Floats) -> None:
        self._logit += self._step * self._rng.standard_normal(self._logit.shape[0])
        np.clip(self._logit, -8.0, 8.0, out=self._logit)
        self.rates = sigmoid(self._logit)


class LearningWorld(World):
    """Prompts and skills that grow with the signal trained on (the model of the module's
    docstring)."""

    def __init__(
        self,
        spec: PoolSpec,
        logit: Floats,
        kind: npt.NDArray[np.int8],
        seed: int,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(sigmoid(logit), kind, seed)
        self.spec = spec
        self._logit = logit
        self._learns = np.isin(kind, (KINDS.index("solved"), KINDS.index("learnable"))).astype(
            np.float64
        )
        self._skill_of = rng.integers(spec.skills, size=spec.prompts)
        self._members = np.maximum(np.bincount(self._skill_of, minlength=spec.skills), 1)
        self._own = np.zeros(spec.prompts)
        self._taught = np.zeros(spec.prompts)
        self._skill = np.zeros(spec.skills)
        self._heldout = spec.difficulty_mean + spec.difficulty_spread * rng.standard_normal(
            spec.heldout
        )
        self._heldout_skill = rng.integers(spec.skills, size=spec.heldout)
        self._round = 0
        late = round(spec.late * spec.skills)
        self._opens = np.zeros(
            spec.skills, dtype=np.int64
        )  # the round in which each comes in reach
        if late:
            self._opens[-late:] = np.round(np.linspace(*spec.opening, late))
            self._apply()

    @property
    def static(self) -> bool:
        return False

    @property
    def opened_late(self) -> npt.NDArray[np.bool_]:
        """bool[P]: prompts that teach and came into reach after the start."""
        opens = self._opens[self._skill_of]
        return (opens > 0) & (opens <= self._round) & (self._learns > 0.0)

    def _reach(self) -> Floats:
        """f64[skills]: logits that each skill is out of reach by."""
        return np.where(self._round < self._opens, _CLOSED, 0.0)

    def _apply(self) -> None:
        gains = self._skill + self._reach()
        self.rates = sigmoid(self._logit + self._learns * (self._own + gains[self._skill_of]))

    def finish_round(self, ids: Ids, signal: Floats) -> None:
        self._learn(ids, signal)
        self._round += 1
        self._apply()

    def _learn(self, ids: Ids, signal: Floats) -> None:
        spec = self.spec
        length = np.sqrt(signal.sum()) if spec.normalise else 1.0
        if length == 0.0:
            return
        learned = self._learns[ids] * signal / length
        self._own[ids] += spec.own_rate * learned
        passed_on = learned * np.exp(-self._taught[ids] / spec.wear)
        self._taught[ids] += learned
        gains = np.bincount(self._skill_of[ids], weights=passed_on, minlength=spec.skills)
        self._skill += spec.skill_rate * gains / self._members

    def ability(self) -> float:
        """Mean success rate on held-out prompts of the learnable kind, which only the skills
        reach."""
        gains = self._skill + self._reach()
        return float(sigmoid(self._heldout + gains[self._heldout_skill]).mean())


class ReplayWorld(World):
    """Recorded success rates f32[K, P], round by round; the last row holds on."""

    def __init__(self, paths: npt.NDArray[np.float32], seed: int) -> None:
        super().__init__(
            paths[0].astype(np.float64), np.full(paths.shape[1], -1, dtype=np.int8), seed
        )
        self._paths, self._at = paths, 0

    @property
    def static(self) -> bool:
        return False

    def finish_round(self, ids: Ids, signal: Floats) -> None:
        self._at = min(self._at + 1, self._paths.shape[0] - 1)
        self.rates = self._paths[self._at].astype(np.float64)


def build_world(spec: PoolSpec, seed: int) -> World:
    """The world of (spec, seed): which prompts are of which kind, their difficulties, their
    skills."""
    rng = np.random.default_rng([seed, 1])
    edges = np.round(np.cumsum(spec.shares) * spec.prompts).astype(np.int64)
    kind = np.searchsorted(edges, np.arange(spec.prompts), side="right").astype(np.int8)
    rng.shuffle(kind)
    normal = rng.standard_normal(spec.prompts)
    logit = np.select(
        [kind == 0, kind == 1, kind == 2],
        # solved .99, impossible .0001, luck .27
        [5.0 + 0.5 * normal, -9.0 + 0.5 * normal, -1.0 + 0.7 * normal],
        spec.difficulty_mean + spec.difficulty_spread * normal,
    )
    if spec.dynamics == "learning":
        return LearningWorld(spec, logit, kind, seed, rng)
    if spec.dynamics == "drift":
        return DriftingWorld(sigmoid(logit), kind, seed, spec.drift)
    return World(sigmoid(logit), kind, seed)
