"""One rank of a drill: `python -m cero_rl.commands.doctor.peer collective | sync MODEL ENGINE`.
Answers with a JSON object, its last line.

What goes wrong ends the process with one line on stderr and exit status 6.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from typing import Any

import numpy as np

from cero_rl.errors import CeroError, EngineError, first_line
from cero_rl.job.process import run_and_exit

_MIB = 16
_REPEATS = 5


def collective() -> dict[str, Any]:
    """Sums of floats and counts and an exchange of texts, through the calls the loop uses; then the
    speed of a larger sum."""
    import torch
    import torch.distributed as dist

    from cero_rl.distributed.group import Group
    from cero_rl.distributed.rendezvous import join

    on_gpu, rank = torch.cuda.is_available(), int(os.environ["RANK"])
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    join("nccl" if on_gpu else "gloo", datetime.timedelta(seconds=30))
    group = Group(rank, dist.get_world_size(), device)
    wrong = ""
    if (sums := group.all_sum([rank + 1, 0.5])) != [3.0, 1.0]:
        wrong = f"a sum of 1 and 2, and of two halves, came out as {sums}"
    counts = group.sum_counts(np.array([2**53 + rank, rank], dtype=np.int64))
    if counts.tolist() != [2**54 + 1, 1]:
        wrong = wrong or f"a sum of large counts came out as {counts.tolist()}"
    if (texts := group.gather_json({"rank": rank, "text": "x" * rank})) != [
        {"rank": r, "text": "x" * r} for r in range(2)
    ]:
        wrong = wrong or f"an exchange of texts came out as {texts}"
    load = torch.ones(_MIB * 2**18, device=device)
    group.barrier()
    begun = time.perf_counter()
    for _ in range(_REPEATS):
        dist.all_reduce(load)
    group.barrier()
    rate = _MIB * _REPEATS / (time.perf_counter() - begun)
    if float(load[-1]) != 2.0**_REPEATS:
        wrong = wrong or f"{_REPEATS} sums over a tensor of ones came out as {float(load[-1])}"
    dist.destroy_process_group()
    return {"wrong": wrong, "mib_per_second": rate}


def sync(model: str, engine_name: str) -> dict[str, Any]:
    """Noise into the sampler, then the learner's weights; the gap between the two before and
    after."""
    import torch

    from cero_rl.config.io import build_config
    from cero_rl.job.watchdog import Watchdog
    from cero_rl.models.load import load_tokenizer
    from cero_rl.rollout.engines.build import build_rollout_engine
    from cero_rl.train.weight_sync import WeightSync
    from cero_rl.zero import launch
    from cero_rl.zero.gather import full_weights
    from cero_rl.zero.policy import Policy

    settings = {
        "name": "doctor",
        "model": {"path": model, "dtype": "float32"},
        "data": {"source": "none", "max_prompt_tokens": 24},
        "rollout": {"engine": engine_name, "max_response_tokens": 12},
        "scheduler": {"rounds": 1},
        "budget": {"total_rollouts": 8},
    }
    group = launch.start(120.0)
    tight = build_config(settings, "doctor")
    open_bound = build_config(
        {**settings, "rollout": {**settings["rollout"], "parity_bound": 1e9}}, "doctor"
    )
    tokenizer = load_tokenizer(model)
    policy, engine = Policy(tight, group), build_rollout_engine(tight, tokenizer, group)
    prompts = [np.array(tokenizer.encode(text), dtype=np.int64) for text in ("12", "3456")]
    generator = torch.Generator().manual_seed(0)

    class Noisy:
        """The sampler, given noise in place of the weights it is told to load."""

        def load_weights(self, weights: Any, version: int) -> None:
            noise = (
                (name, torch.randn(w.shape, generator=generator).to(w) * 0.1)
                for name, w in full_weights(policy.sampled_weights())
            )
            for _ in weights:  # a collective that must be worked through
                pass
            engine.load_weights(noise, version)

        generate = engine.generate

    noisy: Any = Noisy()
    with Watchdog(120.0) as watchdog:
        shaken = WeightSync(policy, noisy, prompts, open_bound, group, watchdog)
        before = shaken.push(1)["parity/gap"]
        right = WeightSync(policy, engine, prompts, tight, group, watchdog)
        after = right.push(2)["parity/gap"]
    if not before > 10 * tight.parity_bound:
        raise EngineError(
            f"the probe does not tell noise from the learner's weights (gap {before:.3g})"
        )
    launch.stop()
    return {"gap_before": before, "gap_after": after}


def main() -> int:
    try:
        answer = collective() if sys.argv[1] == "collective" else sync(*sys.argv[2:4])
    except (CeroError, RuntimeError, OSError) as error:
        print(first_line(error), file=sys.stderr)
        return EngineError.exit_code
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    run_and_exit(main)
