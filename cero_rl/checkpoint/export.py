"""The trained model as a save_pretrained directory: safetensors, tokenizer, generation config,
model card; a LoRA adapter beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cero_rl.config import Config
from cero_rl.distributed.group import Group
from cero_rl.errors import EngineError, first_line
from cero_rl.files.lora_adapter import stored_name, write_adapter
from cero_rl.models.generation import exportable_generation_config
from cero_rl.zero.gather import full_state_dict
from cero_rl.zero.policy import Policy

_CARD = """---
library_name: {library}
tags: [reinforcement-learning, cero_rl]
---
# {name}

Trained with cero_rl from `{start}`: {algorithm} on {rollouts} rollouts,
allocated by `{scheduler}` (seed {seed}).
"""


def export_model(
    policy: Policy, tokenizer: Any, run_dir: Path, config: Config, group: Group
) -> str:
    """Write RUN/export, and RUN/adapter for a policy with LoRA; returns where they are, for the
    user. A collective.

    Gathers bucket by bucket to rank 0; replaces an earlier export only when the new one is
    complete. Raises EngineError on all ranks.
    """
    weights, note = full_state_dict(policy.weights(), keep=group.is_main), ""
    where = f"model in {run_dir / 'export'}"
    if (adapter := policy.adapter) is not None:
        note = (
            f"\nA LoRA adapter of rank {config.lora.rank} is merged in. Rounding the sum to "
            f"{config.model.dtype} cost {adapter.merge_loss():.1%} of what the adapter adds "
            "(2-norms); the adapter itself was written beside this directory.\n"
        )
        matrices = {
            stored_name(name): t
            for name, t in full_state_dict(adapter.weights(), keep=group.is_main).items()
        }

        def write_beside(fresh: Path) -> None:
            fresh.mkdir(parents=True)
            write_adapter(fresh, matrices, adapter.file_config(config.model.path))
            (fresh / "README.md").write_text(_card(config, "peft"))

        _replace(run_dir / "adapter", write_beside, group)
        where += f", its LoRA adapter in {run_dir / 'adapter'}"

    def write(fresh: Path) -> None:
        model = policy.causal_lm
        generation = exportable_generation_config(model.generation_config, config.model.path)[0]
        model.generation_config = generation
        model.save_pretrained(fresh, state_dict=weights)
        tokenizer.save_pretrained(fresh)
        (fresh / "README.md").write_text(_card(config, "transformers") + note)

    _replace(run_dir / "export", write, group)
    return where


def _replace(directory: Path, write: Callable[[Path], None], group: Group) -> None:
    """Have rank 0 write a directory that takes the other's place once it is complete. Raises
    EngineError on all ranks."""

    def replace() -> None:
        if not group.is_main:
            return
        fresh = directory.with_name(directory.name + ".tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            write(fresh)
            if directory.exists():
                shutil.rmtree(directory)
            fresh.rename(directory)
        # safetensors reports a full disk by a class of its own
        except Exception as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise EngineError(
                f"{type(error).__name__}: {first_line(error)}; the checkpoint of the last step is "
                "whole: make room, then --resume auto exports, or tools/convert.py zero-to-hf"
            ) from error

    group.together(f"export to {directory}", replace)


def _card(config: Config, library: str) -> str:
    return _CARD.format(
        library=library,
        name=config.name,
        start=config.model.path,
        algorithm=config.learner.algorithm,
        rollouts=config.budget.total_rollouts,
        scheduler=config.scheduler.name,
        seed=config.seed,
    )
