"""From the configuration and the pool to the run's scheduler, and its evidence to the next run's.

Pure numpy and the same on every rank. Raises ConfigError for options that do not fit, DataError for
columns that a key names and the data lacks, CheckpointError for a posterior file that cannot be
used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cero_rl.config import Config
from cero_rl.config.scheduler import CERO_FAMILY
from cero_rl.data.prompts import Prompt
from cero_rl.errors import CheckpointError, ConfigError, DataError
from cero_rl.files.plain import refuse_link
from cero_rl.scheduler import Prior, Scheduler, make_scheduler, prior_from_pass_rate
from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.export import export_posterior, import_posterior


def _column(prompts: Sequence[Prompt], key: str, name: str) -> list[object]:
    for prompt in prompts:
        if name not in prompt.columns:
            found = ", ".join(sorted(prompt.columns)) or "no other columns"
            raise DataError(f"{key}: no column {name!r} in the training data; it has {found}")
    return [prompt.columns[name] for prompt in prompts]


def pass_rates(prompts: Sequence[Prompt], name: str) -> npt.NDArray[np.float64]:
    """f64[P] in [0, 1], nan where the column is null. Raises DataError for anything else."""
    rates = []
    for row, value in enumerate(_column(prompts, "scheduler.pass_rate_column", name)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0
        ):
            raise DataError(
                f"scheduler.pass_rate_column: prompt {row} has {name} = {value!r}, wanted a "
                "number in [0, 1] or null"
            )
        rates.append(np.nan if value is None else float(value))
    return np.array(rates)


def build_scheduler(
    config: Config,
    num_prompts: int,
    prior: Prior | None = None,
    labels: npt.NDArray[np.int64] | None = None,
) -> BudgetedScheduler:
    """The scheduler of a pool of `num_prompts`. Without `labels` value "progress" is checked as one
    family."""
    wanted = config.scheduler
    if wanted.value == "progress" and labels is None:
        labels = np.zeros(num_prompts, dtype=np.int64)
    try:
        cero = None
        if wanted.name in CERO_FAMILY:
            cero = wanted.cero_options(
                step_size=config.dual_step_size,
                budget_tokens=config.budget.total_tokens,
                labels=labels,
            )
        return make_scheduler(
            wanted.name,
            num_prompts=num_prompts,
            rounds=wanted.rounds,
            budget_rollouts=config.budget.total_rollouts,
            rollouts_per_unit=wanted.rollouts_per_unit,
            max_units_per_prompt=wanted.max_units_per_prompt,
            capacity_rollouts=config.capacity_rollouts,
            saturation=wanted.saturation,
            prior=wanted.prior if prior is None else prior,
            forgetting=wanted.forgetting,
            cero=cero,
            options=wanted.options or None,
            keep_rule=wanted.keep_rule,
            keep_share=wanted.keep_share,
            seed=config.seed,
        )
    except ValueError as error:
        raise ConfigError(f"scheduler: {error}") from None


def scheduler_for_pool(
    config: Config, prompts: Sequence[Prompt], *, warm: bool = True
) -> BudgetedScheduler:
    """The run's scheduler: priors from measured pass rates, families, and with `warm` the evidence
    of an earlier run where the configuration asks for it."""
    wanted = config.scheduler
    prior = labels = None
    if wanted.pass_rate_column is not None:
        prior = prior_from_pass_rate(
            pass_rates(prompts, wanted.pass_rate_column), wanted.pass_rate_strength, wanted.prior
        )
    if wanted.labels_column is not None:
        names = [
            str(value)
            for value in _column(prompts, "scheduler.labels_column", wanted.labels_column)
        ]
        labels = np.unique(names, return_inverse=True)[1].astype(np.int64)
    scheduler = build_scheduler(config, len(prompts), prior, labels)
    if warm and wanted.warm_start is not None and wanted.name in CERO_FAMILY:
        refuse_link(Path(wanted.warm_start))
        try:
            successes, failures, known = import_posterior(
                wanted.warm_start, [prompt.key for prompt in prompts]
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"scheduler.warm_start: {wanted.warm_start}: {error}; wanted the "
                "posterior.parquet of an earlier run"
            ) from None
        if not known.any():
            raise CheckpointError(
                f"scheduler.warm_start: {wanted.warm_start} knows none of the "
                f"{len(prompts)} prompts of this pool"
            )
        scheduler.warm_start(successes, failures)
    return scheduler


def scheduler_of_checkpoint(
    config: Config, prompts: Sequence[Prompt], checkpoint: Path
) -> BudgetedScheduler:
    """One that the checkpoint's state fits: planned with the budget of its run's beginning, and
    without a warm start, whose evidence is in the state."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    budget = config.budget.model_copy(update={"total_rollouts": state["scheduler.budget_rollouts"]})
    return scheduler_for_pool(config.model_copy(update={"budget": budget}), prompts, warm=False)


def save_evidence(path: Path, scheduler: Scheduler, prompts: Sequence[Prompt]) -> None:
    """posterior.parquet: what this run learnt of its prompts, by content hash, for the warm_start
    of another."""
    export_posterior(path, [prompt.key for prompt in prompts], scheduler)
