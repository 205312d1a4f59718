"""Is a converted model the same model? Loads directories with transformers and compares what they
compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cero_rl.convert.hf import fit
from cero_rl.convert.layout import layout_of
from cero_rl.convert.safetensors_io import open_safetensors, shard_files
from cero_rl.errors import CheckpointError, first_line

Say = Callable[[str], None]


def load(directory: Path) -> Any:
    """The model as a user gets it. Raises CheckpointError where a tensor is missing, left over, or
    a tie was not restored."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    fit(open_safetensors(*shard_files(directory)), directory, str(directory))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype="auto",
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        model, info = loaded
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory}: transformers cannot load it ({first_line(error)})"
        ) from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):
            raise CheckpointError(
                f"{directory}: {what.replace('_', ' ')} when loading: {sorted(info[what])[0]}"
            )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, stored in layout_of(directory).tied.items():
        if parameters[name] is not parameters[stored]:
            raise CheckpointError(f"{directory}: {name} is not tied to {stored} after loading")
    return model.eval()


@torch.no_grad()
def logits(model: Any, tokens: int, seed: int) -> torch.Tensor:
    """[tokens, vocabulary] in float32, on tokens drawn from the vocabulary by the seed. Raises
    CheckpointError for more tokens than the model has positions."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and tokens > longest:
        raise CheckpointError(
            f"--tokens: got {tokens}, but the model has {longest} positions; give at most as many"
        )
    ids = torch.randint(
        model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(seed)
    )
    return model(ids).logits[0].float()


def compare(
    directory: Path, against: Path | None, *, tokens: int, seed: int, tolerance: float, say: Say
) -> None:
    """Raises CheckpointError where the two answer differently by more than `tolerance` (largest
    logit difference)."""
    model = load(directory)
    first = logits(model, tokens, seed)
    if not torch.isfinite(first).all():
        raise CheckpointError(f"{directory}: logits are not finite")
    tied = len(layout_of(directory).tied)
    say(
        f"{directory}: loads, {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{tied} tied name(s) restored, logits finite"
    )
    if against is None:
        return
    del model
    second = logits(load(against), tokens, seed)
    if first.shape != second.shape:
        raise CheckpointError(
            f"{against}: {second.shape[1]} logits a token, {directory} has "
            f"{first.shape[1]}; not the same model"
        )
    gap = float((first - second).abs().max())
    if not gap <= tolerance:
        raise CheckpointError(
            f"{directory} and {against}: logits differ by up to {gap:.3g} on {tokens} "
            f"tokens, allowed {tolerance:g}"
        )
    say(f"{against}: logits differ by at most {gap:.3g} on {tokens} tokens (allowed {tolerance:g})")
