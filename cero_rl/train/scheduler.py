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

from cero_rl.config import Config
from cero_rl.config.scheduler import CERO_FAMILY, SchedulerConfig
from cero_rl.data.prompts import Prompt
from cero_rl.errors import CheckpointError, ConfigError, DataError
from cero_rl.files.plain import refuse_link
from cero_rl.scheduler import Prior, Scheduler, make_scheduler, prior_from_pass_rate
from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.export import export_posterior, import_posterior
from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids

MOST_CELLS = 512


def _column(prompts: Sequence[Prompt], key: str, name: str) -> list[object]:
    for prompt in prompts:
        if name not in prompt.columns:
            found = ", ".join(sorted(prompt.columns)) or "no other columns"
            raise DataError(f"{key}: no column {name!r} in the training data; it has {found}")
    return [prompt.columns[name] for prompt in prompts]


def pass_rates(prompts: Sequence[Prompt], name: str) -> Floats:
    """f64[P] in [0, 1], nan where the column is null. Raises DataError for anything else."""
    return _numbers(prompts, "scheduler.pass_rate_column", name, (0.0, 1.0), null=True)


def _numbers(
    prompts: Sequence[Prompt],
    key: str,
    name: str,
    bounds: tuple[float, float],
    *,
    null: bool = False,
) -> Floats:
    """f64[P] within the bounds; nan for null, where that is allowed."""
    least, most = bounds
    numbers = []
    for row, value in enumerate(_column(prompts, key, name)):
        if value is None and null:
            numbers.append(np.nan)
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not least <= value <= most
        ):
            wanted = f"a number in [{least:g}, {most:g}]" + (" or null" if null else "")
            raise DataError(f"{key}: prompt {row} has {name} = {value!r}, wanted {wanted}")
        numbers.append(float(value))
    return np.array(numbers)


def _groups(parts: Sequence[Sequence[object]]) -> Ids:
    """i64[P]: prompts alike in all of `parts`, columns of P values each, have the same number."""
    rows = [tuple(map(str, row)) for row in zip(*parts, strict=True)]
    number = {row: at for at, row in enumerate(sorted(set(rows)))}
    return np.array([number[row] for row in rows], dtype=np.int64)


def _quantile_bins(values: Ids, bins: int) -> Ids:
    """i64[P] in 0..bins-1: the share of the pool below each value, half of its equals counted."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - 0.5 * counts
    return np.floor(below * bins / values.shape[0]).astype(np.int64)[which]


def cells_of(config: SchedulerConfig, prompts: Sequence[Prompt], lengths: Ids | None) -> Ids | None:
    """i64[P] cells by the columns and the quantiles of prompt tokens that the configuration names;
    None if it names none. Raises DataError for a column that is missing, or too many cells."""
    if not config.has_cells:
        return None
    key = "scheduler.cell_columns"
    parts: list[Sequence[object]] = [_column(prompts, key, name) for name in config.cell_columns]
    if config.cell_length_bins > 1 and lengths is not None:
        parts.append(_quantile_bins(lengths, config.cell_length_bins).tolist())
    cells = _groups(parts) if parts else np.zeros(len(prompts), dtype=np.int64)
    if (count := int(cells.max()) + 1) > MOST_CELLS:
        raise DataError(
            f"{key}, scheduler.cell_length_bins: {count} cells of {len(prompts)} prompts, wanted "
            f"at most {MOST_CELLS}: a cell must hold prompts enough to predict another; name "
            "columns with fewer values, or fewer bins"
        )
    return cells


def build_scheduler(
    config: Config,
    num_prompts: int,
    prior: Prior | None = None,
    labels: Ids | None = None,
    cells: Ids | None = None,
    weights: Floats | None = None,
    wear: Floats | None = None,
) -> BudgetedScheduler:
    """The scheduler of a pool of `num_prompts`. Without `labels` value "progress" is checked as one
    family, without `cells` those of the configuration as one cell."""
    wanted = config.scheduler
    if wanted.value == "progress" and labels is None:
        labels = np.zeros(num_prompts, dtype=np.int64)
    if wanted.has_cells and cells is None:
        cells = np.zeros(num_prompts, dtype=np.int64)
    try:
        cero = None
        if wanted.name in CERO_FAMILY:
            cero = wanted.cero_options(
                step_size=config.dual_step_size,
                budget_tokens=config.budget.total_tokens,
                labels=labels,
                cells=cells,
                weights=weights,
                wear=wear,
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
    config: Config,
    prompts: Sequence[Prompt],
    lengths: Ids | None = None,
    *,
    warm: bool = True,
) -> BudgetedScheduler:
    """The run's scheduler: priors from measured pass rates, families, cells, weights, and with
    `warm` the evidence of an earlier run where the configuration asks for it.

    lengths i64[P] are the prompts' tokens; without them (where there is no tokenizer yet) cells by
    length are checked as one.
    """
    wanted = config.scheduler
    prior = labels = None
    if wanted.pass_rate_column is not None:
        prior = prior_from_pass_rate(
            pass_rates(prompts, wanted.pass_rate_column), wanted.pass_rate_strength, wanted.prior
        )
    if wanted.labels_column is not None:
        labels = _groups([_column(prompts, "scheduler.labels_column", wanted.labels_column)])
    cells = cells_of(wanted, prompts, lengths)
    weights = wear = None
    if wanted.weights_column is not None:
        name = wanted.weights_column
        weights = _numbers(prompts, "scheduler.weights_column", name, (0.0, 1.0))
    if wanted.wear_column is not None:
        wear = _numbers(prompts, "scheduler.wear_column", wanted.wear_column, (0.01, 100.0))
    scheduler = build_scheduler(config, len(prompts), prior, labels, cells, weights, wear)
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
    config: Config, prompts: Sequence[Prompt], lengths: Ids, checkpoint: Path
) -> BudgetedScheduler:
    """One that the checkpoint's state fits: planned with the budget of its run's beginning, and
    without a warm start, whose evidence is in the state."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    budget = config.budget.model_copy(update={"total_rollouts": state["scheduler.budget_rollouts"]})
    planned = config.model_copy(update={"budget": budget})
    return scheduler_for_pool(planned, prompts, lengths, warm=False)


def save_evidence(path: Path, scheduler: Scheduler, prompts: Sequence[Prompt]) -> None:
    """posterior.parquet: what this run learnt of its prompts, by content hash, for the warm_start
    of another."""
    export_posterior(path, [prompt.key for prompt in prompts], scheduler)
