"""Rewards cannot hurt the run: hostile answers and plug-ins against real workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cero_rl.config.reward import RewardConfig
from cero_rl.errors import RewardError
from cero_rl.rewards.base import RewardCounts, RewardItem, RewardResult
from cero_rl.rewards.pool import RewardPool, gold_problems
from cero_rl.rewards.several import check_reward

HOSTILE = """
import ctypes, os, sys, time
def f(prompts, completions, **columns):
    out = []
    for c in completions:
        if c == "sleep": time.sleep(1000)
        if c == "spin":
            while True: pass
        if c == "power": 9**9**9
        if c == "memory": bytearray(1 << 40)
        if c == "grow":
            keep = []
            while True: keep.append(bytearray(1 << 24))
        if c == "segfault": ctypes.string_at(0)
        if c == "exit": os._exit(3)
        if c == "sysexit": sys.exit(3)
        if c == "raise": raise RuntimeError("no\\nidea")
        if c == "flood":
            for _ in range(2000): print("x" * 10000); print("y" * 10000, file=sys.stderr)
            os.write(1, b'{"values": [1.0]}' * 10000)
        odd = {"none": None, "nan": float("nan"), "inf": float("inf")}
        out.append(odd.get(c, float(c == "good" or c == "flood")))
    return out
"""


def item(completion: str, answer: Any = "1", prompt: Any = "q", **columns: Any) -> RewardItem:
    return RewardItem(
        prompt=prompt, completion=completion, answer=answer, source="s", columns=columns
    )


def plugin(tmp_path: Path, code: str, name: str = "f") -> str:
    path = tmp_path / "reward.py"
    path.write_text(code)
    return f"{path}:{name}"


def score(config: RewardConfig, items: list[RewardItem]) -> RewardResult:
    with RewardPool(config) as pool:
        return pool.score(items)


def test_exact() -> None:
    items = [
        item(" 42 ", "42"),
        item("41", "42"),
        item("so\n#### 42", "work #### 42"),
        item("x" * 100 + "#### 42", "42"),
        item("", "42"),
    ]
    result = score(RewardConfig(max_chars=20), items)
    assert result.values.tolist() == [1, 0, 1, 1, 0]
    assert result.values.dtype == np.float32
    assert result.counts == RewardCounts(scored=5)


def test_math_with_hostile_answers() -> None:
    good = [
        ("\\boxed{\\frac12}", "1/2"),
        ("$0.5$", "\\frac{1}{2}"),
        ("it is 42", "#### 42"),
        ("\\boxed{(1,2)}", "$(1, 2)$"),
    ]
    hostile = ["$9^{9^{9^9}}$", "9**9**9**9", "\\boxed{10000000!}", "\\boxed{" * 3000]
    items = (
        [item(c, a) for c, a in good] + [item(c, "3") for c in hostile] + [item("\\boxed{7}", "8")]
    )
    with RewardPool(RewardConfig(function="math", timeout_seconds=4.0, workers=2)) as pool:
        result = pool.score(items)
        again = pool.score(items[:4])
    assert result.values[:4].tolist() == again.values.tolist() == [1, 1, 1, 1]
    assert result.values[8] == 0
    assert not (result.values[4:8] == 1).any()
    assert result.counts.timeouts >= 1
    assert result.counts.total == len(items)


def test_math_answer_that_is_not_mathematics_is_an_error_not_a_zero() -> None:
    result = score(
        RewardConfig(function="math", workers=1),
        [item("\\boxed{4}", "####"), item("\\boxed{4}", "4")],
    )
    assert np.isnan(result.values[0])
    assert result.counts == RewardCounts(scored=1, errors=1)
    assert "cannot be read as mathematics" in (result.first_error or "")


@pytest.mark.covers(
    "reward hangs", "reward eats memory", "reward segfaults", "reward floods stdout", "reward NaN"
)
def test_hostile_plugin_loses_only_its_own_items(tmp_path: Path) -> None:
    config = RewardConfig(
        function=plugin(tmp_path, HOSTILE), timeout_seconds=1.0, memory_limit_mb=256, workers=2
    )
    late = ["sleep", "spin", "power"]
    broken = ["memory", "grow", "segfault", "exit", "sysexit", "raise", "none", "nan", "inf"]
    completions = [c for bad in late + broken for c in (bad, "good")] + ["flood", "wrong"]
    result = score(config, [item(c) for c in completions])
    for completion, value in zip(completions, result.values):
        assert {"good": value == 1, "flood": value == 1, "wrong": value == 0}.get(
            completion, np.isnan(value)
        ), completion
    assert result.counts == RewardCounts(scored=14, timeouts=3, errors=9)


@pytest.mark.covers("reward hangs")
def test_one_hang_is_missing_and_the_worker_is_replaced(tmp_path: Path) -> None:
    config = RewardConfig(function=plugin(tmp_path, HOSTILE), timeout_seconds=1.0, workers=1)
    with RewardPool(config) as pool:
        pool.wait_ready()
        result = pool.score([item("sleep")])
        assert result.counts == RewardCounts(timeouts=1)
        assert pool.score([item("good")]).values.tolist() == [1]


def test_trl_signature(tmp_path: Path) -> None:
    code = """
async def f(completions, prompts, solution, level, **kwargs):
    assert len(kwargs["answer"]) == len(prompts)
    assert all(c[0]["role"] == "assistant" for c in completions)
    assert all(p[0]["role"] == "user" for p in prompts)
    right = [float(c[0]["content"] == s) for c, s in zip(completions, solution)]
    return [None if l == 2 else r for r, l in zip(right, level)]
"""
    chat = [{"role": "user", "content": "q"}]
    items = [
        item("5", "5", chat, solution="5", level=1),
        item("4", "5", chat, solution="5", level=1),
        item("5", "5", chat, solution="5", level=2),
    ]
    result = score(RewardConfig(function=plugin(tmp_path, code)), items * 10)
    assert result.counts == RewardCounts(scored=20, errors=10)
    assert result.values[:2].tolist() == [1, 0]
    assert np.isnan(result.values[2])


def test_verl_signature(tmp_path: Path) -> None:
    code = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "s" and isinstance(ground_truth, list)
    return {"score": float(solution_str in ground_truth and extra_info["index"] == 7), "acc": 1}
"""
    columns: dict[str, Any] = {
        "reward_model": {"ground_truth": "another column's"},
        "extra_info": {"index": 7},
    }
    config = RewardConfig(function=plugin(tmp_path, code, "compute_score"), workers=1)
    check_reward(config)
    items = [item(said, ["a", "b"], **columns) for said in ("b", "c", '["a"')]
    assert score(config, items).values.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        pytest.param(
            "def f(prompts, completions): return [1.0]",
            "got 1 rewards for 3 completions",
            marks=pytest.mark.covers("reward of the wrong length"),
        ),
        ("def f(prompts, completions): return 1.0", "got a float for 3"),
        ("def f(prompts, completions): return ['1'] * 3", "got a str as a reward"),
        pytest.param(
            "def f(prompts, completions): return [2.0] * 3",
            "Beta posteriors",
            marks=pytest.mark.covers("reward outside [0,1]"),
        ),
        pytest.param(
            "def f(prompts, completions): return [-0.5] * 3",
            "Beta posteriors",
            marks=pytest.mark.covers("reward outside [0,1]"),
        ),
        (
            "def f(prompts, completions, level): return [1.0] * 3",
            "parameter 'level' has no default",
        ),
        ("def f(solution_str, ground_truth): return {'acc': 1}", "wanted the key 'score'"),
    ],
)
def test_results_that_end_the_run(tmp_path: Path, code: str, words: str) -> None:
    with pytest.raises(RewardError, match=words) as caught:
        score(RewardConfig(function=plugin(tmp_path, code), workers=1), [item("a")] * 3)
    assert "\n" not in str(caught.value)


def test_rounding_is_clipped(tmp_path: Path) -> None:
    function = plugin(tmp_path, "def f(solution_str, ground_truth): return 1 + 1e-9")
    assert score(RewardConfig(function=function, workers=1), [item("a")]).values.tolist() == [1.0]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def g(completions): return []", "has no function 'f'; it has g"),
        pytest.param(
            "def f(text): return 1.0",
            r"takes \(text\); wanted f\(prompts, completions.* or compute_score",
            marks=pytest.mark.covers("reward with the wrong signature"),
        ),
        ("def f(**kwargs): return 1.0", "wanted f"),
        ("import no_such_module_at_all", "importing .* failed .ModuleNotFoundError"),
        ("def f(:", "SyntaxError"),
        ("import os; os._exit(1)", "ended its process while loading"),
    ],
)
def test_check_reward_refuses(tmp_path: Path, code: str, words: str) -> None:
    with pytest.raises(RewardError, match=words) as caught:
        check_reward(RewardConfig(function=plugin(tmp_path, code)))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 5


@pytest.mark.covers("unknown reward")
def test_check_reward_names(tmp_path: Path) -> None:
    for function, words in [
        ("maths", "did you mean math"),
        (f"{tmp_path}/no.py:f", "does not exist"),
        (f"{tmp_path}/no.py", "wanted exact"),
    ]:
        with pytest.raises(RewardError, match=words):
            check_reward(RewardConfig(function=function))
    check_reward(RewardConfig())
    check_reward(RewardConfig(function="math"))


def test_plugin_never_runs_in_the_trainer(tmp_path: Path) -> None:
    code = (
        f"import os\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ndef "
        "f(completions): return [1.0] * len(completions)"
    )
    check_reward(RewardConfig(function=plugin(tmp_path, code)))
    assert int((tmp_path / "pid").read_text()) != os.getpid()
    assert "cero_reward_plugin" not in sys.modules


def test_worker_killed_between_calls(tmp_path: Path) -> None:
    code = "import os\ndef f(completions): return [os.getpid() / 2**32] * len(completions)"
    with RewardPool(RewardConfig(function=plugin(tmp_path, code), workers=1)) as pool:
        pool.wait_ready()
        os.kill(pool._workers[0].process.pid, signal.SIGKILL)
        time.sleep(0.2)
        assert pool.score([item("a")]).counts == RewardCounts(scored=1)


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    function = plugin(tmp_path, HOSTILE)
    code = f"""
import os, signal, threading
from cero_rl.config.reward import RewardConfig
from cero_rl.rewards.base import RewardItem
from cero_rl.rewards.pool import RewardPool
with RewardPool(RewardConfig(function={function!r}, workers=2, timeout_seconds=60)) as pool:
    pool.wait_ready()
    print(*[w.process.pid for w in pool._workers], flush=True)
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    pool.score([RewardItem("q", "spin", "1", "s", {{}})] * 2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2, done.stderr
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(_alive(pid) for pid in workers):
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in workers)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.covers("reward eats memory", "reward floods stdout")
def test_parent_memory_does_not_grow(tmp_path: Path) -> None:
    config = RewardConfig(function=plugin(tmp_path, HOSTILE), memory_limit_mb=128, workers=1)
    resident = lambda: (
        int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    )
    with RewardPool(config) as pool:
        pool.score([item("good")])
        before = resident()
        result = pool.score([item(c) for c in ["flood", "raise", "memory"] + ["good"] * 100])
    assert result.counts == RewardCounts(scored=101, errors=2)
    assert resident() - before < 50 * 1024 * 1024


def test_big_messages_pass(tmp_path: Path) -> None:
    function = plugin(
        tmp_path,
        "def f(completions, blob): return [float(len(c) == 20000 and len(b) == 300000) for "
        "c, b in zip(completions, blob)]",
    )
    config = RewardConfig(function=function, workers=2)
    result = score(config, [item("é" * 20000, blob="\ud800" * 300000)] * 20)
    assert result.values.tolist() == [1.0] * 20


def test_reasoning_gym_real_set() -> None:
    from cero_rl.config.data import DataConfig
    from cero_rl.data.load import load_prompts

    items = []
    for name in ("chain_sum", "prime_factorization"):
        for prompt in load_prompts(
            DataConfig(source=f"reasoning_gym:{name}", procedural_size=6, heldout_fraction=0), 0
        ).train[:4]:
            for completion in (
                prompt.answer,
                f"so <answer>{prompt.answer}</answer>",
                "junk \u00d7",
            ):
                items.append(
                    RewardItem(
                        prompt.content, completion, prompt.answer, prompt.source, prompt.columns
                    )
                )
    config = RewardConfig(function="reasoning_gym", workers=1)
    with RewardPool(config) as pool:
        result = pool.score(items)
        assert result.values.tolist() == [1, 1, 0] * 8
        foreign = pool.score([item("1")])
    assert foreign.counts == RewardCounts(errors=1)


@pytest.mark.covers("answer that is no mathematics")
def test_gold_answers_are_judged_before_the_run() -> None:
    """Under a deadline, each by itself; only for verifiers that read the answer."""
    math = RewardConfig(function="math", workers=1, timeout_seconds=2.0)
    golds = ["#### 42", "####", "$9^{9^{9^9}}$", "A \\cap B", ["1/2", "$0.5$"], 42.0, "Paris"]
    fine, empty, endless, text, *rest = gold_problems(math, golds)
    assert fine is None
    assert empty is not None
    assert endless is not None
    assert text is not None
    assert rest == [None, None, None]
    assert str(empty) == (
        "the answer '####' cannot be read as mathematics; use reward.function: exact or a plug-in"
    )
    assert str(endless) == "cannot be judged within reward.timeout_seconds (2)"
    assert str(text).startswith("the answer 'A \\\\cap B' cannot be read as mathematics, so only")
    assert (empty.never_right, endless.never_right, text.never_right) == (True, True, False)
    fine, empty = gold_problems(RewardConfig(), ["42", "so ####"])
    assert fine is None
    assert empty is not None
    assert str(empty) == "the answer 'so ####' ends in nothing"
    assert gold_problems(RewardConfig(function="my.py:f"), ["####"]) == [None]
