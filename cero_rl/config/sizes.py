"""The arithmetic that a user would otherwise do by hand: sizes that follow from a configuration,
and whether they fit."""

from __future__ import annotations

from cero_rl.config.root import Config
from cero_rl.errors import ConfigError


def check_pool(config: Config, num_prompts: int) -> None:
    """Check C <= M * Nmax, which needs the pool's size M. Raises ConfigError with the numbers."""
    scheduler = config.scheduler
    most = num_prompts * scheduler.max_units_per_prompt * scheduler.rollouts_per_unit
    if config.capacity_rollouts > most:
        raise ConfigError(
            f"capacity C <= prompts M * largest group fails: {config.capacity_rollouts} > "
            f"{num_prompts} * {scheduler.max_units_per_prompt * scheduler.rollouts_per_unit} "
            f"= {most}; lower scheduler.capacity_rollouts, add prompts, or raise "
            "scheduler.max_units_per_prompt"
        )


def derived_sizes(config: Config, num_prompts: int | None) -> list[tuple[str, str]]:
    """The arithmetic a user would otherwise do by hand: (name, equation with numbers), for the
    console and the run directory."""
    scheduler, total, capacity = (
        config.scheduler,
        config.budget.total_rollouts,
        config.capacity_rollouts,
    )
    group = scheduler.rollouts_per_unit * scheduler.max_units_per_prompt
    per_step = min(config.learner.rollouts_per_step or capacity, capacity)
    step = f"{per_step} rollouts x {config.learner.updates_per_batch} update(s)"
    if config.learner.live_signal_per_step is not None:
        step = f"{config.learner.live_signal_per_step:g} squared advantages, at most {step}"
    rows = [
        (
            "largest group",
            f"{scheduler.rollouts_per_unit} x {scheduler.max_units_per_prompt} = {group} rollouts",
        ),
        ("round capacity", f"{capacity} rollouts = {capacity // group} full groups"),
        (
            "budget",
            (
                f"{total} rollouts of at most {scheduler.rounds} x {capacity} = "
                f"{scheduler.rounds * capacity}"
            ),
        ),
        ("optimizer step", step),
        (
            "updates, at least",
            f"{total} / {per_step} x {config.learner.updates_per_batch} = {config.fewest_updates}",
        ),
    ]
    if num_prompts:
        share = total / num_prompts
        rows.append(
            (
                "fair share",
                (
                    f"{total} / {num_prompts} prompts = {share:.1f} rollouts "
                    f"({share / group:.2f} groups) a prompt"
                ),
            )
        )
    return rows
