"""Attention over packs in which a prompt stands once, before all of its responses.

A pack is a row of segments. A segment attends causally to itself and to all of its parent, the
prompt that it continues; a segment that continues none is its own parent. No mask of the whole pack
is built. On a CPU every segment attends to itself, beside others of similar length, and a group's
responses, as one long row of queries, attend to their prompt; the two softmaxes are merged by their
logarithms of sums, as blocks are in FlashAttention (2205.14135, section 3.1). The backward pass of
each part takes the merged output and sum, which makes it exact. On a GPU FlexAttention
(2412.05496) takes a block mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# [B, H, N, D], [B, Hkv, M, D], [B, Hkv, M, Dv], causal -> ([B, H, N, Dv], log of the sum [B, H, N])
_Part = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
_SLACK = 0.8  # no segment of a block is shorter than this share of its longest
_FLASH: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class _Block:
    """Segments of similar length, laid out as [S, L]; padding repeats a segment's last token."""

    source: Tensor  # i64[S * L] the token of each cell
    tokens: Tensor  # i64[n] all of the block's, and
    cells: Tensor  # i64[n] where they are
    shape: tuple[int, int]

    def lay_out(self, packed: Tensor) -> Tensor:
        """[T, H, ...] -> [S, H, L, ...]"""
        return packed.index_select(0, self.source).unflatten(0, self.shape).transpose(1, 2)

    def pack(self, padded: Tensor) -> Tensor:
        """[S, H, L, ...] -> [n, H, ...], of `tokens`."""
        return padded.transpose(1, 2).flatten(0, 1).index_select(0, self.cells)


@dataclass(frozen=True)
class SharedLayout:
    """How the T tokens of one pack attend. `longest`: tokens from a prompt's first to a response's
    last."""

    longest: int
    blocks: tuple[_Block, ...]
    order: Tensor  # i64[T] where each token is in the blocks, one behind the other
    families: tuple[tuple[slice, slice], ...]  # (a group's responses, their prompt)
    responses: Tensor  # i64[n] tokens of all families
    block_mask: Any  # of FlexAttention, on a GPU in the place of all that


def shared_layout(cu_seqlens: Tensor, parents: Tensor, *, flex: bool | None = None) -> SharedLayout:
    """cu_seqlens i32[S+1], parents i32[S]: the segment that each continues, or itself; a parent's
    segments stand directly behind it. `flex`: as on a GPU."""
    edges, parent = cu_seqlens.cpu().numpy().astype(np.int64), parents.cpu().numpy()
    device = cu_seqlens.device
    lengths = np.diff(edges)
    child = parent != np.arange(len(parent))
    longest = int((lengths + np.where(child, lengths[parent], 0)).max())
    if device.type != "cpu" if flex is None else flex:
        mask = _block_mask(edges, parent, device)
        none = torch.zeros(0, dtype=torch.int64)
        return SharedLayout(longest, (), none, (), none, mask)
    blocks = tuple(_block(edges[run], lengths[run]) for run in _similar(lengths))
    order = torch.empty(int(edges[-1]), dtype=torch.int64)
    order[torch.cat([b.tokens for b in blocks])] = torch.arange(len(order))
    families = []
    for prompt in np.unique(parent[child]).tolist():
        of_prompt = np.flatnonzero(child & (parent == prompt))
        rows = slice(int(edges[of_prompt[0]]), int(edges[of_prompt[-1] + 1]))
        families.append((rows, slice(int(edges[prompt]), int(edges[prompt + 1]))))
    responses = torch.cat([torch.arange(rows.start, rows.stop) for rows, _ in families])
    return SharedLayout(longest, blocks, order, tuple(families), responses, None)


def _similar(lengths: np.ndarray) -> list[np.ndarray]:
    """Indices of segments, longest first, cut where padding would grow beyond `_SLACK`."""
    order = np.argsort(-lengths, kind="stable")
    runs, first = [], 0
    for i in range(1, len(order) + 1):
        if i == len(order) or lengths[order[i]] < _SLACK * lengths[order[first]]:
            runs.append(order[first:i])
            first = i
    return runs


def _block(starts: np.ndarray, lengths: np.ndarray) -> _Block:
    column = np.arange(lengths.max())
    source = starts[:, None] + np.minimum(column, lengths[:, None] - 1)
    real = column < lengths[:, None]
    return _Block(
        torch.from_numpy(source.ravel()),
        torch.from_numpy(source[real]),
        torch.from_numpy(np.flatnonzero(real)),
        source.shape,
    )


def shared_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: SharedLayout,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """query [1, H, T, D], key [1, Hkv, T, D], value [1, Hkv, T, Dv] -> [1, T, H, Dv]; a cap on the
    scores and sinks as in `attention.py`."""
    if layout.block_mask is not None:
        return _flex(query, key, value, layout.block_mask, scaling, softcap, sinks)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if softcap is None and sinks is None and key.shape[3] == value.shape[3]:
        return _Flash.apply(q, k, v, layout, scaling)[None]

    # the scores are made again in the backward pass, so that one layer's live at a time
    def composed(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Tensor:
        out, total = _attend(q, k, v, layout, _plain(scaling, softcap))
        return out if sinks is None else _with_sinks(out, total, sinks)

    out: Any = checkpoint(composed, q, k, v, sinks, use_reentrant=False)
    return out[None]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, layout: SharedLayout, part: _Part
) -> tuple[Tensor, Tensor]:
    """q [T, H, D], k [T, Hkv, D], v [T, Hkv, Dv] -> (out [T, H, Dv], logarithm of the sum of
    exponentials [T, H])."""
    laid = [part(b.lay_out(q), b.lay_out(k), b.lay_out(v), True) for b in layout.blocks]
    out = torch.cat([b.pack(o) for b, (o, _) in zip(layout.blocks, laid)])[layout.order]
    total = torch.cat([b.pack(t) for b, (_, t) in zip(layout.blocks, laid)])[layout.order]
    across = [
        part(_heads_first(q[rows]), _heads_first(k[prompt]), _heads_first(v[prompt]), False)
        for rows, prompt in layout.families
    ]
    out_across = torch.cat([o[0].transpose(0, 1) for o, _ in across])
    total_across = torch.cat([t[0].transpose(0, 1) for _, t in across])
    total_own = total[layout.responses]
    both = torch.logaddexp(total_own, total_across)
    merged = out[layout.responses] * (total_own - both).exp()[..., None]
    merged = merged + out_across * (total_across - both).exp()[..., None]
    return (
        out.index_copy(0, layout.responses, merged.to(out.dtype)),
        total.index_copy(0, layout.responses, both),
    )


def _heads_first(packed: Tensor) -> Tensor:
    """[n, H, ...] -> [1, H, n, ...]"""
    return packed.transpose(0, 1)[None]


class _Flash(torch.autograd.Function):
    """The parts by torch's flash attention of the CPU, whose sums its public function keeps to
    itself."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: SharedLayout, scaling: float | None
    ) -> Tensor:
        def part(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
            return _FLASH(q, k, v, 0.0, causal, scale=scaling)

        out, total = _attend(q, k, v, layout, part)
        ctx.save_for_backward(q, k, v, out, total)
        ctx.layout, ctx.scaling = layout, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Softmax weights are exp(score - total), of all keys; so each part's gradients are those
        of the whole at its own keys."""
        q, k, v, out, total = ctx.saved_tensors
        grad = grads[0]
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for block in ctx.layout.blocks:
            # padding has no gradient, and as a key no real query sees it
            g = grad.new_zeros(block.source.shape[0], *grad.shape[1:])
            g = g.index_copy_(0, block.cells, grad.index_select(0, block.tokens))
            g = g.unflatten(0, block.shape).transpose(1, 2)
            laid = [block.lay_out(x) for x in (q, k, v, out, total)]
            found = _FLASH_BACKWARD(g, *laid, 0.0, True, scale=ctx.scaling)
            for into, part in zip((dq, dk, dv), found):
                into.index_copy_(0, block.tokens, block.pack(part))
        for rows, prompt in ctx.layout.families:
            places = (grad[rows], q[rows], k[prompt], v[prompt], out[rows], total[rows])
            views = [_heads_first(x) for x in places]
            found = _FLASH_BACKWARD(*views, 0.0, False, scale=ctx.scaling)
            for into, part in zip((dq[rows], dk[prompt], dv[prompt]), found):
                into += part[0].transpose(0, 1)
        return dq, dk, dv, None, None


def capped_scores(q: Tensor, k: Tensor, scaling: float | None, softcap: float | None) -> Tensor:
    """q [B, H, N, D], k [B, H, M, D] -> [B, H, N, M], with a cap as in Gemma 2 (2408.00118,
    section 2)."""
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _plain(scaling: float | None, softcap: float | None) -> _Part:
    def part(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        heads = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(heads, 1), v.repeat_interleave(heads, 1)
        scores = capped_scores(q, k, scaling, softcap)
        if causal:
            seen = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).tril()
            scores = scores.masked_fill(~seen, float("-inf"))
        weights = torch.softmax(scores, -1, dtype=_sum_dtype(q))
        return weights.to(v.dtype) @ v, torch.logsumexp(scores.to(_sum_dtype(q)), -1)

    return part


def _sum_dtype(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _with_sinks(out: Tensor, total: Tensor, sinks: Tensor) -> Tensor:
    """sinks [H]: a logit a head that takes part in the softmax and brings no value."""
    return (out * torch.sigmoid(total - sinks)[..., None]).to(out.dtype)


# --- on a GPU


def _block_mask(edges: np.ndarray, parent: np.ndarray, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    owner = np.repeat(np.arange(len(parent)), np.diff(edges))
    segment = torch.from_numpy(owner).to(device)
    prompt = torch.from_numpy(parent[owner].astype(np.int64)).to(device)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = segment[query] == segment[key]
        return (key <= query) & (own | (prompt[query] == segment[key]))

    tokens = int(edges[-1])
    make = _compiled(create_block_mask) if device.type == "cuda" else create_block_mask
    return make(seen, None, None, tokens, tokens, device=str(device))


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Any,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    attend = _compiled(flex_attention) if query.is_cuda else flex_attention
    out, more = attend(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=block_mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    sums: Any = more.lse
    out, total = out[0].transpose(0, 1), sums[0].transpose(0, 1)
    return (out if sinks is None else _with_sinks(out, total, sinks))[None]
