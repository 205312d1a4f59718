"""One rank of the two ways to a sharded start model: read whole and then cut, and cut while it is
read. Compares the shards and writes what it found; used by test_sharding.py.

RANK=0 WORLD_SIZE=2 ... python tests/zero/sharding_driver.py OUT.json MODEL ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from cero_rl.config import Config, load_config
from cero_rl.job.process import run_and_exit

ROOT = Path(__file__).resolve().parents[2]


def named_shards(model: Any) -> dict[str, torch.Tensor]:
    """Every name, those of tied weights too, with this rank's elements."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: p.ds_tensor.detach().clone() for name, p in named}


def ties(model: Any) -> list[list[str]]:
    by_tensor: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_tensor.setdefault(id(parameter), []).append(name)
    return [names for names in by_tensor.values() if len(names) > 1]


def compare(config: Config, group: Any) -> dict[str, Any]:
    import deepspeed

    from cero_rl.models.attention import attention_of
    from cero_rl.models.load import load_model
    from cero_rl.models.lora import add_adapter
    from cero_rl.zero.deepspeed_config import policy_config
    from cero_rl.zero.sharding import load_for_engine

    settings = policy_config(config, group.world_size)
    attention = attention_of(config)
    whole = load_model(config.model.path, config.model.dtype, attention)
    full = [p.numel() for p in whole.parameters()]
    if config.lora.rank:
        add_adapter(whole, config)
    deepspeed.zero.Init(module=whole, config_dict_or_path=settings)
    cut = load_for_engine(config, group, settings)
    whole_at_once = [p.numel() for p in cut.parameters() if p.numel()]
    if config.lora.rank:
        add_adapter(cut, config)
        zero = next(p for p in cut.parameters() if hasattr(p, "ds_id"))
        new = [p for p in cut.parameters() if not hasattr(p, "ds_id")]
        zero.convert_to_zero_parameters(param_list=new)  # pyright: ignore
    one, other = named_shards(whole), named_shards(cut)
    buffers = dict(whole.named_buffers()), dict(cut.named_buffers())
    return {
        "names": sorted(one) == sorted(other),
        "ties": [ties(whole), ties(cut)],
        "different": [n for n in one if n in other and not torch.equal(one[n], other[n])],
        "buffers": all(torch.equal(b, buffers[1][n]) for n, b in buffers[0].items()),
        "dtypes": sorted({str(shard.dtype) for shard in other.values()}),
        "left_whole": whole_at_once,
        "elements": sum(full),
        "own": sum(p.ds_tensor.numel() for p in cut.parameters()),
        "requires_grad": sorted({p.requires_grad for p in cut.parameters()}),
    }


def main() -> int:
    from cero_rl.errors import EngineError
    from cero_rl.zero import launch

    out, *cases = Path(sys.argv[1]), *sys.argv[2:]
    group = launch.start(timeout_seconds=300)
    found = {}
    for case in cases:  # NAME=PATH,setting,setting
        name, _, rest = case.partition("=")
        path, *settings = rest.split(",")
        config = load_config(ROOT / "recipes/digits_cpu.yaml", [f"model.path={path}", *settings])
        try:
            found[name] = compare(config, group)
        except EngineError as error:
            found[name] = str(error)
    (out.parent / f"{out.stem}-{group.rank}.json").write_text(json.dumps(found))
    launch.stop()
    return 0


if __name__ == "__main__":
    run_and_exit(main)
