"""One rank: for each model directory one optimizer step in a real engine, its DeepSpeed files and
its export.

architectures_driver.py OUT STAGE DTYPE MODEL_DIRECTORY ...
    OUT/NAME/zero/   OUT/NAME/export/   OUT/NAME/masters.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from cero_rl.checkpoint.export import export_model
from cero_rl.config import load_config
from cero_rl.job.process import run_and_exit
from cero_rl.models.load import load_tokenizer
from cero_rl.zero import launch
from cero_rl.zero.policy import Policy

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    out, stage, dtype, *models = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    group = launch.start()
    for path in map(Path, models):
        settings = [f"model.path={path}", f"model.dtype={dtype}", f"zero.stage={stage}"]
        config = load_config(ROOT / "recipes/digits_cpu.yaml", settings)
        policy = Policy(config, group)
        tokens, mask = torch.arange(2, 18), torch.arange(16) > 4
        ends = torch.tensor([0, 16], dtype=torch.int32)
        logp, _ = policy.engine(tokens, torch.arange(16), ends, mask, 11, 16, 1, False)
        policy.backward(-logp.sum())
        assert policy.step(1e-6).applied
        run = Path(out) / path.name
        run.mkdir(parents=True)
        policy.engine.save_checkpoint(str(run), tag="zero", save_latest=False)
        export_model(policy, load_tokenizer(str(path)), run, config, group)
        if stage == "0" and dtype == "bfloat16":
            masters = [m for each in policy.engine.optimizer.fp32_groups for m in each]
            named = [name for name, _ in policy.causal_lm.named_parameters()]
            held = {n: m.detach().clone() for n, m in zip(named, masters, strict=True)}
            save_file(held, run / "masters.safetensors")
    launch.stop()
    return 0


if __name__ == "__main__":
    run_and_exit(main)
