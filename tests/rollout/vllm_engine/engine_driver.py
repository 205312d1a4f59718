"""One rank: what a real engine answers, written as JSON for test_engine.py to judge.

RANK=0 WORLD_SIZE=2 ... python tests/rollout/vllm_engine/engine_driver.py OUT_DIR MODEL_DIR
TENSOR_PARALLEL
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cero_rl.config.data import DataConfig
from cero_rl.config.reward import RewardConfig
from cero_rl.config.rollout import RolloutConfig
from cero_rl.data.prompts import make_prompt
from cero_rl.environments.pool import EnvironmentPool
from cero_rl.job.process import run_and_exit
from cero_rl.models.load import load_model, load_tokenizer
from cero_rl.rollout.engines.vllm import VllmEngine, VllmSettings
from cero_rl.rollout.episodes import EpisodeEngine
from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.rollout.turns import TurnWriter
from cero_rl.types import RolloutGroup
from cero_rl.zero import launch

ROOT = Path(__file__).resolve().parents[3]
SIZES = (1, 5, 2, 3)


def make_requests() -> list[RolloutRequest]:
    """Ragged groups; the last prompt is longer than a block of the prefix cache."""
    rng = np.random.default_rng(0)
    lengths = (3, 12, 7, 200)
    return [
        RolloutRequest(10 + i, rng.integers(2, 12, m), n, stream_key=1000 + i)
        for i, (m, n) in enumerate(zip(lengths, SIZES))
    ]


def episodes(engine: Any, tokenizer: Any) -> list[RolloutGroup]:
    """Conversations of up to three turns with an environment, on any engine."""
    rollout = RolloutConfig(
        environment=f"{ROOT}/tests/environments/examples.py:Talk",
        max_turns=3,
        max_turn_tokens=8,
        max_response_tokens=24,
    )
    task = make_prompt("1234", "5", "", {"script": ["567", "89"]})
    around = EpisodeEngine(
        engine,
        EnvironmentPool(rollout, RewardConfig(workers=1)),
        TurnWriter(
            tokenizer, DataConfig(source="-", chat_template="never"), [tokenizer.eos_token_id]
        ),
        partial(tokenizer.decode, skip_special_tokens=True),
        rollout,
        seed=7,
    )
    requests = [
        RolloutRequest(i, np.arange(2, 6 + i), 8, stream_key=70 + i, task=task) for i in range(3)
    ]
    try:
        return around.generate(requests, stream=1, temperature=1.0)
    finally:
        around.close()


def gap(model: Any, groups: list[RolloutGroup], temperature: float) -> float:
    """Largest |log-prob difference| to plain transformers, one sequence at a time, on what was
    sampled."""
    worst = 0.0
    for group in groups:
        for c in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt_tokens, c.token_ids]))
            with torch.no_grad():
                logits = (
                    model(ids[None]).logits[0, len(group.prompt_tokens) - 1 : -1].float()
                    / temperature
                )
            logp = (
                torch.log_softmax(logits, -1)
                .gather(-1, torch.from_numpy(c.token_ids)[:, None])
                .squeeze(1)
            )
            apart = (logp - torch.from_numpy(c.logp_behavior)).abs()
            worst = max(worst, float(apart[torch.from_numpy(c.trains)].max()))
    return worst


def plain(groups: list[RolloutGroup]) -> list[Any]:
    return [
        [
            g.prompt_id,
            [
                [c.token_ids.tolist(), c.finish_reason, c.text, c.policy_version]
                for c in g.completions
            ],
        ]
        for g in groups
    ]


def main() -> int:
    out, path, parallel = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    group = launch.start(timeout_seconds=300)
    tokenizer = load_tokenizer(path)
    settings = VllmSettings(
        dtype="float32",
        max_model_tokens=256,
        max_response_tokens=24,
        max_sequences=16,
        gpu_memory_fraction=0.5,
        kv_cache_memory_bytes=2**26,
        tensor_parallel=parallel,
        sleep=True,
        seed=7,
        further={"max_num_batched_tokens": 2048},
    )
    engine = VllmEngine(
        path,
        settings,
        eos_token_ids=[tokenizer.eos_token_id],
        decode=partial(tokenizer.decode, skip_special_tokens=True),
        group=group,
    )
    requests, model = make_requests(), load_model(path, "float32", "sdpa")
    found: dict[str, Any] = {}

    whole = engine.generate(requests, stream=1, temperature=1.0)
    found["whole"] = plain(whole)
    found["again"] = plain(engine.generate(requests, stream=1, temperature=1.0))
    found["alone"] = plain(
        [engine.generate([r], stream=1, temperature=1.0)[0] for r in reversed(requests)][::-1]
    )
    wave = [
        RolloutRequest(r.prompt_id, r.prompt_tokens, 2, r.stream_key, first_draw=3)
        for r in requests
    ]
    found["later_wave"] = plain(engine.generate(wave, stream=1, temperature=1.0))
    found["other_stream"] = plain(engine.generate(requests, stream=2, temperature=1.0))
    cut = engine.generate(requests, stream=1, temperature=1.0, max_tokens=2)
    found["cut"] = plain(cut)
    cool = engine.generate(requests, stream=1, temperature=0.6)
    found["gaps"] = [gap(model, whole, 1.0), gap(model, cool, 0.6)]
    found["wrong_temperature_gap"] = gap(model, cool, 1.0)
    # a rank without groups takes part all the same
    found["nothing"] = plain(
        engine.generate(requests[:1] if group.rank else [], stream=1, temperature=1.0)
    )
    if parallel == 1:
        talks = episodes(engine, tokenizer)
        found["episodes"] = plain(talks)
        found["turns"] = [c.episode.turns for g in talks for c in g.completions if c.episode]
        found["gaps"].append(gap(model, talks, 1.0))
    engine.sleep()  # no-op here
    found["after_sleep"] = plain(engine.generate(requests[:1], stream=1, temperature=1.0))
    (out / f"rank{group.rank}-tp{parallel}.json").write_text(json.dumps(found))
    launch.stop()
    return 0


if __name__ == "__main__":
    run_and_exit(main)
