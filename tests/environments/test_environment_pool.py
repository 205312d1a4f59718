"""Episodes in real worker processes: the protocol, tools, rewards, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cero_rl.config.reward import RewardConfig
from cero_rl.config.rollout import RolloutConfig
from cero_rl.environments.pool import EnvironmentPool, Event
from cero_rl.environments.tools import calls_in
from cero_rl.errors import RewardError

HERE = Path(__file__).resolve().parent


@contextmanager
def pool_of(name: str, workers: int = 1, **settings: Any) -> Iterator[EnvironmentPool]:
    limits = {
        key: settings.pop(key) for key in ("timeout_seconds", "memory_limit_mb") if key in settings
    }
    rollout = RolloutConfig(environment=f"{HERE / 'examples.py'}:{name}", environment_args=settings)
    pool = EnvironmentPool(rollout, RewardConfig(workers=workers, **limits))
    try:
        yield pool
    finally:
        pool.close()


def task(*script: str, seed: int = 0) -> dict[str, Any]:
    columns = {"script": list(script)}
    return {"prompt": "?", "answer": "yes", "source": "", "columns": columns, "seed": seed}


def said(text: str, finish: str = "stop") -> dict[str, str]:
    return {"content": text, "finish_reason": finish}


def asks(event: Event) -> list[str]:
    assert event.asks is not None, event
    return [message["content"] for message in event.asks]


def test_episodes_go_on_side_by_side_and_are_rewarded() -> None:
    with pool_of("Talk", workers=2, tail="!") as pool:
        begun = pool.begin([task("a", "b", seed=1), task("c", seed=2), task(seed=1)])
        assert [asks(event) for event in begun] == [[], [], []]
        assert begun[0].last is None
        events = pool.reply({0: said("x"), 1: said("y"), 2: said("yes")})
        assert [asks(events[i]) for i in (0, 1)] == [["a!"], ["c!"]]
        assert events[0].asks == [{"role": "user", "content": "a!"}]
        assert events[0].last == {"role": "assistant", "content": "x"}
        alone = events[2].result
        assert alone is not None
        assert (alone["stop"], alone["last_reply"]) == ("done", "yes")
        assert alone["reward"] == pytest.approx(0.1 + 0.5)
        events = pool.reply({0: said("stop"), 1: said("yes", "length")})
        told = [event.result for event in events.values()]
        assert [r and r["stop"] for r in told] == ["gave_up", "max_tokens"]
        assert [r and r["reward"] for r in told] == pytest.approx([0.2, 0.2 + 0.5])
        # what is random is the episode's own, whoever stands beside it
        luck = [r and r["metrics"]["luck"] for r in (*told, alone)]
        assert luck[0] == luck[2] != luck[1]


def test_an_episode_without_more_turns_is_scored_as_it_stands() -> None:
    with pool_of("Talk") as pool:
        pool.begin([task("a", "b", "c")])
        pool.reply({0: said("yes")})
        ended = pool.end({0: "max_turns"})[0].result
        assert ended is not None
        assert (ended["stop"], ended["last_reply"]) == ("max_turns", "yes")
        assert ended["reward"] == pytest.approx(0.6)


def test_tools_answer_and_their_faults_are_the_models_to_mend() -> None:
    def call(name: str, arguments: str) -> str:
        return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'

    with pool_of("Desk") as pool:
        described = pool.describe()
        add, divide = (tool["function"] for tool in described["tools"])
        assert (add["name"], divide["name"], add["description"]) == ("add", "divide", "The sum.")
        assert add["parameters"]["required"] == ["a"]
        assert add["parameters"]["properties"]["a"] == {"type": "integer"}
        assert not described["rewarded"]
        pool.begin([task()])
        calls = [
            call("add", '{"a": 4}'),
            call("add", '{"a": "four"}'),
            call("divide", '{"a": 1}'),
            call("multiply", "{}"),
            "<tool_call>add 4</tool_call>",
        ]
        event = pool.reply({0: said("let me see " + "".join(calls))})[0]
        answers = asks(event)
        assert answers[0] == "5"
        assert answers[1].startswith("error: add: a: Input should be a valid integer")
        assert answers[2] == "error: divide: division by zero"
        assert answers[3] == "error: there is no tool multiply; there is add, divide"
        assert answers[4] == "error: the call is no JSON object with a name and arguments"
        assert {m["role"] for m in event.asks or []} == {"tool"}
        assert event.last is not None
        assert event.last["content"] == "let me see"
        assert len(event.last["tool_calls"]) == 5
        done = pool.reply({0: said("five")})[0].result
        assert done is not None
        assert (done["reward"], done["last_reply"]) == (None, "five")


def test_a_call_that_was_cut_is_a_call() -> None:
    assert calls_in("no call") == ("no call", [])
    before, (call,) = calls_in('a <tool_call>{"name": "add", "argu')
    assert (before, call["function"]["name"]) == ("a", "")


@pytest.mark.covers("environment fails in an episode")
@pytest.mark.parametrize(
    ("script", "failure", "timed_out"),
    [
        ("crash", "the worker died", False),
        ("hang", "a step took longer than 2 s", True),
        ("eat", "the worker died (crash, or more than 512 MB)", False),
        ("raise", "KeyError", False),
    ],
)
def test_who_fails_fails_alone(script: str, failure: str, timed_out: bool) -> None:
    """The others of the same worker are played again, with the answers that they had."""
    with pool_of("Talk", timeout_seconds=2, memory_limit_mb=512) as pool:
        pool.begin([task("a", "b", seed=1), task("a", script), task("c", "d", seed=3)])
        pool.reply(dict.fromkeys(range(3), said("x")))
        events = pool.reply(dict.fromkeys(range(3), said("y")))
        assert failure in events[1].failure
        assert events[1].timed_out == timed_out
        assert (events[1].asks, events[1].result) == (None, None)
        assert [asks(events[i]) for i in (0, 2)] == [["b"], ["d"]]
        ends = pool.reply({0: said("yes"), 2: said("no")})
        results = [event.result for event in ends.values()]
        assert [r and r["reward"] for r in results] == pytest.approx([0.3 + 0.5, 0.3])


def test_what_cannot_be_played_again_has_failed() -> None:
    with pool_of("Forgetful") as pool:
        pool.begin([task("a", "b", "c"), task("a", "b", "crash")])
        pool.reply({0: said("x"), 1: said("x")})
        pool.reply({0: said("x"), 1: said("x")})
        events = pool.reply({0: said("x"), 1: said("x")})
        assert "played again it said something else" in events[0].failure
        assert "died" in events[1].failure
        assert pool.reply({0: said("x")})[0].failure == events[0].failure  # and stays so


@pytest.mark.parametrize(
    ("name", "failure"),
    [("Opens", "the first turn takes no message"), ("Judged", "nothing is None")],
)
def test_an_environment_that_breaks_the_protocol(name: str, failure: str) -> None:
    with pool_of(name) as pool:
        (event,) = pool.begin([task()])
        if event.asks is not None:
            event = pool.reply({0: said("x")})[0]
        assert failure in event.failure


@pytest.mark.covers("environment that cannot be loaded")
@pytest.mark.parametrize(
    ("named", "arguments", "message"),
    [
        ("calculator", {}, "wanted path/to/file.py:Class"),
        ("nowhere.py:Talk", {}, "nowhere.py does not exist"),
        ("examples.py:Walk", {}, "has no class 'Walk'"),
        ("examples.py:Talk", {"speed": 3}, "unexpected keyword argument 'speed'"),
        ("broken.py:Talk", {}, "importing"),
    ],
)
def test_what_cannot_be_loaded_is_said(
    named: str, arguments: dict, message: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    place = tmp_path if named.startswith("broken") else HERE
    rollout = RolloutConfig(environment=str(place / named), environment_args=arguments)
    pool = EnvironmentPool(rollout, RewardConfig(workers=1))
    with pytest.raises(RewardError, match=r"rollout\.environment") as raised:
        pool.describe()
    assert message in str(raised.value)
