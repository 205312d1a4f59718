"""The learner's weights into the sampler, and the proof that they arrived: after every sync both
say what a few tokens are worth.

A sampler with old weights, with base weights after a sleep, with a stale head or a stale prefix
cache answers without an error; only its log-probabilities differ. So it samples a few tokens of two
or three fixed prompts, one of them longer than a block of vLLM's prefix cache (128 tokens on a CPU)
where the model's length allows it, and the learner computes the same log-probabilities under ZeRO.
The gap is, for each prompt, the mean |log-prob difference| over its tokens; the largest over
prompts and ranks must keep the bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cero_rl.config import Config
from cero_rl.distributed.group import Group
from cero_rl.errors import EngineError
from cero_rl.job import faults
from cero_rl.job.watchdog import Limit, Watchdog
from cero_rl.learner.packing import pack_rollouts
from cero_rl.models.load import usable_positions
from cero_rl.models.logprob import head_chunk_tokens
from cero_rl.parity.judge import gap_of
from cero_rl.parity.questions import put_together
from cero_rl.rollout.protocol import (
    PROBE_PROMPT_TOKENS,
    PROBE_TOKENS,
    RolloutEngine,
    RolloutRequest,
)
from cero_rl.types import MicroBatch, RolloutGroup
from cero_rl.zero.gather import full_weights
from cero_rl.zero.policy import Policy

PARITY_STREAM = 2**41  # far from the streams of training and evaluation
_CACHE_BLOCK_TOKENS = 128


def probe_requests(
    prompts: Sequence[npt.NDArray[np.int64]], positions: int
) -> list[RolloutRequest]:
    """The first prompt of the pool, its longest, and, unless that is long enough, one that is put
    together from several.

    `positions` is the longest sequence of the model, in tokens. The same on every rank and at every
    sync.
    """
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    chosen = [prompts[0]] + ([prompts[longest]] if longest else [])
    room = min(PROBE_PROMPT_TOKENS, positions - PROBE_TOKENS)
    if len(prompts[longest]) <= _CACHE_BLOCK_TOKENS and room > len(prompts[longest]):
        chosen.append(put_together(prompts, room))
    return [RolloutRequest(i, tokens, 1, stream_key=i) for i, tokens in enumerate(chosen)]


def _micro_batch(
    groups: Sequence[RolloutGroup], head_chunks: int, device: torch.device
) -> MicroBatch:
    batch = pack_rollouts(groups, [np.zeros(len(g.completions), np.float32) for g in groups])
    lengths = (batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).long()
    zeros = torch.zeros(len(batch.tokens), device=device)
    return MicroBatch(
        tokens=batch.tokens.to(device),
        positions=torch.cat([torch.arange(int(n)) for n in lengths]).to(device),
        cu_seqlens=batch.cu_seqlens.to(device),
        seq_rollout=torch.arange(len(lengths), dtype=torch.int32, device=device),
        loss_mask=batch.loss_mask.to(device),
        logp_behavior=batch.logp_behavior.to(device),
        token_adv=zeros,
        seq_weight=zeros,
        head_chunks=head_chunks,
        is_dummy=False,
        trained_tokens=int(batch.loss_mask.sum()),
        max_seqlen_tokens=int(lengths.max()),
    )


class WeightSync:
    """Pushes weights and probes the sampler. A collective: all ranks call it in step, and all raise
    if one fails."""

    def __init__(
        self,
        policy: Policy,
        engine: RolloutEngine,
        prompts: Sequence[npt.NDArray[np.int64]],
        config: Config,
        group: Group,
        watchdog: Watchdog,
    ) -> None:
        self._policy = policy
        self._engine = engine
        self._config = config
        self._group = group
        self._watchdog = watchdog
        positions, _ = usable_positions(config.model.path, policy.causal_lm.config)
        self._requests = probe_requests(prompts, positions)
        rows = head_chunk_tokens(policy.causal_lm.config.vocab_size)
        self._head_chunks = -(-len(self._requests) * PROBE_TOKENS // rows)
        self._pushes = 0

    def push(self, version: int) -> dict[str, float]:
        """Load the learner's weights as `version`, then prove it where a probe is due
        (rollout.parity_every_syncs). Returns parity/* metrics; raises EngineError."""
        probed = self._pushes % self._config.rollout.parity_every_syncs == 0
        self._pushes += 1
        last = ["before the first parameter"]

        def named() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in full_weights(self._policy.sampled_weights()):
                last[0] = f"at {name}"
                yield name, tensor

        what = f"weight sync of version {version}"
        limit = Limit(self._config.rollout.sync_timeout_seconds, "rollout.sync_timeout_seconds")
        awaits = "the sampler and all ranks' shards"
        with self._watchdog.phase("sync", awaits, limit, detail=lambda: last[0]):
            faults.point("sync.before")
            self._engine.load_weights(named(), version)
            gaps = self._probe(what, version) if probed else None
            faults.point("sync.after")
        if gaps is None:
            return {"parity/version": version}
        mean, largest = gaps
        bound = self._config.parity_bound
        if not mean <= bound:  # nan is no proof
            raise EngineError(
                f"{what}: sampler and learner disagree, mean |log-prob difference| {mean:.3g} on a "
                f"probe prompt, bound {bound:g} for {self._config.model.dtype}; the sampler does "
                "not hold the learner's weights (rollout.parity_bound, docs/rollout.md)"
            )
        numbers = {"parity/gap": mean, "parity/gap_max": largest, "parity/version": version}
        if self._policy.adapter is not None and not self._config.lora.adapter_only:
            numbers["parity/merge_loss"] = self._policy.adapter.merge_loss()
        return numbers

    def _probe(self, what: str, version: int) -> tuple[float, float]:
        """(mean, largest) gap of the sampler's answers to the probe prompts."""
        groups = self._engine.generate(
            self._requests,
            stream=PARITY_STREAM,
            temperature=self._config.rollout.temperature,
            max_tokens=PROBE_TOKENS,
        )
        probe = lambda: _refuse_unfit(groups, version)
        self._group.together(f"{what}: parity probe", probe)
        return self._gap(groups)

    @torch.no_grad()
    def _gap(self, groups: Sequence[RolloutGroup]) -> tuple[float, float]:
        """(largest mean over a prompt's tokens, largest over all tokens) of |log-prob difference|,
        over all ranks."""
        micro = _micro_batch(groups, self._head_chunks, self._group.device)
        self._policy.train(False)
        logp = self._policy.logps(micro, with_entropy=False)[0]
        self._policy.train(True)
        own, told = logp.cpu().numpy(), micro.logp_behavior.cpu().numpy()
        mask, edges = micro.loss_mask.cpu().numpy(), micro.cu_seqlens.cpu().tolist()
        # infinite where one is not finite: the maximum of a nan is not a nan on every backend
        gaps = [gap_of(own[a:b][mask[a:b]], told[a:b][mask[a:b]]) for a, b in pairwise(edges)]
        mean, largest = max(gap.mean for gap in gaps), max(gap.largest for gap in gaps)
        return self._group.all_max_float(mean), self._group.all_max_float(largest)


def _refuse_unfit(groups: Sequence[RolloutGroup], version: int) -> None:
    """Raise EngineError for answers that prove nothing."""
    for group in groups:
        if not group.completions or not len(group.completions[0].token_ids):
            raise EngineError(f"the sampler gave no answer to probe prompt {group.prompt_id}")
        answered = group.completions[0].policy_version
        if answered != version:
            raise EngineError(
                f"the sampler answers with version {answered} of the weights, wanted {version}"
            )
