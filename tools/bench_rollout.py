"""Tokens per second of both rollout engines on the same requests, in one run: `make bench-rollout`.

    python tools/bench_rollout.py [--model DIR] [--dtype bfloat16] [--groups 8] [--rollouts 8]
        [--response-tokens 64] [--repeats 3]

Each engine samples the same ragged groups; the engines alternate, so a busy machine is busy for
both. Every response runs to its token limit (no end token), so that both do the same work. One JSON
row an engine is appended to docs/bench/rollout.jsonl and printed: the median over repeats and the
spread. One process, one thread unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from cero_rl.config import load_config
from cero_rl.distributed.group import Group
from cero_rl.job.process import run_and_exit
from cero_rl.models.load import load_model
from cero_rl.rollout.engines.transformers import TransformersEngine
from cero_rl.rollout.engines.vllm import VllmEngine, VllmSettings
from cero_rl.rollout.protocol import RolloutEngine, RolloutRequest
from cero_rl.zero import launch

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "docs/bench/rollout.jsonl"
NEVER = 2**31 - 1  # an end token that no vocabulary has


def make_requests(
    groups: int, rollouts: int, prompt_tokens: int, vocabulary: int
) -> list[RolloutRequest]:
    """Groups of rollouts - 2 .. rollouts + 2 completions, prompts of half to full length."""
    rng = np.random.default_rng(0)
    return [
        RolloutRequest(
            i,
            rng.integers(3, vocabulary, int(rng.integers(prompt_tokens // 2, prompt_tokens + 1))),
            rollouts + (i % 5) - 2,
            stream_key=i,
        )
        for i in range(groups)
    ]


def build(options: argparse.Namespace, group: Group) -> dict[str, RolloutEngine]:
    decode = lambda ids: ""
    batch = (
        options.rollouts * options.groups * 2 * (options.prompt_tokens + options.response_tokens)
    )
    settings = VllmSettings(
        dtype=options.dtype,
        max_model_tokens=options.prompt_tokens + options.response_tokens,
        max_response_tokens=options.response_tokens,
        max_sequences=512,
        gpu_memory_fraction=0.5,
        kv_cache_memory_bytes=2**29,
        tensor_parallel=1,
        sleep=False,
        seed=0,
    )
    vllm = VllmEngine(
        options.model,
        settings,
        eos_token_ids=[],
        decode=decode,
        group=group,
    )
    model = load_model(options.model, options.dtype, "sdpa").to(group.device)
    plain = TransformersEngine(
        model,
        eos_token_ids=[NEVER],
        pad_token_id=0,
        decode=decode,
        max_response_tokens=options.response_tokens,
        max_batch_tokens=batch,
        seed=0,
    )
    return {"vllm": vllm, "transformers": plain}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    import torch

    group = launch.start()
    engines = build(options, group)
    vocabulary = load_model(options.model, options.dtype, "sdpa").config.vocab_size
    requests = make_requests(options.groups, options.rollouts, options.prompt_tokens, vocabulary)
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for repeat in range(options.repeats + 1):
        for name, engine in engines.items():
            started = time.perf_counter()
            groups = engine.generate(requests, stream=repeat, temperature=1.0)
            seconds = time.perf_counter() - started
            tokens = sum(len(c.token_ids) for g in groups for c in g.completions)
            assert tokens == sum(r.rollouts for r in requests) * options.response_tokens, (
                "both engines must do the same work"
            )
            if repeat:  # the first round warms up
                rates[name].append(tokens / seconds)
    fixed = {
        "model": Path(options.model).name,
        "dtype": options.dtype,
        "groups": options.groups,
        "rollouts": sum(r.rollouts for r in requests),
        "prompt_tokens": options.prompt_tokens,
        "response_tokens": options.response_tokens,
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__.split("+")[0],
    }
    return [
        {
            "engine": name,
            "tokens_per_second": round(statistics.median(values), 1),
            "lowest": round(min(values), 1),
            "highest": round(max(values), 1),
            **fixed,
        }
        for name, values in rates.items()
    ]


def main() -> int:
    digits = load_config(ROOT / "recipes/digits_cpu.yaml", []).model
    parser = argparse.ArgumentParser(
        description="Tokens/s of the vllm and the transformers rollout engine."
    )
    parser.add_argument("--model", default=str(ROOT / digits.path))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=8, help="of a group, on average")
    parser.add_argument("--prompt-tokens", type=int, default=24, help="of the longest prompt")
    parser.add_argument("--response-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    rows = measure(parser.parse_args())
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    with ROWS.open("a", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")
            print(json.dumps(row))
    rates = {row["engine"]: row["tokens_per_second"] for row in rows}
    print(f"vllm / transformers: {rates['vllm'] / rates['transformers']:.2f}")
    launch.stop()
    return 0


if __name__ == "__main__":
    run_and_exit(main)
