"""Under the deepspeed launcher: DeepSpeed's own engine loads a universal checkpoint; rank 0 prints
hashes of what it then holds, and what `load_shards` says of a checkpoint with a program in it that
nobody scanned beforehand.

universal_driver.py CHECKPOINT STAGE OUT_FILE SPOILED_CHECKPOINT
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from cero_rl.config import load_config
from cero_rl.errors import CheckpointError
from cero_rl.job.process import run_and_exit
from cero_rl.zero import launch

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    checkpoint, stage, out, spoiled = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    config = load_config(
        ROOT / "recipes/digits_cpu.yaml",
        [f"zero.stage={stage}", f"model.path={ROOT / 'recipes/assets/tiny_digits'}"],
    )
    group = launch.start()
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    from cero_rl.models.load import load_model
    from cero_rl.models.logprob import PolicyModule
    from cero_rl.zero.deepspeed_config import policy_config
    from cero_rl.zero.shards import load_shards

    module = PolicyModule(load_model(config.model.path, "float32", "sdpa"))
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=list(module.parameters()),
        config=policy_config(config, group.world_size, universal=True),
    )
    loaded, _ = engine.load_checkpoint(checkpoint, tag="zero")
    assert loaded is not None
    found = {}
    for name, parameter in module.named_parameters():
        full = {"fp32": safe_get_full_fp32_param(parameter)}
        full |= {
            kind: safe_get_full_optimizer_state(parameter, kind)
            for kind in ("exp_avg", "exp_avg_sq")
        }
        found[name] = {
            kind: hashlib.sha256(
                t.detach().float().cpu().contiguous().numpy().tobytes()
            ).hexdigest()
            for kind, t in full.items()
        }
    said = ""
    try:
        load_shards(engine, Path(spoiled), "zero")
    except CheckpointError as error:
        said = str(error)
    if group.is_main:
        Path(out).write_text(
            json.dumps(
                {
                    "said": said,
                    "steps": engine.global_steps,
                    "lr": engine.optimizer.param_groups[0]["lr"],
                    "hashes": found,
                }
            )
        )
    launch.stop()
    return 0


if __name__ == "__main__":
    run_and_exit(main)
