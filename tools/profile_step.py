"""Where the CPU seconds of a training step go, and how near each part is to its limit.

    python tools/profile_step.py --shapes 1m 15m [--against CHECKOUT --pairs 3]

A real run of one rank (ZeRO-3, every prompt alike) with clocks of process CPU time around its
parts; with --against the same in another checkout, in turn. Limits are measured in the same
process: matrix products alone, at the rate of the model's own shape; a copy of the weights. A row a
run goes to docs/bench/profile.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
WARM = 2  # steps that are not counted
COMMON = [
    "scheduler.name=uniform",
    "scheduler.rollouts_per_unit=8",
    "evaluation.every_steps=0",
    "evaluation.final_samples_per_prompt=1",
    "evaluation.pass_k=[1]",
    "data.heldout_limit=8",
    "checkpoint.every_steps=0",
    "checkpoint.export=false",
    "logging.tensorboard=false",
]
SHAPES: dict[str, dict[str, Any]] = {
    "1m": {"rollouts": 1024, "steps": 4, "settings": []},
    "15m": {
        "rollouts": 256,
        "steps": 3,
        "settings": [
            "data.max_prompt_tokens=128",
            "rollout.max_response_tokens=128",
            "rollout.max_batch_tokens=65536",
            "learner.min_advantage=0.0",
            "learner.baseline=posterior",  # every rollout trains, whatever a random model earns
        ],
    },
}


def make_15m(folder: Path) -> list[str]:
    """A random model of 15M parameters, and prompts of 128 tokens; returns settings."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    start = str(ROOT / "recipes/assets/tiny_digits")
    config = AutoConfig.from_pretrained(start, trust_remote_code=False)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 384, 1152, 8
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 6, 3, 64
    config.max_position_embeddings, config.layer_types = 512, ["full_attention"] * 8
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(start, trust_remote_code=False)
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": f"{i:04d}" * 32, "answer": str(i % 10)} for i in range(64)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(folder / "data.jsonl")
    return [
        f"model.path={folder / 'model'}",
        f"data.source={data}",
        f"data.heldout_source={data}",
    ]


class Parts:
    """CPU seconds of each part, and tokens that went through it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.tokens: Counter[str] = Counter()
        self.inside: list[str] = []

    def clock(self, owner: Any, method: str, part: str) -> None:
        """Time a method as `part`, less what other parts inside it take."""
        plain = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started, before = time.process_time(), sum(self.seconds.values())
            self.inside.append(part)
            try:
                result = plain(*args, **kwargs)
            finally:
                self.inside.pop()
                others = sum(self.seconds.values()) - before
                self.seconds[part] += time.process_time() - started - others
            self._count(method, args, result)
            return result

        setattr(owner, method, timed)

    def _count(self, method: str, args: tuple[Any, ...], result: Any) -> None:
        if method == "generate" and "probe" not in self.inside:
            for group in result:
                self.tokens["prompt"] += len(group.prompt_tokens)
                self.tokens["response"] += sum(len(c.token_ids) for c in group.completions)
        if method == "logps" and "probe" not in self.inside:
            self.tokens["learner"] += len(args[1].tokens)


def rate_of(action: Callable[[], object], work: float) -> float:
    """Work a CPU second, the best of seven."""
    best = float("inf")
    for _ in range(7):
        started = time.process_time()
        for _ in range(8):
            action()
        best = min(best, (time.process_time() - started) / 8)
    return work / best


def limits_of(trainer: Any) -> dict[str, float]:
    """gflops of float32 products by torch's own linear layer and the fastest way it has; copy of
    the weights in seconds; floating-point operations a token."""
    import torch

    sizes = [
        p.ds_shape if hasattr(p, "ds_shape") else p.shape
        for p in trainer.policy.causal_lm.parameters()
    ]
    matrices = [s for s in sizes if len(s) == 2]
    flops = 2.0 * sum(s[0] * s[1] for s in matrices)  # the embedding is the head's too
    high, wide = max(matrices, key=lambda s: s[0] * s[1])
    rows, weight = torch.randn(1024, wide), torch.randn(high, wide)
    work = 2e-9 * 1024 * high * wide
    with torch.inference_mode():
        plain = rate_of(lambda: torch.nn.functional.linear(rows, weight), work)
        times: Any = torch.ops.mkldnn._linear_pointwise
        other = rate_of(lambda: times(rows, weight, None, "none", [], ""), work)
    total = torch.empty(sum(s.numel() for s in sizes))
    copy = 1 / rate_of(lambda: total.clone(), 1.0)
    return {"gflops_mkl": plain, "gflops_onednn": other, "copy_seconds": copy, "token_flops": flops}


def child(shape: str, folder: Path) -> None:
    """One run in this process; prints its row as the last line."""
    from cero_rl.commands.training import train_main
    from cero_rl.train.loop import Trainer
    from cero_rl.train.weight_sync import WeightSync
    from cero_rl.zero.policy import Policy

    given, parts = SHAPES[shape], Parts()
    plain_run = Trainer.run
    found: dict[str, Any] = {}

    def run(trainer: Any) -> int:
        engine = type(trainer.engine)
        for owner, method, part in (
            (engine, "generate", "generation"),
            (engine, "load_weights", "sync"),
            (Policy, "logps", "forward"),
            (Policy, "backward", "backward"),
            (Policy, "step", "optimizer"),
            (WeightSync, "_probe", "probe"),
        ):
            parts.clock(owner, method, part)
        save, marks = trainer.save, []

        def saved(*args: Any, **kwargs: Any) -> None:
            save(*args, **kwargs)
            marks.append((time.process_time(), time.perf_counter()))
            if len(marks) == WARM:
                parts.seconds.clear()
                parts.tokens.clear()
            if len(marks) == WARM + given["steps"]:
                steps = given["steps"]
                cpu, wall = (marks[-1][i] - marks[WARM - 1][i] for i in (0, 1))
                seconds = {k: v / steps for k, v in parts.seconds.items()}
                seconds["other"] = cpu / steps - sum(seconds.values())
                found.update(
                    cpu_seconds=cpu / steps,
                    wall_seconds=wall / steps,
                    parts=seconds,
                    tokens={k: v // steps for k, v in parts.tokens.items()},
                    **limits_of(trainer),
                )

        trainer.save = saved
        return plain_run(trainer)

    Trainer.run = cast(Any, run)
    rounds = WARM + given["steps"]
    settings = [*COMMON, *given["settings"], f"scheduler.rounds={rounds}", "name=profile"]
    settings += [f"budget.total_rollouts={rounds * given['rollouts']}", f"output_dir={folder}"]
    if shape == "15m":
        settings += make_15m(folder)
    line = ["--config", str(ROOT / "recipes/digits_cpu.yaml"), "--overwrite"]
    for setting in settings:
        line += ["--set", setting]
    if train_main(line):
        raise SystemExit("the run failed")
    print(json.dumps(found), flush=True)


def measure(shape: str, checkout: Path, which: str) -> dict[str, Any]:
    """A row, from a process of its own."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    env = {**os.environ, **alone, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    env |= {"PYTHONPATH": str(checkout), "MASTER_PORT": str(29800 + os.getpid() % 150)}
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, __file__, "--child", folder, "--shapes", shape]
        done = subprocess.run(line, cwd=checkout, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{shape}: exit {done.returncode}\n{done.stdout[-900:]}{done.stderr[-900:]}"
        )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    head = ["git", "rev-parse", "--short", "HEAD"]
    at = subprocess.run(head, cwd=checkout, capture_output=True, text=True).stdout.strip()
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.4g}"))
    return {"bench": "profile", "shape": shape, "which": which, "at": at, **rounded}


def show(row: dict[str, Any]) -> None:
    """One line a part: CPU seconds a step, and how many times its limit."""
    tokens, rate = row["tokens"], max(row["gflops_mkl"], row["gflops_onednn"]) * 1e9
    product = row["token_flops"] / rate
    limits = {
        "generation": product * (tokens["prompt"] + tokens["response"]),
        "forward": product * tokens.get("learner", 0),
        "backward": 2 * product * tokens.get("learner", 0),
        "sync": row["copy_seconds"],
    }
    cpu, wall = row["cpu_seconds"], row["wall_seconds"]
    print(f"{row['shape']} {row['which']} ({row['at']}): {cpu:.3f} CPU s a step, wall {wall:.3f}")
    for part, seconds in sorted(row["parts"].items(), key=lambda item: -item[1]):
        limit = limits.get(part)
        times = f"{seconds / limit:6.1f} x limit {limit:.4f}" if limit else ""
        print(f"  {part:<11} {seconds:.4f}  {seconds / cpu:4.0%}  {times}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--against", type=Path, help="a checkout of before")
    parser.add_argument("--pairs", type=int, default=1, help="runs of each, in turn")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/bench/profile.jsonl")
    options = parser.parse_args()
    if options.child is not None:
        child(options.shapes[0], options.child)
        return 0
    from bench_timing import machine

    for shape in options.shapes:
        for _ in range(options.pairs):
            for which, where in (("before", options.against), ("after", ROOT)):
                if where is None:
                    continue
                row = {**measure(shape, where.resolve(), which), **machine()}
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                show(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
