"""Attention over packed sequences without a [T, T] mask, for any transformers model that uses
its attention interface.

Linear layers see the packed [1, T] tokens; only inside attention are queries, keys and values
laid out as [S, Lmax], causally attended, and packed again. Micro-batches hold sequences of
similar length, so the padding is small. With flash-attn installed and a GPU, its variable-length
kernel takes the packed layout as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cero_rl.errors import ConfigError

PACKED = "cero_packed"


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    *,
    packed_cells: Tensor,
    padded_shape: tuple[int, int],
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, H, T, D], key and value [1, Hkv, T, D] -> ([1, T, H, D], None). Layout as from
    `packed_layout`.

    transformers builds no mask for an implementation that has no mask function, so
    attention_mask is None. Raises ValueError for a sliding window shorter than the longest
    sequence: this path attends to the whole prefix.
    """
    sequences, longest = padded_shape
    if sliding_window is not None and longest > sliding_window:
        raise ValueError(
            f"model.attention: sequences of {longest} tokens exceed the model's sliding "
            f"window of {sliding_window}; set model.attention: flash_attention_2 or shorten "
            "data.max_prompt_tokens / rollout.max_response_tokens"
        )

    # [1, H, T, D] -> [S, H, Lmax, D]; every cell is written once, so the gradient is a plain gather
    def padded(packed: Tensor) -> Tensor:
        tokens = packed[0].transpose(0, 1)
        if tokens.shape[0] < sequences * longest:
            tokens = tokens.new_zeros(sequences * longest, *tokens.shape[1:]).index_copy(
                0, packed_cells, tokens
            )
        return tokens.unflatten(0, padded_shape).transpose(1, 2)

    q, k, v = padded(query), padded(key), padded(value)
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    out = out.transpose(1, 2).flatten(0, 1)  # [S * Lmax, H, D]
    if query.shape[2] < out.shape[0]:
        out = out.index_select(0, packed_cells)
    return out.unsqueeze(0), None


def packed_layout(cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, tuple[int, int]]:
    """cu_seqlens i32[S+1] -> (packed_cells i64[T]: cell of each token in the flattened [S, Lmax]
    layout, (S, Lmax)).

    Padding follows the real tokens of a row, so under the causal mask it is a key that no real
    query sees.
    """
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    real = torch.arange(max_seqlen, device=cu_seqlens.device) < lengths[:, None]
    return real.flatten().nonzero().squeeze(1), (lengths.shape[0], max_seqlen)


def choose_attention(wanted: str) -> str:
    """Name for `attn_implementation`: flash_attention_2 where asked for or (auto) available,
    else the packed one, registered here.

    Raises ConfigError where flash_attention_2 is asked for and cannot run.
    """
    from transformers import AttentionInterface
    from transformers.utils.import_utils import is_flash_attn_2_available

    runs = torch.cuda.is_available() and is_flash_attn_2_available()
    if wanted == "flash_attention_2" and not runs:
        lacks = "flash-attn is not installed" if torch.cuda.is_available() else "torch sees no GPU"
        raise ConfigError(
            f"model.attention: got flash_attention_2, but {lacks}; set model.attention: "
            "auto, or install what is missing"
        )
    if wanted != "sdpa" and runs:
        return "flash_attention_2"
    AttentionInterface.register(PACKED, packed_attention)
    return PACKED
