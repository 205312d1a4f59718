"""The counter-based uniforms: independent of batch and order, and uniform enough to sample from."""

import numpy as np
from scipy import stats

from cero_rl.rollout.random_stream import draw_keys, uniforms


def test_same_draw_whatever_the_batch():
    prompts, draws = np.arange(50, dtype=np.uint64) * np.uint64(7919), np.arange(50)
    together = uniforms(draw_keys(3, 5, prompts, draws), 2)
    order = np.random.default_rng(0).permutation(50)
    alone = uniforms(draw_keys(3, 5, prompts[order], draws[order]), 2)
    assert np.array_equal(together[order], alone)


def test_every_coordinate_matters():
    prompts, draws = np.zeros(1, dtype=np.uint64), np.zeros(1, dtype=np.int64)
    base = uniforms(draw_keys(0, 0, prompts, draws), 0)
    others = [
        uniforms(draw_keys(1, 0, prompts, draws), 0),
        uniforms(draw_keys(0, 1, prompts, draws), 0),
        uniforms(draw_keys(0, 0, prompts + np.uint64(1), draws), 0),
        uniforms(draw_keys(0, 0, prompts, draws + 1), 0),
        uniforms(draw_keys(0, 0, prompts, draws), 1),
    ]
    assert len({float(u[0]) for u in [base, *others]}) == 6


def test_uniform_and_uncorrelated():
    keys = draw_keys(
        0, 1, np.repeat(np.arange(2000, dtype=np.uint64), 8), np.tile(np.arange(8), 2000)
    )
    first, second = uniforms(keys, 0), uniforms(keys, 1)
    assert ((first >= 0) & (first < 1)).all()
    assert stats.kstest(first, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    by_draw = first.reshape(2000, 8)
    assert abs(np.corrcoef(by_draw[:, 0], by_draw[:, 1])[0, 1]) < 0.08
