"""Is `cero-rl plan` right? Real runs on CPUs against what was told before: rows in
docs/bench/plan.jsonl.

    python tools/check_plan.py                       # all cases, some minutes each
    python tools/check_plan.py --only 16m_zero3      # one of them
    python tools/check_plan.py --told                # no runs: the rows against today's plan

A run of two steps on a random Qwen3, whose responses all reach the limit: the plan's worst case.
Measured: resident memory of the larger rank by phase (perf/memory_gib/*), less what it held before
the models. malloc is told to give every large block back (MALLOC_MMAP_THRESHOLD_), so that the
resident set is what is held and not what was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_timing import machine
from tiny_models import Size, Vocabulary, make_model

from cero_rl.config import load_config
from cero_rl.memory.planner import Planner
from cero_rl.memory.states import Machine

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
WORDS, PROMPT, RESPONSE = 4096, 32, 32
REWARD = """import hashlib
def bit(prompts, completions, **columns):
    return [float(hashlib.sha256(text.encode()).digest()[0] & 1) for text in completions]
"""
SETTINGS = f"""name: check
output_dir: runs
model: {{path: model, dtype: float32}}
data:
  source: train.jsonl
  heldout_source: heldout.jsonl
  heldout_split: train
  chat_template: never
  max_prompt_tokens: {PROMPT}
reward: {{function: "reward.py:bit", workers: 1}}
rollout: {{engine: transformers, max_response_tokens: {RESPONSE}, max_batch_tokens: 1024}}
scheduler: {{name: uniform, rounds: 2, rollouts_per_unit: 4}}
budget: {{total_rollouts: 64}}
learner: {{max_micro_batch_tokens: 512}}
evaluation: {{every_steps: 1, samples_per_prompt: 1}}
checkpoint: {{export: false}}
logging: {{tensorboard: false}}
"""
SMALL, LARGE = Size(384, 8, 12), Size(768, 16, 24)


@dataclass(frozen=True)
class Case:
    size: Size
    ranks: int
    settings: tuple[str, ...] = ()


CASES = {
    "16m_zero3": Case(SMALL, 2),
    "116m_zero3": Case(LARGE, 2),
    "116m_zero3_recomputed": Case(LARGE, 2, ("model.gradient_checkpointing=true",)),
    "16m_zero2": Case(SMALL, 2, ("zero.stage=2",)),
    "16m_zero1": Case(SMALL, 2, ("zero.stage=1",)),
    "16m_zero0": Case(SMALL, 1, ("zero.stage=0",)),
    "16m_bfloat16": Case(SMALL, 2, ("model.dtype=bfloat16",)),
    "16m_lora": Case(SMALL, 2, ("lora.rank=8",)),
    "16m_cut": Case(SMALL, 2, ("zero.sequence_parallel=2",)),
    "16m_reference": Case(SMALL, 2, ("learner.kl_coefficient=0.01",)),
}


def prepare(folder: Path, size: Size) -> None:
    words = Vocabulary([chr(0x4E00 + i) for i in range(WORDS - 2)])
    make_model(size, WORDS, seed=0, context=2 * (PROMPT + RESPONSE)).save_pretrained(
        folder / "model"
    )
    words.tokenizer().save_pretrained(folder / "model")
    rng = random.Random("check-plan")
    for name, rows in (("train", 64), ("heldout", 8)):
        prompts = ("".join(rng.choices(words.tokens, k=PROMPT)) for _ in range(rows))
        text = "".join(json.dumps({"prompt": p, "answer": "none"}) + "\n" for p in prompts)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    (folder / "run.yaml").write_text(SETTINGS, encoding="utf-8")


def measured(case: Case) -> dict[str, float]:
    """Phase -> MiB above what the process held before the models: the largest of all steps."""
    with tempfile.TemporaryDirectory(prefix="check-plan-") as place:
        prepare(Path(place), case.size)
        return _run(Path(place), case)


def _run(folder: Path, case: Case) -> dict[str, float]:
    line = [sys.executable, "-m", "cero_rl", "launch", "--ranks", str(case.ranks)]
    line += ["--config", "run.yaml", "--overwrite"]
    line += [word for setting in case.settings for word in ("--set", setting)]
    given_back = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **given_back, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: the run failed ({done.returncode}):\n{done.stderr[-2000:]}")
    text = (folder / "runs/check/metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    peaks: dict[str, float] = {}
    for row in rows:
        held = {
            k.removeprefix("perf/memory_gib/"): v for k, v in row.items() if "perf/memory_gib/" in k
        }
        before = held.pop("before", 0.0)
        for phase, size in held.items():
            peaks[phase] = max(peaks.get(phase, 0.0), size - before)
    return {phase: size * 1024 for phase, size in peaks.items()}


def told(case: Case) -> tuple[int, dict[str, int]]:
    """(parameters, phase -> bytes) of the plan, on a model of this size that is made for it."""
    with tempfile.TemporaryDirectory(prefix="check-plan-") as place:
        folder = Path(place)
        prepare(folder, case.size)
        config = load_config(
            folder / "run.yaml", [f"model.path={folder / 'model'}", *case.settings]
        )
        planner = Planner(config)
        plan = planner.plan(config, Machine(case.ranks, 2**40, gpu=False))
    sizes = {phase.name: phase.bytes for phase in plan.phases}
    sizes["learner"] = max(sizes["learner"], sizes["optimizer"])  # measured with its steps
    return planner.shape.parameters, sizes


def row_of(name: str, found: dict[str, float]) -> dict[str, Any]:
    """`found`: measured, phase -> MiB."""
    case = CASES[name]
    parameters, plan = told(case)
    mib = {phase: size / MIB for phase, size in plan.items()}
    return {
        "case": name,
        "parameters": parameters,
        "ranks": case.ranks,
        "settings": list(case.settings),
        "told_mib": {phase: round(size) for phase, size in mib.items()},
        "measured_mib": {phase: round(size) for phase, size in found.items()},
        "error": {phase: round(size / found[phase] - 1, 3) for phase, size in mib.items()},
        "peak_error": round(max(mib.values()) / max(found.values()) - 1, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=ROOT / "docs/bench/plan.jsonl")
    parser.add_argument(
        "--told", action="store_true", help="no runs: the rows' measurements against today's plan"
    )
    arguments = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if arguments.out.exists():
        read = map(json.loads, arguments.out.read_text(encoding="utf-8").splitlines())
        rows = {row["case"]: row for row in read}
    for name in arguments.only:
        if arguments.told:
            if name not in rows:
                continue
            rows[name] |= row_of(name, rows[name]["measured_mib"])
        else:
            rows[name] = {**row_of(name, measured(CASES[name])), **machine()}
        print(json.dumps(rows[name]), flush=True)
        text = "".join(json.dumps(row) + "\n" for row in rows.values())
        arguments.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
