"""What log-probabilities of a sampler's own answers say about the weights it runs. Knows numpy
alone.

In: for every answer, what the sampler reported of its tokens (b) and what the wanted policy gives
them (p). Out: gaps, and findings in words. A prompt's gap is the mean |p - b| over the tokens of
its answers; a NaN or an infinity in either is an infinite gap, never a small one.

Two tests need no bound. Tokens drawn from the policy make sum(p + H) a martingale (H: entropy
before each token): over its standard deviation it is a standard normal number, whatever was
reported. And other weights that explain what was reported better than the wanted ones, token by
token, are told by a paired t statistic, also where both gaps are within rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cero_rl.errors import EngineError
from cero_rl.types import PARITY_BOUNDS

ROUNDING_MARGIN = 5.0  # times what rounding alone does to this model
LEAST_BOUND = 1e-4  # of a bound made from rounding: kernels sum in another order
MOST_SIGMAS = 6.0  # of either test
_FEWEST_TOKENS = 64  # below that the tests' numbers are not normal


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer, as its sampler told it."""

    token_ids: npt.NDArray[np.int64]  # [n]
    logps: npt.NDArray[np.float32]  # [n] nan where none was given
    text: str | None = None  # where the sampler decodes


@dataclass(frozen=True, slots=True)
class Scored:
    """The same tokens under a policy, at one temperature."""

    logps: npt.NDArray[np.float64]  # [n]
    entropies: npt.NDArray[np.float64] | None = None  # [n] nats, of the distribution of each token
    variances: npt.NDArray[np.float64] | None = None  # [n] of its log-probability


@dataclass(frozen=True, slots=True)
class Gap:
    mean: float  # over the tokens
    largest: float


def gap_of(policy: npt.ArrayLike, sampler: npt.ArrayLike) -> Gap:
    """Of log-probabilities [n], n >= 1. Infinite where one of them is not finite."""
    gaps = np.abs(np.asarray(policy, np.float64) - np.asarray(sampler, np.float64))
    if not gaps.size or not np.isfinite(gaps).all():
        return Gap(float("inf"), float("inf"))
    return Gap(float(gaps.mean()), float(gaps.max()))


def healthy_bound(dtype: str, temperature: float, rounding: float | None) -> float:
    """The largest gap of a prompt that is no finding. `rounding`: the gap between this model
    computed in `dtype` and in float32 on the same tokens, where it was measured."""
    bound = PARITY_BOUNDS[dtype]
    if rounding is not None and dtype != "float32":
        bound = min(bound, max(ROUNDING_MARGIN * rounding, LEAST_BOUND))
    return bound / min(temperature, 1.0)


def drawn_sigmas(scored: Sequence[Scored]) -> float | None:
    """How many standard deviations the answers lie from what the policy would have drawn; above 0:
    likelier ones (a lower temperature, top_p, top_k). None where it cannot be said."""
    known = [s for s in scored if s.entropies is not None and s.variances is not None]
    if sum(s.logps.size for s in known) < _FEWEST_TOKENS:
        return None
    surprise = sum(float((s.logps + s.entropies).sum()) for s in known if s.entropies is not None)
    variance = sum(float(s.variances.sum()) for s in known if s.variances is not None)
    if not np.isfinite(surprise) or variance <= 0.0:
        return None
    return surprise / float(np.sqrt(variance))


def better_sigmas(
    sampler: npt.ArrayLike, wanted: npt.ArrayLike, other: npt.ArrayLike
) -> float | None:
    """Paired t of |wanted - b| - |other - b| over the tokens [n]: how clearly the other policy
    explains what was reported better. None where there are too few tokens, or they do not
    differ."""
    reported = np.asarray(sampler, np.float64)
    differences = np.abs(np.asarray(wanted, np.float64) - reported) - np.abs(
        np.asarray(other, np.float64) - reported
    )
    if differences.size < _FEWEST_TOKENS or not np.isfinite(differences).all():
        return None
    error = float(differences.std(ddof=1)) / float(np.sqrt(differences.size))
    return float(differences.mean()) / error if error > 0.0 else None


@dataclass(frozen=True, slots=True)
class Finding:
    code: str  # one of CAUSES
    text: str


CAUSES = {
    "no_answer": "the sampler gave no tokens",
    "not_finite": "log-probabilities that are not finite, or none",
    "zero_filled": "log-probabilities that are all 0 (or all alike)",
    "other_vocabulary": "tokens that the model has no row for",
    "other_tokenizer": "text is cut into other tokens, or tokens are other text",
    "raw_logps": "log-probabilities before temperature (raw) where processed ones are wanted",
    "processed_logps": "log-probabilities after temperature where raw ones are wanted",
    "other_temperature": "log-probabilities of another temperature",
    "stale_prefix_cache": "right where nothing is cached, wrong where something is",
    "adapter_not_applied": "the base model answers, without the adapter",
    "base_model": "the base model answers",
    "previous_weights": "the weights before this update answer",
    "stale_head": "this body with an older output head",
    "other_weights": "none of the policies that were given",
    "other_checksum": "the weights that the sampler holds have another checksum",
    "other_version": "the sampler names another version of the weights",
    "not_drawn_so": "tokens are not drawn from the policy at the temperature asked for",
}


@dataclass(frozen=True, slots=True)
class PromptResult:
    tokens: int  # of the prompt
    sampled: int  # tokens of its answers
    gap: Gap
    healthy: bool


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What was found; `findings` is empty where the sampler runs the wanted weights."""

    sampler: str
    dtype: str
    temperature: float
    bound: float  # nats, for the mean of a prompt
    rounding: float | None  # largest prompt mean that rounding alone makes; None: not measured
    prompts: tuple[PromptResult, ...] = ()
    findings: tuple[Finding, ...] = ()
    others: dict[str, float] = field(default_factory=dict)  # largest prompt mean, by policy
    sigmas: float | None = None  # see drawn_sigmas
    reports: str = "not told"  # raw | processed | not told
    tokenizer: str = "not told"  # same | other | not told
    weights: str = "not told"  # the sampler's own name for what it holds
    checksum: str = "not told"  # same | other | not told
    seconds: float = 0.0

    @property
    def same(self) -> bool:
        return not self.findings

    @property
    def gap(self) -> float:
        """The largest mean of a prompt."""
        return max((p.gap.mean for p in self.prompts), default=float("inf"))

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not finite is the text "inf", which every JSON reader takes."""
        plain = asdict(self)
        plain |= {"same": self.same, "gap": self.gap}
        return {name: _plain(value) for name, value in plain.items()}

    def lines(self) -> list[str]:
        rows = [
            f"prompt of {p.tokens} tokens, {p.sampled} sampled: gap {p.gap.mean:.3g}, largest "
            f"{p.gap.largest:.3g}{'' if p.healthy else '  <-- above the bound'}"
            for p in self.prompts
        ]
        rounding = "" if self.rounding is None else f", rounding alone {self.rounding:.3g}"
        drawn = "" if self.sigmas is None else f"; drawn as asked within {self.sigmas:+.1f} sigma"
        return [
            *rows,
            f"bound {self.bound:.3g} for {self.dtype} at temperature {self.temperature:g}"
            f"{rounding}{drawn}",
            f"log-probs: {self.reports}; tokenizer: {self.tokenizer}; weights: {self.weights}; "
            f"checksum: {self.checksum}",
            *(f"policy {name!r}: gap {value:.3g}" for name, value in self.others.items()),
            *(f"{finding.code}: {finding.text}" for finding in self.findings),
        ]

    def raise_if_wrong(self) -> None:
        """Raises EngineError naming the first finding."""
        if self.findings:
            first = self.findings[0]
            raise EngineError(
                f"{self.sampler} does not run the wanted weights: {first.text} ({first.code}; "
                f"gap {self.gap:.3g}, bound {self.bound:.3g}); see docs/parity.md"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
