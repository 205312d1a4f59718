"""Attention over packed sequences without a [T, T] mask, for any transformers model that uses
its attention interface.

Linear layers see the packed [1, T] tokens; only inside attention are queries, keys and values
laid out as [S, Lmax], causally attended, and packed again. Micro-batches hold sequences of
similar length, so the padding is small. Packs in which prompts are shared go to
`shared_attention.py`. With flash-attn installed and a GPU, its variable-length
kernel takes the packed layout as it is. Sliding windows, caps on the scores (Gemma 2) and sinks
(gpt-oss) are the layer's own, as its model passes them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cero_rl.config import Config
from cero_rl.distributed.block import Block
from cero_rl.errors import ConfigError
from cero_rl.models.shared_attention import SharedLayout, capped_scores, shared_attention

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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    *,
    packed_cells: Tensor | None = None,
    padded_shape: tuple[int, int] | None = None,
    shared: SharedLayout | None = None,
    block: Block | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, H, T, D], key [1, Hkv, T, D], value [1, Hkv, T, Dv] -> ([1, T, H, Dv], None).
    Layout as from `packed_layout` or `shared_layout`; s_aux [H] are the logits of sinks. With a
    block T is this rank's slice of the tokens, and the layout that of all of them.

    transformers builds no mask for an implementation that has no mask function, so
    attention_mask is None. What a model passes beyond this is seen by the trial of `trial.py`.
    Raises ValueError for a model that does not pass the layout on, and for a prompt that is shared
    beyond a window.
    """
    if shared is not None:
        if sliding_window is not None and shared.longest > sliding_window:
            raise ValueError(
                f"a shared prompt and its response have {shared.longest} tokens, more than the "
                f"window of {sliding_window}"
            )
        return shared_attention(query, key, value, shared, scaling, softcap, s_aux), None
    if packed_cells is None or padded_shape is None:
        raise ValueError("the layout of packed sequences does not reach its attention layers")
    if block is not None:
        query, key, value = _with_all_tokens(query, key, value, len(packed_cells), block)
        s_aux = None if s_aux is None else block.own_heads(s_aux)
    sequences, longest = padded_shape

    # [1, H, T, D] -> [S, H, Lmax, D]; every cell is written once, so the gradient is a plain gather
    def padded(packed: Tensor) -> Tensor:
        tokens = packed[0].transpose(0, 1)
        if tokens.shape[0] < sequences * longest:
            tokens = tokens.new_zeros(sequences * longest, *tokens.shape[1:]).index_copy(
                0, packed_cells, tokens
            )
        return tokens.unflatten(0, padded_shape).transpose(1, 2)

    q, k, v = padded(query), padded(key), padded(value)
    narrow = sliding_window is not None and longest > sliding_window
    if softcap is not None or s_aux is not None:
        mask = _causal_mask(longest, sliding_window, q.device)
        # the scores are made again in the backward pass, so that one layer's live at a time
        out = checkpoint(
            _plain_attention, q, k, v, mask, scaling, softcap, s_aux, use_reentrant=False
        )
    else:
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_causal_mask(longest, sliding_window, q.device) if narrow else None,
            is_causal=not narrow,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
    out = out.transpose(1, 2).flatten(0, 1)  # [S * Lmax, H, D]
    if query.shape[2] < out.shape[0]:
        out = out.index_select(0, packed_cells)
    if block is not None:
        all_tokens = block.size * block.slice_tokens(len(out))
        out = block.to_tokens(F.pad(out, (0, 0, 0, 0, 0, all_tokens - len(out))))
    return out.unsqueeze(0), None


def _with_all_tokens(
    query: Tensor, key: Tensor, value: Tensor, tokens: int, block: Block
) -> tuple[Tensor, Tensor, Tensor]:
    """[1, H, t, D] of the block's ranks -> [1, H/N, T, D], and likewise keys and values, repeated
    as often as makes their heads divisible: each query head still meets its own."""
    repeats = block.size // math.gcd(key.shape[1], block.size)

    def all_tokens(part: Tensor, repeats: int) -> Tensor:
        by_token = part[0].transpose(0, 1)  # [t, H, D]
        if repeats > 1:
            by_token = by_token.repeat_interleave(repeats, dim=1)
        return block.to_heads(by_token)[:tokens].transpose(0, 1).unsqueeze(0)

    return all_tokens(query, 1), all_tokens(key, repeats), all_tokens(value, repeats)


def _causal_mask(longest: int, window: int | None, device: torch.device) -> Tensor:
    """bool[L, L]: True where query i may see key j, i - window < j <= i."""
    ones = torch.ones(longest, longest, dtype=torch.bool, device=device)
    seen = ones.tril()
    return seen if window is None else seen & ones.triu(1 - window)


def _plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Softmax attention with a cap on the scores (2408.00118, section 2) and with sinks: a logit
    a head that takes part in the softmax and brings no value. The softmax is in float32."""
    heads = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(heads, 1), v.repeat_interleave(heads, 1)
    scores = capped_scores(q, k, scaling, softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        column = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column.to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, -1, dtype=torch.float32)[..., : k.shape[2]]
    return weights.to(v.dtype) @ v


def packed_layout(
    cu_seqlens: Tensor, max_seqlen: int, tokens: int
) -> tuple[Tensor, tuple[int, int]]:
    """cu_seqlens i32[S+1], its longest sequence and its last entry T, both known on the host ->
    (packed_cells i64[T]: cell of each token in the flattened [S, Lmax] layout, (S, Lmax)).

    Padding follows the real tokens of a row, so under the causal mask it is a key that no real
    query sees.
    """
    starts = cu_seqlens[:-1].long()
    token = torch.arange(tokens, device=cu_seqlens.device)
    row = torch.searchsorted(cu_seqlens, token, right=True) - 1
    return row * max_seqlen + token - starts[row], (len(starts), max_seqlen)


def attention_of(config: Config) -> str:
    """That of the learner of a run."""
    shares = config.learner.shared_prefix is True
    cut = config.zero.sequence_parallel > 1  # which the packed one alone can
    wanted = "sdpa" if cut else config.model.attention
    return choose_attention(wanted, config.model.dtype, shares=shares)


def choose_attention(wanted: str, dtype: str = "float32", *, shares: bool = False) -> str:
    """Name for `attn_implementation`: flash_attention_2 where asked for or (auto) available,
    else the packed one, registered here. flash-attn knows no float32, the `dtype` of a model.
    `shares`: prompts must be shared, which the packed one alone can.

    Raises ConfigError where flash_attention_2 is asked for and cannot run.
    """
    from transformers import AttentionInterface
    from transformers.utils.import_utils import is_flash_attn_2_available

    on_gpu, fits = torch.cuda.is_available(), dtype != "float32"
    runs = on_gpu and fits and is_flash_attn_2_available()
    if wanted == "flash_attention_2" and not runs:
        lacks = "flash-attn is not installed" if on_gpu else "torch sees no GPU"
        if on_gpu and not fits:
            lacks = f"flash-attn cannot compute in model.dtype: {dtype}"
        raise ConfigError(
            f"model.attention: got flash_attention_2, but {lacks}; set model.attention: "
            "auto, or install what is missing"
        )
    if wanted == "flash_attention_2" and shares:
        raise ConfigError(
            "learner.shared_prefix: got true with model.attention: flash_attention_2, which knows "
            "no shared prompts; set learner.shared_prefix: false or model.attention: auto"
        )
    if wanted != "sdpa" and runs and not shares:
        return "flash_attention_2"
    AttentionInterface.register(PACKED, packed_attention)
    return PACKED


def refuse_indivisible_heads(path: str, model_config: Any, slices: int) -> None:
    """Raises ConfigError where zero.sequence_parallel does not divide the attention heads. Heads of
    keys and values need not be divisible: they are repeated."""
    if slices == 1:
        return
    heads = model_config.num_attention_heads
    if heads % slices:
        raise ConfigError(
            f"zero.sequence_parallel: {slices} does not divide the {heads} attention heads of "
            f"{path!r}; choose a divisor"
        )


def longest_shared(model_config: Any, wanted: bool | str, device: torch.device) -> int:
    """Tokens of the longest sequence whose prompt a learner of this model may share, 0 where none:
    by its implementation, its shortest window, and `wanted` (learner.shared_prefix; "auto" shares
    on a CPU)."""
    asked = device.type == "cpu" if wanted == "auto" else wanted
    if model_config._attn_implementation != PACKED or not asked:
        return 0
    return getattr(model_config, "sliding_window", None) or 2**31


def sampler_attention(model_config: Any) -> str:
    """The implementation of transformers that computes what this model says, with a cache and a
    padding mask: its sdpa leaves out caps on the scores without a word, and has no sinks."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    from cero_rl.models.decoding import register

    capped = getattr(model_config, "attn_logit_softcapping", None) is not None
    mapping: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    kind = mapping[type(model_config)]
    if capped or not kind._supports_sdpa:
        return "eager"
    # some models look their own sdpa up and take no other
    return register() if kind._supports_attention_backend else "sdpa"
