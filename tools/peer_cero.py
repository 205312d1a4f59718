"""cero_rl as a contender of bench_peers.py: the shipped training command, with a meter in its loop.

python tools/peer_cero.py --config FILE --set KEY=VALUE ...
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from peer_meter import NEVER, OWN_END, Meter

from cero_rl.job.process import run_and_exit


def main() -> int:
    from cero_rl.commands.training import train_main
    from cero_rl.rollout.engines import build
    from cero_rl.train import loop
    from cero_rl.zero import launch

    launch.prepare_environment()
    meter = Meter()

    class Metered(loop.Trainer):
        """The trainer, told apart by phase; each turn of its loop waits for the parent."""

        def train(self) -> int:
            sampler: Any = self.engine.engine
            sampler.generate = meter.timed("generation", sampler.generate)
            sync: Any = self.weights
            sync.push = meter.timed("sync", sync.push)
            learner: Any = self.learner
            learner.update = meter.timed("training", learner.update)
            meter.ready()
            return super().train()

        def update(self, batch: Any) -> Any:
            packed, lengths = batch.packed, batch.packed.cu_seqlens.diff()
            forwarded = torch.repeat_interleave(batch.signal, lengths)
            meter.count(
                generated_tokens=int(packed.loss_mask.sum()),
                trained_tokens=int((packed.loss_mask & forwarded).sum()),
                forwarded_tokens=int(forwarded.sum()),
                reward=float(packed.rewards.mean()),
            )
            result = super().update(batch)
            meter.count(grad_norm=result.metrics["grad_norm"])
            return result

        def save(self, *arguments: Any, **keywords: Any) -> None:
            super().save(*arguments, **keywords)
            meter.step_done()

    if OWN_END not in os.environ:
        ends = [] if "rollout.engine=vllm" in sys.argv else [NEVER]  # vLLM refuses unknown ids
        build._eos_token_ids = lambda generation, tokenizer: ends
    loop.Trainer = Metered  # what the command builds
    return train_main()


if __name__ == "__main__":
    run_and_exit(main)
