"""Checkpoints into other layouts, and what a directory holds: `python tools/convert.py COMMAND
--help`, docs/tools.md.

Every command reads a piece at a time, writes into a temporary directory that is renamed at the
end, and refuses what it does not know. Exit codes: 0 done, 2 wrong arguments, 4 a checkpoint
that is refused; --debug shows the traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # a conversion needs no GPU
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from cero_rl.config.paths import path_argument
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
from cero_rl.convert.output import refuse_full, staged
from cero_rl.convert.weights import DTYPES, Weights, cast
from cero_rl.convert.zero import ZeroCheckpoint, open_zero
from cero_rl.errors import CeroError, CheckpointError

Arguments = argparse.Namespace


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _say(text: str) -> None:
    print(text, flush=True)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(KB|MB|GB)", text)
    if not match or float(match.group(1)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for example 500MB or 5GB")
    return int(float(match.group(1)) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[match.group(2)])


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


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


def _zero_to_hf(options: Arguments) -> None:
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
        base = cast(_open_fitted(model), zero.model_dtype)
        lora.require_base(base, model, located)
        # In the dtype of the run its export is wanted, which adds the matrices as they were sampled
        # with; in another one, the masters.
        weights = lora.merge(
            base, adapter.cast(dtype) if dtype == zero.model_dtype else adapter, exact=True
        )
        text += f" A LoRA adapter is merged in ({len(adapter.pairs)} modules)."
    _write_hf(options, cast(weights, dtype), model, hf.card(options.out.name, text))


def _zero_to_adapter(options: Arguments) -> None:
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


def _resharded(options: Arguments, ranks: int | None) -> None:
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


def _hf_to_start(options: Arguments) -> None:
    require(options.source, "huggingface")
    config = hf.read_config(options.source)
    held = start.open_model(options.source, allow_pickle=options.allow_pickle)
    # a buffer of old files
    specs = {
        name: spec for name, spec in held.specs.items() if not name.endswith(".rotary_emb.inv_freq")
    }
    weights = Weights(specs, held.pieces)
    dtype = DTYPES[options.dtype] if options.dtype else start.common_dtype(weights)
    fitted = hf.fit(cast(weights, dtype), options.source, str(options.source))
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


def _cast(options: Arguments) -> None:
    require(options.source, "huggingface")
    text = f"`{options.source.name}` in {options.dtype}."
    _write_hf(
        options,
        cast(_open_fitted(options.source), DTYPES[options.dtype]),
        options.source,
        hf.card(options.out.name, text),
    )


def _megatron_export(options: Arguments) -> None:
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
        (out / "README.md").write_text(hf.card(options.out.name, text, library="megatron-core"))
        (out / "megatron_args.txt").write_text(
            "\n".join(megatron_layout.launch_arguments(shape, config, options.vocab_multiple))
            + "\n"
        )
        hf.copy_beside(options.source, out)


def _megatron_import(options: Arguments) -> None:
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


def _merge_lora(options: Arguments) -> None:
    require(options.source, "adapter")
    require(options.base, "huggingface")
    adapter = lora.read_adapter(options.source)
    weights = lora.merge(_open_fitted(options.base), adapter, exact=options.dtype is not None)
    text = (
        f"`{options.base.name}` with the LoRA adapter `{options.source.name}` merged in "
        f"({len(adapter.pairs)} modules)."
    )
    _write_hf(options, _as(weights, options.dtype), options.base, hf.card(options.out.name, text))


def _inspect(options: Arguments) -> None:
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


def _verify(options: Arguments) -> None:
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="convert.py",
        description="Checkpoints into other layouts; docs/tools.md has examples.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, about: str, action: Callable[[Arguments], None], source: str, *, out: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        sub.add_argument("source", type=path_argument, metavar=source)
        if out:
            sub.add_argument(
                "--out",
                type=path_argument,
                required=True,
                metavar="DIR",
                help="directory to write; must be empty or new",
            )
            sub.add_argument(
                "--force",
                action="store_true",
                help="replace an earlier export or conversion in --out",
            )
        sub.add_argument("--debug", action="store_true", help="show a traceback with an error")
        sub.set_defaults(action=action)
        return sub

    def shards(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--max-shard-size",
            type=_size,
            default=5 * 10**9,
            metavar="SIZE",
            help="of a file, e.g. 500MB (default 5GB)",
        )

    def dtype(sub: argparse.ArgumentParser, default: str, *, required: bool = False) -> None:
        sub.add_argument(
            "--dtype",
            choices=sorted(DTYPES),
            required=required,
            help=f"of the written weights ({default})",
        )

    bare = "convert a DeepSpeed directory that no manifest vouches for"
    one = command(
        "zero-to-hf", "a run's ZeRO checkpoint to a Hugging Face model", _zero_to_hf, "CHECKPOINT"
    )
    about = "config, tokenizer and, for a LoRA run, base weights (default: the run's start model)"
    one.add_argument("--model", type=path_argument, metavar="DIR", help=about)
    one.add_argument("--bare", action="store_true", help=bare)
    shards(one)
    dtype(one, "default: that of the trained model")
    one = command(
        "zero-to-adapter",
        "a LoRA run's ZeRO checkpoint to a peft adapter",
        _zero_to_adapter,
        "CHECKPOINT",
    )
    dtype(one, "default: that of the trained model")
    about = "to DeepSpeed's universal layout, for any number of ranks"
    one = command("zero-to-universal", about, lambda o: _resharded(o, None), "CHECKPOINT")
    one.add_argument(
        "--ranks",
        type=_count,
        default=8,
        metavar="N",
        help="random states to provide, at least (default 8)",
    )
    one.add_argument("--bare", action="store_true", help=bare)
    one = command(
        "reshard",
        "a ZeRO-3 checkpoint for another number of ranks",
        lambda o: _resharded(o, o.ranks),
        "CHECKPOINT",
    )
    one.add_argument(
        "--ranks", type=_count, required=True, metavar="N", help="that will resume from it"
    )
    one.add_argument("--bare", action="store_true", help=bare)
    one = command(
        "hf-to-start", "a Hugging Face model to a clean start model", _hf_to_start, "MODEL"
    )
    one.add_argument(
        "--allow-pickle", action="store_true", help="read pytorch_model.bin, its tensors only"
    )
    one.add_argument(
        "--pad-token",
        metavar="TOKEN",
        help="padding token (default: the tokenizer's, or its end token)",
    )
    shards(one)
    dtype(one, "default: the one that most weights have")
    one = command("cast", "a model in another dtype", _cast, "MODEL")
    shards(one)
    dtype(one, "required", required=True)
    one = command(
        "megatron-export",
        "a Qwen3, Qwen2.5 or Llama model to Megatron-core's torch_dist format",
        _megatron_export,
        "MODEL",
    )
    one.add_argument(
        "--vocab-multiple",
        type=_count,
        default=128,
        metavar="N",
        help="pad the vocabulary to a multiple (default 128)",
    )
    one.add_argument(
        "--iteration",
        type=_count,
        default=1,
        metavar="N",
        help="the iteration it pretends to be (default 1)",
    )
    shards(one)
    dtype(one, "default: as they are")
    one = command(
        "megatron-import",
        "a Megatron-core torch_dist checkpoint to a Hugging Face model",
        _megatron_import,
        "CHECKPOINT",
    )
    one.add_argument(
        "--model",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="config and tokenizer of the same model",
    )
    shards(one)
    dtype(one, "default: as they are")
    one = command(
        "merge-lora", "a peft LoRA adapter merged into its base model", _merge_lora, "ADAPTER"
    )
    one.add_argument(
        "--base", type=path_argument, required=True, metavar="DIR", help="the base model"
    )
    shards(one)
    dtype(one, "default: the base model's")
    one = command("inspect", "what a directory holds", _inspect, "DIR", out=False)
    one.add_argument("--json", action="store_true", help="one JSON object")
    one = command(
        "verify",
        "hashes of a checkpoint; or load a model and compare its logits with another's",
        _verify,
        "DIR",
        out=False,
    )
    one.add_argument(
        "--against", type=path_argument, metavar="DIR", help="the model to compare with"
    )
    one.add_argument(
        "--tokens",
        type=_count,
        default=32,
        metavar="N",
        help="length of the compared sequence (default 32)",
    )
    one.add_argument("--seed", type=int, default=0, help="of the compared tokens")
    one.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="largest allowed difference of a logit (default 0)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    started = time.perf_counter()
    try:
        if "out" in options:
            given = (options.source, vars(options).get("model"), vars(options).get("base"))
            sources = [path for path in given if path is not None]
            refuse_full(options.out, force=options.force, sources=sources)
        options.action(options)
    except (CeroError, OSError) as error:
        if options.debug:
            traceback.print_exc()
        else:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, CeroError) else CheckpointError.exit_code
    except KeyboardInterrupt:
        return 130
    if "out" in options:
        _say(f"{options.command}: wrote {options.out} in {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
