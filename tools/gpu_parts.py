"""The parts of gpu_session.py that are no training run, each in a process of its own: a model of
random weights, vLLM alone, optimizer steps alone. The last line that each prints is its result as
JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_timing import count_syncs

from cero_rl.config import load_config
from cero_rl.job.process import run_and_exit
from cero_rl.learner.batch import TrainingBatch
from cero_rl.learner.packing import pack_rollouts
from cero_rl.learner.update import Learner
from cero_rl.memory.peaks import Peaks
from cero_rl.metrics.throughput import Arithmetic
from cero_rl.models.load import load_model
from cero_rl.parity.judge import gap_of
from cero_rl.parity.scorers import ModelScorer
from cero_rl.rollout.protocol import PROBE_TOKENS, RolloutRequest
from cero_rl.types import Completion, RolloutGroup
from cero_rl.zero import launch
from cero_rl.zero.policy import Policy

GIB = 2**30


def timed(action: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """(seconds until the device has caught up, result)."""
    started = time.perf_counter()
    result = action(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def make_model(shape: dict[str, Any], out: Path) -> dict[str, Any]:
    """Random weights, drawn where the device is, written as a Hugging Face directory."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    fields = {key: value for key, value in shape.items() if key != "model_type"}
    config = Qwen3Config(
        **fields,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        eos_token_id=1,
        pad_token_id=0,
    )
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(out)
    return {"parameters": sum(p.numel() for p in model.parameters())}


def sampler(options: dict[str, Any]) -> dict[str, Any]:
    """vLLM as a rank holds it: seconds of sleep, wake with reload, and probe; the gap of the probe;
    milliseconds a decoding step by sequences in flight."""
    from cero_rl.rollout.engines.vllm import VllmEngine, VllmSettings

    group = launch.start()
    prompt, decoded = options["prompt_tokens"], options["decoded_tokens"]
    limit = max(decoded, PROBE_TOKENS)
    settings = VllmSettings(
        dtype=options["dtype"],
        max_model_tokens=prompt + limit,
        max_response_tokens=limit,
        max_sequences=max(options["sequences"]),
        gpu_memory_fraction=0.5,
        kv_cache_memory_bytes=None,
        tensor_parallel=1,
        sleep=True,
        seed=0,
    )
    build = time.perf_counter()
    engine = VllmEngine(
        options["model"], settings, eos_token_ids=[], decode=lambda ids: "", group=group
    )
    built = time.perf_counter() - build
    model = load_model(options["model"], options["dtype"], "sdpa").to(group.device)
    scorer = ModelScorer(model)
    rng = np.random.default_rng(0)

    def requests(count: int) -> list[RolloutRequest]:
        vocabulary = model.config.vocab_size
        rows = (rng.integers(2, vocabulary, prompt) for _ in range(count))
        return [RolloutRequest(i, row, 1, stream_key=i) for i, row in enumerate(rows)]

    def answers_to(count: int, stream: int, limit: int | None = None) -> list[RolloutGroup]:
        return engine.generate(requests(count), stream=stream, temperature=1.0, max_tokens=limit)

    slept, woken, probed, gaps = [], [], [], []
    for cycle in range(options["cycles"]):
        slept.append(timed(engine.sleep)[0])
        woken.append(timed(engine.load_weights, model.named_parameters(), cycle + 1)[0])
        seconds, answers = timed(answers_to, 3, cycle, PROBE_TOKENS)
        probed.append(seconds)
        for answer in answers:
            told = answer.completions[0]
            (own,) = scorer.score(answer.prompt_tokens, told.token_ids, (1.0,))
            gaps.append(gap_of(own.logps, told.logp_behavior).mean)
    decode = {}
    for count in options["sequences"]:
        answers_to(count, options["cycles"])
        seconds, _ = timed(answers_to, count, options["cycles"])
        decode[str(count)] = round(1e3 * seconds / decoded, 3)
    median = lambda values: round(statistics.median(values), 4)
    return {
        "runner": os.environ.get("VLLM_USE_V2_MODEL_RUNNER"),
        "build_seconds": round(built, 2),
        "sleep_seconds": median(slept),
        "wake_and_reload_seconds": median(woken),
        "probe_seconds": median(probed),
        "largest_gap": float(f"{max(gaps):.3g}"),
        "decode_ms_by_sequences": decode,
    }


def random_batch(options: dict[str, Any], config: Any, vocabulary: int) -> TrainingBatch:
    """Micro-batches full of rollouts of half to the whole response limit, in groups of 8."""
    rng = np.random.default_rng(0)
    prompt, limit = config.data.max_prompt_tokens, config.rollout.max_response_tokens
    wanted, groups, total = options["tokens"] * options["micro_batches"], [], 0
    while total < wanted:
        lengths = rng.integers(max(1, limit // 2), limit + 1, 8).tolist()
        answers = [
            Completion(
                token_ids=rng.integers(2, vocabulary, n),
                logp_behavior=np.full(n, -np.log(vocabulary), np.float32),
                text="",
                finish_reason="length",
                policy_version=0,
            )
            for n in lengths
        ]
        groups.append(
            RolloutGroup(len(groups), rng.integers(2, vocabulary, prompt), tuple(answers))
        )
        total += sum(lengths) + 8 * prompt
    rewards = [np.arange(8, dtype=np.float32) % 2 for _ in groups]
    advantages = torch.from_numpy(np.concatenate(rewards) - 0.5)
    packed = pack_rollouts(groups, rewards)
    return TrainingBatch(packed, advantages, torch.ones_like(advantages, dtype=torch.bool))


def learner(config: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Optimizer steps: seconds, tokens a second, share of the arithmetic, peak memory, and how
    often one makes the host wait."""
    group = launch.start()
    peaks = Peaks(group.device)
    policy = Policy(config, group)
    peaks.note("build")
    learns = Learner(policy, None, config, group)
    vocabulary = policy.causal_lm.config.vocab_size
    batch = random_batch(options, config, vocabulary)
    rate = [config.optimizer.learning_rate]
    learns.update(batch, rate)
    peaks.take()
    took = [timed(learns.update, batch, rate) for _ in range(options["updates"])]
    peaks.note("learner")
    held = {name: round(size / GIB, 3) for name, size in peaks.take().items()}
    median, update = statistics.median(seconds for seconds, _ in took), took[-1][1]
    found = {
        "tokens": update.tokens,
        "micro_batches": update.metrics["micro_batches"],
        "update_seconds": round(median, 4),
        "tokens_per_second": round(update.tokens / median, 1),
        "memory_gib": held,
        "grad_norm": float(f"{update.metrics['grad_norm']:.4g}"),
    }
    if arithmetic := Arithmetic.of(config, group.device):
        found["mfu"] = round(arithmetic.used(update, median, 1), 4)
    if group.device.type == "cuda":
        found["host_waits_of_an_update"] = count_syncs(lambda: learns.update(batch, rate))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("kind", choices=("model", "sampler", "learner"))
    parser.add_argument("--options", type=json.loads, default={}, help="sizes, as JSON")
    parser.add_argument("--shape", type=json.loads, help="model: fields of its config.json")
    parser.add_argument("--out", type=Path, help="model: where it goes")
    parser.add_argument("--config", help="learner: a recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    if arguments.kind == "model":
        result = make_model(arguments.shape, arguments.out)
    elif arguments.kind == "sampler":
        result = sampler(arguments.options)
    else:
        result = learner(load_config(arguments.config, arguments.overrides), arguments.options)
    print(json.dumps(result), flush=True)
    if arguments.kind != "model":
        launch.stop()
    return 0


if __name__ == "__main__":
    run_and_exit(main)
