"""The figures of a report. In: `Facts`. Out: `Figure` records in the page's order; one that has
nothing to show is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cero_rl.report.drawing import (
    COLORS,
    GREY,
    Figure,
    canvas,
    plain,
    smooth,
    thin,
    thousands,
)
from cero_rl.report.facts import NORMAL, Accuracy, Facts

_MOST_CELLS = 96  # of a side of the heat map


def figures_of(facts: Facts) -> dict[str, list[Figure]]:
    """Section -> its figures, in the page's order."""
    drawn: dict[str, list[Figure]] = {}
    for section, draw in _DRAWN:
        found = draw(facts)
        drawn.setdefault(section, []).extend([found] if isinstance(found, Figure) else found or [])
    return drawn


# --- held-out accuracy


def accuracy_figures(lines: Sequence[tuple[str, Accuracy]]) -> list[Figure]:
    """Against rollouts, tokens and seconds; a line for each run."""
    figures = []
    for what, unit in (("rollouts", "rollouts"), ("tokens", "tokens"), ("seconds", "seconds")):
        known = [(name, a) for name, a in lines if a.value.size]
        if not known:
            return []
        with canvas() as made:
            for index, (name, accuracy) in enumerate(known):
                x = {
                    "rollouts": accuracy.rollouts,
                    "tokens": accuracy.tokens,
                    "seconds": accuracy.seconds,
                }[what]
                made.axis.errorbar(
                    x,
                    accuracy.value,
                    yerr=NORMAL * np.nan_to_num(accuracy.error),
                    color=COLORS[index % len(COLORS)],
                    marker="o",
                    markersize=3.5,
                    capsize=2.5,
                    linewidth=1.4,
                    label=plain(name, 40),
                )
            made.axis.set_xlabel(f"{unit} of training")
            made.axis.set_ylabel("held-out accuracy")
            if len(known) > 1:
                made.legend()
            thousands(made.axis)
        aid = (
            "Higher and further left is better; a bar is the 95 % interval over held-out prompts, "
            "so points whose bars overlap widely may be the same."
        )
        title = f"Held-out accuracy by {what}"
        figures.append(Figure(f"accuracy-{what}", title, aid, made.svg))
    return figures


def _accuracy(facts: Facts) -> list[Figure]:
    return accuracy_figures([(facts.run.name, facts.accuracy)])


def _passes(facts: Facts) -> Figure | None:
    accuracy = facts.accuracy
    shown = {k: v for k, v in accuracy.passes.items() if np.isfinite(v).any()}
    if not shown:
        return None
    with canvas() as made:
        for index, (k, values) in enumerate(shown.items()):
            known = np.isfinite(values)
            made.axis.plot(
                accuracy.rollouts[known],
                values[known],
                marker="o",
                markersize=3.5,
                color=COLORS[index % len(COLORS)],
                label=f"pass@{k}",
            )
        made.axis.set_xlabel("rollouts of training")
        made.axis.set_ylabel("share of held-out prompts")
        made.legend()
        thousands(made.axis)
    aid = (
        "pass@1 that rises while pass@k stays or falls is sharpening: more often right on what "
        "could be solved before, and nothing new."
    )
    return Figure("passes", "pass@k along the run", aid, made.svg)


def _entropy(facts: Facts) -> Figure | None:
    aid = (
        "Falling entropy is a policy that grows certain; where it is near 0 early, later rollouts "
        "of a prompt are copies of each other."
    )
    return _lines(
        facts, "entropy", "Entropy of the policy", aid, {"entropy": "entropy"}, "nats a token"
    )


# --- where the rollouts went


def _by_rate(facts: Facts) -> Figure:
    aid = (
        "Orange above grey: that kind got more than its share of the pool. What is never or always "
        "solved teaches little, so orange belongs in the middle."
    )
    rows = [(name, have, used) for name, have, used in facts.by_rate]
    return _bars("by-rate", "By the prompt's own pass rate over the run", aid, rows)


def _by_label(facts: Facts) -> list[Figure]:
    aid = "Orange above grey: the kind got more than its share of the pool."
    figures = []
    for column, kinds in facts.by_label.items():
        rows = [(plain(kind, 14), have, used) for kind, (have, used) in kinds.items()]
        name = f"by-label-{len(figures)}"
        figures.append(_bars(name, f"By column {plain(column, 40)}", aid, rows))
    return figures[:4]


def _bars(name: str, title: str, aid: str, rows: Sequence[tuple[str, float, float]]) -> Figure:
    with canvas() as made:
        at = np.arange(len(rows))
        made.axis.bar(at - 0.2, [h for _, h, _ in rows], 0.4, color=GREY, label="pool")
        made.axis.bar(at + 0.2, [u for *_, u in rows], 0.4, color=COLORS[1], label="rollouts")
        some = slice(None, None, -(-len(rows) // 12))
        made.axis.set_xticks(at[some], [label for label, *_ in rows][some])
        if len(rows) > 5:
            made.axis.tick_params(axis="x", rotation=55)
        made.axis.grid(visible=False, axis="x")
        made.axis.set_ylabel("share")
        made.legend()
    return Figure(name, title, aid, made.svg)


def _by_prompt(facts: Facts) -> Figure:
    ordered = np.sort(facts.spent)[::-1]
    share = np.cumsum(ordered) / max(int(ordered.sum()), 1)
    pool = np.arange(1, share.size + 1) / share.size
    with canvas() as made:
        some = thin(share.size)
        made.axis.plot(pool[some], share[some], color=COLORS[0], label="this run")
        made.axis.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="every prompt alike")
        made.axis.set_xlabel("share of the prompts, most served first")
        made.axis.set_ylabel("share of the rollouts")
        made.legend()
    top = pool[int(np.searchsorted(share, 0.5))]
    aid = f"The further above the dashed line, the more was spent on few: half went to {top:.0%}."
    return Figure("by-prompt", "By prompt", aid, made.svg)


def _heat(facts: Facts) -> Figure:
    """Rows: the pool from the most served prompt down, in blocks; columns: time, in blocks."""
    groups, pool = facts.run.groups, facts.run.num_prompts
    order = np.argsort(-facts.spent, kind="stable")
    place = np.empty(pool, dtype=np.int64)
    place[order] = np.arange(pool)
    rows, steps = min(pool, _MOST_CELLS), int(groups.step.max())
    columns = min(steps, _MOST_CELLS)
    grid, _, _ = np.histogram2d(
        place[groups.prompt] * rows // pool,
        (groups.step - 1) * columns // steps,
        bins=(rows, columns),
        range=((0, rows), (0, columns)),
        weights=groups.generated.astype(np.float64),
    )
    per = grid / (pool / rows) / (steps / columns)
    with canvas(height=3.3) as made:
        top = float(np.quantile(per[per > 0], 0.98)) if (per > 0).any() else 1.0
        image = made.axis.imshow(
            per,
            aspect="auto",
            extent=(0, steps, pool, 0),
            cmap="viridis",
            vmax=top,
            interpolation="nearest",
        )
        made.axis.grid(visible=False)
        made.axis.set_xlabel("step")
        made.axis.set_ylabel("prompts, most served first")
        bar = made.axis.figure.colorbar(image, ax=made.axis)
        bar.set_label("rollouts a prompt and step")
    aid = (
        "A bright band that wanders is an allocator that follows what can be learnt now; stripes "
        "that never end are prompts it cannot let go; dark rows were left alone."
    )
    return Figure("heat", "Prompts by time", aid, made.svg)


# --- what the allocator thought


def _price(facts: Facts) -> Figure | None:
    names = {"cero/price": "price of a unit", "cero/slope_mean": "mean slope"}
    aid = (
        "A prompt is bought while its slope is above the price; a price that runs away from the "
        "slopes says that the budget and the rounds do not fit."
    )
    return _lines(facts, "price", "Price and slopes", aid, names, "utility a unit")


def _posterior(facts: Facts) -> Figure | None:
    names = {
        "cero/posterior_mean": "expected success rate",
        "reward": "reward of the step",
        "cero/value_mean": "worth of a rollout",
    }
    aid = (
        "The posterior's mean is of the whole pool, the reward of what was chosen; worth near 0 "
        "says that hardly anything is left to learn."
    )
    return _lines(facts, "posterior", "Posterior over the pool", aid, names, "mean")


def _calibration(facts: Facts) -> Figure | None:
    found = facts.calibration
    if found is None:
        return None
    with canvas() as made:
        made.axis.plot([0, 1], [0, 1], color=GREY, linestyle="--")
        made.axis.errorbar(
            found.believed,
            found.came,
            yerr=NORMAL * found.error,
            fmt="o",
            markersize=4,
            capsize=2.5,
            color=COLORS[0],
        )
        made.axis.set_xlabel("success rate that was expected")
        made.axis.set_ylabel("success rate that came")
        made.axis.set_xlim(0, 1)
        made.axis.set_ylim(0, 1)
    aid = (
        "Each point is a tenth of the rollouts with its 95 % interval; above the line the policy "
        "was better than believed (it learns), below worse (chosen for their luck)."
    )
    return Figure("calibration", "Premise: what was believed against what came", aid, made.svg)


def _premise(facts: Facts) -> Figure | None:
    names = {"cero/proxy_rank_corr": "rank correlation"}
    aid = (
        "Does predicted worth rank the variance that came (groups of two or more)? Above 0 the "
        "method's premise holds; around 0 the allocation rests on nothing."
    )
    return _lines(facts, "premise", "Premise: worth ranks variance", aid, names, "Spearman's rho")


def _regret(facts: Facts) -> Figure | None:
    found = facts.regret
    if found is None:
        return None
    with canvas() as made:
        made.axis.plot(found.rollouts, found.best, color=COLORS[2], label="best in hindsight")
        made.axis.plot(found.rollouts, found.spent, color=COLORS[0], label="as spent")
        made.axis.plot(
            found.rollouts, found.even, color=GREY, linestyle="--", label="every prompt alike"
        )
        made.axis.set_xlabel("rollouts")
        made.axis.set_ylabel("surrogate utility a prompt")
        made.legend()
        thousands(made.axis)
    aid = (
        "The gap to the top line is the regret, with what the run knew of each prompt at its end "
        "taken for true and held still: a yardstick of allocation, not of accuracy."
    )
    return Figure("regret", "Regret against hindsight", aid, made.svg)


def _age(facts: Facts) -> Figure:
    newest = int(facts.run.steps[-1]["step"])
    seen = facts.last_look >= 0
    age = newest - facts.last_look[seen]
    with canvas() as made:
        edges = np.linspace(0, max(newest, 1), 26)
        made.axis.hist(age, bins=edges, color=COLORS[0])  # pyright: ignore[reportArgumentType]
        made.axis.set_xlabel("steps since the last look, at the end")
        made.axis.set_ylabel("prompts")
    never = int((~seen).sum())
    aid = (
        f"A hump at the right is starved: what is believed of it is old. Never looked at: {never:,}"
        f" of {seen.size:,} prompts."
    )
    return Figure("age", "Starvation: how old the looks are", aid, made.svg)


# --- signal and machine


def _signal(facts: Facts) -> Figure | None:
    names = {
        "cero/effective_group_rate": "live groups",
        "baseline/signal_share": "rollouts with signal (critic)",
        "completions/clipped_ratio": "cut at the length limit",
    }
    aid = (
        "A live group has rewards that differ; groups of one never do, there the critic's line "
        "counts. What is below 1 was generated and taught nothing."
    )
    return _lines(facts, "signal", "Share with signal", aid, names, "share")


def _phases(facts: Facts) -> Figure | None:
    names = ("rollout", "reward", "learner", "sync", "scheduler", "evaluate", "checkpoint")
    parts = {name: facts.run.column(f"timing_s/{name}") for name in names}
    parts = {name: np.nan_to_num(v) for name, v in parts.items() if np.isfinite(v).any()}
    if not parts:
        return None
    steps, blocks = len(facts.run.steps), min(len(facts.run.steps), 40)
    cut = np.arange(steps) * blocks // steps
    size = np.bincount(cut)
    at = np.bincount(cut, weights=facts.run.column("step")) / size
    with canvas() as made:
        stacked = [np.bincount(cut, weights=v) / size for v in parts.values()]
        made.axis.stackplot(
            at, stacked, labels=list(parts), colors=COLORS[: len(parts)], alpha=0.85
        )
        made.axis.set_xlabel("step")
        made.axis.set_ylabel("seconds a step (rank 0)")
        made.legend()
    aid = "The thickest band is where a faster machine or a setting pays; spikes are evaluations."
    return Figure("phases", "Seconds by phase", aid, made.svg)


def _stragglers(facts: Facts) -> Figure | None:
    if facts.run.ranks < 2:
        return None
    names = {f"skew/{phase}": phase for phase in ("rollout", "reward", "learner")}
    aid = "1 is even; at 1.3 the slowest rank works 30 % longer than the mean and all wait for it."
    title = "Stragglers: slowest rank over the mean"
    return _lines(facts, "stragglers", title, aid, names, "ratio")


def _parity(facts: Facts) -> Figure | None:
    names = {
        "mismatch/logp_abs_mean": "|log-prob| sampler - learner, mean",
        "mismatch/kl": "KL a token",
    }
    aid = (
        "Sampler and learner should agree; a step up means that one of them holds other weights or "
        "another precision, and the ratios of the loss are wrong."
    )
    return _lines(facts, "parity", "Parity", aid, names, "nats", log=True)


def _lines(
    facts: Facts,
    name: str,
    title: str,
    aid: str,
    names: dict[str, str],
    unit: str,
    *,
    log: bool = False,
) -> Figure | None:
    at = facts.run.column("step")
    shown = {label: facts.run.column(key) for key, label in names.items()}
    shown = {label: values for label, values in shown.items() if np.isfinite(values).any()}
    if not shown:
        return None
    with canvas() as made:
        for index, (label, values) in enumerate(shown.items()):
            x, y = smooth(at, values)
            made.axis.plot(x, y, color=COLORS[index % len(COLORS)], linewidth=1.3, label=label)
        made.axis.set_xlabel("step")
        made.axis.set_ylabel(unit)
        if log and all((v[np.isfinite(v)] > 0).all() for v in shown.values()):
            made.axis.set_yscale("log")
        if len(shown) > 1:
            made.legend()
    return Figure(name, title, aid, made.svg)


_DRAWN: tuple[tuple[str, Callable[[Facts], Figure | list[Figure] | None]], ...] = (
    ("accuracy", _accuracy),
    ("accuracy", _passes),
    ("accuracy", _entropy),
    ("spending", _by_rate),
    ("spending", _by_label),
    ("spending", _by_prompt),
    ("spending", _heat),
    ("allocator", _price),
    ("allocator", _posterior),
    ("allocator", _calibration),
    ("allocator", _premise),
    ("allocator", _regret),
    ("allocator", _age),
    ("machine", _signal),
    ("machine", _phases),
    ("machine", _stragglers),
    ("machine", _parity),
)
