"""zero.sequence_parallel: losses and gradients of packs that two ranks cut between them against
those of one process, on tiny random models; what is counted, kept and refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import warm_ranks
from learner_cases import advantages, make_batch
from step_cases import ROOT, config_of

from cero_rl.distributed.block import Block
from cero_rl.errors import ConfigError
from cero_rl.models.attention import PACKED, attention_of, refuse_indivisible_heads

# keys and values in one head, windows with a cap, sinks, experts, values narrower than keys
ARCHITECTURES = ["llama, one key head", "gemma2, window 5", "gpt_oss", "qwen3_moe", "deepseek_v3"]


def on_ranks(out: Path, ranks: int, architectures: list[str]) -> list[list[dict]]:
    """Of each rank, a row a case."""
    line = ["tests/learner/slices_driver.py", str(out), *architectures]
    meet = {**warm_ranks.environment(), "MASTER_PORT": str(warm_ranks.free_port())}
    done = warm_ranks.run(line, ROOT, meet, out, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((out / f"slices-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.slow
def test_loss_and_gradient_are_those_of_one_process(tmp_path):
    ranks = on_ranks(tmp_path, 2, ARCHITECTURES)
    for row in ranks[0]:
        assert row["gradient"] > 0.01, row
        assert row["loss_gap"] < 1e-6, row
        assert row["gradient_gap"] < 1e-5, row
        assert row["metrics_gap"] < 1e-5 * max(map(abs, row["metrics"].values())), row
    for row, other in zip(*ranks, strict=True):
        # each rank brings a part of the gradient, and keeps about half of what one would
        shares = np.array([row["share"], other["share"]]) / row["gradient"]
        assert (shares > 0.01).all(), row
        assert (np.abs(shares - 1) > 1e-3).all(), row
        assert max(row["kept"], other["kept"]) < 0.6, row
    named = {row["case"]: row["metrics"] for row in ranks[0]}
    assert named["qwen3, ppo, 1000 tokens"]["clip_low"] > 0
    assert named["qwen3, sequence ratios, 1000 tokens"]["cut"] > 0
    for name, value in (("loss_gap", "loss"), ("gradient_gap", "gradient")):
        worst = max(ranks[0], key=lambda row: row[name])
        print(f"largest {value} error {worst[name]:.2g}: {worst['case']}")


@pytest.mark.long
@pytest.mark.slow
def test_every_architecture_that_is_trained_can_be_cut(tmp_path):
    from architectures import TRAINED

    for row in on_ranks(tmp_path, 2, [row.name for row in TRAINED])[0]:
        assert row["gradient"] > 0.01, row
        assert row["gradient_gap"] < 1e-5, row


def test_slices_cover_every_token_and_every_target_once():
    rng = np.random.default_rng(3)
    for total in range(2, 30):
        mask = torch.from_numpy(rng.random(total) < 0.6)
        mask[0] = False  # nothing predicts a pack's first token
        values = torch.arange(1, total + 1)
        for size in (2, 3, 4, 8):
            blocks = [Block(rank, size) for rank in range(size)]
            slices = [block.slice_of(values) for block in blocks]
            assert len({len(s) for s in slices}) == 1
            assert torch.equal(torch.cat(slices)[:total], values)
            assert not torch.cat(slices)[total:].any()
            cuts = {block.cut_of(mask) for block in blocks}
            assert len(cuts) == 1
            (cut,) = cuts
            predicts = mask[1:]  # entry t: of token t
            own = len(slices[0])
            assert cut == tuple(int(predicts[r * own : (r + 1) * own].sum()) for r in range(size))
            assert sum(cut) == int(mask.sum())
    assert Block().cut_of(mask) is None


def test_a_block_of_one_changes_no_plan():
    from cero_rl.learner.batch import TrainingBatch, of_block

    batch = make_batch(np.random.default_rng(0), [[3, 2]], [[1, 0]])
    given = TrainingBatch(batch, *advantages(batch))
    assert of_block(given, Block(), torch.device("cpu")) is given


@pytest.mark.covers("sequence parallelism that does not fit")
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("learner.shared_prefix=true", "got 2 with learner.shared_prefix: true"),
        ("model.attention=flash_attention_2", "got 2 with model.attention: flash_attention_2"),
        ("zero.sequence_parallel=0", "zero.sequence_parallel"),
    ],
)
def test_settings_that_do_not_fit_are_refused(setting, words):
    with pytest.raises(ConfigError, match=words) as refused:
        config_of("zero.sequence_parallel=2", setting)
    assert "\n" not in str(refused.value).split(": ", 1)[1].strip()


@pytest.mark.covers("sequence parallelism that does not fit")
def test_heads_that_do_not_divide_are_refused():
    assert attention_of(config_of("zero.sequence_parallel=2")) == PACKED
    heads = SimpleNamespace(num_attention_heads=6)
    refuse_indivisible_heads("model", heads, 3)
    with pytest.raises(ConfigError, match="4 does not divide the 6 attention heads of 'model'"):
        refuse_indivisible_heads("model", heads, 4)
    with pytest.raises(ValueError, match="6 attention heads are not divisible"):
        Block(0, 4).to_heads(torch.zeros(3, 6, 2))
