"""One rank of a block that cuts packs between its ranks; writes how far losses and gradients are
from those of one process, and what autograd keeps.

RANK=0 WORLD_SIZE=2 ... python tests/zero/slices_driver.py OUT_DIR [ARCHITECTURE ...]
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "learner"), str(HERE.parent / "models")]
OBJECTIVES: dict[str, dict[str, Any]] = {
    "ppo": {"clip_low": 0.1, "clip_high": 0.1},
    "gspo": {"loss": "gspo", "aggregation": "seq_mean"},
    "sequence ratios": {
        "importance_sampling": "truncate",
        "importance_level": "sequence",
        "importance_mask": "geometric",
        "importance_mask_range": (0.95, 1.05),
        "aggregation": "prompt_mean",
    },
    "KL in the reward": {
        "kl_coefficient": 0.05,
        "kl_in": "reward",
        "advantage": "whiten",
        "aggregation": "token_mean",
    },
}


def make_cases(architectures: list[str]) -> list[tuple[str, str, int]]:
    """(architecture, objective, tokens of a micro-batch); all that are trained where none is
    given."""
    import architectures as known

    architectures = architectures or [row.name for row in known.TRAINED]
    every = [("qwen3", "ppo", 1000), *(("qwen3", name, 25) for name in OBJECTIVES)]
    return every + [(name, "ppo", 40) for name in architectures]


def ragged(rng: np.random.Generator) -> Any:
    """Groups of 1 to 5 rollouts, 1 to 12 tokens each; T is rarely even."""
    from learner_cases import make_batch

    sizes = [int(rng.integers(1, 6)) for _ in range(4)]
    lengths = [rng.integers(1, 13, n).tolist() for n in sizes]
    return make_batch(rng, lengths, [rng.integers(0, 2, n).astype(float).tolist() for n in sizes])


def learn(model: Any, batch: Any, config: Any, group: Any, block: Any) -> dict[str, Any]:
    """Loss, gradient [parameters] of this rank, sums of the metrics, bytes that autograd keeps."""
    from learner_cases import MAX_RESPONSE_TOKENS, advantages

    from cero_rl.learner.losses import METRIC_NAMES, policy_loss
    from cero_rl.learner.packing import build_step_plan
    from cero_rl.learner.returns import with_kl_in_reward
    from cero_rl.models.logprob import PolicyModule, forward_micro

    plan = build_step_plan(
        batch,
        *advantages(batch),
        config=config,
        max_response_tokens=MAX_RESPONSE_TOKENS,
        head_chunk_tokens=7,
        group=group,
        block=block,
    )
    policy = PolicyModule(model, temperature=0.7, block=block).train()
    model.zero_grad()
    fixed = []
    for micro in plan.micro_batches:  # a little off, so that ratios leave 1
        with torch.no_grad():
            now = forward_micro(policy, micro, with_entropy=False)[0]
        off = 0.3 * torch.sin(torch.arange(len(now)) + micro.tokens)
        given = {"logp_old": now + off, "logp_behavior": now + 2 * off, "logp_reference": now + 0.1}
        fixed.append(replace(micro, **given))
    if config.kl_in == "reward":
        fixed = with_kl_in_reward(fixed, config, group)
    loss, kept, sums = 0.0, 0, torch.zeros(len(METRIC_NAMES))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for micro in fixed:
        seen = dict[int, int]()

        def keep(tensor: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            terms = policy_loss(*forward_micro(policy, micro, with_entropy=True), micro, config)
        kept = max(kept, sum(seen.values()))
        (terms.loss_sum / plan.denominator).backward()
        loss += float(terms.loss_sum.detach()) / plan.denominator
        sums += terms.metric_sums
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {"loss": loss, "gradient": gradient, "kept": kept, "sums": sums}


def compare(case: tuple[str, str, int], index: int, group: Any, block: Any) -> dict[str, Any]:
    import architectures
    import torch.distributed as dist
    from learner_cases import VOCABULARY

    from cero_rl.config.learner import LearnerConfig
    from cero_rl.distributed.block import Block, OncePerBlock
    from cero_rl.distributed.group import Group
    from cero_rl.learner.losses import METRIC_NAMES
    from cero_rl.models.attention import choose_attention

    architecture, objective, budget = case
    row = next(r for r in architectures.TRAINED if r.name == architecture)
    config = row.make_config()
    config.vocab_size = VOCABULARY
    model = architectures.random_model(config, choose_attention("sdpa"))
    batch = ragged(np.random.default_rng(index))
    learner = LearnerConfig(max_micro_batch_tokens=budget, **OBJECTIVES[objective])
    one = learn(model, batch, learner, Group.alone(), Block())
    own = learn(model, batch, learner, OncePerBlock.of(group, block), block)
    share = float(own["gradient"].norm())
    dist.all_reduce(own["gradient"])
    gap = own["gradient"] - one["gradient"]
    return {
        "case": ", ".join([architecture, objective, f"{budget} tokens"]),
        "loss": one["loss"],
        "loss_gap": abs(own["loss"] - one["loss"]),
        "gradient": float(one["gradient"].norm()),
        "gradient_gap": float(gap.norm() / one["gradient"].norm()),
        "largest_gap": float(gap.abs().max()),
        "share": share,
        "metrics": dict(zip(METRIC_NAMES, one["sums"].tolist())),
        "metrics_gap": float((own["sums"] - one["sums"]).abs().max()),
        "kept": own["kept"] / one["kept"],
    }


def main() -> int:
    from cero_rl.distributed.block import Block
    from cero_rl.zero import launch

    group = launch.start(timeout_seconds=120)
    block = Block.of(group, group.world_size, 120)
    cases = make_cases(sys.argv[2:])
    rows = [compare(case, i, group, block) for i, case in enumerate(cases)]
    (Path(sys.argv[1]) / f"slices-{group.rank}.json").write_text(json.dumps(rows))
    launch.stop()
    return 0


if __name__ == "__main__":
    from cero_rl.job.process import run_and_exit

    run_and_exit(main)
