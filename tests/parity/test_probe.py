"""What the probe tells without an engine: a model of transformers draws, the same or another one
scores. The faults of real engines are in tests/rollout/vllm_engine/test_parity.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_sampler import ModelSampler

from cero_rl.commands.main import main
from cero_rl.errors import ConfigError, EngineError
from cero_rl.parity import Answer, CallableScorer, ModelScorer, ParityOptions, check_parity
from cero_rl.parity.judge import (
    Scored,
    better_sigmas,
    drawn_sigmas,
    gap_of,
    healthy_bound,
)
from cero_rl.parity.questions import probe_texts
from cero_rl.parity.scorers import Scorer

MODEL = Path(__file__).resolve().parents[2] / "recipes/assets/tiny_digits"
QUICK = ParityOptions(answers=4, tokens=8)
PROMPTS = [np.array([3, 4, 5, 6]), np.array([8, 2])]


@pytest.fixture(scope="module")
def scorer() -> ModelScorer:
    return ModelScorer.load(str(MODEL))


def codes(sampler: Any, scorer: Scorer, options: ParityOptions = QUICK, **how: Any) -> list[str]:
    report = check_parity(sampler, scorer, options, prompts=PROMPTS, **how)
    json.dumps(report.to_json(), allow_nan=False)
    return [finding.code for finding in report.findings]


def test_gaps_are_means_and_never_hide_what_is_not_finite() -> None:
    gap = gap_of([-1.0, -2.0, -3.0], [-1.0, -2.5, -2.0])
    assert (gap.mean, gap.largest) == (0.5, 1.0)
    assert gap_of([-1.0, np.nan], [-1.0, -1.0]).mean == np.inf
    assert gap_of([], []).mean == np.inf


def test_the_bound_follows_dtype_temperature_and_rounding() -> None:
    assert healthy_bound("float32", 1.0, 0.1) == 1e-4
    assert healthy_bound("float32", 0.5, None) == 2e-4
    assert healthy_bound("bfloat16", 2.0, None) == 0.2
    assert healthy_bound("bfloat16", 1.0, 0.01) == 0.05
    assert healthy_bound("bfloat16", 1.0, 1.0) == 0.2
    assert healthy_bound("bfloat16", 1.0, 0.0) == 1e-4


def test_sigmas_of_tokens_are_those_of_coins() -> None:
    """100 tokens of a fair choice between two are as surprising as they must be; a coin of .9 that
    falls on its likelier side every time is not."""
    half = Scored(np.full(100, np.log(0.5)), np.full(100, np.log(2.0)), np.full(100, 0.25))
    assert drawn_sigmas([half]) == pytest.approx(0.0, abs=1e-9)
    p = np.array([0.9, 0.1])
    entropy = float(-(p * np.log(p)).sum())
    variance = float((p * np.log(p) ** 2).sum() - entropy**2)
    always = Scored(np.full(100, np.log(0.9)), np.full(100, entropy), np.full(100, variance))
    # 100 tokens, each .1 * log 9 likelier than the mean, of deviation .3 * log 9
    assert drawn_sigmas([always]) == pytest.approx(100 * 0.1 / (0.3 * 10.0))
    assert drawn_sigmas([replace(always, entropies=None)]) is None


def test_another_policy_is_better_only_where_it_is() -> None:
    rng = np.random.default_rng(0)
    wanted = -rng.exponential(size=400)
    reported = wanted + 0.01 * rng.standard_normal(400)
    same, near = better_sigmas(reported, wanted, wanted), wanted + 0.02
    assert same is None
    assert (better_sigmas(reported, wanted, near) or 0.0) < -6.0
    assert (better_sigmas(reported, near, wanted) or 0.0) > 6.0
    assert better_sigmas(reported[:9], near[:9], wanted[:9]) is None


def test_a_model_agrees_with_itself_and_text_is_not_told(scorer: ModelScorer) -> None:
    report = check_parity(ModelSampler(scorer.model), scorer, QUICK, prompts=PROMPTS)
    assert report.same
    assert report.gap < 1e-5
    assert (report.reports, report.tokenizer) == ("processed", "not told")
    report.raise_if_wrong()


def test_the_entropy_and_its_variance_are_those_of_all_tokens(scorer: ModelScorer) -> None:
    prompt, response = PROMPTS[0], np.array([5, 7])
    (scored,) = scorer.score(prompt, response, [0.7])
    ids = torch.from_numpy(np.concatenate([prompt, response]))[None]
    with torch.no_grad():
        logp = torch.log_softmax(scorer.model(ids).logits[0, 3:5].double() / 0.7, -1).numpy()
    chances = np.exp(logp)
    assert scored.entropies is not None
    assert scored.variances is not None
    np.testing.assert_allclose(scored.logps, logp[[0, 1], [5, 7]], atol=1e-5)
    entropy = -(chances * logp).sum(1)
    np.testing.assert_allclose(scored.entropies, entropy, atol=1e-5)
    variance = (chances * (logp + entropy[:, None]) ** 2).sum(1)
    np.testing.assert_allclose(scored.variances, variance, atol=1e-4)


def test_raw_logps_and_top_k_are_told_apart(scorer: ModelScorer) -> None:
    cool = replace(QUICK, temperature=0.6)
    raw = ModelSampler(scorer.model, raw=True)
    assert codes(raw, scorer, cool) == ["raw_logps"]
    assert codes(raw, scorer, replace(cool, logps="raw")) == []
    assert codes(raw, scorer) == []  # at temperature 1 there is no difference
    assert codes(ModelSampler(scorer.model), scorer, replace(cool, logps="raw")) == [
        "processed_logps"
    ]
    many = replace(QUICK, answers=8, temperature=2.0)
    assert codes(ModelSampler(scorer.model, top_k=1), scorer, many) == ["not_drawn_so"]


def test_a_function_can_score(scorer: ModelScorer) -> None:
    function: Any = lambda prompt, response, t: scorer.score(prompt, response, [t])[0].logps
    sampler = ModelSampler(scorer.model)
    assert codes(sampler, CallableScorer(function)) == []
    shifted = CallableScorer(lambda *asked: function(*asked) - 0.01)
    few = replace(QUICK, answers=1, tokens=2)
    assert codes(sampler, shifted, few) == ["other_weights"]
    assert codes(sampler, shifted, few, others={"base": CallableScorer(function)}) == ["base_model"]
    with pytest.raises(EngineError, match="wanted one log-probability a response token"):
        codes(sampler, CallableScorer(lambda *_: [0.0]))
    with pytest.raises(ConfigError, match="needs prompts"):
        check_parity(sampler, CallableScorer(function), QUICK)


@pytest.mark.covers("sampler that measures nothing")
@pytest.mark.parametrize(
    ("code", "ids", "logps"),
    [
        ("no_answer", [], []),
        ("other_vocabulary", [5, 99], [-1.0, -2.0]),
        ("not_finite", [5, 6], [-1.0, np.nan]),
        ("not_finite", [5, 6], [-1.0, -np.inf]),
        ("zero_filled", [5, 6], [0.0, 0.0]),
    ],
)
def test_answers_that_prove_nothing_are_named(
    scorer: ModelScorer, code: str, ids: list[int], logps: list[float]
) -> None:
    class Odd(ModelSampler):
        def sample(self, prompt: Any, **how: Any) -> list[Answer]:
            return [Answer(np.array(ids, dtype=np.int64), np.array(logps, dtype=np.float32))]

    report = check_parity(Odd(scorer.model), scorer, QUICK, prompts=PROMPTS)
    assert [finding.code for finding in report.findings] == [code]
    assert report.to_json()["gap"] == "inf"
    with pytest.raises(EngineError, match=rf"does not run the wanted weights.*\({code};"):
        report.raise_if_wrong()


def test_the_long_prompt_is_longer_than_a_cache_block(scorer: ModelScorer) -> None:
    prompts = probe_texts(scorer.tokenizer, ["12+30=", "7"])
    assert [ids.size for ids in prompts] == [6, 1, 160]
    with pytest.raises(ConfigError, match="no tokens for any prompt"):
        probe_texts(scorer.tokenizer, [""])


@pytest.mark.covers("parity asked wrongly")
@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--temperature", "0"], 2, "temperature 0, wanted > 0"),
        (["--other", "step_3"], 2, "--other: got 'step_3', wanted NAME=DIR"),
        (["--other", "base=nowhere/at/all"], 2, "--other base: 'nowhere/at/all' does not exist"),
        (["--prompts", "missing.txt"], 2, "--prompts: missing.txt cannot be read"),
        (["--tokens", "0"], 2, "answers 4, tokens 0; wanted at least 1"),
        ([], 6, "cannot be reached (ConnectError"),
    ],
)
def test_a_wrong_question_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, line: str
) -> None:
    url = ["--url", "http://127.0.0.1:9"]  # the discard port: nothing listens
    assert main(["parity", "--model", str(MODEL), *url, *arguments]) == code
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error")]
    assert len(said) == 1
    assert line in said[0]
