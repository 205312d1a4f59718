"""Numbers of accuracy from counts by prompt: pass@k, maj@k, and how sure they are.

P prompts; successes and trials are i64[P], of judged samples. What was not judged is in neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cero_rl.rewards.answers import said_last
from cero_rl.scheduler.simulation.summary import t975

Counts = npt.NDArray[np.int64]


def rates(successes: Counts, trials: Counts) -> npt.NDArray[np.float64]:
    """Of the prompts with a judged sample."""
    known = trials > 0
    return successes[known] / trials[known]


def mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")


def pass_at_k(successes: Counts, trials: Counts, k: int) -> float:
    """Mean over prompts of 1 - C(n-c, k)/C(n, k), the unbiased estimate of pass@k (Chen et al.,
    2021, arXiv 2107.03374).

    Prompts with fewer than k scored samples are left out; nan if none is left.
    """
    enough = trials >= k
    failures, n = (trials - successes)[enough], trials[enough]
    if not n.size:
        return float("nan")
    miss = np.ones(n.shape)
    for j in range(k):
        miss *= np.clip(failures - j, 0, None) / (n - j)
    return float((1.0 - miss).mean())


def majority(texts: Sequence[str], right: Sequence[bool]) -> float:
    """Is the answer that most of a prompt's judged samples give a right one (self-consistency,
    arXiv 2203.11171)? 1 or 0; where several are given equally often, the chance that one of them
    drawn at random is right.

    Right answers are one answer, however written; wrong ones are told apart by what they say last
    (`said_last`), and those that say nothing do not vote.
    """
    wrong = Counter(
        said for text, good in zip(texts, right) if not good and (said := said_last(text))
    )
    votes, most = sum(right), max(wrong.values(), default=0)
    if votes != most or not votes:
        return float(votes > most)
    return 1.0 / (1 + sum(count == most for count in wrong.values()))


@dataclass(frozen=True)
class Spread:
    """How sure a mean over P prompts is; nan where there is too little to say.

    standard_error: as a draw of prompts and of their samples, which is what a new set of prompts of
    this kind would show (clustered by prompt, arXiv 2411.00640). sampling_error: the part of it
    that further samples of these very prompts take away. low, high: 95 % by Student's t over
    prompts, kept in [0, 1].
    """

    standard_error: float
    sampling_error: float
    low: float
    high: float

    @classmethod
    def of(cls, successes: Counts, trials: Counts) -> Spread:
        nan = float("nan")
        of_prompt = rates(successes, trials)
        count = of_prompt.size
        if count < 2:
            return cls(nan, nan, nan, nan)
        error = float(of_prompt.std(ddof=1) / np.sqrt(count))
        reach, middle = t975(count - 1) * error, float(of_prompt.mean())
        low, high = max(middle - reach, 0.0), min(middle + reach, 1.0)
        drawn = trials[trials > 0]
        if (drawn < 2).any():
            return cls(error, nan, low, high)
        variances = of_prompt * (1.0 - of_prompt) / (drawn - 1)
        return cls(error, float(np.sqrt(variances.sum()) / count), low, high)
