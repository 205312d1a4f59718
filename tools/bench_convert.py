"""Speed and memory of the conversions beside a plain copy of the same bytes: `make bench-convert`.

    python tools/bench_convert.py [--layers 24] [--hidden 1024] [--shard-size 200MB]
        [--repeats 3] [--commands cast,...]

A Qwen3-shaped model with random weights (untied, vocabulary 32,768) and a ZeRO-3 checkpoint of 2
ranks with the layout that DeepSpeed writes. Every conversion runs in a process of its own,
alternating with a copy (read, write, fsync; 8 MB pieces) of its input; megabytes count what the
conversion wrote. On a machine that is shared, compare processor time (cpu_ratio), with --work on a
file system in memory: there it holds all that a conversion costs. Memory is the peak resident set
over that of the same process after its imports, as a share of the largest file written. One JSON
row a conversion is appended to docs/bench/convert.jsonl and printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_timing import machine

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "docs/bench/convert.jsonl"
VOCABULARY = 32768


def make_model(directory: Path, layers: int, hidden: int, shard_bytes: int = 10**9) -> None:
    """Random bfloat16 weights of the right shapes, streamed, so that the benchmark needs no more
    memory than what it measures."""
    import torch
    from transformers import Qwen3Config

    from cero_rl.convert.hf import copy_beside
    from cero_rl.convert.layout import layout_of
    from cero_rl.convert.safetensors_io import write_sharded
    from cero_rl.convert.weights import Spec, whole

    directory.mkdir(parents=True)
    Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        head_dim=64,
        tie_word_embeddings=False,
        architectures=["Qwen3ForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(directory)
    copy_beside(ROOT / "recipes/assets/tiny_digits", directory)
    specs = {name: Spec(torch.bfloat16, shape) for name, shape in layout_of(directory).own.items()}
    torch.manual_seed(0)
    write_sharded(
        directory,
        whole(specs, lambda name: torch.randn(specs[name].shape) * 0.02),
        shard_bytes,
        lambda _: None,
    )


def make_zero(model: Path, directory: Path, ranks: int) -> None:
    """A bare ZeRO-3 directory: masters from the model, moments of noise, in the files that
    DeepSpeed writes."""
    import torch

    from cero_rl.convert.reshard import write_resharded
    from cero_rl.convert.safetensors_io import open_safetensors, shard_files
    from cero_rl.convert.weights import cast
    from cero_rl.convert.zero import STATES, ZeroCheckpoint
    from cero_rl.zero.loss_scale import no_loss_scaling

    held = cast(open_safetensors(*shard_files(model)), torch.float32)

    class Noise(ZeroCheckpoint):
        def elements(self, kind: str, name: str, first: int, count: int) -> Any:
            yield held.read(name).flatten()[first : first + count]

    header = {
        "global_steps": 1,
        "dp_world_size": ranks,
        "ds_version": "0.19.8",
        "ds_config": {},
        "shared_params": {},
        "param_shapes": [],
    }
    group = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
    optimizer = {"optimizer_state_dict": {"param_groups": [group]}}
    shapes = {name: spec.shape for name, spec in held.specs.items()}
    zero = Noise(
        directory,
        3,
        1,
        torch.bfloat16,
        shapes,
        {},
        {kind: {} for kind in STATES},
        {},
        {},
        header,
        optimizer,
        1.0,
    )
    directory.mkdir(parents=True)
    write_resharded(zero, ranks, directory, no_loss_scaling, lambda _: None)


def make_adapter(model: Path, directory: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from cero_rl.convert.layout import layout_of

    directory.mkdir()
    tensors = {}
    for name, shape in layout_of(model).own.items():
        if name.endswith("_proj.weight"):
            stem = "base_model.model." + name.removesuffix(".weight")
            tensors |= {
                f"{stem}.lora_A.weight": torch.randn(16, shape[1]) * 0.02,
                f"{stem}.lora_B.weight": torch.randn(shape[0], 16) * 0.02,
            }
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 32, "bias": "none"})
    )


def sizes(directory: Path) -> list[int]:
    return [p.stat().st_size for p in directory.rglob("*") if p.is_file()]


def copy_seconds(source: Path, target: Path) -> tuple[float, float, int]:
    """Seconds, processor seconds and bytes of a plain durable copy of a directory."""
    started, busy, total = time.perf_counter(), time.process_time(), 0
    for path in [p for p in source.rglob("*") if p.is_file()]:
        (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open("rb", buffering=0) as read,
            (target / path.relative_to(source)).open("wb", buffering=0) as written,
        ):
            while block := read.read(8 * 2**20):
                total += written.write(block)
            os.fsync(written.fileno())
    return time.perf_counter() - started, time.process_time() - busy, total


def memory(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS now, VmHWM the peak."""
    line = next(
        s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(field + ":")
    )
    return int(line.split()[1]) * 1024


def child(arguments: list[str]) -> None:
    """One conversion in this process: prints its seconds and memory as JSON."""
    import convert
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)
    # the imports of every conversion, before the baseline
    config = AutoConfig.from_pretrained(
        ROOT / "recipes/assets/tiny_digits", trust_remote_code=False
    )
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(config)
    torch.matmul(torch.ones(64, 64), torch.ones(64, 64))
    if arguments[0] == "reshard":
        from cero_rl.zero.loss_scale import no_loss_scaling

        no_loss_scaling()
    # the peak so far, of the imports or of the parent, is forgotten
    Path("/proc/self/clear_refs").write_text("5")
    before, started, busy = memory("VmRSS"), time.perf_counter(), time.process_time()
    code = convert.main(arguments)
    assert code == 0, arguments
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - busy,
                "extra_bytes": memory("VmHWM") - before,
            }
        )
    )


def measure(
    name: str, arguments: list[str], source: Path, work: Path, repeats: int
) -> dict[str, Any]:
    rates, copies, memory, largest, written = [], [], [], 0, 0
    busy, copies_busy = [], []  # MB a second of processor time
    for _ in range(repeats):
        out, copied = work / "out", work / "copy"
        line = [sys.executable, __file__, "--child", *arguments, "--out", str(out)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            line, capture_output=True, text=True, check=False, env=environment, timeout=1200
        )
        if done.returncode:
            raise SystemExit(f"{name}: {done.stdout}{done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        written, largest = sum(sizes(out)), max(sizes(out))
        shutil.rmtree(out)
        seconds, cpu_seconds, total = copy_seconds(source, copied)
        shutil.rmtree(copied)
        rates.append(written / found["seconds"] / 1e6)
        copies.append(total / seconds / 1e6)
        busy.append(written / found["cpu_seconds"] / 1e6)
        copies_busy.append(total / cpu_seconds / 1e6)
        memory.append(found["extra_bytes"])
    rate, copy = statistics.median(rates), statistics.median(copies)
    return {
        "bench": "convert",
        "conversion": name,
        "written_mb": round(written / 1e6, 1),
        "mb_per_second": round(rate, 1),
        "lowest": round(min(rates), 1),
        "highest": round(max(rates), 1),
        "copy_mb_per_second": round(copy, 1),
        "ratio_to_copy": round(rate / copy, 3),
        "cpu_mb_per_second": round(statistics.median(busy), 1),
        "copy_cpu_mb_per_second": round(statistics.median(copies_busy), 1),
        "cpu_ratio": round(statistics.median(busy) / statistics.median(copies_busy), 3),
        "peak_extra_mb": round(max(memory) / 1e6, 1),
        "largest_file_mb": round(largest / 1e6, 1),
        "peak_over_largest_file": round(max(memory) / largest, 3),
        "repeats": repeats,
    }


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--shard-size", default="200MB", help="--max-shard-size of the conversions")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--commands", default="", help="only these, by commas")
    parser.add_argument(
        "--work",
        type=Path,
        help="where to work (default: the temporary directory); several times the model's size",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        work = Path(name)
        model, zero, adapter, megatron = (
            work / n for n in ("model", "zero", "adapter", "megatron")
        )
        make_model(model, options.layers, options.hidden)
        make_zero(model, zero, 2)
        make_adapter(model, adapter)
        shard = ["--max-shard-size", options.shard_size]
        export = [
            sys.executable,
            str(ROOT / "tools/convert.py"),
            "megatron-export",
            str(model),
            "--out",
            str(megatron),
            *shard,
        ]
        subprocess.run(
            export,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        jobs = {
            "zero-to-hf": (["zero-to-hf", zero, "--bare", "--model", model, *shard], model),
            "zero-to-universal": (["zero-to-universal", zero, "--bare"], zero),
            "reshard": (["reshard", zero, "--bare", "--ranks", 4], zero),
            "hf-to-start": (["hf-to-start", model, "--dtype", "float32", *shard], model),
            "cast": (["cast", model, "--dtype", "float16", *shard], model),
            "megatron-export": (["megatron-export", model, *shard], model),
            "megatron-import": (["megatron-import", megatron, "--model", model, *shard], megatron),
            "merge-lora": (["merge-lora", adapter, "--base", model, *shard], model),
        }
        chosen = options.commands.split(",") if options.commands else list(jobs)
        ROWS.parent.mkdir(parents=True, exist_ok=True)
        for key in chosen:
            arguments, source = jobs[key]
            row = measure(key, [str(a) for a in arguments], source, work, options.repeats)
            row |= {
                "layers": options.layers,
                "hidden": options.hidden,
                "shard_size": options.shard_size,
                **machine(),
            }
            with ROWS.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
