"""Gradients of groups against enumeration: a tiny policy with one response token, whose outcomes
can all be listed, so that mean, second moment and value are known exactly."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from step_cases import config_of

from cero_rl.config import Config
from cero_rl.diagnosis.gradients import (
    BLOCKS,
    Estimator,
    Gradients,
    as_rollouts,
    group_of,
    heldout_gradient,
    pool_gradient,
    sketch_for,
)
from cero_rl.diagnosis.looks import Looks
from cero_rl.diagnosis.sketch import Sketch, gram
from cero_rl.diagnosis.statistics import mean_value, noise_scale, relative_value
from cero_rl.distributed.group import Group
from cero_rl.learner.batch import make_batch
from cero_rl.models.attention import choose_attention
from cero_rl.scheduler.critic import CriticOptions, PosteriorCritic
from cero_rl.types import Completion, RolloutGroup

VOCABULARY, RIGHT = 4, 2
PROMPTS = ([3, 1], [0, 2, 1], [1])
SIZE = 2
CPU = torch.device("cpu")
quiet = lambda text: None


def config_for(advantage: str, aggregation: str, *more: str) -> Config:
    return config_of(
        "rollout.max_response_tokens=1",
        f"learner.advantage={advantage}",
        f"learner.aggregation={aggregation}",
        *more,
    )


def made_model(attention: str) -> Any:
    """A random one, far from uniform over its vocabulary; the same at every call."""
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        tie_word_embeddings=True,
        max_position_embeddings=16,
        eos_token_id=1,
        bos_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    """As the learner runs it, on packed sequences."""
    return made_model(choose_attention("sdpa"))


def keep_all(samples) -> np.ndarray:
    return np.ones(samples.rewards.shape, dtype=bool)


@pytest.fixture(scope="module")
def policy() -> list[np.ndarray]:
    """Probabilities f64[V] of the one token after each prompt, by the model's plain forward."""
    plain = made_model("sdpa")
    with torch.no_grad():
        rows = [plain(torch.tensor([p])).logits[0, -1].double().softmax(-1) for p in PROMPTS]
    return [row.numpy() for row in rows]


def exact_slope(prompt: list[int]) -> np.ndarray:
    """d P(right) / d parameters f64[D], by the model's plain forward."""
    plain = made_model("sdpa")
    plain(torch.tensor([prompt])).logits[0, -1].softmax(-1)[RIGHT].backward()
    parameters = [p for p in plain.parameters() if p.requires_grad]
    return torch.cat([p.grad.flatten() for p in parameters]).double().numpy()


def group(prompt_id: int, prompt: int, tokens, chances: np.ndarray) -> RolloutGroup:
    return RolloutGroup(
        prompt_id,
        np.array(PROMPTS[prompt], dtype=np.int64),
        tuple(
            Completion(
                np.array([t], dtype=np.int64),
                np.log(chances[[t]]).astype(np.float32),
                "",
                "length",
                0,
            )
            for t in tokens
        ),
    )


def rewards_of(tokens) -> np.ndarray:
    return np.array([float(t == RIGHT) for t in tokens], dtype=np.float32)


def enumerated(gradients: Gradients, config: Config, prompt: int, chances: np.ndarray):
    """(probabilities f64[M], gradients f64[M, D]) of all groups of SIZE answers."""
    outcomes = list(product(range(VOCABULARY), repeat=SIZE))
    weights = np.array([np.prod(chances[list(o)]) for o in outcomes])
    groups = [group(i, prompt, o, chances) for i, o in enumerate(outcomes)]
    batch = make_batch(
        as_rollouts(groups, [rewards_of(o) for o in outcomes]), keep_all, config, Group.alone()
    )
    found = []
    for j in range(len(outcomes)):
        ascent, denominator = gradients.ascent(*group_of(batch, j), config.learner)
        none = torch.zeros(gradients.dimension)
        found.append((none if ascent is None else ascent).double().numpy() / denominator)
    return weights, np.array(found)


@pytest.mark.parametrize("aggregation", ["group_mean", "constant", "token_mean", "prompt_mean"])
def test_mean_gradient_is_the_slope_of_the_pass_rate(model, policy, aggregation: str) -> None:
    """Leave-one-out advantages are unbiased; centred ones by (n - 1) / n."""
    for advantage, factor in (("rloo", 1.0), ("center", (SIZE - 1) / SIZE)):
        config = config_for(advantage, aggregation)
        gradients = Gradients.of_model(model, config)
        for prompt in range(len(PROMPTS)):
            weights, found = enumerated(gradients, config, prompt, policy[prompt])
            assert weights.sum() == pytest.approx(1.0)
            slope = exact_slope(PROMPTS[prompt])
            np.testing.assert_allclose(weights @ found, factor * slope, atol=2e-6)


def looks_of(policy, count: int, seed: int, size: int = SIZE) -> tuple[Looks, np.ndarray]:
    """`count` prompts of the three kinds at random, with `size` answers in the first look and as
    many in the second; the kind of each."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, len(PROMPTS), count)
    groups, rewards = [], []
    for i, kind in enumerate(kinds):
        tokens = rng.choice(VOCABULARY, 2 * size, p=policy[kind] / policy[kind].sum())
        groups.append(group(i, int(kind), tokens, policy[kind]))
        rewards.append(rewards_of(tokens))
    return Looks(np.arange(count), groups, rewards, size, 0, ""), kinds


def test_noise_scale_and_values_against_enumeration(model, policy) -> None:
    """A pool of three kinds of prompts: |Eg|^2, E|g|^2 and <g, h> are known from all outcomes."""
    config = config_for("std", "group_mean")
    gradients = Gradients.of_model(model, config)
    looks, kinds = looks_of(policy, 600, seed=0)
    aside, _ = looks_of(policy, 1500, seed=1)
    sketch = sketch_for(gradients.dimension, 0, CPU)
    held = heldout_gradient(gradients, aside, sketch, config, quiet)
    assert held is not None
    pool = pool_gradient(gradients, looks, held, sketch, Estimator(keep_all, 64), config, quiet)

    means, powers = [], []
    for prompt in range(len(PROMPTS)):
        weights, found = enumerated(gradients, config, prompt, policy[prompt])
        means.append(weights @ found)
        powers.append(weights @ (found**2).sum(axis=1))
    slope = np.mean([exact_slope(p) for p in PROMPTS], axis=0)
    signal = float(np.sum(np.mean(means, axis=0) ** 2))
    noise = float(np.mean(powers)) - signal

    scale = noise_scale(pool.gram, pool.block_squares, pool.block_groups)
    assert scale is not None
    assert scale.power.value == pytest.approx(np.mean(powers), abs=3 * scale.power.error)
    assert scale.signal.value == pytest.approx(signal, abs=3 * scale.signal.error)
    one = scale.signal_to_noise
    assert one.value == pytest.approx(signal / noise, abs=3 * one.error)
    assert one.error < 0.25 * signal / noise  # and it says something
    assert pool.values is not None
    value = mean_value(pool.values)
    exact = np.mean(means, axis=0) @ slope
    assert value.value == pytest.approx(exact, abs=3 * value.error)
    assert value.error < 0.2 * exact
    for prompt in range(len(PROMPTS)):
        found = relative_value(pool.values, kinds == prompt)
        assert found.value == pytest.approx(means[prompt] @ slope / exact, abs=3 * found.error)
        assert found.error < 0.3


def test_held_out_gradient_is_that_of_the_reward_whatever_trains(model, policy) -> None:
    aside, kinds = looks_of(policy, 1000, seed=2)
    shares = np.bincount(kinds, minlength=3) / len(kinds)
    slope = shares @ np.array([exact_slope(p) for p in PROMPTS])
    found = []
    for config in (config_for("std", "group_mean"), config_for("maxrl", "token_mean")):
        gradients = Gradients.of_model(model, config)
        sketch = sketch_for(gradients.dimension, 0, CPU)
        held = heldout_gradient(gradients, aside, sketch, config, quiet)
        assert held is not None
        assert held.share.sum() == 1000
        found.append(held.share @ held.folds.double().numpy() / 1000)
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0] @ slope / (slope @ slope) == pytest.approx(1.0, abs=0.15)


def test_groups_add_up_to_the_gradient_of_the_whole_step(model, policy) -> None:
    """Whatever the aggregation, dead groups, missing rewards and ragged groups included."""
    looks, _ = looks_of(policy, 40, seed=3, size=3)
    looks.rewards[4][:2] = np.nan
    looks.rewards[5][:3] = np.nan
    for settings in (
        ("std", "group_mean", "learner.zero_variance=drop"),
        ("std", "token_mean", "learner.zero_variance=keep"),
        ("maxrl", "prompt_mean", "learner.zero_variance=drop"),
        ("center", "seq_mean", "learner.kl_coefficient=0.1"),
    ):
        config = config_for(*settings)
        gradients = Gradients.of_model(model, config)
        sketch = sketch_for(gradients.dimension, 0, CPU)
        pool = pool_gradient(gradients, looks, None, sketch, Estimator(keep_all, 40), config, quiet)
        assert pool.values is None
        assert not pool.taught[5]
        batch = make_batch(as_rollouts(*looks.trained()), keep_all, config, Group.alone())
        learner = config.learner.model_copy(update={"kl_coefficient": 0.0})
        whole, denominator = gradients.ascent(batch.packed, batch.advantages, batch.signal, learner)
        assert whole is not None
        step = float((whole / denominator).double().square().sum())
        assert pool.gram.sum() / 40**2 == pytest.approx(step, rel=1e-4)
        assert pool.block_squares.sum() == pytest.approx(pool.squares.sum())
        assert (pool.squares > 0).tolist() == pool.taught.tolist()


def test_groups_of_one_teach_with_a_critic(model, policy) -> None:
    """Its baselines leave the mean gradient as it is: <Eg, h> = |slope|^2 for every strength."""
    config = config_for("center", "group_mean", "learner.baseline=posterior")
    gradients = Gradients.of_model(model, config)
    looks, _ = looks_of(policy, 250, seed=6, size=1)
    aside, _ = looks_of(policy, 1200, seed=1)
    sketch = sketch_for(gradients.dimension, 0, CPU)
    held = heldout_gradient(gradients, aside, sketch, config, quiet)
    slope = np.mean([exact_slope(p) for p in PROMPTS], axis=0)
    for strength in (None, 8.0):
        critic = PosteriorCritic(250, CriticOptions(strength))
        estimator = Estimator(keep_all, 50, critic)
        pool = pool_gradient(gradients, looks, held, sketch, estimator, config, quiet)
        assert pool.taught.all()
        assert pool.values is not None
        value = mean_value(pool.values)
        assert value.value == pytest.approx(slope @ slope, abs=3 * value.error)
        assert value.error < 0.4 * (slope @ slope)
    alone = config_for("rloo", "group_mean")
    estimator = Estimator(keep_all, 50)
    without = pool_gradient(gradients, looks, held, sketch, estimator, alone, quiet)
    assert not without.taught.any()


def test_blocks_are_bounded_and_a_long_gradient_is_projected(
    model, policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for("std", "group_mean")
    gradients = Gradients.of_model(model, config)
    looks, _ = looks_of(policy, 200, seed=4)
    exact = sketch_for(gradients.dimension, 0, CPU)
    assert exact.is_exact
    monkeypatch.setattr("cero_rl.diagnosis.gradients.MEMORY_BYTES", 4 * 48 * 600)
    short = sketch_for(gradients.dimension, 0, CPU)
    assert not short.is_exact
    assert short.size == 512 < gradients.dimension
    found = []
    for sketch in (exact, short):
        held = heldout_gradient(gradients, looks, sketch, config, quiet)
        pool = pool_gradient(gradients, looks, held, sketch, Estimator(keep_all, 64), config, quiet)
        assert pool.gram.shape == (BLOCKS, BLOCKS)
        scale = noise_scale(pool.gram, pool.block_squares, pool.block_groups)
        assert scale is not None
        assert pool.values is not None
        found.append((scale.signal_to_noise.value, mean_value(pool.values).value))
    assert found[1] == pytest.approx(found[0], rel=4 * short.relative_error)


def test_a_sketch_keeps_inner_products() -> None:
    """Unbiased over seeds, with the stated deviation; a function of the seed; linear."""
    rng = np.random.default_rng(5)
    a, b = (torch.from_numpy(rng.normal(size=1000) + 1) for _ in range(2))
    found = []
    for seed in range(400):
        sketch = Sketch(1000, 64, seed, CPU)
        assert sketch(a).shape == (64,)
        found.append(float(sketch(a) @ sketch(b)))
    size = float(a.norm() * b.norm())
    assert np.mean(found) == pytest.approx(float(a @ b), abs=4 * np.std(found) / 20)
    assert np.std(found) < 1.2 * sketch.relative_error * size
    torch.testing.assert_close(sketch(a + 2 * b), sketch(a) + 2 * sketch(b))
    torch.testing.assert_close(Sketch(1000, 64, 3, CPU)(a), Sketch(1000, 64, 3, CPU)(a))
    assert Sketch(1000, 2000, 0, CPU)(a) is a
    rows = torch.stack([a, b])
    torch.testing.assert_close(gram(rows, rows, columns=7), rows @ rows.T)
