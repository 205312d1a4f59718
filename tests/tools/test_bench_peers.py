"""The benchmark of trainers: what it asks of both is the same work, its meter tells steps and
phases apart, and an interrupted call goes on."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import bench_peers
import peer_reward
import peer_shapes

from cero_rl.config import load_config

TOY = """
import subprocess, sys, time
from peer_meter import Meter
meter = Meter()
def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until: pass
inner = meter.timed("generation", burn)
outer = meter.timed("training", lambda: inner(.05))
meter.ready()
for step in range(1, 10):
    inner(.02)
    outer()
    child = "import time\\nwhile time.process_time() < .2: pass"
    subprocess.run([sys.executable, "-c", child], check=True)
    meter.count(generated_tokens=step)
    meter.count(generated_tokens=step)
    meter.step_done()
"""
SIDE = {"cpu_seconds": 2.0, "wall_seconds": 3.0, "generation_cpu_seconds": 1.0}
SIDE |= {"training_cpu_seconds": 1.0, "peak_mb": 100}


def made_of(tmp_path: Path, name: str) -> bench_peers.Made:
    (tmp_path / "runs").mkdir()
    shape = peer_shapes.SHAPES[name]
    return bench_peers.Made(shape, tmp_path, tmp_path / "data.jsonl", 1, tmp_path)


def test_the_meter_tells_steps_and_phases_apart(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(peer_shapes.ROOT / "tools")}
    log = tmp_path / "log"
    with bench_peers.Running("toy", [sys.executable, "-c", TOY], log, environment) as toy:
        steps = toy.steps(3)
        assert toy.process.poll() is None  # it waits for its turn
    assert toy.process.returncode == 0
    assert [step["generated_tokens"] for step in steps] == [2, 4, 6]
    for step in steps:
        generation, training = step["phases"]["generation"][0], step["phases"]["training"][0]
        assert generation >= 0.02
        assert training >= 0.05  # the inner phase is the outer one's
        assert step["cpu_seconds"] >= generation + training + 0.19  # and the child's
        assert step["peak_mb"] >= step["main_peak_mb"] > 1


def test_a_contender_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    line = [sys.executable, "-c", "raise SystemExit('no such trainer')"]
    with pytest.raises(SystemExit, match=r"toy: ended with 1(.|\n)*no such trainer"):
        bench_peers.Running("toy", line, tmp_path / "log", dict(os.environ))


def test_no_group_is_without_signal() -> None:
    for _ in range(3):
        values = peer_reward.half([""] * 8, ["same"] * 8)
        assert sum(values) == 4
    assert peer_reward.exact(["", ""], [" 12 ", "3"], answer=["12", "4"]) == [1.0, 0.0]


@pytest.mark.parametrize("name", peer_shapes.SHAPES)
def test_both_are_asked_for_the_same_rollouts(name: str, tmp_path: Path) -> None:
    made = made_of(tmp_path, name)
    made.data.write_text("")
    shape = made.shape
    for contender in shape.contenders:
        if contender.trainer == "trl":
            sizes = contender.settings
            of_a_step = sizes["per_device_train_batch_size"] * sizes["gradient_accumulation_steps"]
            assert of_a_step == shape.prompts * shape.rollouts
            continue
        line = bench_peers.command(made, contender)
        overrides = [word for flag, word in pairwise(line) if flag == "--set"]
        config = load_config(line[line.index("--config") + 1], overrides)
        of_a_round = config.budget.total_rollouts // config.scheduler.rounds
        assert of_a_round == shape.prompts * shape.rollouts
        assert config.scheduler.rollouts_per_unit == shape.rollouts
        assert config.rollout.max_response_tokens == shape.response_tokens
        assert config.learner.kl_coefficient == 0


def test_the_middle_model_has_its_size_and_its_prompts_their_length(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    model, data = peer_shapes.prepare(peer_shapes.SHAPES["14m"], tmp_path)
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    assert 13e6 < sum(p.numel() for p in made.parameters()) < 15e6
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = bench_peers.json.loads(data.read_text().splitlines()[0])
    ids = tokenizer(rows["prompt"])["input_ids"]
    assert len(ids) == 128
    assert tokenizer.decode(ids) == rows["prompt"]


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    made = made_of(tmp_path, "1m")
    kept = bench_peers.Kept(made)
    for contender in made.shape.contenders:
        seconds = 1.0 if contender.label in ("ZeRO off", "batch 1024") else 5.0
        names = {"kind": "sweep", "trainer": contender.trainer, "label": contender.label}
        kept.add({**names, **SIDE, "cpu_seconds": seconds})
    kept.lines[-1]["failed"] = "it did not start"
    for trl in (6.0, 8.0, 9.0):
        turn = {"cero_rl": SIDE, "trl": {**SIDE, "cpu_seconds": trl, "peak_mb": 250}}
        kept.add({"kind": "alternation", **turn})
    again = bench_peers.Kept(made)
    bench_peers.sweep(made, again, 1)  # would start processes
    bench_peers.alternate(made, again, 3)
    assert again.lines == bench_peers.Kept(made).lines
    row = bench_peers.row_of(made, again)
    assert row["trl_over_cero_cpu_seconds"] == [3.0, 4.0, 4.5]
    assert row["trl_over_cero_peak_mb"] == [2.5, 2.5, 2.5]
    assert (row["cero_rl"]["label"], row["trl"]["label"]) == ("ZeRO off", "batch 1024")
    assert row["trl"]["cpu_seconds"] == 8.0
    assert len(row["sweep"]) == len(made.shape.contenders)


def test_the_verb_tells_its_options() -> None:
    tool = peer_shapes.ROOT / "tools/bench_peers.py"
    environment = {**os.environ, "PYTHONPATH": str(peer_shapes.ROOT)}
    done = subprocess.run(
        [sys.executable, str(tool), "--shapes", "70b"], capture_output=True, env=environment
    )
    assert done.returncode == 2
    assert b"invalid choice: '70b'" in done.stderr
