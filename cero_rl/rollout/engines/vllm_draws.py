"""What a vLLM draw is, in this process or in a server: its seed, and the record made of an
answer. Imports neither vllm nor torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cero_rl.errors import EngineError
from cero_rl.rollout.random_stream import draw_keys
from cero_rl.types import Completion, FinishReason

_SEED_BITS = np.uint64(2**62 - 1)
FINISHED: dict[str, FinishReason] = {"stop": "stop", "length": "length"}  # vLLM's word -> ours
LOWEST_LOGP = -9999.0  # what vLLM's server writes for minus infinity


def draw_seed(seed: int, stream: int, stream_key: int, first_draw: int) -> int:
    """The seed of a request. vLLM gives its completion i seed + i, so draw d of a prompt has one
    seed in whatever wave it comes."""
    base = draw_keys(
        seed, stream, np.array([stream_key], dtype=np.uint64), np.zeros(1, dtype=np.int64)
    )[0]
    return int(base & _SEED_BITS) + first_draw


def make_completion(
    token_ids: Sequence[int],
    logps: Sequence[float | None],
    finish_reason: str,
    *,
    prompt_id: int,
    decode: Callable[[Sequence[int]], str],
    version: int,
) -> Completion:
    """`finish_reason` is one of FINISHED; a draw that was aborted has another. Raises
    EngineError for a log-probability not finite."""
    # None becomes nan
    ids, values = np.array(token_ids, dtype=np.int64), np.array(logps, dtype=np.float32)
    if not np.isfinite(values).all() or bool((values <= LOWEST_LOGP).any()):
        raise EngineError(
            f"vllm: log-probabilities of prompt {prompt_id} are not finite; the weights it "
            "holds are broken"
        )
    return Completion(ids, values, decode(ids.tolist()), FINISHED[finish_reason], version)
