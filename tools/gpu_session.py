"""What a GPU must show beyond `make gpu-check`, in calls of minutes that need no network.

    python tools/gpu_session.py train      # whole runs that learn, in float32 and bfloat16
    python tools/gpu_session.py sampler    # vLLM alone: sleep, wake and reload, probe, decoding
    python tools/gpu_session.py learner    # optimizer steps alone, one option changed at a time
    python tools/gpu_session.py e2e        # the pipeline of qwen3_8b.yaml with LoRA
    python tools/gpu_session.py --list     # the measurements of each part

Models have random weights and prompts random text; what is measured does not depend on them. Every
measurement is one JSON line of docs/bench/gpu_session.jsonl, written as soon as it is there:
medians of seconds by phase, tokens a second, share of the arithmetic, memory by phase beside what
`cero-rl plan` told. Logs and runs are in build/gpu_session/. `--trial` takes sizes that a CPU does
in minutes, with rows in build/gpu_session/, to prove the session before a GPU is at hand.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench_timing import machine

from cero_rl.config import load_config
from cero_rl.job.parent import dies_with_me
from cero_rl.memory.planner import Planner, gpus_of, processes_of

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "gpu_session"
ROWS = ROOT / "docs" / "bench" / "gpu_session.jsonl"
WARM_UP_STEPS = 1  # not measured: kernels are chosen, graphs captured, pools filled
PROMPTS = 512
REWARD = """import hashlib

def bit(prompts, completions, **columns):
    return [float(hashlib.sha256(text.encode()).digest()[0] & 1) for text in completions]
"""


@dataclass(frozen=True)
class Sizes:
    """Of a whole session: as on one GPU of 80 GB, or small enough for a CPU."""

    trains: tuple[str, int]  # model and steps of the runs of real vocabulary
    learner: str
    learner_tokens: int  # of a micro-batch
    e2e: str
    prompt_tokens: int
    response_tokens: int
    rollouts: int  # a step
    sequences: tuple[int, ...]  # in flight
    decoded_tokens: int
    quickstart: tuple[str, ...] = ()


REAL = Sizes(
    trains=("100m", 40),
    learner="Qwen/Qwen3-1.7B",
    learner_tokens=16384,
    e2e="Qwen/Qwen3-8B",
    prompt_tokens=512,
    response_tokens=2048,
    rollouts=64,
    sequences=(51, 256),
    decoded_tokens=256,
)
TRIAL = Sizes(
    trains=("trial", 3),
    learner="trial",
    learner_tokens=256,
    e2e="trial",
    prompt_tokens=16,
    response_tokens=16,
    rollouts=16,
    sequences=(2, 8),
    decoded_tokens=8,
    quickstart=("scheduler.rounds=4", "budget.total_rollouts=256", "data.heldout_limit=32"),
)
# what no published model has; the others are in cero_rl/models/shapes.json
OWN_SHAPES: dict[str, dict[str, int]] = {
    "100m": {"hidden_size": 768, "num_hidden_layers": 12, "vocab_size": 151936},
    "trial": {"hidden_size": 128, "num_hidden_layers": 2, "vocab_size": 2048},
}


@dataclass(frozen=True)
class Case:
    """One measurement. kind: the training command, or a part of gpu_parts.py with its `options`."""

    name: str
    settings: tuple[str, ...] = ()
    recipe: str = ""
    kind: Literal["run", "sampler", "learner"] = "run"
    shape: str = ""  # of the model and the prompts that are made for it
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    limit_seconds: float = 200.0


def shape_of(name: str) -> dict[str, Any]:
    """Fields of a Qwen3 config.json."""
    if name not in OWN_SHAPES:
        shapes = json.loads((ROOT / "cero_rl/models/shapes.json").read_text(encoding="utf-8"))
        return shapes[name]
    width = OWN_SHAPES[name]["hidden_size"]
    return {
        **OWN_SHAPES[name],
        "intermediate_size": 3 * width,
        "num_attention_heads": width // 64,
        "num_key_value_heads": max(1, width // 128),
        "head_dim": 64,
        "tie_word_embeddings": True,
        "max_position_embeddings": 40960,
    }


def folder_of(shape: str) -> Path:
    return WORK / "models" / shape.replace("/", "_")


def make_folder(shape: str, prompt_tokens: int) -> None:
    """model/ (made once), train.jsonl, heldout.jsonl and reward.py in the folder of the shape."""
    from tiny_models import Vocabulary

    folder, fields = folder_of(shape), shape_of(shape)
    if not (folder / "model" / "config.json").exists():
        line = [sys.executable, "tools/gpu_parts.py", "model", "--out", str(folder / "model")]
        subprocess.run([*line, "--shape", json.dumps(fields)], cwd=ROOT, check=True, env=paths())
    words = Vocabulary([chr(0x20000 + i) for i in range(fields["vocab_size"] - 2)])
    words.tokenizer().save_pretrained(folder / "model")
    rng = random.Random("gpu-session")
    for name, rows in (("train", PROMPTS), ("heldout", 8)):
        prompts = ("".join(rng.choices(words.tokens, k=prompt_tokens)) for _ in range(rows))
        text = "".join(json.dumps({"prompt": p, "answer": "none"}) + "\n" for p in prompts)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")


def random_run(shape: str, sizes: Sizes, steps: int, dtype: str) -> tuple[str, ...]:
    """Settings of a run on what `make_folder` makes, whatever the recipe: every response reaches
    the limit, and nothing but the steps takes time."""
    folder = folder_of(shape)
    return (
        f"model.path={folder / 'model'}",
        f"model.dtype={dtype}",
        f"data.source={folder / 'train.jsonl'}",
        f"data.heldout_source={folder / 'heldout.jsonl'}",
        "data.heldout_split=train",
        "data.heldout_fraction=0",
        "data.heldout_limit=4",
        "data.prompt_column=prompt",
        "data.answer_column=answer",
        "data.prompt_suffix=",
        "data.chat_template=never",
        f"data.max_prompt_tokens={sizes.prompt_tokens}",
        f"reward.function={folder / 'reward.py'}:bit",
        f"rollout.max_response_tokens={sizes.response_tokens}",
        f"scheduler.rounds={steps}",
        "scheduler.rollouts_per_unit=8",
        f"budget.total_rollouts={steps * sizes.rollouts}",
        "learner.rollouts_per_step=null",
        "optimizer.warmup_steps=1",
        "evaluation.every_steps=0",
        "evaluation.samples_per_prompt=1",
        "evaluation.final_samples_per_prompt=1",
        "evaluation.pass_k=[1]",
        "checkpoint.every_steps=0",
        "checkpoint.export=false",
        "logging.tensorboard=false",
    )


def train_cases(sizes: Sizes, dtype: str) -> Iterator[Case]:
    """Does it learn as on a CPU, and what does a step of a real vocabulary take?"""
    for kind in ("float32", "bfloat16"):
        yield Case(
            f"quickstart_{kind}", (f"model.dtype={kind}", *sizes.quickstart), "quickstart_cpu"
        )
    shape, steps = sizes.trains
    settings = random_run(shape, sizes, steps, dtype)
    yield Case(f"{shape}_transformers", settings, "digits_cpu", shape=shape)
    recomputed = (*settings, "model.gradient_checkpointing=true")
    yield Case(f"{shape}_recomputed", recomputed, "digits_cpu", shape=shape)


def sampler_cases(sizes: Sizes, dtype: str) -> Iterator[Case]:
    """vLLM in the process of a rank: both model runners where there is a GPU."""
    shape = sizes.trains[0]
    options = {
        "model": str(folder_of(shape) / "model"),
        "dtype": dtype,
        "cycles": 5,
        "sequences": list(sizes.sequences),
        "prompt_tokens": sizes.prompt_tokens,
        "decoded_tokens": sizes.decoded_tokens,
    }
    for runner in ("1", "0") if on_gpu() else ("0",):
        named = {"VLLM_USE_V2_MODEL_RUNNER": runner}
        yield Case(
            f"sampler_{'second' if runner == '1' else 'first'}_runner",
            kind="sampler",
            shape=shape,
            options=options,
            environment=named,
        )


def learner_cases(sizes: Sizes, dtype: str) -> Iterator[Case]:
    """Optimizer steps on packed random tokens: one option after the other."""
    base = (
        *random_run(sizes.learner, sizes, 1, dtype),
        "model.gradient_checkpointing=true",
        f"learner.max_micro_batch_tokens={sizes.learner_tokens}",
    )
    changes = {
        "base": (),
        "kept_activations": ("model.gradient_checkpointing=false",),
        "sums_in_bfloat16": ("zero.gradient_dtype=bfloat16",) if dtype == "bfloat16" else None,
        "sdpa": ("model.attention=sdpa",),
        "stage_2": ("zero.stage=2",),
        "states_offloaded": ("zero.offload_states_in_rollout=true",) if on_gpu() else None,
    }
    options = {"tokens": sizes.learner_tokens, "micro_batches": 4, "updates": 3}
    for name, change in changes.items():
        if change is not None:
            yield Case(
                f"learner_{name}",
                (*base, *change),
                "digits_cpu",
                "learner",
                sizes.learner,
                options,
            )


def e2e_cases(sizes: Sizes, dtype: str) -> Iterator[Case]:
    """The pipeline of the recipe for 8B with LoRA, which one GPU of 80 GB holds."""
    settings = random_run(sizes.e2e, sizes, 3 + WARM_UP_STEPS, dtype)
    for most in sizes.sequences:
        lora = ("lora.rank=16", f"rollout.max_sequences={most}")
        yield Case(
            f"e2e_{most}_sequences",
            (*settings, *lora),
            "qwen3_8b",
            shape=sizes.e2e,
            limit_seconds=300.0,
        )


PARTS = {
    "train": train_cases,
    "sampler": sampler_cases,
    "learner": learner_cases,
    "e2e": e2e_cases,
}


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def paths() -> dict[str, str]:
    inherited = filter(None, [os.environ.get("PYTHONPATH")])
    return {
        "OMP_NUM_THREADS": "4",
        "PYTHONUNBUFFERED": "1",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *inherited]),
    }


def command_of(case: Case, out: Path) -> list[str]:
    settings = [word for setting in case.settings for word in ("--set", setting)]
    recipe = ["--config", str(ROOT / f"recipes/{case.recipe}.yaml")]
    if case.kind == "run":
        own = ["--set", f"name={case.name}", "--set", f"output_dir={out.parent}"]
        line = [sys.executable, "-m", "cero_rl", "launch", "--ranks", "1", "--overwrite"]
        return [*line, *recipe, *settings, *own]
    options = ["--options", json.dumps(case.options)]
    line = [sys.executable, "tools/gpu_parts.py", case.kind, *options]
    return [*line, *recipe, *settings] if case.recipe else line


def measure(case: Case) -> dict[str, Any]:
    """Run it in a process group of its own and read what it left. Never raises: a case that fails
    is a row that says so."""
    out = WORK / "runs" / case.name
    log = WORK / f"{case.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command_of(case, out),
            cwd=ROOT,
            env={**paths(), **case.environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=dies_with_me(),
        )
        try:
            code = process.wait(timeout=case.limit_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    row: dict[str, Any] = {
        "case": case.name,
        "settings": list(case.settings),
        "wall_seconds": round(time.monotonic() - started, 1),
        "status": "done" if code == 0 else f"exit status {code}",
        "said": lines[-1].strip()[:200],
    }
    if code == 0:
        row |= of_run(case, out) if case.kind == "run" else json.loads(lines[-1])
    return row


def of_run(case: Case, out: Path) -> dict[str, Any]:
    """Medians over the steps of a run, and its memory beside what the plan told."""
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    steps = [line for line in lines if "step_time" in line][WARM_UP_STEPS:]
    wanted = ("timing_s/", "perf/", "parity/gap", "mismatch/", "step_time")
    names = sorted({name for step in steps for name in step if name.startswith(wanted)})
    held = {name: most(steps, name) for name in names if name.startswith("perf/memory_gib/")}
    before = held.get("perf/memory_gib/before", 0.0)  # the models came; 0 on a GPU
    numbers = {
        name: statistics.median(step[name] for step in steps if name in step)
        for name in names
        if name not in held
    }
    accuracy = [v for line in lines for k, v in line.items() if k.startswith("eval/avg@")]
    config = load_config(ROOT / f"recipes/{case.recipe}.yaml", list(case.settings))
    machine_here = gpus_of(1, None) if on_gpu() else processes_of(1, None)
    plan = Planner(config).plan(config, machine_here)
    return {
        "steps": len(steps),
        "median": {name: float(f"{value:.4g}") for name, value in numbers.items()},
        "memory_gib": {n.rpartition("/")[2]: round(size - before, 3) for n, size in held.items()},
        "told_gib": {phase.name: round(phase.bytes / 2**30, 3) for phase in plan.phases},
        "heldout_accuracy": [round(value, 4) for value in accuracy[:1] + accuracy[-1:]],
    }


def most(steps: list[dict[str, Any]], name: str) -> float:
    return max(step.get(name, 0.0) for step in steps)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="of these parts")
    parser.add_argument("--trial", action="store_true", help="small sizes: prove it on a CPU")
    parser.add_argument("--list", action="store_true", help="the measurements, and no more")
    parser.add_argument("--out", type=Path, help=f"rows (default: {ROWS.relative_to(ROOT)})")
    arguments = parser.parse_args()
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown or not (arguments.parts or arguments.list):
        said = unknown[0] if unknown else "none"
        parser.error(f"PART: got {said}, wanted some of {' '.join(PARTS)}")
    if not (arguments.trial or arguments.list or on_gpu()):
        print("gpu_session: no GPU here; --trial proves the session on a CPU", file=sys.stderr)
        return 1
    rows = arguments.out or (WORK / "trial.jsonl" if arguments.trial else ROWS)
    sizes, dtype = (TRIAL if arguments.trial else REAL), "bfloat16" if on_gpu() else "float32"
    failed = 0
    for part in arguments.parts or PARTS:
        for case in PARTS[part](sizes, dtype):
            if arguments.only and case.name not in arguments.only:
                continue
            if arguments.list:
                print(f"{part:<9}{case.name}")
                continue
            if case.shape:
                make_folder(case.shape, sizes.prompt_tokens)
            failed += not one(part, case, rows)
    return 1 if failed else 0


def one(part: str, case: Case, rows: Path) -> bool:
    """Measure, say and keep it; was it done?"""
    print(f"  {case.name:<28}", end="", flush=True)
    row = measure(case)
    print(f"{row['status']:<16}{row['wall_seconds']:7.1f} s  {row['said'][:100]}", flush=True)
    rows.parent.mkdir(parents=True, exist_ok=True)
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"part": part, **row, **machine()}) + "\n")
    return row["status"] == "done"


if __name__ == "__main__":
    sys.exit(main())
