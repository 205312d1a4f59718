"""Episodes with a real sampler: what was sampled is what is learned from, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cero_rl.config import Config, load_config
from cero_rl.data.pool import Data, load_data
from cero_rl.data.prompts import make_prompt
from cero_rl.distributed.group import Group
from cero_rl.environments.pool import tools_of_environment
from cero_rl.errors import ConfigError, DataError
from cero_rl.models.load import load_model, load_tokenizer
from cero_rl.rewards.scoring import score_groups
from cero_rl.rewards.several import Judge
from cero_rl.rollout.counts import GroupCounts
from cero_rl.rollout.engines.build import build_rollout_engine
from cero_rl.rollout.episodes import EpisodeEngine
from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.rollout.turns import TurnWriter
from cero_rl.types import Completion, RolloutGroup

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "data.limit=40",
    "data.heldout_limit=4",
    "reward.workers=1",
    "logging.tensorboard=false",
]


class Rank:
    """An example's configuration, data, and engine."""

    def __init__(self, name: str, *settings: str) -> None:
        path = ROOT / f"recipes/{name}_cpu.yaml"
        here = [f"model.path={ROOT}/recipes/assets/{name}/model"]
        for key, file in (("source", "train"), ("heldout_source", "heldout")):
            here.append(f"data.{key}={ROOT}/recipes/assets/{name}/{file}.jsonl")
        kind = {"calculator": "Calculator", "guess": "GuessNumber"}[name]
        here.append(f"rollout.environment={ROOT}/recipes/environments/{name}.py:{kind}")
        self.config: Config = load_config(path, [*SETTINGS, *here, *settings])
        self.tokenizer: Any = load_tokenizer(self.config.model.path)
        tools = tools_of_environment(self.config.rollout, self.config.reward)
        self.data: Data = load_data(self.config, self.tokenizer, tools)
        engine = build_rollout_engine(self.config, self.tokenizer, Group.alone()).engine
        assert isinstance(engine, EpisodeEngine)
        self.engine = engine

    def requests(self, prompts: range, rollouts: int, **more: Any) -> list[RolloutRequest]:
        pool = self.data.train
        return [
            RolloutRequest(
                i,
                pool.tokens[i],
                rollouts,
                int(pool.prompts[i].key, 16),
                task=pool.prompts[i],
                **more,
            )
            for i in prompts
        ]

    def sample(self, requests: list[RolloutRequest]) -> list[RolloutGroup]:
        return self.engine.generate(requests, stream=3, temperature=1.0)

    def text(self, tokens: np.ndarray) -> str:
        return self.tokenizer.decode(tokens.tolist())


@pytest.fixture(scope="module")
def calculator() -> Iterator[Rank]:
    rank = Rank("calculator")
    yield rank
    rank.engine.close()


@pytest.fixture(scope="module")
def guess() -> Iterator[Rank]:
    rank = Rank("guess")
    yield rank
    rank.engine.close()


def spans(completion: Completion) -> list[tuple[bool, np.ndarray]]:
    """The completion cut where sampled tokens and the environment's meet."""
    cuts = np.flatnonzero(np.diff(completion.trains.astype(int))) + 1
    parts = zip(np.split(completion.trains, cuts), np.split(completion.token_ids, cuts))
    return [(bool(mask[0]), tokens) for mask, tokens in parts]


def test_the_prompt_shows_the_tools(calculator: Rank) -> None:
    pool = calculator.data.train
    task = pool.prompts[0]
    assert calculator.text(pool.tokens[0]) == f"<tools>calculate<user>{task.text}<assistant>"
    bare = make_prompt(task.text or "", task.answer, "", {})
    assert task.key != bare.key, "the tools are a part of the task"


def test_what_the_environment_says_stands_between_what_was_sampled(calculator: Rank) -> None:
    groups = calculator.sample(calculator.requests(range(12), 6))
    turns = []
    for group in groups:
        for completion in group.completions:
            assert completion.episode is not None
            turns.append(completion.episode.turns)
            parts = spans(completion)
            assert [own for own, _ in parts] == [True, False] * (len(parts) // 2) + [True]
            assert len(parts) == 2 * completion.episode.turns - 1
            for own, tokens in parts[:-1]:
                text = calculator.text(tokens)
                if own:
                    assert text.endswith("</tool_call><eos>")
                else:
                    assert text.startswith("<tool>")
                    assert text.endswith("<assistant>")
            assert not completion.logp_behavior[~completion.trains].any()
            assert completion.episode.metrics["tool_calls"] == completion.episode.turns - 1
    assert {1, 2} <= set(turns), "some call the tool and some do not"


def test_log_probs_are_those_of_the_model_in_the_whole_conversation(guess: Rank) -> None:
    model = load_model(guess.config.model.path, "float32", "sdpa").eval()
    sampled = 0
    for group in guess.sample(guess.requests(range(4), 3)):
        for completion in group.completions:
            tokens = np.concatenate([group.prompt_tokens, completion.token_ids])
            with torch.no_grad():
                logits = model(torch.from_numpy(tokens)[None, :-1]).logits[0].float()
            every = torch.log_softmax(logits, -1).numpy()
            first = len(group.prompt_tokens)
            wanted = every[np.arange(first - 1, len(tokens) - 1), completion.token_ids]
            own = completion.trains
            sampled += int(own.sum())
            np.testing.assert_allclose(completion.logp_behavior[own], wanted[own], atol=1e-4)
    assert sampled > 60


def test_rewards_turns_and_tokens_are_counted(guess: Rank) -> None:
    groups = guess.sample(guess.requests(range(6), 4))
    prompts = guess.data.train.prompts
    with Judge(guess.config.reward) as rewards:
        scores = score_groups(groups, prompts, rewards)
    assert scores.counts.scored == 24
    counts = GroupCounts.zeros(6)
    for j, (group, values) in enumerate(zip(groups, scores.values)):
        secret = prompts[group.prompt_id].answer
        counts.count(j, group, values, values)
        for completion, value in zip(group.completions, values):
            guesses = [guess.text(t).removesuffix("<eos>") for own, t in spans(completion) if own]
            if guesses[-1].isdigit():
                low, high = map(int, prompts[group.prompt_id].content.split("-"))
                off = abs(int(guesses[-1]) - int(secret)) / (high - low)
                assert value == pytest.approx(0.5 * (off == 0) + 0.5 * max(0.0, 1 - off))
            hints = [guess.text(t) for own, t in spans(completion) if not own]
            for said, hint in zip(guesses, hints):
                if said.isdigit():
                    word = "higher" if int(said) < int(secret) else "lower"
                    assert hint == f"<user>{word}<assistant>"
            assert len(guesses) == 6 or guesses[-1] == secret
    assert counts.turns.sum() == sum(len(spans(c)) // 2 + 1 for g in groups for c in g.completions)
    assert counts.environment_tokens.sum() == 3 * (counts.turns - counts.generated).sum()


def test_an_episode_depends_on_its_seed_and_not_on_its_neighbours(guess: Rank) -> None:
    together = guess.sample(guess.requests(range(5), 3))
    (alone,) = guess.sample(guess.requests(range(3, 4), 3))
    later = guess.sample(guess.requests(range(3, 4), 1, first_draw=2))[0].completions[0]
    for one, other in zip(together[3].completions, alone.completions):
        assert one.token_ids.tolist() == other.token_ids.tolist()
    assert later.token_ids.tolist() == alone.completions[2].token_ids.tolist()
    assert len({tuple(c.token_ids.tolist()) for c in alone.completions}) > 1


def test_a_request_without_a_task_is_a_plain_completion(guess: Rank) -> None:
    (request,) = guess.requests(range(1), 2)
    plain = RolloutRequest(0, request.prompt_tokens, 2, request.stream_key)
    (group,) = guess.sample([plain])
    (episodes,) = guess.sample([request])
    for completion, whole in zip(group.completions, episodes.completions):
        assert (completion.episode, completion.sampled) == (None, None)
        first = completion.token_ids.tolist()  # of an episode too: the same random numbers
        assert whole.token_ids[: len(first)].tolist() == first


@pytest.mark.parametrize(
    ("setting", "stop", "finish"),
    [
        ({"max_turns": 2}, "max_turns", "stop"),
        ({"max_response_tokens": 8}, "max_tokens", "length"),
        ({"max_turn_tokens": 1}, "max_tokens", "length"),
    ],
)
def test_limits_end_an_episode_which_is_scored(
    guess: Rank, setting: dict[str, int], stop: str, finish: str
) -> None:
    whole, rollout = guess.engine, guess.config.rollout.model_copy(update=setting)
    parts = whole._engine, whole._pool, whole._writer, whole._decode
    engine = EpisodeEngine(*parts, rollout, seed=0)
    groups = engine.generate(guess.requests(range(4), 4), stream=3, temperature=1.0)
    ended = [c for g in groups for c in g.completions if c.episode and c.episode.stop == stop]
    assert len(ended) > 8
    ((key, limit),) = setting.items()
    for completion in ended:
        assert completion.finish_reason == finish
        assert completion.episode is not None
        assert completion.episode.reward is not None
        assert 0.0 <= completion.episode.reward <= 1.0
        if key == "max_turns":
            assert completion.episode.turns == limit
        elif key == "max_response_tokens":
            assert len(completion.token_ids) <= limit
        else:
            assert completion.token_ids.shape == (1,)


def test_answers_that_the_engine_lost_leave_the_group(guess: Rank) -> None:
    inner = guess.engine._engine

    class Losing:
        calls = 0

        def generate(self, requests: Any, **how: Any) -> list[RolloutGroup]:
            self.calls += 1
            groups = inner.generate(requests, **how)
            lost = groups[0]  # of the first turn one of three, of the second a whole episode
            few = RolloutGroup(lost.prompt_id, lost.prompt_tokens, lost.completions[1:])
            return [few, *groups[1:]] if self.calls < 3 else groups

    guess.engine._engine = Losing()  # type: ignore[assignment]
    try:
        groups = guess.sample(guess.requests(range(3), 3))
    finally:
        guess.engine._engine = inner
    assert sum(len(g.completions) for g in groups) == 9 - 2
    for completion in (c for g in groups for c in g.completions):
        assert completion.episode is not None
        assert not completion.episode.failure


class _Chat(TurnWriter):
    def __init__(self, template: str, rank: Rank) -> None:
        super().__init__(rank.tokenizer, rank.config.data, [1])
        self._tokenizer = load_tokenizer(rank.config.model.path)
        self._tokenizer.chat_template = template


def test_a_template_that_rewrites_answers_rewrites_nothing_here(guess: Rank) -> None:
    """Only what stands behind the last answer is taken from it."""
    template = (
        "{% for m in messages %}<{{ m.role }}>"
        "{{ m.content if loop.last or m.role == 'user' else '0' + m.content }}<eos>-"
        "{% endfor %}<assistant>"
    )
    task = guess.data.train.prompts[0]
    last, new = {"role": "assistant", "content": "12"}, [{"role": "user", "content": "higher"}]
    assert guess.text(np.array(_Chat(template, guess).tokens(task, last, new))) == (
        "-<user>higher<eos>-<assistant>"
    )
    with pytest.raises(DataError, match="writes none of <eos> behind an answer"):
        _Chat(template.replace("<eos>", ""), guess).tokens(task, last, new)
    refusing = "{{ raise_exception('no such role') }}"
    with pytest.raises(DataError, match="refuses the environment's roles"):
        _Chat(refusing, guess).tokens(task, last, new)


def test_ranks_that_share_an_engine_are_refused() -> None:
    settings = ["rollout.environment=a.py:B", "rollout.engine=vllm", "rollout.tensor_parallel=2"]
    with pytest.raises(ConfigError, match="end their episodes in the same turn"):
        load_config(ROOT / "recipes/digits_cpu.yaml", settings)
