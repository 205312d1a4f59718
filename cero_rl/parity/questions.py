"""What a sampler is asked: options, prompts, and its answers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cero_rl.errors import ConfigError
from cero_rl.parity.judge import Answer, Scored, gap_of
from cero_rl.parity.samplers import Ids, Sampler
from cero_rl.rollout.protocol import PROBE_PROMPT_TOKENS
from cero_rl.types import PARITY_BOUNDS

PROMPTS = (
    "12+30=",
    "Question: A train leaves at 9:40 and arrives at 13:05. How long is the ride?\nAnswer:",
    "def median(values):\n    ordered = sorted(values)\n    ",
    "Das Ergebnis ist \N{GREEK SMALL LETTER PI}/4, und zwar weil",
)
LONG_TOKENS = PROBE_PROMPT_TOKENS  # longer than a block of vLLM's prefix cache


@dataclass(frozen=True, slots=True)
class ParityOptions:
    """What is asked of a sampler, and its bound. Raises ConfigError naming the field."""

    temperature: float = 1.0  # of the training
    logps: Literal["processed", "raw"] = "processed"  # what the trainer takes them for
    answers: int = 4  # of each prompt
    tokens: int = 16  # of each answer
    seed: int = 0
    bound: float | None = None  # of a prompt's mean gap, nats; None: by dtype and rounding
    dtype: str | None = None  # of the sampler; None: what it says, else the model's
    rounding: bool = True  # measure what rounding does to this model (bfloat16, float16)
    version: str | None = None  # the name of the weights that the sampler must hold

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ConfigError(
                f"parity: temperature {self.temperature:g}, wanted > 0 (that of the training)"
            )
        if min(self.answers, self.tokens) < 1:
            raise ConfigError(
                f"parity: answers {self.answers}, tokens {self.tokens}; wanted at least 1 of each"
            )
        if self.bound is not None and not self.bound > 0.0:
            raise ConfigError(f"parity: bound {self.bound:g}, wanted a number > 0, in nats")
        if self.dtype is not None and self.dtype not in PARITY_BOUNDS:
            raise ConfigError(
                f"parity: dtype {self.dtype!r}, wanted one of {', '.join(PARITY_BOUNDS)}"
            )


def probe_texts(tokenizer: object, texts: Sequence[str]) -> list[Ids]:
    """Prompts of these texts, and one that is put together from all and longer than a block of a
    prefix cache. Texts that the tokenizer has no tokens for are left out. Raises ConfigError where
    none is left."""
    encode, unknown = tokenizer.encode, tokenizer.unk_token_id  # type: ignore[attr-defined]
    encoded = [np.array(encode(text), dtype=np.int64) for text in texts]
    prompts = [ids for ids in encoded if ids.size and (unknown is None or unknown not in ids)]
    if not prompts:
        raise ConfigError(
            "parity: the tokenizer has no tokens for any prompt; give --prompts FILE, one a line"
        )
    longest = max(ids.size for ids in prompts)
    if longest < LONG_TOKENS:
        prompts.append(put_together(prompts, LONG_TOKENS))
    return prompts


def put_together(prompts: Sequence[Ids], tokens: int) -> Ids:
    """i64[tokens]: the prompts one after another, and again from the first."""
    parts, size = [], 0
    while size < tokens:
        parts.append(prompts[len(parts) % len(prompts)])
        size += len(parts[-1])
    return np.concatenate(parts)[:tokens]


@dataclass(frozen=True, slots=True)
class Asked:
    """Every answer of every prompt, and the reported log-probabilities in one row."""

    prompts: Sequence[Ids]
    answers: list[list[Answer]]

    def pairs(self) -> list[tuple[Ids, Answer]]:
        return [(prompt, a) for prompt, own in zip(self.prompts, self.answers) for a in own]

    @property
    def reported(self) -> npt.NDArray[np.float64]:
        return np.concatenate([a.logps for _, a in self.pairs()]).astype(np.float64)

    def means(self, scored: Sequence[Scored]) -> list[float]:
        """The gap of each prompt under what a policy says of all answers, in their order."""
        results, at = [], 0
        for own in self.answers:
            here = scored[at : at + len(own)]
            at += len(own)
            results.append(
                gap_of(
                    np.concatenate([s.logps for s in here]), np.concatenate([a.logps for a in own])
                ).mean
            )
        return results


def ask(sampler: Sampler, prompts: Sequence[Ids], options: ParityOptions, **how: bool) -> Asked:
    return Asked(
        prompts,
        [
            sampler.sample(
                prompt,
                answers=options.answers,
                tokens=options.tokens,
                temperature=options.temperature,
                seed=options.seed + index,
                **how,
            )
            for index, prompt in enumerate(prompts)
        ],
    )
