"""cero_rl against TRL on the same work: CPU and wall seconds a step, tokens/s by phase, peak memory
(`make bench-peers`). docs/peers.md says what is equal and what cannot be.

    python tools/bench_peers.py [--shapes 1m 14m 135m] [--alternations 5] [--threads 1]

First every contender of a shape (peer_shapes.py) takes a warm-up step and a few more alone: the
sweep. Then the fastest setting of each trainer runs against the other in turns: one works while the
other waits between two steps. What was measured at this commit is kept in the working directory and
not measured again, so an interrupted call goes on. A row a shape is appended to --rows when it is
complete.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from bench_timing import commit, machine
from peer_meter import OWN_END, PIPES
from peer_shapes import ROOT, SHAPES, Contender, Shape, prepare

ROWS = ROOT / "docs/bench/peers.jsonl"
WORK = ROOT / "build/peers"
TRAINERS = ("cero_rl", "trl")
PACKAGES = ("trl", "transformers", "deepspeed", "accelerate")
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A shape's files, and how they are used."""

    shape: Shape
    model: Path
    data: Path
    threads: int
    work: Path


def command(made: Made, contender: Contender) -> list[str]:
    """What starts the contender; it ends when it is told to."""
    shape, folder = made.shape, made.work / "runs"
    if contender.trainer == "trl":
        spec = {
            "model": str(made.model),
            "data": str(made.data),
            "rollouts": shape.rollouts,
            "response_tokens": shape.response_tokens,
            "dtype": shape.dtype,
            "learning_rate": shape.learning_rate,
            "reward": shape.reward,
            "threads": made.threads,
            "settings": contender.settings,
        }
        path = folder / f"trl_{shape.name}.json"
        path.write_text(json.dumps(spec))
        return [sys.executable, str(ROOT / "tools/peer_trl.py"), str(path)]
    steps = 1000  # more than will be asked for
    rollouts = shape.prompts * shape.rollouts
    settings = {
        "name": f"cero_{shape.name}",
        "output_dir": folder,
        "model.path": made.model,
        "model.dtype": shape.dtype,
        "data.source": made.data,
        "data.heldout_fraction": 0,
        "data.chat_template": "never",
        "data.max_prompt_tokens": shape.prompt_tokens,
        "reward.function": f"{ROOT / 'tools/peer_reward.py'}:{shape.reward}",
        "rollout.engine": "transformers",
        "rollout.max_response_tokens": shape.response_tokens,
        "scheduler.name": "uniform",
        "scheduler.rounds": steps,
        "scheduler.rollouts_per_unit": shape.rollouts,
        "budget.total_rollouts": steps * rollouts,
        "learner.algorithm": "grpo",
        "learner.importance_sampling": "none",
        "optimizer.learning_rate": shape.learning_rate,
        "evaluation.every_steps": 0,
        "checkpoint.every_steps": 0,
        "checkpoint.export": "false",
        "logging.tensorboard": "false",
        "logging.sample_dumps": "false",
        **contender.settings,
    }
    file = folder / "empty.yaml"
    file.write_text("{}\n")
    line = [sys.executable, str(ROOT / "tools/peer_cero.py"), "--overwrite", "--config", str(file)]
    for key, value in settings.items():
        line += ["--set", f"{key}={value}"]
    return line


def start(made: Made, contender: Contender) -> Running:
    """The contender, in a process of its own."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(made.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")]),
    }
    if made.shape.as_it_is:
        environment[OWN_END] = "1"
    log = made.work / "runs" / f"{contender.trainer}_{made.shape.name}.log"
    label = f"{contender.trainer} {contender.label}"
    return Running(label, command(made, contender), log, environment)


class Running:
    """A contender that was started and waits for its turn."""

    def __init__(self, label: str, line: Sequence[str], log: Path, environment: Numbers) -> None:
        self.label, self.log = label, log
        their_read, own_write = os.pipe()
        own_read, their_write = os.pipe()
        with log.open("w") as output:
            self.process = subprocess.Popen(
                line,
                cwd=ROOT,
                env={**environment, PIPES: f"{their_write},{their_read}"},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                pass_fds=(their_write, their_read),
            )
        os.close(their_read)
        os.close(their_write)
        self._write, self._read = os.fdopen(own_write, "w"), os.fdopen(own_read)
        self.start_up = self._line()

    def _line(self) -> Numbers:
        text = self._read.readline()
        if not text:
            self.process.wait()
            tail = self.log.read_text(errors="replace")[-3000:]
            raise SystemExit(
                f"{self.label}: ended with {self.process.returncode}; {self.log}\n{tail}"
            )
        return json.loads(text)

    def steps(self, count: int) -> list[Numbers]:
        taken = []
        for _ in range(count):
            self._write.write("go\n")
            self._write.flush()
            taken.append(self._line())
        return taken

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self._write.close()  # whoever waits for its turn ends
        self._read.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _median(steps: Sequence[Numbers], name: str) -> float:
    return statistics.median(step.get(name, 0.0) for step in steps)


def summary(steps: Sequence[Numbers]) -> Numbers:
    """Medians over steps; tokens a CPU second by phase; memory at its largest."""
    phases = {}
    for phase, tokens in (("generation", "generated_tokens"), ("training", "trained_tokens")):
        cpu = statistics.median(step["phases"][phase][0] for step in steps)
        phases[f"{phase}_cpu_seconds"] = round(cpu, 4)
        phases[f"{phase}_tokens_per_cpu_second"] = round(_median(steps, tokens) / cpu, 1)
    cpu = _median(steps, "cpu_seconds")
    counted = phases["generation_cpu_seconds"] + phases["training_cpu_seconds"]
    names = ("generated_tokens", "trained_tokens", "forwarded_tokens", "padded_tokens")
    return {
        "cpu_seconds": round(cpu, 4),
        "wall_seconds": round(_median(steps, "wall_seconds"), 4),
        **phases,
        "other_cpu_seconds": round(cpu - counted, 4),
        "peak_mb": round(max(step["peak_mb"] for step in steps)),
        "main_peak_mb": round(max(step["main_peak_mb"] for step in steps)),
        **{name: round(_median(steps, name)) for name in names if name in steps[0]},
        "reward": round(_median(steps, "reward"), 3),
        "grad_norm": round(_median(steps, "grad_norm"), 4),
    }


class Kept:
    """What was measured at this commit, line by line in the working directory."""

    def __init__(self, made: Made) -> None:
        self._path = (
            made.work / f"{made.shape.name}_{commit()}_{made.threads}_{made.shape.steps}.jsonl"
        )
        self.lines: list[Numbers] = []
        if self._path.exists():
            self.lines = [json.loads(line) for line in self._path.read_text().splitlines()]

    def add(self, line: Numbers) -> None:
        self.lines.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def of(self, kind: str) -> list[Numbers]:
        return [line for line in self.lines if line["kind"] == kind]


def sweep(made: Made, kept: Kept, steps: int) -> None:
    """Every contender alone; one that does not run is kept with its last words."""
    done = {(line["trainer"], line["label"]) for line in kept.of("sweep")}
    for contender in made.shape.contenders:
        if (contender.trainer, contender.label) in done:
            continue
        line: Numbers = {"kind": "sweep", "trainer": contender.trainer, "label": contender.label}
        try:
            with start(made, contender) as running:
                running.steps(1)
                line |= summary(running.steps(steps))
                line["start_up_cpu_seconds"] = round(running.start_up["cpu_seconds"], 2)
                line["start_up_peak_mb"] = round(running.start_up["peak_mb"])
        except SystemExit as failed:
            line["failed"] = str(failed).strip().splitlines()[-1]
        kept.add(line)
        say(made, f"{contender.trainer:<8} {contender.label:<32} {told(line)}")


def told(line: Numbers) -> str:
    if "failed" in line:
        return f"failed: {line['failed']}"
    parts = ", ".join(f"{p} {line[f'{p}_cpu_seconds']:.3f}" for p in ("generation", "training"))
    return f"{line['cpu_seconds']:9.3f} CPU s a step ({parts}), {line['peak_mb']} MB"


def say(made: Made, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {made.shape.name:<10} {text}", flush=True)


def best(made: Made, kept: Kept, trainer: str) -> Contender:
    """The contender with the fewest CPU seconds a step in the sweep."""
    ran = [s for s in kept.of("sweep") if s["trainer"] == trainer and "failed" not in s]
    if not ran:
        raise SystemExit(f"{trainer} did not run at {made.shape.name}; see {made.work / 'runs'}")
    label = min(ran, key=lambda line: line["cpu_seconds"])["label"]
    return next(c for c in made.shape.contenders if (c.trainer, c.label) == (trainer, label))


def alternate(made: Made, kept: Kept, alternations: int) -> None:
    """The best setting of each trainer, in turns, step by step."""
    missing = alternations - len(kept.of("alternation"))
    if missing <= 0:
        return
    with ExitStack() as stack:
        running = {}
        for trainer in TRAINERS:
            running[trainer] = stack.enter_context(start(made, best(made, kept, trainer)))
            running[trainer].steps(1)
        for index in range(missing):
            order = TRAINERS if index % 2 == 0 else TRAINERS[::-1]
            line = {t: summary(running[t].steps(made.shape.steps)) for t in order}
            kept.add({"kind": "alternation", **line})
            ratio = line["trl"]["cpu_seconds"] / line["cero_rl"]["cpu_seconds"]
            say(made, f"trl / cero_rl: {ratio:.2f} in CPU seconds")


def spread(values: Sequence[float]) -> list[float]:
    """Minimum, median, maximum."""
    return [round(value, 3) for value in (min(values), statistics.median(values), max(values))]


def row_of(made: Made, kept: Kept) -> Numbers:
    """What goes to docs/bench/."""
    shape, turns = made.shape, kept.of("alternation")
    ratios = {
        f"trl_over_cero_{name}": spread([t["trl"][name] / t["cero_rl"][name] for t in turns])
        for name in (
            "cpu_seconds",
            "wall_seconds",
            "generation_cpu_seconds",
            "training_cpu_seconds",
            "peak_mb",
        )
    }
    sides = {}
    for trainer in TRAINERS:
        chosen = best(made, kept, trainer)
        taken = [turn[trainer] for turn in turns]
        medians = {k: round(statistics.median(t[k] for t in taken), 4) for k in taken[0]}
        sides[trainer] = {"label": chosen.label, "settings": chosen.settings, **medians}
    fixed = {
        "prompts": shape.prompts,
        "rollouts": shape.rollouts,
        "response_tokens": shape.response_tokens,
        "dtype": shape.dtype,
        "learning_rate": shape.learning_rate,
        "alternations": len(turns),
        "steps": shape.steps,
    }
    versions = {package: version(package) for package in PACKAGES}
    sweeps = [{k: v for k, v in line.items() if k != "kind"} for line in kept.of("sweep")]
    where = {**machine(), "threads": made.threads}
    return {
        "shape": shape.name,
        **fixed,
        **ratios,
        **sides,
        "sweep": sweeps,
        "versions": versions,
        **where,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="cero_rl against TRL on the same work.")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--contenders", nargs="+", metavar="LABEL", help="of the sweep; None: all")
    parser.add_argument("--steps", type=int, help="of an alternation; None: as the shape says")
    parser.add_argument("--sweep-steps", type=int, default=1, help="after one of warm-up (1)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--work", type=Path, default=WORK, help="models, logs, what was measured")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = options.work.resolve()
    (work / "runs").mkdir(parents=True, exist_ok=True)
    for name in options.shapes:
        shape = SHAPES[name]
        wanted = options.contenders or [c.label for c in shape.contenders]
        contenders = tuple(c for c in shape.contenders if c.label in wanted)
        shape = replace(shape, steps=options.steps or shape.steps, contenders=contenders)
        made = Made(shape, *prepare(shape, work), options.threads, work)
        kept = Kept(made)
        sweep(made, kept, options.sweep_steps)
        alternate(made, kept, options.alternations)
        row = row_of(made, kept)
        with options.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        say(made, f"trl / cero_rl {row['trl_over_cero_cpu_seconds']} (minimum, median, maximum)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
