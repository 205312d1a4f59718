"""One diagnosis: sample, take gradients, and put the estimates together.

In: a configuration, its data, a model directory, and the start model's where a run is judged.
Out: a `Diagnosis`, for a table or for JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from cero_rl.config import Config
from cero_rl.config.lora import LoraConfig
from cero_rl.data.pool import Data, Pool
from cero_rl.diagnosis import statistics as stat
from cero_rl.diagnosis.gradients import (
    Estimator,
    Gradients,
    HeldoutGradient,
    PoolGradient,
    heldout_gradient,
    pool_gradient,
    sketch_for,
)
from cero_rl.diagnosis.labels import (
    RATE_BINS,
    Names,
    column,
    has_column,
    names_of,
    order,
    rate_bin,
)
from cero_rl.diagnosis.looks import Looks, Tell, take_looks
from cero_rl.diagnosis.records import Diagnosis, NoiseReport, PoolReport, Row, TransferRow
from cero_rl.diagnosis.sketch import gram
from cero_rl.distributed.group import Group
from cero_rl.errors import RewardError
from cero_rl.rewards.several import Judge
from cero_rl.rollout.engines.build import build_rollout_engine

FEWEST_SECOND = 4  # rollouts of the second look, which pass rates are told from
BAND = (0.1, 0.9)
PASS_RATE = "pass rate"  # the table that is always there
_SEED = 14


@dataclass(frozen=True)
class Request:
    prompts: int  # at most, of the pool and of the held-out prompts each
    samples: int  # rollouts of a group, as a step sees it
    by: tuple[str, ...] = ()  # columns

    @property
    def second(self) -> int:
        return max(self.samples, FEWEST_SECOND)


def batch_rollouts(config: Config) -> int:
    """Of an optimizer step, when it is full."""
    capacity = config.capacity_rollouts
    return min(config.learner.rollouts_per_step or capacity, capacity)


def step_groups(config: Config, samples: int) -> int:
    """Groups of `samples` rollouts in an optimizer step."""
    return max(1, round(batch_rollouts(config) / samples))


def group_rollouts(config: Config) -> int:
    """Of a group, at most."""
    scheduler = config.scheduler
    return scheduler.rollouts_per_unit * scheduler.max_units_per_prompt


def this_machine() -> Group:
    """One rank on the first GPU, or on the CPU; transformers says nothing while it loads."""
    logging.disable_progress_bar()
    return Group.alone("cuda" if torch.cuda.is_available() else "cpu")


class Diagnoser:
    """The parts of one diagnosis, on one device."""

    def __init__(
        self,
        config: Config,
        data: Data,
        tokenizer: Any,
        estimator: Estimator,
        group: Group,
        tell: Tell,
    ) -> None:
        rollout = config.rollout.model_copy(
            update={"engine": "transformers", "mode": "in_process", "overlap": False}
        )
        self._config = config
        self._sampling = config.model_copy(update={"rollout": rollout, "lora": LoraConfig()})
        self._data = data
        self._tokenizer = tokenizer
        self._estimator = estimator
        self._group = group
        self._tell = tell

    def run(
        self, path: str, start: str | None, request: Request, *, of_run: bool = False
    ) -> Diagnosis:
        """Of the model at `path`, the latest `of_run` or not; with the `start` model of the run,
        what of the gain reached held-out prompts. Raises DataError for a column that is not there,
        RewardError where no reward came at all."""
        notes: list[str] = []
        for name in request.by:
            column(self._data.train.prompts, name)
        pool, aside = self._data.train, self._data.heldout
        ids, held_ids = self._sample(pool, request.prompts), self._sample(aside, request.prompts)
        before = None
        with Judge(self._config.reward) as rewards:
            if start is not None and held_ids:
                before = self._look(start, "start model: ", ids, held_ids, request, rewards)
            train, heldout = self._look(path, "", ids, held_ids, request, rewards)
        if heldout is None:
            notes.append(
                "no held-out prompts: noise scale and pool are told; value of groups, gain of "
                "allocations and transfer are not (data.heldout_source, data.heldout_fraction)"
            )
        if of_run and start is None:
            notes.append(f"the start model {self._config.model.path} is not there: no transfer")
        if request.prompts > len(pool):
            notes.append(f"the pool holds {len(pool)} prompts, all of them were taken")
        notes += _missing(train, "training") + (_missing(heldout, "held-out") if heldout else [])
        gradient, held, parameters, size = self._gradients(path, train, heldout, notes)
        noise = self._noise(gradient, request, parameters, size, notes)
        labels = self._labels(train, request)
        values = gradient.values
        mean = None if values is None else stat.mean_value(values)
        clear = mean is not None and mean.is_clear and mean.value > 0
        if mean is not None and not clear:
            notes.append(
                "the mean group's value cannot be told from 0: values relative to it and gains of "
                "allocations are left out"
            )
        return Diagnosis(
            model=path,
            pool=_report(train, len(pool), gradient),
            heldout=None if heldout is None else _report(heldout, len(aside), None),
            noise=noise,
            mean_value=mean,
            cosine=_cosine(noise, mean, held),
            gains={} if values is None or not clear else _gains(train, values, gradient, labels),
            tables={
                # what is said of a bin of the second look comes from the first
                by: _rows(names, train, 0 if by == PASS_RATE else None, gradient.values, clear)
                for by, names in labels.items()
            },
            transfer=self._transfer(before, (train, heldout), request, notes),
            notes=notes,
        )

    def _sample(self, pool: Pool, most: int) -> list[int]:
        """In random order, the same for every model."""
        rng = np.random.default_rng([self._config.seed, _SEED])
        return rng.permutation(len(pool))[:most].tolist()

    def _look(
        self,
        path: str,
        whose: str,
        ids: Sequence[int],
        held_ids: Sequence[int],
        request: Request,
        rewards: Judge,
    ) -> tuple[Looks, Looks | None]:
        engine = build_rollout_engine(self._sampling, self._tokenizer, self._group, path)

        def looks(pool: Pool, chosen: Sequence[int], name: str) -> Looks:
            return take_looks(
                pool,
                chosen,
                engine,
                rewards,
                first=request.samples,
                second=request.second,
                temperature=self._config.rollout.temperature,
                episodes=self._config.rollout.environment is not None,
                tell=lambda text: self._tell(f"{whose}{name}: {text}"),
            )

        train = looks(self._data.train, ids, "training pool")
        if train.missing == train.rollouts:
            raise RewardError(
                f"reward.function: none of {train.rollouts} rollouts has a reward, {train.reason}"
            )
        return train, looks(self._data.heldout, held_ids, "held-out") if held_ids else None

    def _gradients(
        self,
        path: str,
        train: Looks,
        heldout: Looks | None,
        notes: list[str],
    ) -> tuple[PoolGradient, HeldoutGradient | None, int, int | None]:
        """(what the pool's groups add up to, the held-out gradient, parameters, length of the
        projection)."""
        config = self._config
        gradients = Gradients(config, path, self._group.device)
        sketch = sketch_for(gradients.dimension, config.seed, self._group.device)
        held = None
        if heldout is not None:
            held = heldout_gradient(gradients, heldout, sketch, config, self._tell)
            if held is None:
                notes.append("no held-out prompt is passed and failed: no gradient to compare with")
        pool = pool_gradient(gradients, train, held, sketch, self._estimator, config, self._tell)
        if config.lora.rank:
            notes.append("gradients are of a fresh LoRA adapter's matrices")
        return pool, held, gradients.dimension, None if sketch.is_exact else sketch.size

    def _noise(
        self,
        gradient: PoolGradient,
        request: Request,
        parameters: int,
        size: int | None,
        notes: list[str],
    ) -> NoiseReport | None:
        if not gradient.taught.any():
            notes.append(
                f"no group of {request.samples} has a gradient: nothing to learn from here, and "
                "no noise scale; try larger groups (--samples) or other prompts"
            )
            return None
        scale = stat.noise_scale(gradient.gram, gradient.block_squares, gradient.block_groups)
        if scale is None:
            notes.append("fewer than 3 different groups: no noise scale; raise --prompts")
            return None
        rollouts = batch_rollouts(self._config)
        groups = rollouts / request.samples
        regime = stat.regime_of(scale, groups)
        return NoiseReport(scale, request.samples, rollouts, groups, regime, size, parameters)

    def _labels(self, train: Looks, request: Request) -> dict[str, Names]:
        chosen = [self._data.train.prompts[i] for i in train.ids]
        labels = {by: names_of(column(chosen, by)) for by in request.by}
        if not request.by and len({p.source for p in chosen}) > 1:
            labels["source"] = names_of([p.source for p in chosen])
        return {**labels, PASS_RATE: [rate_bin(rate) for rate in train.rates(1)]}

    def _transfer(
        self,
        before: tuple[Looks, Looks | None] | None,
        after: tuple[Looks, Looks | None],
        request: Request,
        notes: list[str],
    ) -> list[TransferRow]:
        if before is None or before[1] is None or after[1] is None:
            return []
        by = next((b for b in request.by if has_column(self._data.heldout.prompts, b)), None)
        strata, gains, kinds = [], [], []
        for old, new, pool in zip(before, after, (self._data.train, self._data.heldout)):
            assert old is not None
            assert new is not None
            gain = new.rates(1) - old.rates(1)
            start = old.rates(0)
            prompts = [pool.prompts[i] for i in old.ids]
            values = (
                [""] * len(prompts)
                if by is None
                else [str(p.columns.get(by, p.source)) for p in prompts]
            )
            known = ~np.isnan(gain) & ~np.isnan(start)
            strata.append([f"{v} {rate_bin(r)}" for v, r, k in zip(values, start, known) if k])
            kinds.append(np.array([v for v, k in zip(values, known) if k]))
            gains.append(gain[known])
        number = {name: i for i, name in enumerate(sorted({*strata[0], *strata[1]}))}
        coded = [np.array([number[s] for s in side], dtype=np.int64) for side in strata]
        rows = []
        for name in ["all", *(order(kinds[0].tolist()) if by is not None else [])]:
            of = [np.ones(len(k), dtype=bool) if name == "all" else k == name for k in kinds]
            if not of[0].any():
                continue
            found = stat.transfer(
                coded[0][of[0]], gains[0][of[0]], coded[1][of[1]], gains[1][of[1]]
            )
            if found is not None:
                rows.append(TransferRow(name, found))
        if not rows:
            notes.append("no training and held-out prompts of equal start pass rate: no transfer")
        return rows


def _missing(looks: Looks, which: str) -> list[str]:
    if not looks.missing:
        return []
    return [
        f"{looks.missing} of {looks.rollouts} {which} rollouts have no reward "
        f"({looks.missing / looks.rollouts:.1%}), {looks.reason}; they are left out"
    ]


def _report(looks: Looks, of: int, gradient: PoolGradient | None) -> PoolReport:
    rates, variances = looks.rates(), looks.variances()
    known = rates[~np.isnan(rates)]
    bins = [rate_bin(rate) for rate in known]
    return PoolReport(
        prompts=len(looks),
        of=of,
        rollouts=looks.rollouts,
        missing=looks.missing,
        pass_rate=stat.mean_of(known),
        variance=stat.mean_of(variances[~np.isnan(variances)]),
        histogram={name: bins.count(name) / max(len(bins), 1) for name in RATE_BINS},
        live=stat.mean_of(looks.live().astype(np.float64)),
        taught=None if gradient is None else stat.mean_of(gradient.taught.astype(np.float64)),
    )


def _cosine(
    noise: NoiseReport | None, mean: stat.Measured | None, held: HeldoutGradient | None
) -> float | None:
    """Of the pool's mean gradient and the held-out one; None where one of the two is all noise."""
    if noise is None or mean is None or held is None or len(held.folds) < 2:
        return None
    weight = held.share / held.share.sum()
    products = gram(held.folds, held.folds).numpy() * np.outer(weight, weight)
    norm = (products.sum() - np.trace(products)) / (1 - (weight**2).sum())
    signal = noise.scale.signal
    if norm <= 0 or not signal.is_clear or signal.value <= 0:
        return None
    return mean.value / math.sqrt(norm * signal.value)


def _gains(
    train: Looks, values: stat.Values, gradient: PoolGradient, labels: dict[str, Names]
) -> dict[str, stat.Gain]:
    """Of ideal allocations: worth from the second look, value and noise from the first."""
    variance, rates = train.variances(1), train.rates(1)
    known = ~np.isnan(variance)
    variance, rates, squares = variance[known], rates[known], gradient.squares[known]
    values = values.of(known)
    worths = {
        "p(1-p)": variance,
        "sqrt p(1-p)": np.sqrt(variance),
        "band .1 to .9": ((rates >= BAND[0]) & (rates <= BAND[1])).astype(np.float64),
    }
    found = {name: stat.allocation_gain(w, values, squares) for name, w in worths.items()}
    for by, names in labels.items():
        if by == PASS_RATE:
            continue
        coded = np.unique(np.array(names)[known], return_inverse=True)[1].astype(np.int64)
        found[f"p(1-p) x value by {by}"] = stat.gain_of_labels(variance, values, squares, coded)
    return {name: gain for name, gain in found.items() if gain is not None}


def _rows(
    names: Names,
    train: Looks,
    look: int | None,
    values: stat.Values | None,
    clear: bool,
) -> list[Row]:
    """clear: the mean group's value can be told from 0, so that others' can be told by it."""
    labels, live = np.array(names), train.live()
    rates, variances = train.rates(look), train.variances(look)
    mean = np.nanmean(variances) if not np.isnan(variances).all() else math.nan
    rows = []
    for name in order(names):
        member = labels == name
        own = variances[member]
        variance = float(np.nanmean(own)) if not np.isnan(own).all() else math.nan
        mine = None if values is None else stat.mean_value(values.of(member))
        value = None if values is None or not clear else stat.relative_value(values, member)
        per = None
        if value is not None and variance > 0:
            per = value.value / (variance / float(mean))
        own_rates = rates[member]
        rows.append(
            Row(
                name,
                int(member.sum()),
                float(member.mean()),
                float(live[member].mean()),
                float(np.nanmean(own_rates)) if not np.isnan(own_rates).all() else math.nan,
                variance,
                mine,
                value,
                per,
            )
        )
    return rows
