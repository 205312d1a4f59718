"""How a user's function is called: one event loop for all calls, async in every shape, whole
responses."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from cero_rl.config.reward import RewardConfig
from cero_rl.errors import RewardError
from cero_rl.rewards.base import RewardCounts, RewardItem
from cero_rl.rewards.plugin import load_plugin
from cero_rl.rewards.pool import RewardPool

SHAPES = """
import asyncio, functools
loops, lock = [], asyncio.Semaphore(2)

async def right(text):
    async with lock:                       # bound to the loop of the first call that waits for it
        await asyncio.sleep(0.001)
        loops.append(asyncio.get_running_loop())
        assert not loops[0].is_closed() and loops[0] is loops[-1]
        return float(text == "good")

async def coroutine(prompts, completions, **columns):
    return await asyncio.gather(*[right(c) for c in completions])

def returned(completions):                 # a sync function that returns a coroutine
    return coroutine(None, completions)

async def items(completions):              # an async generator
    for c in completions:
        yield await right(c)

def generator(completions):
    for c in completions:
        yield float(c == "good")

async def _scaled(completions, by):
    return [by * await right(c) for c in completions]
partial = functools.partial(_scaled, by=1.0)

class Judge:
    async def __call__(self, solution_str, ground_truth):
        return {"score": await right(solution_str), "acc": 1}
judge = Judge()

def own_loop(completions):                 # asyncio.run leaves no current loop behind
    async def score(): return [float(c == "good") for c in completions]
    return asyncio.run(score())

async def limited(completions):            # its own time-out, inside of the loop
    out = []
    for c in completions:
        try: out.append(await asyncio.wait_for(asyncio.sleep(100 if c == "late" else 0, 1.0), .05))
        except asyncio.TimeoutError: out.append(None)
    return out

async def cancelled(completions):
    raise asyncio.CancelledError
"""


def item(completion: str) -> RewardItem:
    return RewardItem("q", completion, "1", "s", {})


@pytest.mark.covers("async reward keeps a client between calls")
def test_async_functions_share_one_loop_in_every_shape(tmp_path: Path) -> None:
    path = tmp_path / "reward.py"
    path.write_text(SHAPES)
    names = ("coroutine", "returned", "items", "generator", "partial", "judge", "own_loop")
    pools = {n: RewardPool(RewardConfig(function=f"{path}:{n}", workers=1)) for n in names}
    for pool in pools.values():
        pool.__enter__()  # all load at the same time
    for name, pool in pools.items():
        with pool:
            for _ in range(3):
                result = pool.score([item("good"), item("bad"), item("good")])
                assert result.values.tolist() == [1, 0, 1], (name, result.first_error)


def test_signatures_of_verl_and_openrlhf_for_batches(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("""
def verl(data_sources, solution_strs, ground_truths, extra_infos, **more):
    assert not more and extra_infos[0] == {"finish_reason": "stop"} and data_sources[0] == "s"
    return [{"score": float(s in g), "acc": 1} for s, g in zip(solution_strs, ground_truths)]
def openrlhf(queries, prompts, labels):
    assert all(q.startswith(p) for q, p in zip(queries, prompts))
    assert prompts[1] == "be brief\\nq\\n"
    said = [q[len(p):] for q, p in zip(queries, prompts)]
    return {"rewards": [float(s in l) for s, l in zip(said, labels)], "scores": None}
""")
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q"}]
    items = [RewardItem(p, c, ["a", "b"], "s", {}) for p in ("q", chat) for c in ("a", "ab")]
    for name in ("verl", "openrlhf"):
        with RewardPool(RewardConfig(function=f"{tmp_path}/reward.py:{name}", workers=1)) as pool:
            result = pool.score([items[0], items[2], items[1]])
            assert result.values.tolist() == [1, 1, 0], result.first_error


@pytest.mark.covers("reward that returns something else than numbers")
@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ('{"scores": [1.0] * len(completions)}', "got a dict with the keys scores; wanted a list"),
        ('"1" * len(completions)', "got a str for 2 completions"),
        ("1.0", "got a float for 2 completions"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused_by_its_kind(
    tmp_path: Path, returned: str, said: str
) -> None:
    path = tmp_path / "reward.py"
    path.write_text(f"def score(prompts, completions, **columns): return {returned}\n")
    items = [RewardItem("q", c, "a", "s", {}) for c in "ab"]
    with (
        RewardPool(RewardConfig(function=f"{path}:score", workers=1)) as pool,
        pytest.raises(RewardError, match=said),
    ):
        pool.score(items)


def test_a_time_out_inside_of_the_loop_costs_its_item_alone(tmp_path: Path) -> None:
    path = tmp_path / "reward.py"
    path.write_text(SHAPES)
    with RewardPool(RewardConfig(function=f"{path}:limited", workers=1)) as pool:
        for _ in range(2):
            values = pool.score([item("late"), item("x")]).values
            assert np.isnan(values[0])
            assert values[1] == 1
    with RewardPool(RewardConfig(function=f"{path}:cancelled", workers=1)) as pool:
        assert pool.score([item("x")]).counts == RewardCounts(errors=1)


def test_the_loop_is_closed_with_the_worker(tmp_path: Path) -> None:
    code = f"""
import asyncio
async def forever():
    try: await asyncio.sleep(1000)
    finally: open({str(tmp_path / "closed")!r}, "w").close()
async def f(completions):
    f.task = asyncio.ensure_future(forever())
    await asyncio.sleep(0)
    return [1.0] * len(completions)
"""
    (tmp_path / "reward.py").write_text(code)
    with RewardPool(RewardConfig(function=f"{tmp_path}/reward.py:f", workers=1)) as pool:
        assert pool.score([item("x")]).values.tolist() == [1]
        worker = pool._workers[0].process
        assert worker.stdin is not None
        worker.stdin.close()
        deadline = time.monotonic() + 10
        while worker.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (tmp_path / "closed").exists()


@pytest.mark.covers("long response and a plug-in")
def test_a_plugin_gets_all_of_a_response_the_verifiers_its_end(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "def f(completions): return [float(c.startswith('<think>')) for c in completions]"
    )
    response = "<think>" + "x" * 18_000 + "</think>\n#### 42"
    assert len(response) > RewardConfig().max_chars
    config = RewardConfig(function=f"{tmp_path}/reward.py:f", workers=1)
    with RewardPool(config) as pool:
        assert pool.score([item(response)]).values.tolist() == [1]
    with RewardPool(RewardConfig()) as pool:
        long = RewardItem("q", response, "42", "s", {})
        assert pool.score([long]).values.tolist() == [1]


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("completions, scale, **columns", "[scale * len(c) for c in completions]"),
        ("solution_strs, ground_truths, scale=9.0", "[scale * len(c) for c in solution_strs]"),
        (
            "data_source, solution_str, ground_truth, extra_info, *, scale",
            "scale * len(solution_str)",
        ),
    ],
)
def test_arguments_of_the_configuration_are_handed_on(
    tmp_path: Path, signature: str, body: str
) -> None:
    path = tmp_path / "reward.py"
    path.write_text(f"def score({signature}): return {body}\n")
    items = [RewardItem("q", c, "a", "s", {"scale": 7.0}) for c in ("a", "abc")]
    config = RewardConfig(function=f"{path}:score", workers=1, kwargs={"scale": 0.25})
    with RewardPool(config) as pool:
        assert pool.score(items).values.tolist() == [0.25, 0.75]


@pytest.mark.covers("reward with the wrong signature")
def test_arguments_that_the_function_does_not_take(tmp_path: Path) -> None:
    path = tmp_path / "reward.py"
    path.write_text("def score(completions, trainer_state): return [1.0 for _ in completions]\n")
    with pytest.raises(RewardError, match="takes no 'scale'; it takes completions, trainer_state"):
        load_plugin(f"{path}:score", {"scale": 2})
    with pytest.raises(RewardError, match="'trainer_state' is TRL's, and is not offered here"):
        load_plugin(f"{path}:score").score([RewardItem("q", "c", "a", "s", {})])
    with pytest.raises(ValueError, match="kwargs: got scale with function: exact"):
        RewardConfig(kwargs={"scale": 2})
