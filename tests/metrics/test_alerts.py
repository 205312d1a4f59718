"""Each alert speaks at its sign, once, again when it is worse or was over, and for the same lines
the same."""

from __future__ import annotations

from typing import Any

import pytest

from cero_rl.metrics.alerts import RULES, Alert, Watch, alerts_of, by_name

FINE = {
    "step_time": 1.0,
    "parity/gap": 1e-6,
    "reward/timeout_rate": 0.0,
    "reward/error_rate": 0.0,
    "frac_reward_zero_std": 0.4,
    "completions/clipped_ratio": 0.1,
    "skipped_updates": 0,
    "micro_batches": 3,
    "entropy": 1.0,
    "checkpoint/failed_saves": 0,
}


def run_of(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl: fine but for what each step changes; its budget is spent on."""
    return [
        {**FINE, "step": step, "budget/spent_rollouts": 64 * step, **change}
        for step, change in enumerate(changes, start=1)
    ]


def told(lines: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(alert.step, alert.name) for alert in alerts_of(lines, parity_bound=0.01)]


@pytest.mark.parametrize(
    ("name", "changes", "steps"),
    [
        ("parity", [{}, {"parity/gap": 0.006}, {"parity/gap": 0.009}], [2]),
        ("rewards missing", [{"reward/timeout_rate": 0.15, "reward/error_rate": 0.1}], [1]),
        ("set aside", [{"cero/set_aside_prompts": n} for n in (0, 3, 5, 6, 0, 1)], [2, 4, 6]),
        ("starvation", [{"cero/starved_share": s} for s in (0.5, 0.6, 0.7, 0.4, 0.51)], [2, 5]),
        ("no signal", [{"frac_reward_zero_std": s} for s in (1, 0.96, 0.9, 1, 1, 0.97)], [6]),
        ("truncation", [{"completions/clipped_ratio": s} for s in (0.35, 0.6, 0.7)], [1, 3]),
        ("bad gradient", [{"skipped_updates": 1}], [1]),
        ("stalled budget", [{"budget/spent_rollouts": 64}] * 5, [4]),
        ("entropy collapse", [{"entropy": e} for e in (2.0, 0.3, 0.19, 0.1, 0.09)], [3, 5]),
        (
            "failed saves",
            [{}, {"checkpoint/failed_saves": 1}, {"checkpoint/failed_saves": 2}],
            [2, 3],
        ),
    ],
)
def test_each_rule(name: str, changes: list[dict[str, Any]], steps: list[int]) -> None:
    assert told(run_of(*changes)) == [(step, name) for step in steps]


def test_every_rule_has_a_case() -> None:
    (mark,) = [m for m in test_each_rule.pytestmark if m.name == "parametrize"]
    assert {case[0] for case in mark.args[1]} == {rule.name for rule in RULES}


def test_a_run_that_is_fine_says_nothing_whatever_it_leaves_out() -> None:
    assert told(run_of({}, {}, {}, {})) == []
    assert told([{"step": step, "step_time": 1.0} for step in range(1, 9)]) == []
    assert told([{"step": 1, "step_time": 1.0, "parity/gap": None, "entropy": None}]) == []


def test_lines_that_are_no_steps_are_passed_over() -> None:
    evaluation = {"step": 0, "eval/avg@1": 0.2, "checkpoint/failed_saves": 3}
    assert told([evaluation, *run_of({}), {**evaluation, "final": True}]) == []


def test_no_signal_and_skipped_steps_are_normal_where_they_are_meant() -> None:
    critic = {"frac_reward_zero_std": 1.0, "baseline/strength": 8.0}
    assert told(run_of(critic, critic, critic)) == []
    assert told(run_of({"skipped_updates": 1, "micro_batches": 0})) == [], (
        "for want of a live group"
    )


def test_a_resumed_run_says_what_the_whole_one_would_have_said() -> None:
    shares = (0.6, 0.6, 0.4, 0.6, 0.6, 0.3)
    lines = run_of(*({"cero/starved_share": share} for share in shares))
    for cut in range(len(lines)):
        before, after = Watch(0.01), Watch(0.01)
        said = [alert for line in lines[:cut] for alert in before.look(line)]
        for line in lines[:cut]:
            after.look(line)
        said += [alert for line in lines[cut:] for alert in after.look(line)]
        assert said == alerts_of(lines, 0.01)


def test_a_rule_is_a_line_in_a_report() -> None:
    alerts = [Alert(step, "starvation", f"{step} %", "look again", 1.0) for step in (3, 9, 20)]
    once = Alert(4, "parity", "apart", "look", 1.0)
    assert by_name([alerts[0], once, *alerts[1:]]) == [
        "starvation (3 times, steps 3 to 20): 20 %; look again",
        "parity (step 4): apart; look",
    ]
