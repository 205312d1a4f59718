"""Estimates against populations whose mean and covariance are known: value and standard error."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cero_rl.diagnosis.statistics import (
    Gain,
    Measured,
    NoiseScale,
    Values,
    allocation_gain,
    gain_of_labels,
    jackknife,
    linearised,
    mean_of,
    mean_value,
    noise_scale,
    progress,
    regime_of,
    relative_value,
    transfer,
)


def scale_of(g: np.ndarray, blocks: int = 32) -> NoiseScale | None:
    """Of groups f64[N, D] in blocks, as `pool_gradient` makes them."""
    blocks = min(blocks, len(g))
    sums = np.stack([g[b::blocks].sum(axis=0) for b in range(blocks)])
    squares = np.array([(g[b::blocks] ** 2).sum() for b in range(blocks)])
    counts = np.array([len(g[b::blocks]) for b in range(blocks)], dtype=np.int64)
    return noise_scale(sums @ sums.T, squares, counts)


def spread(estimates: list[Measured]) -> tuple[float, float, float]:
    """(mean, standard deviation, root mean square of the stated errors) over repetitions."""
    values = np.array([e.value for e in estimates])
    errors = np.array([e.error for e in estimates])
    return float(values.mean()), float(values.std()), float(np.sqrt((errors**2).mean()))


# --- the noise scale


def test_noise_scale_of_four_groups_by_hand() -> None:
    g = np.array([[1.0, 0.0], [1.0, 2.0], [3.0, 0.0], [3.0, 2.0]])
    pairs = [g[i] @ g[j] for i in range(4) for j in range(4) if i != j]
    signal, power = np.mean(pairs), np.mean((g**2).sum(axis=1))
    for blocks in (2, 3, 4):
        found = scale_of(g, blocks)
        assert found is not None
        assert found.signal.value == pytest.approx(signal)
        assert found.power.value == pytest.approx(power)
        assert found.signal_to_noise.value == pytest.approx(signal / (power - signal))


@pytest.mark.parametrize("shift", [0.0, 0.3, 3.0])
def test_noise_scale_and_its_error_on_a_known_population(shift: float) -> None:
    """Mean (shift, 0, ...), covariance diag(s^2): |Eg|^2 = shift^2, N_c = sum s^2 / shift^2."""
    rng = np.random.default_rng(0)
    s = np.linspace(0.2, 2.0, 20)
    found = []
    for _ in range(300):
        g = rng.normal(size=(160, 20)) * s
        g[:, 0] += shift
        found.append(scale_of(g))
    noise = float((s**2).sum())
    for mean, error, stated, true in (
        (*spread([f.signal for f in found]), shift**2),
        (*spread([f.power for f in found]), noise + shift**2),
        (*spread([f.signal_to_noise for f in found]), shift**2 / noise),
    ):
        assert mean == pytest.approx(true, abs=4 * error / math.sqrt(300))
        assert stated == pytest.approx(error, rel=0.2)
    if shift == 3.0:
        assert np.median([f.groups.value for f in found]) == pytest.approx(noise / 9, rel=0.05)
    if shift == 0.0:
        clear = [f for f in found if not math.isnan(f.groups.value)]
        assert len(clear) < 20  # about one in forty has a signal by chance
        for f in found:
            if math.isnan(f.groups.value) and not math.isnan(f.at_least):
                assert f.at_least > 0


def test_too_few_or_equal_groups_have_no_noise_scale() -> None:
    assert scale_of(np.ones((2, 3))) is None
    assert scale_of(np.ones((5, 3))) is None  # no noise at all
    assert scale_of(np.zeros((5, 3))) is None


def test_regimes() -> None:
    def of(ratio: float, error: float) -> NoiseScale:
        nothing = Measured(1.0, 0.1)
        return NoiseScale(nothing, math.nan, nothing, nothing, Measured(ratio, error))

    noisy = regime_of(of(1 / 600, 1 / 3000), 128)
    assert noisy.name == "noise-limited"
    assert noisy.batch_over_noise.value == pytest.approx(128 / 600)
    assert noisy.exponent_fixed_rate == pytest.approx(0.5 / (1 + 128 / 600))
    assert regime_of(of(1 / 30, 1 / 300), 128).name == "signal-limited"
    assert regime_of(of(1 / 600, 1 / 100), 128).name == "between"
    assert regime_of(of(math.nan, math.nan), 128).name == "between"


@pytest.mark.parametrize(
    ("gain", "x", "fixed", "tuned"),
    [(1.65, 1.0, 1.12, 1.25), (3.0, 1.0, 1.22, 1.50), (4.0, 0.0, 2.0, 4.0), (4.0, 1e9, 1.0, 1.0)],
)
def test_what_a_gain_brings(gain: float, x: float, fixed: float, tuned: float) -> None:
    assert progress(gain, x) == pytest.approx((fixed, tuned, gain), abs=0.01)


# --- values and allocations


def population(rng: np.random.Generator, n: int) -> tuple[np.ndarray, Values, np.ndarray]:
    """Labels 0, 1, 2 with values 0, 1, 4 (a third of the groups each) in noise; the held-out
    gradient in 8 folds has noise of its own."""
    labels = rng.integers(0, 3, n)
    h = np.zeros(10)
    h[0] = 1.0
    folds = h + rng.normal(size=(8, 10)) * 0.1
    g = rng.normal(size=(n, 10))
    g[:, 0] += np.array([0.0, 1.0, 4.0])[labels]
    share = np.array([10.0] * 7 + [5.0])
    return labels, Values(g @ folds.T, share), (g**2).sum(axis=1)


def test_value_by_label_and_its_error() -> None:
    rng = np.random.default_rng(1)
    found: list[list[Measured]] = [[], [], [], []]
    for _ in range(300):
        labels, values, _ = population(rng, 150)
        found[3].append(mean_value(values))
        for label in range(3):
            found[label].append(relative_value(values, labels == label))
    for estimates, true in zip(found, (0.0, 0.6, 2.4, 5 / 3)):
        mean, error, stated = spread(estimates)
        assert mean == pytest.approx(true, abs=5 * error / math.sqrt(300) + 0.01)
        assert stated == pytest.approx(error, rel=0.15)


def test_labels_that_nobody_has_or_that_all_have() -> None:
    labels, values, _ = population(np.random.default_rng(2), 60)
    assert math.isnan(relative_value(values, labels == 7).value)
    whole = relative_value(values, labels >= 0)
    assert (whole.value, whole.error) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))


def test_gain_of_an_allocation_by_hand() -> None:
    """Two prompts in three have neither value nor noise: to leave them out is worth a factor 3."""
    v = np.array([2.0, 0.0, 0.0] * 4)
    gain = allocation_gain((v > 0).astype(np.float64), Values(v[:, None], np.ones(1)), v**2)
    assert isinstance(gain, Gain)
    assert (gain.value, gain.noise, gain.snr.value) == pytest.approx((3.0, 3.0, 3.0))
    assert gain.support == pytest.approx(1 / 3)
    uniform = allocation_gain(np.ones(12), Values(v[:, None], np.ones(1)), v**2)
    assert uniform is not None
    assert (uniform.snr.value, uniform.snr.error) == pytest.approx((1.0, 0.0), abs=1e-9)
    assert allocation_gain(np.zeros(12), Values(v[:, None], np.ones(1)), v**2) is None


def bernoulli(rng: np.random.Generator, n: int) -> tuple[np.ndarray, Values, np.ndarray]:
    """Prompts with p in {0, .1, .5, 1} in equal parts: a noisy, unbiased p(1-p) from 8 samples;
    values p(1-p) + noise, squares p(1-p) exponential."""
    p = rng.choice([0.0, 0.1, 0.5, 1.0], n)
    k = rng.binomial(8, p)
    worth = k * (8 - k) / 56.0
    q = p * (1 - p)
    v = q + rng.normal(size=n) * np.sqrt(q) * 0.3
    folds = v[:, None] * (1 + rng.normal(size=16) * 0.1)
    return worth, Values(folds, np.ones(16)), q * rng.exponential(size=n)


def test_a_noisy_unbiased_worth_stands_for_the_known_one() -> None:
    """value: E[q q] / E[q]^2 with q = 0, .09, .25, 0; noise the same, so gain = E[q^2] / E[q]^2."""
    rng = np.random.default_rng(3)
    told = [allocation_gain(*bernoulli(rng, 800)) for _ in range(300)]
    found = [gain for gain in told if gain is not None]
    assert len(found) == 300
    true = (0.09**2 + 0.25**2) / 4 / ((0.09 + 0.25) / 4) ** 2
    assert np.mean([g.value for g in found]) == pytest.approx(true, rel=0.02)
    assert np.mean([g.noise for g in found]) == pytest.approx(true, rel=0.02)
    mean, error, stated = spread([g.snr for g in found])
    assert mean == pytest.approx(true, rel=0.03)
    assert stated == pytest.approx(error, rel=0.15)


def test_what_labels_add_is_learnt_from_other_groups() -> None:
    """Noise alone: chosen in sample the labels would seem to pay; crossed over they do not."""
    rng = np.random.default_rng(4)
    told = []
    for _ in range(100):
        v = 1.0 + rng.normal(size=240) * 4
        labels = rng.integers(0, 6, 240)
        values = Values(v[:, None] + rng.normal(size=(240, 8)) * 0.1, np.ones(8))
        gain = gain_of_labels(np.ones(240), values, np.full(240, 17.0), labels)
        told += [] if gain is None else [gain.value]
    assert np.mean(told) == pytest.approx(1.0, abs=0.15)
    v = np.repeat([0.0, 3.0], 120)[np.random.default_rng(5).permutation(240)]
    values = Values(np.repeat(v[:, None], 8, axis=1), np.ones(8))
    gain = gain_of_labels(np.ones(240), values, np.ones(240), (v > 0).astype(np.int64))
    assert gain is not None
    assert (gain.value, gain.noise, gain.snr.value) == pytest.approx((2.0, 1.0, 4.0), rel=0.02)


# --- transfer


def test_transfer_by_hand() -> None:
    """Strata 0 and 1 with gains .2 and .4 on training prompts, .1 and .2 on held-out ones; stratum
    2 is on one side only."""
    jitter = np.array([-0.01, 0.01, 0.0, 0.0])
    train = np.concatenate((0.2 + jitter, 0.4 + jitter, [0.9, 0.9]))
    heldout = np.concatenate((0.1 + jitter, 0.2 + jitter))
    found = transfer(np.repeat([0, 1, 2], [4, 4, 2]), train, np.repeat([0, 1], 4), heldout)
    assert found is not None
    assert (found.train.value, found.heldout.value) == pytest.approx((0.3, 0.15))
    assert found.ratio.value == pytest.approx(0.5)
    assert (found.covered, found.strata) == (pytest.approx(0.8), 2)
    error = jitter.std(ddof=1) / 2 / math.sqrt(2)  # of a mean of two strata of four
    assert found.train.error == pytest.approx(error)
    assert found.ratio.error == pytest.approx(error * math.sqrt(1 + 0.25) / 0.3)


def test_no_common_stratum_and_no_gain() -> None:
    ones = np.ones(4)
    assert transfer(np.zeros(4, dtype=int), ones, np.ones(4, dtype=int), ones) is None
    still = transfer(np.zeros(4, dtype=int), 0 * ones, np.zeros(4, dtype=int), 0 * ones)
    assert still is not None
    assert math.isnan(still.ratio.value)


def test_errors_of_means() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    plain = mean_of(values)
    assert plain.error == pytest.approx(values.std(ddof=1) / 2)
    left = np.array([(values.sum() - v) / 3 for v in values])
    assert jackknife(left) == pytest.approx(plain.error)
    assert linearised(values - values.mean()) == pytest.approx(plain.error)
    assert math.isnan(mean_of(values[:0]).value)
    assert math.isnan(mean_of(values[:1]).error)
    assert not Measured(1.0, math.nan).is_clear
