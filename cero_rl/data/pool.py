"""The pool: prompts and their tokens, train and held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cero_rl.config import Config
from cero_rl.data.encode import EncodedPrompts, encode_prompts
from cero_rl.data.load import LeftOut, left_out_lines, load_prompts
from cero_rl.data.prompts import Prompt, fingerprint, with_tools
from cero_rl.errors import DataError


@dataclass(frozen=True)
class Pool:
    """Prompts and their tokens, in pool order; a prompt id is an index into both."""

    prompts: tuple[Prompt, ...]
    tokens: tuple[npt.NDArray[np.int64], ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """i64[P] prompt tokens."""
        return np.array([ids.shape[0] for ids in self.tokens], dtype=np.int64)


@dataclass(frozen=True)
class Data:
    train: Pool
    heldout: Pool
    fingerprint: str  # of the training pool, for checkpoints
    report: tuple[str, ...] = ()  # what became of the rows, for the user


def load_data(config: Config, tokenizer: Any, tools: Sequence[dict[str, Any]] = ()) -> Data:
    """Load, split, encode; raises DataError before any model is loaded. `tools`: of an environment,
    which the chat template shows beside those of a row."""
    split = load_prompts(config.data, config.seed)
    if tools:
        train, heldout = (
            tuple(with_tools(prompt, list(tools)) for prompt in side)
            for side in (split.train, split.heldout)
        )
        split = replace(split, train=train, heldout=heldout)
    train, heldout = (
        encode_prompts(side, tokenizer, config.data) for side in (split.train, split.heldout)
    )
    if not train.kept:
        raise DataError(
            f"data.source: no training prompt of {config.data.source} fits "
            f"data.max_prompt_tokens = {config.data.max_prompt_tokens}"
        )
    kept, aside = _pool(split.train, train), _pool(split.heldout, heldout)
    overlong = LeftOut(
        "overlong",
        train.overlong + heldout.overlong,
        train.first_overlong or heldout.first_overlong,
    )
    templated, total = train.templated + heldout.templated, len(kept) + len(aside)
    key = f"data.chat_template: {config.data.chat_template}"
    template = f"chat template: on {templated} of {total} prompts ({key})"
    report = (*left_out_lines(split, overlong), template)
    return Data(kept, aside, fingerprint(kept.prompts), report)


def _pool(prompts: Sequence[Prompt], encoded: EncodedPrompts) -> Pool:
    return Pool(tuple(prompts[i] for i in encoded.kept), tuple(encoded.tokens))
