"""What a rank's memory holds at most while a start model comes into its ZeRO-3 shards: `make
bench-loading`.

    python tools/bench_loading.py [--ranks 2] [--layers 16] [--shard-mb 64] [--repeats 1]

Makes a bfloat16 Qwen3 of random weights in safetensors files, and loads it on gloo ranks in turns:
`whole`, every rank reads all of it and DeepSpeed cuts it afterwards, and `streamed`, cut weight by
weight while it is read (cero_rl/zero/sharding.py). Peak is the kernel's high-water mark of the rank
(VmHWM, reset before), less what the interpreter with all imports held before (baseline_mb). One
JSON row a way is appended to docs/bench/loading.jsonl and printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
from bench_convert import make_model  # noqa: E402
from bench_timing import machine  # noqa: E402
from kill_sweep import free_port  # noqa: E402

ROWS = ROOT / "docs/bench/loading.jsonl"
WAYS = ("whole", "streamed")
MB = 1e6


def _status(key: str) -> float:
    """A line of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024 / MB
    raise KeyError(key)


def measure(way: str, model: str, out: Path) -> None:
    """One rank: load and write what that took."""
    import deepspeed
    from transformers import Qwen3ForCausalLM  # noqa: F401  (imported before the baseline is read)

    from cero_rl.config import load_config
    from cero_rl.models.attention import attention_of
    from cero_rl.models.load import load_model
    from cero_rl.zero import launch
    from cero_rl.zero.deepspeed_config import policy_config
    from cero_rl.zero.sharding import load_for_engine

    group = launch.start(timeout_seconds=600)
    config = load_config(
        ROOT / "recipes/digits_cpu.yaml", [f"model.path={model}", "model.dtype=bfloat16"]
    )
    settings = policy_config(config, group.world_size)
    attention = attention_of(config)
    group.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    baseline, started, cpu = _status("VmRSS"), time.monotonic(), time.process_time()
    if way == "whole":
        causal_lm = load_model(model, config.model.dtype, attention)
        deepspeed.zero.Init(module=causal_lm, config_dict_or_path=settings)
    else:
        causal_lm = load_for_engine(config, group, settings)
    row = {
        "peak_mb": _status("VmHWM") - baseline,
        "left_mb": _status("VmRSS") - baseline,
        "baseline_mb": baseline,
        "share_mb": sum(p.ds_tensor.numel() * p.element_size() for p in causal_lm.parameters())
        / MB,
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu,
    }
    out.with_name(f"{out.name}-{group.rank}").write_text(json.dumps(row))
    group.barrier()
    launch.stop()


def run(way: str, model: Path, ranks: int, out: Path) -> list[dict[str, float]]:
    """Raises SystemExit with a rank's own words if it fails."""
    meet = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
    }
    line = [sys.executable, __file__, "--rank-of", way, "--model", str(model), "--out", str(out)]
    started = [
        subprocess.Popen(
            line,
            env={**meet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate()[0] for process in started]
    for process, words in zip(started, said):
        if process.returncode:
            raise SystemExit(f"{way}: exit {process.returncode}\n{words}")
    return [json.loads(out.with_name(f"{out.name}-{rank}").read_text()) for rank in range(ranks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--shard-mb", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--rank-of", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        measure(options.rank_of, options.model, options.out)
        return
    with tempfile.TemporaryDirectory(prefix="bench-loading-") as folder:
        model = Path(folder) / "model"
        make_model(model, options.layers, 1024, options.shard_mb * 10**6)
        files = [file.stat().st_size / MB for file in sorted(model.glob("*.safetensors"))]
        seen: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.repeats):
            for way in WAYS:
                seen[way] += run(way, model, options.ranks, Path(folder) / way)
    for way in WAYS:
        ranks = seen[way]
        worst: dict[str, Any] = {name: round(max(r[name] for r in ranks), 1) for name in ranks[0]}
        bound = 1.3 * worst["share_mb"] + max(files)
        row = {
            "bench": "loading",
            "way": way,
            "ranks": options.ranks,
            "repeats": options.repeats,
            "model_mb": round(sum(files), 1),
            "largest_file_mb": round(max(files), 1),
            **worst,
            "bound_mb": round(bound, 1),
            "below_bound": worst["peak_mb"] < bound,
            **machine(),
        }
        print(json.dumps(row))
        with ROWS.open("a", encoding="utf-8") as rows:
            rows.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
