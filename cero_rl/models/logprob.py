"""Log-probabilities of response tokens from packed sequences, with the vocabulary projection in
chunks.

Only positions that predict a response token go through the head, a chunk of rows at a time; with
several chunks each is recomputed in the backward pass, so no [T, V] tensor ever lives. Under
ZeRO-3 every call of the head gathers its weight, a collective: the number of chunks is therefore
part of the plan and the same on every rank, whatever the rank's own tokens. A pack that is cut over
a block of ranks (distributed/block.py) goes in whole and comes out whole on each of them; what lies
between is of the rank's own slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cero_rl.distributed.block import Block
from cero_rl.models.attention import PACKED, packed_layout
from cero_rl.models.shared_attention import shared_layout
from cero_rl.types import MicroBatch

_CHUNK_BYTES = 2**29  # float32 logits of one chunk


def head_chunk_tokens(vocabulary: int) -> int:
    """Rows of one chunk for a vocabulary of this size."""
    return max(256, _CHUNK_BYTES // (4 * vocabulary))


class PolicyModule(nn.Module):
    """A causal language model that answers with log-probabilities. `temperature` divides the
    logits, as in sampling.

    What a model does to its logits after the head is done here too: Cohere's `logit_scale`,
    Granite's `logits_scaling`, the cap of Gemma 2 (2408.00118, section 2). A model that does
    anything else is found by `trial.py`.
    """

    def __init__(
        self, causal_lm: Any, *, temperature: float = 1.0, block: Block | None = None
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self._block = block or Block()
        self._temperature = temperature
        config = causal_lm.config
        self._scale = (getattr(config, "logit_scale", None) or 1.0) / (
            getattr(config, "logits_scaling", None) or 1.0
        )
        self._cap = getattr(config, "final_logit_softcapping", None)

    def train(self, mode: bool = True) -> PolicyModule:
        """The model stays in evaluation mode, so that it is the policy that sampled: no dropout,
        no jitter, no layer left out. Only layers that make their activations again in the backward
        pass hear of training, for they do it in no other mode."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        super().train(False)
        for module in self.modules():
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = mode
                for name, value in vars(module).items():
                    if "drop" in name and isinstance(value, float):
                        setattr(module, name, 0.0)
        self.training = mode
        return self

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        loss_mask: Tensor,
        trained: int,
        max_seqlen: int,
        head_chunks: int,
        with_entropy: bool,
        parents: Tensor | None = None,
        cut: tuple[int, ...] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """tokens, positions i64[T], cu_seqlens i32[S+1], loss_mask bool[T] with `trained` times
        True, parents i32[S] where prompts are shared, cut: of each slice of a block, the tokens of
        loss_mask that it predicts -> (logp f32[T], entropy f32[T] in nats, no gradient).

        Entry t is about token t given the tokens before it in its sequence; both are 0 where
        loss_mask is False. A collective of the block's ranks where the pack is cut.
        """
        if parents is not None:
            layout: dict[str, Any] = {"shared": shared_layout(cu_seqlens, parents)}
        elif self.causal_lm.config._attn_implementation == PACKED:
            packed_cells, padded_shape = packed_layout(cu_seqlens, max_seqlen, len(tokens))
            layout = {"packed_cells": packed_cells, "padded_shape": padded_shape}
        else:
            layout = {
                "cu_seq_lens_q": cu_seqlens,
                "cu_seq_lens_k": cu_seqlens,
                "max_length_q": max_seqlen,
                "max_length_k": max_seqlen,
            }
        given, places, first = tokens, positions, 0
        if cut is not None:
            layout["block"] = self._block
            given, places = self._block.slice_of(tokens), self._block.slice_of(positions)
            first, trained = self._block.rank * len(given), cut[self._block.rank]
            loss_mask = _within(loss_mask, first + 1, first + 1 + len(given))
        hidden = self.causal_lm.base_model(
            input_ids=given[None], position_ids=places[None], use_cache=False, **layout
        ).last_hidden_state[0]
        target = loss_mask.nonzero_static(size=trained).squeeze(1)
        real = trained
        # every chunk needs a row, and its backward pass: fill up with rows whose result is
        # multiplied by 0
        if real < head_chunks:
            target = torch.cat([target, target.new_ones(head_chunks - real)])
        sizes = [len(part) for part in target.tensor_split(head_chunks)]
        predicting = _before(target, cu_seqlens, parents)
        if cut is not None:
            predicting = (predicting - first).clamp(min=0)
        rows, wanted = (
            hidden.index_select(0, predicting).split(sizes),
            tokens.index_select(0, target).split(sizes),
        )
        parts = [
            self._head_chunk(row, want, with_entropy, recompute=head_chunks > 1)
            for row, want in zip(rows, wanted)
        ]
        logp = torch.cat([p[0] for p in parts])
        entropy = torch.cat([p[1] for p in parts])
        out = torch.zeros(tokens.shape[0], device=tokens.device).index_put(
            (target[:real],), logp[:real]
        )
        if real < target.shape[0]:
            out = out + 0.0 * logp[real:].sum()
        entropies = torch.zeros_like(out, requires_grad=False).index_put(
            (target[:real],), entropy[:real]
        )
        if cut is not None:
            out = self._block.whole(out)
            entropies = self._block.whole(entropies) if with_entropy else entropies
        return out, entropies

    def _head_chunk(
        self, rows: Tensor, wanted: Tensor, with_entropy: bool, *, recompute: bool
    ) -> tuple[Tensor, Tensor]:
        if recompute and torch.is_grad_enabled():
            return checkpoint(self._head, rows, wanted, with_entropy, use_reentrant=False)
        return self._head(rows, wanted, with_entropy)

    def _head(self, rows: Tensor, wanted: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
        """rows [n, hidden], wanted i64[n] -> (log-prob of each wanted token f32[n], entropy
        f32[n])."""
        logits = self.causal_lm.get_output_embeddings()(rows).float()
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._cap is not None:
            logits = self._cap * torch.tanh(logits / self._cap)
        logits = logits / self._temperature
        every = torch.log_softmax(logits, dim=-1)
        logp = every.gather(-1, wanted[:, None]).squeeze(1)
        entropy = torch.zeros_like(logp, requires_grad=False)
        # last, so that the recomputation, which ends with the last saved tensor, leaves it out
        if with_entropy:
            with torch.no_grad():
                entropy = torch.special.entr(every.exp()).sum(-1)
        return logp, entropy


def _within(mask: Tensor, first: int, last: int) -> Tensor:
    """bool[T]: what is True of it from `first` to before `last`."""
    out = torch.zeros_like(mask)
    out[first:last] = mask[first:last]
    return out


def _before(target: Tensor, cu_seqlens: Tensor, parents: Tensor | None) -> Tensor:
    """The token that predicts each target, i64[n]: the one before it; for the first of a segment
    that continues another, the last of that one, which so predicts a token of every response."""
    if parents is None:
        return target - 1
    segment = torch.searchsorted(cu_seqlens, target, right=True, out_int32=True) - 1
    parent = parents[segment]
    first = (target == cu_seqlens[segment]) & (parent != segment)
    return torch.where(first, cu_seqlens[parent + 1].long(), target) - 1


def forward_micro(
    module: Callable[..., tuple[Tensor, Tensor]], micro: MicroBatch, *, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies f32[T] of a micro-batch, by a `PolicyModule` or an engine
    around one."""
    return module(
        micro.tokens,
        micro.positions,
        micro.cu_seqlens,
        micro.loss_mask,
        micro.trained_tokens,
        micro.max_seqlen_tokens,
        micro.head_chunks,
        with_entropy,
        micro.seq_parent,
        micro.cut,
    )
