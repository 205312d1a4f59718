"""The trained model as a save_pretrained directory: safetensors, tokenizer, generation config and a model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cero_rl.config import Config
from cero_rl.engine.models import Policy
from cero_rl.engine.runtime import Group
from cero_rl.engine.sync import full_state_dict

_CARD = """---
library_name: transformers
tags: [reinforcement-learning, cero_rl]
---
# {name}

Trained with cero_rl from `{start}`: {algorithm} on {rollouts} rollouts, allocated by `{scheduler}` (seed {seed}).
"""


def export_model(policy: Policy, tokenizer: Any, directory: Path, config: Config, group: Group) -> None:
    """Gather bucket by bucket to rank 0 and write there; replaces an earlier export only when the new one is complete."""
    weights = full_state_dict(policy.named_parameters(), keep=group.is_main)
    failed = None
    if group.is_main:
        try:
            fresh = directory.with_name(directory.name + ".tmp")
            shutil.rmtree(fresh, ignore_errors=True)
            policy.causal_lm.save_pretrained(fresh, state_dict=weights)
            tokenizer.save_pretrained(fresh)
            card = _CARD.format(
                name=config.name, start=config.model.path, algorithm=config.learner.algorithm,
                rollouts=config.budget.total_rollouts, scheduler=config.scheduler.name, seed=config.seed,
            )  # fmt: skip
            (fresh / "README.md").write_text(card)
            if directory.exists():
                shutil.rmtree(directory)
            fresh.rename(directory)
        except OSError as error:
            failed = str(error)
    group.agree(failed, f"export to {directory}")
