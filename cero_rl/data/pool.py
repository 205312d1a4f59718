"""The pool: prompts and their tokens, train and held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cero_rl.config import Config
from cero_rl.data.encode import encode_prompts
from cero_rl.data.load import load_prompts
from cero_rl.data.prompts import Prompt, fingerprint
from cero_rl.errors import DataError


@dataclass(frozen=True)
class Pool:
    """Prompts and their tokens, in pool order; a prompt id is an index into both."""

    prompts: tuple[Prompt, ...]
    tokens: tuple[npt.NDArray[np.int64], ...]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Data:
    train: Pool
    heldout: Pool
    fingerprint: str  # of the training pool, for checkpoints


def _encode(prompts: Sequence[Prompt], tokenizer: Any, config: Config) -> Pool:
    tokens, kept = encode_prompts(prompts, tokenizer, config.data)
    return Pool(tuple(prompts[i] for i in kept), tuple(tokens))


def load_data(config: Config, tokenizer: Any) -> Data:
    """Load, split, encode; raises DataError before any model is loaded."""
    split = load_prompts(config.data, config.seed)
    train, heldout = (
        _encode(split.train, tokenizer, config),
        _encode(split.heldout, tokenizer, config),
    )
    if not len(train):
        raise DataError(
            f"data.source: no training prompt of {config.data.source} fits "
            f"data.max_prompt_tokens = {config.data.max_prompt_tokens}"
        )
    return Data(train, heldout, fingerprint(train.prompts))
