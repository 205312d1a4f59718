"""A run's directory as training leaves it, of a pool whose truth is known, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cero_rl.config import Config, dump_config, load_config
from cero_rl.data.load import load_prompts
from cero_rl.scheduler.export import export_posterior
from cero_rl.scheduler.posterior import BetaPosterior

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/frontier_cpu.yaml"
PROMPTS, STEPS, GROUPS, SIZE = 40, 12, 8, 4


def config_of(place: Path, name: str, *settings: str) -> Config:
    given = [
        f"name={name}",
        f"output_dir={place}",
        f"data.source={ROOT}/recipes/assets/frontier/train_50.jsonl",
        f"data.heldout_source={ROOT}/recipes/assets/frontier/heldout_50.jsonl",
        f"data.limit={PROMPTS}",
        f"budget.total_rollouts={STEPS * GROUPS * SIZE}",
        f"scheduler.rounds={STEPS}",
        "scheduler.rollouts_per_unit=4",
        "scheduler.max_units_per_prompt=1",
        "optimizer.warmup_steps=1",
        "evaluation.every_steps=4",
        *settings,
    ]
    return load_config(RECIPE, given)


def make_run(
    place: Path,
    name: str = "made",
    *settings: str,
    gain: float = 0.2,
    completion: str = "12",
    finished: bool = True,
) -> Path:
    """Prompts 0 to 19 are dead, the others have success rate 1/2; the allocator looks at prompts 16
    to 39 alone, with groups of 4, and believes 0.5 of all. Held-out accuracy: .3 to .3 + gain."""
    config = config_of(place, name, *settings)
    run = place / name
    run.mkdir(parents=True)
    (run / "config.resolved.yaml").write_text(dump_config(config), encoding="utf-8")
    prompts = load_prompts(config.data, config.seed).train
    posterior, rng = BetaPosterior(len(prompts)), np.random.default_rng(config.seed)
    metrics: list[dict[str, Any]] = [{"step": 0, **held(0.3), "budget/spent_rollouts": 0}]
    evidence, samples = [], []
    total = config.budget.total_rollouts
    for step in range(1, STEPS + 1):
        ids = 16 + (np.arange(GROUPS) + step * GROUPS) % 24
        wins = np.where(ids < 20, 0, rng.binomial(SIZE, 0.5, GROUPS))
        trials = np.full(GROUPS, SIZE)
        if step == 3:
            trials[0], wins[0] = SIZE - 1, min(wins[0], SIZE - 1)  # one reward is missing
        posterior.forget()
        posterior.add(ids, wins.astype(float), trials)
        evidence.append(
            {
                "step": step,
                "round": step - 1,
                "prompt_ids": ids.tolist(),
                "generated": [SIZE] * GROUPS,
                "trials": trials.tolist(),
                "successes": wins.astype(float).tolist(),
                "worth": [0.25] * GROUPS,
                "expected": [0.5] * GROUPS,
                "slope": [0.7] * (GROUPS - 1) + [0.4],
            }
        )
        spent = step * GROUPS * SIZE
        line: dict[str, Any] = {
            "step": step,
            "round": step - 1,
            "reward": float(wins.sum() / trials.sum()),
            "num_tokens": 640,
            "step_time": 2.0,
            "entropy": 0.2 + 0.8 / step,
            "completions/clipped_ratio": 0.25,
            "completions/mean_length": 10.0,
            "trained_tokens": 0.75 * 10.0 * GROUPS * SIZE,
            "cero/price": 0.5,
            "cero/slope_mean": 0.7,
            "cero/posterior_mean": 0.5,
            "cero/value_mean": 0.2,
            "cero/proxy_rank_corr": 0.1,
            "cero/effective_group_rate": float(((wins > 0) & (wins < trials)).mean()),
            "budget/total_rollouts": total,
            "budget/spent_rollouts": spent,
            "budget/refunded_rollouts": 0,
            "timing_s/rollout": 1.2,
            "timing_s/learner": 0.7,
            "mismatch/logp_abs_mean": 1e-6,
        }
        if step % 4 == 0 and step < STEPS:
            line |= held(0.3 + gain * step / STEPS)
        metrics.append(line)
        samples.append(
            {
                "step": step,
                "prompt_key": prompts[ids[0]].key,
                "prompt": prompts[ids[0]].content,
                "completion": completion,
                "answer": prompts[ids[0]].answer,
                "reward": float(wins[0] > 0),
                "group_reward_mean": float(wins[0] / trials[0]),
                "group_rollouts": SIZE,
                "finish_reason": "stop",
                "policy_version": step - 1,
            }
        )
    if finished:
        last = {"step": STEPS, "final": True, "budget/spent_rollouts": STEPS * GROUPS * SIZE}
        metrics.append({**last, **held(0.3 + gain)})
        export_posterior(run / "posterior.parquet", [p.key for p in prompts], posterior)
    write(run / "metrics.jsonl", metrics)
    write(run / "evidence.jsonl", evidence)
    write(run / "samples.jsonl", samples)
    return run


def held(accuracy: float) -> dict[str, float]:
    passes = {"eval/pass@1": accuracy, "eval/pass@4": min(1.0, accuracy + 0.2)}
    return {"eval/avg@2": accuracy, "eval/standard_error": 0.01, **passes}


def write(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
