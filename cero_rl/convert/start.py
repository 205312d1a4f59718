"""Any Hugging Face directory into a clean start model for training: safetensors, one dtype, a
tokenizer that has what training needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from cero_rl.convert.safetensors_io import open_safetensors, read_json, shard_files
from cero_rl.convert.weights import Spec, Weights
from cero_rl.convert.zero import Fragment, fragment_of, load_restricted
from cero_rl.errors import CheckpointError, first_line
from cero_rl.models.load import without_loading_notes

_BIN_INDEX = "pytorch_model.bin.index.json"


def open_model(directory: Path, *, allow_pickle: bool) -> Weights:
    """The tensors of safetensors files, or with `allow_pickle` of pytorch_model*.bin through
    torch's restricted loader."""
    if files := shard_files(directory):
        return open_safetensors(*files)
    bins = _bin_files(directory)
    if not bins:
        raise CheckpointError(
            f"{directory}: no model.safetensors and no pytorch_model.bin; wanted the "
            "weights of a Hugging Face model"
        )
    if not allow_pickle:
        raise CheckpointError(
            f"{bins[0]}: is a pickle; give --allow-pickle to read it (its tensors only: no "
            "code in it is run)"
        )
    places: dict[str, tuple[Fragment, Spec]] = {}
    for path in bins:
        for name, tensor in load_restricted(path).items():
            if not isinstance(tensor, Tensor):
                raise CheckpointError(f"{path}: {name} is no tensor; wanted a state dict")
            if not tensor.is_contiguous():
                raise CheckpointError(
                    f"{path}: {name} is stored transposed or strided, which is not "
                    "supported; save it contiguous"
                )
            places[name] = (
                fragment_of(path, tensor.view(-1), 0, math.prod(tensor.shape)),
                Spec(tensor.dtype, tuple(tensor.shape)),
            )
    return Weights(
        {n: spec for n, (_, spec) in places.items()}, lambda name: places[name][0].pieces()
    )


def _bin_files(directory: Path) -> list[Path]:
    index = directory / _BIN_INDEX
    if not index.exists():
        single = directory / "pytorch_model.bin"
        return [single] if single.is_file() else []
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    for name in names:
        if (
            not isinstance(name, str)
            or len(PurePosixPath(name).parts) != 1
            or name == ".."
            or (directory / name).is_symlink()
        ):
            raise CheckpointError(
                f"{index}: the entry {name!r} is no plain file in the same directory; refused"
            )
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory / name}: missing, but {index.name} names it")
    return [directory / name for name in names]


def write_tokenizer(
    source: Path, target: Path, vocabulary: int, pad_token: str | None, say: Callable[[str], None]
) -> None:
    """Load the tokenizer, check it against the model and save it. Raises CheckpointError where
    training could not use it."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{source}: no tokenizer could be loaded ({reason})") from None
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"{source}: the tokenizer has no end-of-sequence token; set eos_token in its "
            "tokenizer_config.json"
        )
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, the model has vocab_size "
            f"{vocabulary}; they do not fit"
        )
    if pad_token is not None:
        if tokenizer.convert_tokens_to_ids(pad_token) in (None, tokenizer.unk_token_id):
            raise CheckpointError(
                f"--pad-token {pad_token!r}: no token of this tokenizer; choose one that it has"
            )
        tokenizer.pad_token = pad_token
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        say(
            f"  the tokenizer had no padding token; it is now {tokenizer.eos_token!r} "
            "(choose another with --pad-token)"
        )
    if not tokenizer.chat_template:
        say(
            "  the tokenizer has no chat template: prompts are plain text, set "
            "data.chat_template: never"
        )
    without_loading_notes(tokenizer).save_pretrained(target)
