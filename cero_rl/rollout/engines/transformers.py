"""Rollouts with plain transformers on a full weight copy per rank: the engine where there is no
vLLM.

Prompts are prefilled once a group and their key-value cache is repeated for the group's
rollouts; sequences that ended leave the batch (models/decoding.py). Generation under ZeRO-3 hooks
would gather every layer for every token, so the copy is synchronised once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cero_rl.errors import EngineError
from cero_rl.models.decoding import closed_up, spread
from cero_rl.models.weights import buffers_of
from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.rollout.random_stream import draw_keys, uniforms
from cero_rl.types import Completion, RolloutGroup


class TransformersEngine:
    """See RolloutEngine. `model` is this rank's own full copy; `load_weights` brings those of
    its parameters that require gradients: all, or a LoRA adapter's."""

    def __init__(
        self,
        model: Any,
        *,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        decode: Callable[[Sequence[int]], str],
        max_response_tokens: int,
        max_batch_tokens: int,
        seed: int,
    ) -> None:
        self._loaded = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._buffers = {source.name: source.make() for source in buffers_of(model)}
        self._model = model.eval().requires_grad_(False)
        self._eos = torch.tensor(sorted(set(eos_token_ids)), device=model.device)
        self._pad = pad_token_id
        self._decode = decode
        self._max_response = max_response_tokens
        self._max_batch = max_batch_tokens
        self._seed = seed
        self.version = 0

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        own = dict(self._loaded)
        unknown = None
        for name, tensor in weights:  # to the end in any case: the other ranks gather with this one
            if name in own:
                own.pop(name).copy_(tensor)
            elif name in self._buffers:  # where whole weights come; an adapter's bring none
                self._buffers[name].copy_(tensor)
            else:
                unknown = unknown or name
        if unknown is not None:
            raise EngineError(
                f"weight sync: the rollout model has no parameter {unknown!r}; it differs "
                "from the learner's"
            )
        if own:
            raise EngineError(
                f"weight sync: {len(own)} parameters were never sent, first {next(iter(own))!r}"
            )
        self.version = version

    def sleep(self) -> None:
        """Nothing: the copy stays where it is."""

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        *,
        stream: int,
        temperature: float,
        max_tokens: int | None = None,
    ) -> list[RolloutGroup]:
        most = min(max_tokens or self._max_response, self._max_response)
        completions: list[list[Completion | None]] = [
            [None] * request.rollouts for request in requests
        ]
        for batch in self._batches(requests):
            limits = [
                requests[i].limit(most) for i, first, last in batch for _ in range(first, last)
            ]
            self._generate_batch(requests, batch, stream, temperature, limits, completions)
        return [
            RolloutGroup(
                request.prompt_id, request.prompt_tokens, tuple(c for c in done if c is not None)
            )
            for request, done in zip(requests, completions)
        ]

    def _batches(self, requests: Sequence[RolloutRequest]) -> Iterator[list[tuple[int, int, int]]]:
        """Spans (request, first, last) of similar prompt length whose tokens fit the budget; a
        large group may span two batches."""
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt_tokens), i))
        batch: list[tuple[int, int, int]] = []
        rows = 0
        for index in order:
            per_row = len(requests[index].prompt_tokens) + self._max_response
            first = 0
            while first < requests[index].rollouts:
                fits = self._max_batch // per_row - rows
                if fits <= 0:
                    if batch:
                        yield batch
                        batch, rows = [], 0
                        continue
                    fits = 1
                last = min(requests[index].rollouts, first + fits)
                batch.append((index, first, last))
                rows += last - first
                first = last
        if batch:
            yield batch

    def _prefill(self, prompts: Sequence[np.ndarray]) -> tuple[Any, Tensor, Tensor]:
        """(cache, attention mask [G, m], logits f32[G, V] after the last prompt token); prompts
        are padded on the left."""
        device, longest = self._model.device, max(len(p) for p in prompts)
        tokens = torch.full((len(prompts), longest), self._pad)
        mask = torch.zeros((len(prompts), longest), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, longest - len(prompt) :] = 1
        tokens, mask = tokens.to(device), mask.to(device)
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        out = self._model(
            tokens, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        return out.past_key_values, mask, out.logits[:, -1]

    @torch.inference_mode()
    def _generate_batch(
        self,
        requests: Sequence[RolloutRequest],
        spans: Sequence[tuple[int, int, int]],
        stream: int,
        temperature: float,
        limits: Sequence[int],
        completions: list[list[Completion | None]],
    ) -> None:
        device, limit = self._model.device, max(limits)
        cache, mask, logits = self._prefill([requests[i].prompt_tokens for i, _, _ in spans])
        repeats = torch.tensor([last - first for _, first, last in spans], device=device)
        row_group = torch.repeat_interleave(torch.arange(len(spans), device=device), repeats)
        owner = [(i, d) for i, first, last in spans for d in range(first, last)]
        keys = draw_keys(
            self._seed,
            stream,
            np.array([requests[i].stream_key for i, _ in owner], dtype=np.uint64),
            np.array([requests[i].first_draw + d for i, d in owner], dtype=np.int64),
        )
        spread(cache, row_group, limit - 1)
        seen = mask.shape[1]
        mask = F.pad(mask, (0, limit - 1), value=1)[row_group]
        positions, logits = mask[:, :seen].sum(-1), logits[row_group]
        tokens = torch.full((len(owner), limit), self._pad, device=device)
        logps = torch.zeros((len(owner), limit), device=device)
        lengths = torch.zeros(len(owner), dtype=torch.int64, device=device)
        stopped = torch.zeros(len(owner), dtype=torch.bool, device=device)
        row_limits = torch.tensor(limits, device=device)
        # which rollout each live row of the batch is
        rows = torch.arange(len(owner), device=device)

        for position in range(limit):
            u = torch.from_numpy(uniforms(keys[rows.cpu().numpy()], position)).to(device)
            token, logp = _sample(logits, u, temperature)
            tokens[rows, position], logps[rows, position] = token, logp
            lengths[rows] += 1
            ended = torch.isin(token, self._eos)
            stopped[rows[ended]] = True
            ended = ended | (row_limits[rows] == position + 1)
            if bool(ended.all()) or position + 1 == limit:
                break
            if bool(ended.any()):
                kept = closed_up(~ended)
                cache.batch_select_indices(kept)
                rows, mask, positions, token = (t[kept] for t in (rows, mask, positions, token))
            out = self._model(
                token[:, None],
                attention_mask=mask[:, : seen + position + 1],
                position_ids=positions[:, None] + position,
                past_key_values=cache,
                use_cache=True,
            )
            logits = out.logits[:, -1]

        all_tokens, all_logps = tokens.cpu().numpy(), logps.cpu().numpy()
        for row, (index, draw) in enumerate(owner):
            length = int(lengths[row])
            ids = all_tokens[row, :length].copy()
            completions[index][draw] = Completion(
                token_ids=ids,
                logp_behavior=all_logps[row, :length].copy(),
                text=self._decode(ids.tolist()),
                finish_reason="stop" if bool(stopped[row]) else "length",
                policy_version=self.version,
            )


def _sample(logits: Tensor, u: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling: (token i64[B], its log-probability f32[B]) from logits [B, V] and
    uniforms f64[B]."""
    logp = torch.log_softmax(logits.float() / temperature, dim=-1)
    cdf = logp.double().exp_().cumsum(-1)
    token = (
        torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)
        .squeeze(1)
        .clamp_(max=logits.shape[-1] - 1)
    )
    return token, logp.gather(-1, token[:, None]).squeeze(1)
