"""zero.sequence_parallel without ranks: how a pack is cut, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learner_cases import advantages, make_batch
from step_cases import config_of

from cero_rl.distributed.block import Block
from cero_rl.errors import ConfigError
from cero_rl.models.attention import PACKED, attention_of, refuse_indivisible_heads


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
            (cut,) = cuts
            assert cut is not None
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
