"""TRL's GRPOTrainer as a contender of bench_peers.py, with a meter in its loop.

python tools/peer_trl.py SPEC    (a JSON file that bench_peers.py writes)

The objective is that of cero_rl's `grpo`: the mean over rollouts of the mean over tokens of the
clipped ratio times the standardised advantage, no KL, one pass. `settings` are fields of
GRPOConfig.
"""

from __future__ import annotations

# pyright: reportMissingImports=false, reportPrivateImportUsage=false
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peer_reward
import torch
from datasets import Dataset, disable_progress_bars
from peer_meter import NEVER, OWN_END, Meter
from transformers import PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig, GRPOTrainer

STEPS = 100_000  # more than will be asked for


class Metered(GRPOTrainer):
    """The trainer, told apart by phase."""

    meter: Meter

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **keywords: Any) -> Any:
        produced = super()._generate_single_turn(prompt_ids, *rest, **keywords)
        self.meter.count(generated_tokens=sum(len(ids) for ids in produced[0]))
        return produced

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **keywords: Any) -> Any:
        trained, prompt = inputs["completion_mask"], inputs["prompt_mask"]
        self.meter.count(
            trained_tokens=int(trained.sum()),
            forwarded_tokens=int(trained.sum() + prompt.sum()),
            padded_tokens=trained.numel() + prompt.numel(),
        )
        return super().compute_loss(model, inputs, *rest, **keywords)


class Turns(TrainerCallback):
    """Start-up is over when training begins; each optimizer step waits for the parent."""

    def __init__(self, trainer: Metered) -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **keywords):
        trainer, meter = self.trainer, self.trainer.meter
        whole: Any = trainer
        accelerator: Any = trainer.accelerator
        optimizer: Any = keywords["optimizer"]
        whole._generate_single_turn = meter.timed("generation", trainer._generate_single_turn)
        whole.compute_loss = meter.timed("training", trainer.compute_loss)
        accelerator.backward = meter.timed("training", accelerator.backward)
        clip = meter.timed("training", accelerator.clip_grad_norm_)

        def clip_and_count(*arguments: Any, **more: Any) -> Any:
            norm = clip(*arguments, **more)
            meter.count(grad_norm=float(norm))
            return norm

        accelerator.clip_grad_norm_ = clip_and_count
        optimizer.step = meter.timed("training", optimizer.step)
        meter.ready()

    def on_step_end(self, args, state, control, **keywords):
        rewards = self.trainer._metrics["train"]["reward"]
        self.trainer.meter.count(reward=float(rewards[-1]))
        self.trainer.meter.step_done()


def configuration(spec: dict[str, Any], out: str) -> GRPOConfig:
    weights = "bfloat16" if spec["dtype"] == "bfloat16" else "float32"
    settings = {"model_init_kwargs": {"dtype": weights}, **spec["settings"]}
    return GRPOConfig(
        output_dir=out,
        num_generations=spec["rollouts"],
        max_completion_length=spec["response_tokens"],
        max_steps=STEPS,
        loss_type="grpo",
        beta=0.0,
        num_iterations=1,
        epsilon=0.2,
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=spec["dtype"] == "bfloat16",
        use_cpu=True,
        logging_steps=STEPS,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        seed=0,
        **settings,
    )


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    meter = Meter()
    torch.set_num_threads(spec["threads"])
    disable_progress_bar()
    disable_progress_bars()
    rows = [json.loads(line) for line in Path(spec["data"]).read_text().splitlines()]
    reward = getattr(peer_reward, spec["reward"])
    with tempfile.TemporaryDirectory() as out:
        trainer = Metered(spec["model"], reward, configuration(spec, out), Dataset.from_list(rows))
        trainer.meter = meter
        if OWN_END not in os.environ:
            trainer.eos_token_ids = [NEVER]
            trainer.generation_config.eos_token_id = [NEVER]
            trainer.generation_kwargs["eos_token_id"] = [NEVER]
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Turns(trainer))
        trainer.train()


if __name__ == "__main__":
    main()
