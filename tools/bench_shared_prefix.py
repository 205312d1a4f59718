"""Forward and backward of a learner's step with every prompt processed once, beside every response
with its own copy: CPU seconds of this process, and bytes kept for the backward pass.

    python tools/bench_shared_prefix.py [--repeats 5] [--ratios 1:4 16:1] [--groups 8 16]
        [--model 1M --ratios 2:3 --rollouts 256] [--float64]

A random Qwen3 of 10 million parameters, or 1 million; groups go through the learner's own plan,
forward and loss. The two ways alternate in one process, and a row holds the ratio of each pair:
median, least and largest. The bound is the ratio of the tokens that go through the layers.
`--float64`: the relative error of either gradient against the model's own code, one sequence at a
time in float64. Rows are appended to docs/bench/shared_prefix.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from typing import Any

import numpy as np
import torch
from bench_timing import ROOT, machine
from torch import Tensor

from cero_rl.config.learner import LearnerConfig
from cero_rl.distributed.group import Group
from cero_rl.learner.losses import policy_loss
from cero_rl.learner.packing import build_step_plan, pack_rollouts
from cero_rl.models.attention import choose_attention
from cero_rl.models.logprob import PolicyModule, forward_micro, head_chunk_tokens
from cero_rl.types import Completion, RolloutGroup, StepPlan

OUT = ROOT / "docs/bench/shared_prefix.jsonl"
LENGTHS = {
    "1:4": (48, 192),
    "1:1": (96, 96),
    "4:1": (192, 48),
    "16:1": (512, 32),
    "2:3": (8, 12),
}
VOCABULARY = 2048
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
MODELS: dict[str, dict[str, Any]] = {
    "10M": COMMON
    | {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "head_dim": 64,
    },
    "1M": COMMON
    | {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "head_dim": 32,
    },
}


def make_policy(size: str, dtype: torch.dtype) -> PolicyModule:
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.Qwen3Config(**MODELS[size]),
        attn_implementation=choose_attention("sdpa"),
        dtype=dtype,
    )
    return PolicyModule(model)


def make_groups(prompt: int, response: int, size: int, rollouts: int) -> list[RolloutGroup]:
    """Responses have from half to one and a half times `response` tokens, as many in the mean."""
    rng = np.random.default_rng(0)
    groups = []
    for index in range(rollouts // size):
        lengths = np.linspace(response // 2, response + response // 2, size).round().astype(int)
        completions = [
            Completion(rng.integers(0, VOCABULARY, n), np.full(n, -7.0, np.float32), "", "stop", 0)
            for n in rng.permutation(lengths)
        ]
        tokens = rng.integers(0, VOCABULARY, prompt)
        groups.append(RolloutGroup(index, tokens, tuple(completions)))
    return groups


def make_plan(groups: list[RolloutGroup], config: LearnerConfig, longest_shared: int) -> StepPlan:
    rewards = [np.zeros(len(g.completions), np.float32) for g in groups]
    batch = pack_rollouts(groups, rewards)
    advantages = torch.linspace(-1, 1, batch.num_rollouts)
    return build_step_plan(
        batch,
        advantages,
        torch.ones(batch.num_rollouts, dtype=torch.bool),
        config=config,
        max_response_tokens=1024,
        head_chunk_tokens=head_chunk_tokens(VOCABULARY),
        group=Group.alone("cpu"),
        longest_shared=longest_shared,
    )


def step(policy: PolicyModule, plan: StepPlan, config: LearnerConfig) -> float:
    """CPU seconds of forward and backward over a plan."""
    policy.zero_grad()
    started = time.process_time()
    for micro in plan.micro_batches:
        logp, entropy = forward_micro(policy, micro, with_entropy=True)
        (policy_loss(logp, entropy, micro, config).loss_sum / plan.denominator).backward()
    return time.process_time() - started


def kept_bytes(policy: PolicyModule, plan: StepPlan) -> int:
    """The most that a micro-batch keeps for its backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    most = 0
    for micro in plan.micro_batches:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            # what is kept lives on with the result, so that no address is given twice
            result = forward_micro(policy, micro, with_entropy=True)
        most = max(most, sum(kept.values()))
        del result
    return most


def gradients(policy: PolicyModule) -> Tensor:
    return torch.cat([p.grad.flatten().float() for p in policy.parameters() if p.grad is not None])


def relative_gap(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def float64_gradients(policy: PolicyModule, groups: list[RolloutGroup]) -> Tensor:
    """Of the same loss, by transformers' plainest attention."""
    model = copy.deepcopy(policy.causal_lm).double()
    model.set_attn_implementation("eager")
    model.zero_grad()
    rollouts = [(g, c) for g in groups for c in g.completions]
    advantages = torch.linspace(-1, 1, len(rollouts)).double()
    for (group, completion), advantage in zip(rollouts, advantages):
        prompt = len(group.prompt_tokens)
        tokens = torch.from_numpy(np.concatenate([group.prompt_tokens, completion.token_ids]))
        every = torch.log_softmax(model(tokens[None]).logits[0, prompt - 1 : -1], -1)
        logp = every.gather(-1, tokens[prompt:, None]).mean()
        (-logp * advantage / len(rollouts)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def row(ratio: str, size: int, policy: PolicyModule, args: argparse.Namespace) -> dict[str, Any]:
    prompt, response = LENGTHS[ratio]
    groups = make_groups(prompt, response, size, args.rollouts)
    config = LearnerConfig(shared_prefix=True, max_micro_batch_tokens=args.max_tokens)
    plans = {"copied": make_plan(groups, config, 0), "shared": make_plan(groups, config, 2**31)}
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    found = {}
    for repeat in range(args.repeats + 1):
        for name, plan in plans.items():
            took = step(policy, plan, config)
            if repeat:  # the first is a warm-up
                seconds[name].append(took)
            found[name] = gradients(policy)
    tokens = {n: sum(len(m.tokens) for m in plan.micro_batches) for n, plan in plans.items()}
    gains = np.array(seconds["copied"]) / np.array(seconds["shared"])
    bound = tokens["copied"] / tokens["shared"]
    more = {}
    if args.float64:
        exact = float64_gradients(policy, groups)
        more["float64_gap"] = {n: relative_gap(g, exact) for n, g in found.items()}
    return {
        "model": args.model,
        "prompt:response": ratio,
        "prompt_tokens": prompt,
        "response_tokens": response,
        "group": size,
        "rollouts": args.rollouts,
        "max_micro_batch_tokens": args.max_tokens,
        "dtype": args.dtype,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "tokens": tokens,
        "micro_batches": {name: len(plan.micro_batches) for name, plan in plans.items()},
        "cpu_seconds": {n: round(float(np.median(s)), 3) for n, s in seconds.items()},
        "gain": round(float(np.median(gains)), 3),
        "gain_least": round(float(gains.min()), 3),
        "gain_largest": round(float(gains.max()), 3),
        "bound": round(bound, 3),
        "of_bound": round(float(np.median(gains)) / bound, 3),
        "kept_mb": {n: round(kept_bytes(policy, p) / 1e6, 1) for n, p in plans.items()},
        "gradient_gap": relative_gap(found["shared"], found["copied"]),
        **more,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ratios", nargs="+", choices=list(LENGTHS), default=list(LENGTHS)[:4])
    parser.add_argument("--groups", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--model", choices=list(MODELS), default="10M")
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=4096)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--dry", action="store_true", help="write no rows")
    args = parser.parse_args()
    policy = make_policy(args.model, getattr(torch, args.dtype))
    where = machine()
    for ratio in args.ratios:
        for size in args.groups:
            found = row(ratio, size, policy, args)
            print(
                f"{ratio:>5} groups of {size:2}: gain {found['gain']:.2f} "
                f"({found['gain_least']:.2f} to {found['gain_largest']:.2f}), bound "
                f"{found['bound']:.2f}, {found['of_bound']:.2f} of it; CPU seconds "
                f"{found['cpu_seconds']}, MB kept {found['kept_mb']}, gap "
                f"{found['gradient_gap']:.1e} {found.get('float64_gap', '')}",
                flush=True,
            )
            if not args.dry:
                with OUT.open("a") as file:
                    file.write(json.dumps({**found, **where}) + "\n")


if __name__ == "__main__":
    main()
