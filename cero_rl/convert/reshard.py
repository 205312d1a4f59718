"""A ZeRO checkpoint for another number of ranks: as DeepSpeed's universal layout, or cut anew for
exactly N ranks (stage 3).

    universal   zero/<parameter>/{fp32,exp_avg,exp_avg_sq,step}.pt, zero/optimizer_state.pt: any
                number of ranks, stages 1 to 3, loaded with
                "checkpoint": {"load_universal": true} in DeepSpeed's configuration
    resharded   a plain ZeRO-3 checkpoint of N ranks: loaded as if N ranks had written it

Both keep scheduler, ledger and cursor as they are: these are free of the world size. A rank that
did not exist gets a random state derived from the step and its number.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cero_rl.checkpoint import MANIFEST
from cero_rl.convert.run_checkpoint import Located, write_manifest
from cero_rl.convert.zero import STATES, ZeroCheckpoint, partition
from cero_rl.errors import CheckpointError

OWN_FILE = re.compile(r"rank\d+\.safetensors")  # what a rank keeps for itself
_SUB_GROUP = 10**9  # DeepSpeed's default for zero_optimization.sub_group_size
Report = Callable[[str], None]


def _real(value: Any) -> Any:
    """A header without fake tensors: DeepSpeed's model states hold none besides the module's."""
    if isinstance(value, Tensor):
        raise CheckpointError(
            "model states: hold a tensor outside of the module, which is not supported"
        )
    if isinstance(value, Mapping):
        return {k: _real(v) for k, v in value.items()}
    return value


def _optimizer_header(zero: ZeroCheckpoint) -> dict[str, Any]:
    state = zero.optimizer
    base = state.get("optimizer_state_dict") or state["base_optimizer_state"]
    group = {k: v for k, v in base["param_groups"][0].items() if k != "params"}
    return {
        "zero_stage": zero.stage,
        "dynamic_loss_scale": False,
        "overflow": False,
        "clip_grad": state.get("clip_grad", zero.header["ds_config"].get("gradient_clipping", 0.0)),
        "ds_version": zero.header["ds_version"],
        "group": _real(group),
    }


def write_universal(zero: ZeroCheckpoint, out: Path, report: Report) -> None:
    """DeepSpeed's universal layout in `out`, loadable at stages 1, 2 and 3 on any number of
    ranks."""
    if zero.stage == 0:
        raise CheckpointError(
            f"{zero.directory}: ZeRO stage 0 keeps its optimizer whole, which has no "
            "universal layout; train with zero.stage 1, 2 or 3"
        )
    header = _real(zero.header)
    # The weights come from zero/; each stage looks for the rest under its own file name.
    for name in ("zero_pp_rank_0_mp_rank_00_model_states.pt", "mp_rank_00_model_states.pt"):
        torch.save({**header, "module": {}}, out / name)
    common = _optimizer_header(zero)
    group = common.pop("group") | {"params": [0]}
    step = torch.tensor(zero.step)
    root = out / "zero"
    root.mkdir()
    base = {"state": {0: {"step": step}}, "param_groups": [group]}
    torch.save(
        {**common, "optimizer_state_dict": base, "param_groups": [group]},
        root / "optimizer_state.pt",
    )
    states = {kind: zero.state(kind) for kind in STATES}
    for number, name in enumerate(zero.shapes, 1):
        folder = root / name
        if folder.parent != root or name in ("", ".", ".."):
            raise CheckpointError(f"{zero.directory}: {name!r} is no name for a parameter")
        folder.mkdir()
        param = None
        for kind, weights in states.items():
            param = weights.read(name, into=param)
            torch.save({"param": param}, folder / f"{kind}.pt")
        torch.save(step, folder / "step.pt")
        if number % 50 == 0 or number == len(zero.shapes):
            report(f"  {number}/{len(zero.shapes)} parameters")


def _sub_groups(
    shapes: Mapping[str, tuple[int, ...]], world_size: int, limit: int
) -> list[list[str]]:
    """Parameters in groups, closed when their partitions reach `limit` elements: as ZeRO-3 forms
    them when it starts."""
    sizes = {name: partition(math.prod(shape), world_size, 0)[0] for name, shape in shapes.items()}
    if limit >= sum(sizes.values()):
        return [list(shapes)]
    groups: list[list[str]] = []
    current: list[str] = []
    for name in shapes:
        current.append(name)
        if sum(sizes[n] for n in current) >= limit:
            groups.append(current)
            current = []
    return [*groups, current] if current else groups


class _Flat:
    """Partitions of some parameters one after the other, for one rank after the other: all have the
    same size, and the memory is used again."""

    def __init__(self, zero: ZeroCheckpoint, kind: str, names: list[str], world_size: int) -> None:
        self._zero, self._kind, self._names, self._world_size = zero, kind, names, world_size
        sizes = (partition(math.prod(zero.shapes[name]), world_size, 0)[0] for name in names)
        self._flat = torch.empty(sum(sizes))

    def of(self, rank: int) -> Tensor:
        """Those of a rank, padding 0; until the next rank is asked for."""
        at = 0
        for name in self._names:
            size, first, real = partition(
                math.prod(self._zero.shapes[name]), self._world_size, rank
            )
            end = at
            for piece in self._zero.elements(self._kind, name, first, real):
                self._flat[end : end + len(piece)] = piece
                end += len(piece)
            at += size
            self._flat[end:at] = 0.0
        return self._flat


def _optimizer_of(
    step: float | None,
    flat: list[dict[str, Tensor]],
    ranks: int,
    group: Mapping[str, Any],
    scaler: Any,
) -> dict[str, Any]:
    moments = {
        i: {"step": torch.tensor(step), "exp_avg": f["exp_avg"], "exp_avg_sq": f["exp_avg_sq"]}
        for i, f in enumerate(flat)
    }
    return {
        "zero_stage": 3,
        "loss_scaler": scaler,
        "dynamic_loss_scale": False,
        "overflow": False,
        "partition_count": ranks,
        "optimizer_state_dict": {"state": moments, "param_groups": [group]},
        "fp32_flat_groups": [f["fp32"] for f in flat],
    }


def write_resharded(
    zero: ZeroCheckpoint, ranks: int, out: Path, no_loss_scaling: Callable[[], Any], report: Report
) -> None:
    """The plain ZeRO-3 files of `ranks` ranks. One rank's optimizer file is in memory at a time."""
    if zero.stage != 3:
        raise CheckpointError(
            f"{zero.directory}: ZeRO stage {zero.stage}; reshard cuts stage 3 only, use "
            "zero-to-universal for 1 and 2"
        )
    header = _real(zero.header)
    limit = header["ds_config"].get("zero_optimization", {}).get("sub_group_size", _SUB_GROUP)
    groups = _sub_groups(zero.shapes, ranks, limit)
    common = _optimizer_header(zero)
    group = common.pop("group") | {"params": list(range(len(groups)))}
    shapes = [OrderedDict((n, torch.Size(zero.shapes[n])) for n in names) for names in groups]
    module = {name: torch.empty(0, dtype=zero.model_dtype) for name in [*zero.shapes, *zero.shared]}
    for name, (spec, part) in zero.buffers.items():
        module[name] = torch.cat(list(part.pieces())).reshape(spec.shape)
    states = [{kind: _Flat(zero, kind, names, ranks) for kind in STATES} for names in groups]
    prefix = "bf16_" if zero.model_dtype == torch.bfloat16 else ""
    for rank in range(ranks):
        shared = dict(zero.shared) if rank == 0 else {}
        own = {
            **header,
            "module": module,
            "param_shapes": shapes,
            "dp_world_size": ranks,
            "shared_params": shared,
        }
        torch.save(own, out / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        path = out / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        flat = [{kind: each.of(rank) for kind, each in state.items()} for state in states]
        state = {
            "optimizer_state_dict": _optimizer_of(zero.step, flat, ranks, group, no_loss_scaling())
        }
        torch.save(
            {**state, "ds_config": header["ds_config"], "ds_version": header["ds_version"]}, path
        )
        report(f"  rank {rank} of {ranks}: {path.stat().st_size / 1e6:,.1f} MB")


def _random_state(step: int, rank: int, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Generator states of a rank that was not there: seeded by the step and the rank's number."""
    seed = (
        int.from_bytes(hashlib.sha256(f"cero_rl/{step}/{rank}".encode()).digest()[:8], "little")
        >> 1
    )
    states = {"rng.cpu": torch.Generator().manual_seed(seed).get_state()}
    if "rng.cuda" in like:  # CUDA's Philox generator: seed and offset, 8 bytes each
        states["rng.cuda"] = torch.frombuffer(
            bytearray(struct.pack("<Qq", seed, 0)), dtype=torch.uint8
        )
    return states


def write_surroundings(located: Located, out: Path, ranks: int, changes: Mapping[str, Any]) -> None:
    """All of our checkpoint but DeepSpeed's files, random states for `ranks` ranks, and the
    manifest."""
    assert located.root is not None
    assert located.manifest is not None
    for path in sorted(located.root.rglob("*")):
        name = path.relative_to(located.root)
        if (
            path.is_dir()
            or path.is_relative_to(located.zero)
            or path.name == MANIFEST
            or OWN_FILE.fullmatch(path.name)
        ):
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / name)
    step, first = int(located.manifest["step"]), load_file(located.root / "rank0.safetensors")
    for rank in range(ranks):
        saved = located.root / f"rank{rank}.safetensors"
        states = load_file(saved) if saved.is_file() else _random_state(step, rank, first)
        # Rollouts that were generated ahead belong to the old ranks; they are generated anew.
        save_file(
            {name: state for name, state in states.items() if name.startswith("rng.")},
            out / saved.name,
        )
    write_manifest(out, {**located.manifest, **changes})
