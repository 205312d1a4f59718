"""What is this directory? Told from names and headers, without loading a weight or running a
pickle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cero_rl.checkpoint import MANIFEST, read_manifest
from cero_rl.convert.dcp import DcpReader
from cero_rl.convert.lora import read_adapter
from cero_rl.convert.megatron import CONFIG, iteration_directory
from cero_rl.convert.run_checkpoint import zero_directory
from cero_rl.convert.safetensors_io import open_safetensors, read_json, shard_files
from cero_rl.convert.weights import Spec
from cero_rl.convert.zero import ZeroCheckpoint, open_zero
from cero_rl.errors import CheckpointError
from cero_rl.files.lora_adapter import CONFIG_FILE, adapted, stored_name
from cero_rl.files.plain import plain_files, refuse_links_beside, refuse_links_out

KINDS = {
    "zero": "DeepSpeed ZeRO checkpoint",
    "universal": "DeepSpeed universal checkpoint",
    "adapter": "LoRA adapter (peft)",
    "megatron": "Megatron-core distributed checkpoint",
    "huggingface": "Hugging Face model",
    "run": "run directory",
    "unknown": "nothing that is known here",
}
_USE = {
    "zero": "zero-to-hf, zero-to-adapter, zero-to-universal or reshard",
    "universal": "your trainer with load_universal",
    "adapter": "merge-lora",
    "megatron": "megatron-import",
    "huggingface": "hf-to-start, cast or megatron-export",
    "run": "one of its checkpoints/step_*",
    "unknown": "a checkpoint directory",
}


def kind_of(directory: Path) -> str:
    """A key of KINDS. Raises CheckpointError for a directory that holds links, pipes or devices
    where its kind has none: what is opened after this is opened as it lies."""
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory}: no such directory; wanted a checkpoint or model directory"
        )
    kind = _looks_like(directory)
    if kind in ("zero", "universal", "adapter", "megatron"):
        plain_files(directory)
    elif kind == "huggingface":
        refuse_links_out(directory)
    elif kind == "run":
        refuse_links_beside(directory)
    return kind


def _looks_like(directory: Path) -> str:
    zero = zero_directory(directory)
    if zero is not None:
        return "universal" if (zero / "zero/optimizer_state.pt").is_file() else "zero"
    if (directory / CONFIG_FILE).is_file():
        return "adapter"
    if (directory / CONFIG).is_file() or (
        directory / "latest_checkpointed_iteration.txt"
    ).is_file():
        return "megatron"
    if (directory / "config.json").is_file():
        return "huggingface"
    if (directory / "config.resolved.yaml").is_file() or (directory / "checkpoints").is_dir():
        return "run"
    return "unknown"


def require(directory: Path, kind: str) -> None:
    """Raises CheckpointError that says what `directory` looks like and which command takes it."""
    found = kind_of(directory)
    if found != kind:
        looks, wanted = _article(KINDS[found]), _article(KINDS[kind])
        raise CheckpointError(
            f"{directory}: looks like {looks}, wanted {wanted}; for this one use {_USE[found]}"
        )


def _article(text: str) -> str:
    return text if text.startswith("nothing") else f"a {text}"


def _sizes(specs: Mapping[str, Spec]) -> dict[str, Any]:
    dtypes = Counter({str(s.dtype).removeprefix("torch."): 0 for s in specs.values()})
    for spec in specs.values():
        dtypes[str(spec.dtype).removeprefix("torch.")] += spec.numel
    return {
        "tensors": len(specs),
        "parameters": sum(s.numel for s in specs.values()),
        "dtypes": dict(dtypes),
    }


def _lora(zero: ZeroCheckpoint) -> dict[str, Any]:
    """What a LoRA run's checkpoint holds, from its tensors: a bare directory has no manifest that
    tells."""
    if not zero.is_adapter:
        return {}
    specs = {stored_name(name): spec for name, spec in zero.weights().specs.items()}
    found = {pair[0]: specs[name].shape[0] for name in specs if (pair := adapted(name))}
    return {
        "lora_ranks": sorted(set(found.values())),
        "lora_targets": sorted({name.split(".")[-2] for name in found}),
    }


def describe(directory: Path) -> dict[str, Any]:
    """Facts as JSON values: kind, bytes, and what the kind has: step, world size, parameters,
    dtypes, architecture."""
    kind = kind_of(directory)
    files = [p for p in directory.rglob("*") if p.is_file()]
    facts: dict[str, Any] = {
        "directory": str(directory),
        "kind": kind,
        "files": len(files),
        "bytes": sum(p.stat().st_size for p in files),
    }
    if (directory / MANIFEST).is_file():
        manifest = read_manifest(directory)
        facts |= {
            "step": manifest.get("step"),
            "manifest": True,
            "cero_rl": manifest.get("cero_rl"),
        }
        if adapter := manifest.get("adapter"):
            facts["lora_base"] = adapter.get("base_model_name_or_path")
    if kind == "zero":
        place = zero_directory(directory)
        assert place is not None
        zero = open_zero(place)
        facts |= {
            "stage": zero.stage,
            "world_size": zero.world_size,
            "optimizer_steps": zero.header.get("global_steps"),
            "model_dtype": str(zero.model_dtype).removeprefix("torch."),
            "tied": dict(zero.shared),
            "deepspeed": zero.header.get("ds_version"),
            **_sizes(zero.weights().specs),
            **_lora(zero),
        }
    elif kind == "universal":
        place = zero_directory(directory)
        assert place is not None
        facts["tensors"] = sum(
            (p / "fp32.pt").is_file() for p in (place / "zero").iterdir() if p.is_dir()
        )
    elif kind == "adapter":
        adapter = read_adapter(directory)
        ranks = sorted({pair.rank for pair in adapter.pairs.values()})
        facts |= {"modules": len(adapter.pairs), "ranks": ranks, **_sizes(adapter.tensors.specs)}
    elif kind == "megatron":
        place = iteration_directory(directory)
        reader = DcpReader(place)
        specs = {
            n: Spec(t.properties.dtype, tuple(t.size))
            for n, t in reader.tensors.items()
            if not n.startswith("optimizer.")
        }
        facts |= {"iteration_directory": place.name, **_sizes(specs)}
    elif kind == "huggingface":
        config = read_json(directory / "config.json")
        facts |= {k: config.get(k) for k in ("model_type", "architectures", "tie_word_embeddings")}
        if found := shard_files(directory):
            facts |= {"shards": len(found), **_sizes(open_safetensors(*found).specs)}
        elif list(directory.glob("*.bin")):
            facts["format"] = "pickle"
    elif kind == "run":
        facts["checkpoints"] = sorted(p.name for p in (directory / "checkpoints").glob("step_*"))
    return facts
