"""The whole pipeline for real: DeepSpeed ZeRO-3 on gloo, the shipped model, the shipped command."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from launch import ROOT, environment, launch, launch_for_real, line, lines, repeatable

from cero_rl.report.facts import facts_of
from cero_rl.report.reader import read_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def uncut(out) -> Path:
    done = launch_for_real(out, "uncut")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "held-out accuracy" in done.stdout
    assert "step 1: some completions of rank 0\n  prompt " in done.stdout
    assert f"  next          cero-rl view {out / 'uncut'}\n" in done.stdout
    return out / "uncut"


def test_budget_is_spent_exactly_and_metrics_carry_the_known_names(uncut):
    *steps, last = lines(uncut / "metrics.jsonl")
    assert last["budget/spent_rollouts"] == last["budget/total_rollouts"] == 384
    assert [m["step"] for m in steps] == [0, 1, 2, 3, 4, 5, 6]
    wanted = {
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "completions/mean_length",
        "completions/clipped_ratio",
        "kl",
        "entropy",
        "num_tokens",
        "step_time",
        "timing_s/rollout",
        "timing_s/learner",
        "perf/tokens_per_second",
        "cero/effective_group_rate",
        "cero/price",
        "cero/slope_mean",
        "cero/posterior_mean",
        "cero/value_mean",
        "cero/rollouts_mean",
        "cero/proxy_rank_corr",
        "budget/remaining_rollouts",
        "reward/timeout_rate",
        "reward/error_rate",
        "grad_norm",
        "learning_rate",
        "loss",
    }
    assert wanted <= set(steps[1])
    assert all(m["mismatch/logp_abs_max"] < 1e-3 for m in steps[1:])


def test_evidence_counts_every_rollout_once(uncut):
    evidence, ledger = lines(uncut / "evidence.jsonl"), lines(uncut / "ledger.jsonl")
    assert sum(sum(e["generated"]) for e in evidence) == 384 == ledger[-1]["spent_rollouts"]
    assert all(e["generated"] == e["trials"] for e in evidence)


def test_the_report_reads_what_the_allocator_believed(uncut):
    run = read_run(uncut)
    assert run.finished
    assert len(run.keys) == run.num_prompts
    facts = facts_of(run)
    assert facts.spent.sum() == facts.summary["rollouts"] == 384
    assert facts.summary["heldout"][-1]["rollouts"] == 384
    assert run.groups.knows_beliefs
    assert np.isfinite(run.groups.slope).all()


def test_cut_and_resumed_equals_uncut_bit_for_bit(out, uncut):
    first = launch(out, "cut", "--stop-at-step", "3")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "stopped after step 3; saved" in first.stdout
    past = launch(out, "cut", "--resume", "auto", "--stop-at-step", "2")
    assert past.returncode == 0, past.stdout + past.stderr
    assert "step 3 is done, --stop-at-step 2 asks for no more" in past.stdout
    again = launch(out, "cut", "--resume", "auto")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumed from" in again.stdout
    resumed = out / "cut"
    for name in ("metrics.jsonl", "ledger.jsonl", "evidence.jsonl"):
        a, b = ([repeatable(m) for m in lines(run / name)] for run in (uncut, resumed))
        assert a == b, name
    assert (uncut / "export/model.safetensors").read_bytes() == (
        resumed / "export/model.safetensors"
    ).read_bytes()


def test_one_rank_allocates_what_two_ranks_allocate(out, uncut):
    alone = launch(out, "alone", ranks=1)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert lines(uncut / "evidence.jsonl") == lines(out / "alone/evidence.jsonl")
    # the loop's and the scheduler's state know nothing of ranks
    for name in ("state.json", "arrays.safetensors"):
        two, one = (
            max((run / "checkpoints").glob("step_*")) / name for run in (uncut, out / "alone")
        )
        assert two.read_bytes() == one.read_bytes()


def test_export_reproduces_the_evaluation(uncut):
    settings = [
        "data.limit=120",
        "data.heldout_limit=24",
        "evaluation.final_samples_per_prompt=2",
        "evaluation.pass_k=[1,2]",
    ]
    line = [
        "python",
        "-m",
        "cero_rl",
        "evaluate",
        "--config",
        "recipes/digits_cpu.yaml",
        "--model",
        str(uncut / "export"),
        "--json",
    ]
    for setting in settings:
        line += ["--set", setting]
    done = subprocess.run(
        line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True, timeout=120
    )
    again = json.loads(done.stdout)  # whatever DeepSpeed and torch print
    last = lines(uncut / "metrics.jsonl")[-1]
    assert again["eval/avg@2"] == pytest.approx(last["eval/avg@2"], abs=1e-7)
    assert again["eval/pass@2"] == pytest.approx(last["eval/pass@2"], abs=1e-7)


@pytest.mark.covers("existing run without --resume")
def test_existing_run_is_not_overwritten_by_accident(out, uncut):
    before = (uncut / "metrics.jsonl").read_bytes()
    done = launch(out, "uncut", ranks=1)
    assert done.returncode == 2
    words = "already holds a run; go on with --resume auto, replace it with --overwrite, or set"
    assert words in done.stderr
    assert (uncut / "metrics.jsonl").read_bytes() == before


@pytest.mark.covers("bit flip in a checkpoint", "all checkpoints invalid")
def test_damaged_checkpoints_are_refused_by_name(out, uncut):
    broken = out / "broken"
    shutil.copytree(uncut, broken)
    newest, older = sorted((broken / "checkpoints").glob("step_*"), reverse=True)
    shard = next((newest / "zero").glob("*optim_states.pt"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    done = launch(out, "broken", "--resume", "auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{shard.name}: content differs" in done.stderr
    assert f"resumed from {older}" in done.stdout
    assert (broken / "export/model.safetensors").read_bytes() == (
        uncut / "export/model.safetensors"
    ).read_bytes()
    for manifest in (broken / "checkpoints").glob("step_*/MANIFEST.json"):
        manifest.write_text("{")
    done = launch(out, "broken", "--resume", "auto", ranks=1)
    assert done.returncode == 4
    assert "no valid checkpoint" in done.stderr


@pytest.mark.covers("mistake that one rank sees")
def test_a_mistake_that_rank_0_alone_looks_for_ends_all_at_once(out):
    done = launch(out, "mistaken", settings=["reward.function=nowhere.py:score"])
    assert done.returncode == 5
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(errors) == 1, done.stderr
    assert "nowhere.py" in errors[0]
    assert not (out / "mistaken").exists()


@pytest.mark.covers("Ctrl-C once", "signal to the launcher alone")
def test_ctrl_c_saves_and_the_run_goes_on(out, uncut):
    """With the project's own launcher, which ends with the run's exit code."""
    words = line(out, "interrupted")[1:]
    process = subprocess.Popen(
        [sys.executable, "-m", "cero_rl", "launch", "--ranks", "2", *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    metrics = out / "interrupted/metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 2):
        assert time.monotonic() < deadline, "no step within 90 s"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert "interrupted after step" in output, output
    assert "Traceback" not in output
    assert process.returncode == 130
    again = launch(out, "interrupted", "--resume", "auto")
    assert again.returncode == 0, again.stdout + again.stderr
    assert (out / "interrupted/export/model.safetensors").read_bytes() == (
        uncut / "export/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (["data.source=nowhere.jsonl"], 3, "nowhere.jsonl"),
        (
            ["model.path=recipes/assets/no_model"],
            2,
            "model.path: 'recipes/assets/no_model' does not exist",
        ),
        pytest.param(
            ["reward.function=nowhere.py:score"],
            5,
            "nowhere.py",
            marks=pytest.mark.covers("unknown reward"),
        ),
        pytest.param(
            ["rollout.max_response_tokens=100"],
            2,
            "but the model has",
            marks=pytest.mark.covers("prompt and response longer than the model"),
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(out, settings, code, message):
    line = [
        "python",
        "recipes/train_cero.py",
        "--config",
        "recipes/digits_cpu.yaml",
        "--set",
        f"output_dir={out}",
        "--set",
        "name=bad",
    ]
    for setting in settings:
        line += ["--set", setting]
    done = subprocess.run(
        line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    errors = [text for text in done.stderr.splitlines() if text.startswith("error")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert not (out / "bad").exists()
