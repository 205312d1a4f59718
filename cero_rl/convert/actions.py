"""What each command of tools/convert.py does with its parsed arguments.

Sources are recognised and fitted first; what is written goes through `staged`, whole or not at all.
Raises CheckpointError for what is refused.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cero_rl.convert import (
    hf,
    lora,
    megatron,
    megatron_layout,
    reshard,
    run_checkpoint,
    start,
    verify,
)
from cero_rl.convert.inspect_directory import KINDS, describe, kind_of, require
from cero_rl.convert.output import staged
from cero_rl.convert.weights import DTYPES, Weights, cast, common_dtype
from cero_rl.convert.zero import ZeroCheckpoint, open_zero
from cero_rl.errors import CheckpointError

Arguments = argparse.Namespace


def _say(text: str) -> None:
    print(text, flush=True)


def _as(weights: Weights, dtype: str | None) -> Weights:
    return cast(weights, DTYPES[dtype]) if dtype else weights


def _write_hf(options: Arguments, weights: Weights, model: Path, card: str) -> None:
    with staged(options.out, force=options.force) as out:
        hf.write_model(
            out,
            hf.fit(weights, model, str(options.source)),
            model,
            card,
            options.max_shard_size,
            _say,
        )


def _open_checkpoint(
    options: Arguments, *, bare: bool
) -> tuple[run_checkpoint.Located, ZeroCheckpoint]:
    require(options.source, "zero")
    located = run_checkpoint.locate(options.source, bare=bare)
    return located, open_zero(located.zero)


def zero_to_hf(options: Arguments) -> None:
    located, zero = _open_checkpoint(options, bare=options.bare)
    adapter = lora.adapter_of(zero, located) if zero.is_adapter else None
    model = options.model or run_checkpoint.start_model(located)
    if model is None:
        raise CheckpointError(
            f"{options.source}: its start model was not found; name one with config.json "
            "and tokenizer: --model DIR"
        )
    dtype = DTYPES[options.dtype] if options.dtype else zero.model_dtype
    text = (
        f"{zero.header['global_steps']} optimizer steps from `{model.name}`; converted from a "
        f"ZeRO stage {zero.stage} checkpoint."
    )
    if adapter is None:
        weights = zero.weights()
    else:
        base = hf.cast_model(_open_fitted(model), zero.model_dtype, model)
        lora.require_base(base, model, located)
        # In the dtype of the run its export is wanted, which adds the matrices as they were sampled
        # with; in another one, the masters.
        weights = lora.merge(
            base, adapter.cast(dtype) if dtype == zero.model_dtype else adapter, exact=True
        )
        text += f" A LoRA adapter is merged in ({len(adapter.pairs)} modules)."
    with staged(options.out, force=options.force) as out:
        whole = hf.cast_model(weights, dtype, model)
        fitted = hf.fit(whole, model, str(options.source))
        title = hf.card(options.out.name, text)
        hf.write_model(out, fitted, model, title, options.max_shard_size, _say)
        hf.save_settings(model, dtype, out)


def zero_to_adapter(options: Arguments) -> None:
    # refused below without a manifest, for which --bare would be no remedy
    located, zero = _open_checkpoint(options, bare=True)
    if not zero.is_adapter:
        raise CheckpointError(
            f"{options.source}: holds all weights of the model and no LoRA adapter; use zero-to-hf"
        )
    adapter = lora.adapter_of(zero, located)
    base = adapter.config.get("base_model_name_or_path")
    text = (
        f"{zero.header['global_steps']} optimizer steps from `{base}`; converted from a ZeRO "
        f"stage {zero.stage} checkpoint."
    )
    with staged(options.out, force=options.force) as out:
        fitting = adapter.cast(DTYPES[options.dtype] if options.dtype else zero.model_dtype)
        lora.write_peft(out, fitting, hf.card(options.out.name, text, library="peft"))


def resharded(options: Arguments, ranks: int | None) -> None:
    """Universal where `ranks` is None."""
    located, zero = _open_checkpoint(options, bare=options.bare)
    with staged(options.out, force=options.force) as out:
        target = out if located.root is None else out / located.zero.relative_to(located.root)
        target.mkdir(parents=True, exist_ok=True)
        if ranks is None:
            reshard.write_universal(zero, target, _say)
            changes: dict[str, object] = {"universal": True}
        else:
            from cero_rl.zero.loss_scale import no_loss_scaling

            reshard.write_resharded(zero, ranks, target, no_loss_scaling, _say)
            changes = {"world_size": ranks, "resharded_from": zero.world_size}
        if located.root is None:  # no manifest says whose it is
            text = f"`{options.source.name}`, converted by {options.command}."
            (out / "README.md").write_text(hf.card(options.out.name, text, library="deepspeed"))
        if located.root is not None:
            reshard.write_surroundings(
                located, out, ranks or max(options.ranks, zero.world_size), changes
            )


def hf_to_start(options: Arguments) -> None:
    require(options.source, "huggingface")
    config = hf.read_config(options.source)
    held = start.open_model(options.source, allow_pickle=options.allow_pickle)
    # a buffer of old files
    specs = {
        name: spec for name, spec in held.specs.items() if not name.endswith(".rotary_emb.inv_freq")
    }
    weights = Weights(specs, held.pieces)
    dtype = DTYPES[options.dtype] if options.dtype else common_dtype(weights)
    whole = hf.cast_model(weights, dtype, options.source)
    fitted = hf.fit(whole, options.source, str(options.source))
    with staged(options.out, force=options.force) as out:
        text = hf.card(
            options.out.name, f"`{options.source.name}`, prepared for training with cero_rl."
        )
        hf.write_model(out, fitted, options.source, text, options.max_shard_size, _say)
        for name in (
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
        ):
            (out / name).unlink(missing_ok=True)
        start.write_tokenizer(options.source, out, config["vocab_size"], options.pad_token, _say)


def _open_fitted(directory: Path) -> Weights:
    return hf.fit(start.open_model(directory, allow_pickle=False), directory, str(directory))


def cast_model(options: Arguments) -> None:
    require(options.source, "huggingface")
    text = f"`{options.source.name}` in {options.dtype}."
    _write_hf(
        options,
        hf.cast_model(_open_fitted(options.source), DTYPES[options.dtype], options.source),
        options.source,
        hf.card(options.out.name, text),
    )


def megatron_export(options: Arguments) -> None:
    require(options.source, "huggingface")
    config = hf.read_config(options.source)
    shape = megatron_layout.shape_of(config, str(options.source))
    weights = _as(_open_fitted(options.source), options.dtype)
    with staged(options.out, force=options.force) as out:
        inner = out / f"iter_{options.iteration:07d}"
        inner.mkdir()
        megatron.write_megatron(
            weights,
            shape,
            inner,
            multiple=options.vocab_multiple,
            iteration=options.iteration,
            max_file_bytes=options.max_shard_size,
            report=_say,
        )
        (out / "latest_checkpointed_iteration.txt").write_text(str(options.iteration))
        text = f"`{options.source.name}` as a Megatron-core checkpoint."
        if (what := megatron_layout.unlaunchable(config)) is not None:
            text += f" No launch arguments: Megatron-LM has none for {what}."
            _say(f"warning: no megatron_args.txt: Megatron-LM has no argument for {what}")
        else:
            lines = megatron_layout.launch_arguments(shape, config, options.vocab_multiple)
            (out / "megatron_args.txt").write_text("\n".join(lines) + "\n")
        (out / "README.md").write_text(hf.card(options.out.name, text, library="megatron-core"))
        hf.copy_beside(options.source, out)


def megatron_import(options: Arguments) -> None:
    require(options.source, "megatron")
    shape = megatron_layout.shape_of(hf.read_config(options.model), str(options.model))
    weights = _as(
        megatron.megatron_weights(megatron.iteration_directory(options.source), shape),
        options.dtype,
    )
    text = (
        f"Imported from the Megatron-core checkpoint `{options.source.name}`, configuration and "
        f"tokenizer of `{options.model.name}`."
    )
    _write_hf(options, weights, options.model, hf.card(options.out.name, text))


def merge_lora(options: Arguments) -> None:
    require(options.source, "adapter")
    require(options.base, "huggingface")
    adapter = lora.read_adapter(options.source)
    weights = lora.merge(_open_fitted(options.base), adapter, exact=options.dtype is not None)
    text = (
        f"`{options.base.name}` with the LoRA adapter `{options.source.name}` merged in "
        f"({len(adapter.pairs)} modules)."
    )
    _write_hf(options, _as(weights, options.dtype), options.base, hf.card(options.out.name, text))


def inspect(options: Arguments) -> None:
    facts = describe(options.source)
    if options.json:
        _say(json.dumps(facts))
        return
    _say(
        f"{options.source}: "
        f"{KINDS[facts['kind']]}{' of a LoRA adapter' if 'lora_ranks' in facts else ''}"
    )
    for key, value in facts.items():
        if key not in ("directory", "kind"):
            _say(
                f"  {key:<20} {value:,}"
                if isinstance(value, int) and not isinstance(value, bool)
                else f"  {key:<20} {value}"
            )


def verify_directory(options: Arguments) -> None:
    kind = kind_of(options.source)
    if kind in ("zero", "universal"):
        located = run_checkpoint.locate(options.source, bare=False)
        assert located.manifest is not None
        _say(
            f"{options.source}: {len(located.manifest['files'])} files match the manifest's "
            "sizes and sha256"
        )
        return
    require(options.source, "huggingface")
    verify.compare(
        options.source,
        options.against,
        tokens=options.tokens,
        seed=options.seed,
        tolerance=options.tolerance,
        say=_say,
    )
