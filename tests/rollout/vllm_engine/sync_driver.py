"""One rank of ZeRO-3: weights change, the sync is left incomplete in one way after another, and
the probe must notice each.

RANK=0 WORLD_SIZE=2 ... python tests/rollout/vllm_engine/sync_driver.py OUT_DIR CONFIG key=value ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor

from cero_rl.config import load_config
from cero_rl.data.pool import load_data
from cero_rl.errors import EngineError
from cero_rl.job.process import run_and_exit
from cero_rl.job.watchdog import Watchdog
from cero_rl.models.load import load_tokenizer
from cero_rl.rollout.engines.build import build_rollout_engine
from cero_rl.rollout.engines.choose import choose_engine
from cero_rl.train.weight_sync import WeightSync
from cero_rl.zero import launch
from cero_rl.zero.policy import Policy


def main() -> int:
    out, path, *overrides = Path(sys.argv[1]), sys.argv[2], *sys.argv[3:]
    group = launch.start(timeout_seconds=300)
    config = choose_engine(load_config(path, overrides), on_gpu=False)
    tokenizer = load_tokenizer(config.model.path)
    policy = Policy(config, group)
    engine: Any = build_rollout_engine(config, tokenizer, group)
    prompts = load_data(config, tokenizer).train.tokens
    weights = WeightSync(policy, engine, prompts, config, group, Watchdog(300.0))
    found: dict[str, Any] = {}
    version = 0

    def learn() -> None:
        """Another set of weights, the same on every rank."""
        torch.manual_seed(version)
        parameters = [p for _, p in policy.named_parameters()]
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0), torch.no_grad():
            for p in parameters:
                p.add_(torch.randn_like(p) * 0.05) if group.rank == 0 else None

    def push(name: str) -> None:
        nonlocal version
        version += 1
        learn()
        try:
            found[name] = weights.push(version)
        except EngineError as error:
            found[name] = str(error)

    push("whole")
    if config.rollout.engine == "vllm":
        llm = engine.engine._llm
        reset = llm.reset_prefix_cache
        llm.reset_prefix_cache = lambda: True
        push("stale_cache")
        llm.reset_prefix_cache = reset
        push("after_stale_cache")
    if config.rollout.engine == "vllm" and not config.lora.adapter_only:
        call = llm.collective_rpc
        llm.collective_rpc = lambda method, **kw: (
            None if method == "finish_reload" else call(method, **kw)
        )
        push("stale_head")
        llm.collective_rpc = call
        push("after_stale_head")
    inner = engine.engine
    load = inner.load_weights

    def keep_old(named: Iterable[tuple[str, Tensor]], version: int) -> None:
        for _ in named:
            pass
        inner.version = version

    inner.load_weights = keep_old
    push("old_weights")

    def old_version(named: Iterable[tuple[str, Tensor]], version: int) -> None:
        load(named, version)
        inner.version = version - 1

    inner.load_weights = old_version
    push("old_version")

    # on one rank only; the others' weights are right
    def misnamed(named: Iterable[tuple[str, Tensor]], version: int) -> None:
        load(
            ((f"{name}.odd" if group.rank == 0 else name, tensor) for name, tensor in named),
            version,
        )

    inner.load_weights = misnamed
    push("misnamed")  # last: vLLM cannot use an engine whose reload broke off
    (out / f"rank{group.rank}.json").write_text(json.dumps(found))
    launch.stop()
    return 0


if __name__ == "__main__":
    run_and_exit(main)
