"""Small batches, simulated ranks and tiny random models, shared by the learner's tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cero_rl.config.learner import LearnerConfig
from cero_rl.learner.packing import build_step_plan, pack_rollouts
from cero_rl.models.attention import choose_attention
from cero_rl.types import Completion, MicroBatch, RolloutBatch, RolloutGroup, StepPlan

CPU = torch.device("cpu")
VOCABULARY = 32
MAX_RESPONSE_TOKENS = 8
AGGREGATIONS = ("token_mean", "seq_mean", "group_mean", "prompt_mean", "constant")


def make_group(
    rng: np.random.Generator,
    prompt_id: int,
    prompt_tokens: int,
    response_tokens: Sequence[int],
    *,
    turns: bool = False,
) -> RolloutGroup:
    """`turns`: a token in three is an environment's, which nobody sampled."""

    def completion(n: int) -> Completion:
        tokens, logp = rng.integers(0, VOCABULARY, n), -rng.random(n).astype(np.float32)
        if not turns:
            return Completion(tokens, logp, "", "stop", 0)
        mask = rng.random(n) > 1 / 3
        return Completion(tokens, np.where(mask, logp, np.float32(0)), "", "stop", 0, sampled=mask)

    completions = tuple(completion(n) for n in response_tokens)
    return RolloutGroup(prompt_id, rng.integers(0, VOCABULARY, prompt_tokens), completions)


def make_batch(
    rng: np.random.Generator, shapes: Sequence[Sequence[int]], rewards: Sequence[Sequence[float]]
) -> RolloutBatch:
    """shapes: response lengths by group; rewards likewise, nan where missing. Prompts have 1 to
    5 tokens."""
    groups = [
        make_group(rng, i, int(rng.integers(1, 6)), lengths) for i, lengths in enumerate(shapes)
    ]
    return pack_rollouts(groups, [np.array(r, dtype=np.float32) for r in rewards])


def advantages(batch: RolloutBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Centred rewards f32[R] and signal bool[R], group by group."""
    adv = torch.zeros_like(batch.rewards)
    signal = torch.zeros_like(batch.rewards, dtype=torch.bool)
    for j in range(len(batch.prompt_ids)):
        rows = slice(int(batch.group_offsets[j]), int(batch.group_offsets[j + 1]))
        rewards = batch.rewards[rows]
        if len(rewards) > 1 and float(rewards.max()) > float(rewards.min()):
            adv[rows], signal[rows] = rewards - rewards.mean(), True
    return adv, signal


class _Collectives:
    """A Group for one simulated rank: records what it sends, and replays the answers
    once all ranks are known.

    Two passes suffice because no argument of a collective depends on the result of an earlier one.
    """

    device = CPU

    def __init__(self) -> None:
        self.sent: list[tuple[str, tuple[float, ...]]] = []
        self.answers: list[tuple[float, ...]] | None = None

    def _exchange(self, kind: str, values: tuple[float, ...]) -> tuple[float, ...]:
        if self.answers is None:
            self.sent.append((kind, values))
            return values
        return self.answers.pop(0)

    def all_sum(self, values: Sequence[float]) -> list[float]:
        return list(self._exchange("sum", tuple(values)))

    def all_max(self, value: int) -> int:
        return int(self._exchange("max", (value,))[0])


def plan_on_ranks(
    batches: Sequence[RolloutBatch],
    config: LearnerConfig,
    *,
    head_chunk_tokens: int = 1000,
    signals: Sequence[torch.Tensor] | None = None,
) -> list[StepPlan]:
    """One plan a rank; `signals` replaces the flags that the rewards give."""
    ranks = [_Collectives() for _ in batches]

    def plans() -> list[StepPlan]:
        out = []
        for rank, (batch, world) in enumerate(zip(batches, ranks)):
            adv, signal = advantages(batch)
            signal = signal if signals is None else signals[rank]
            out.append(
                build_step_plan(
                    batch,
                    adv,
                    signal,
                    config=config,
                    max_response_tokens=MAX_RESPONSE_TOKENS,
                    head_chunk_tokens=head_chunk_tokens,
                    group=world,
                )
            )
        return out

    plans()
    kinds = {tuple(kind for kind, _ in world.sent) for world in ranks}
    assert len(kinds) == 1, "ranks made different collectives"
    columns = list(zip(*(world.sent for world in ranks)))
    for world in ranks:
        world.answers = [
            tuple(
                (sum if column[0][0] == "sum" else max)(values)
                for values in zip(*(v for _, v in column))
            )
            for column in columns
        ]
    return plans()


def source_index(micro: MicroBatch, batch: RolloutBatch) -> torch.Tensor:
    """Index into the batch's packed tokens of each of the micro-batch's tokens, i64[T]."""
    lengths = (micro.cu_seqlens[1:] - micro.cu_seqlens[:-1]).long()
    return (
        batch.cu_seqlens[micro.seq_rollout.long()].long().repeat_interleave(lengths)
        + micro.positions
    )


def tiny_model(name: str, attention: str = "sdpa", **changes: Any) -> Any:
    """A random two-layer float32 model with grouped-query attention; attention "sdpa" here is
    transformers' own."""
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": name == "Qwen3",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    if name == "Qwen3":
        sizes["head_dim"] = 16
    config = getattr(transformers, f"{name}Config")(**{**sizes, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config,
        attn_implementation=attention if attention == "sdpa" else choose_attention("sdpa"),
        dtype=torch.float32,
    )
    # the default initialisation is almost uniform over the vocabulary, which would hide errors
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model
