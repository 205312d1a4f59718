"""What a diagnosis says: a page for a person, and a tree for JSON.

In: a `Diagnosis`. Numbers are followed by +- one standard error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

from cero_rl.commands.answers import finite
from cero_rl.diagnosis.records import Diagnosis, NoiseReport, PoolReport, Row
from cero_rl.diagnosis.statistics import Gain, Measured, progress


def as_json(found: Diagnosis) -> dict[str, Any]:
    """Everything; what is not known is null."""
    tree = asdict(found)
    for name, own in found.gains.items():
        if found.noise is not None:
            x = found.noise.regime.batch_over_noise.value
            keys = ("same_rate", "tuned_rate", "same_signal_a_step")
            tree["gains"][name]["progress"] = dict(zip(keys, progress(own.snr.value, x)))
    return finite(tree)


def number(value: Measured | float | None, digits: int = 2) -> str:
    """`3.25 +- 0.41`, `-` where it is not known."""
    if value is None:
        return "-"
    if isinstance(value, Measured):
        if math.isnan(value.error):
            return number(value.value, digits)
        return f"{number(value.value, digits)} +- {value.error:.{digits}f}"
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def print_report(found: Diagnosis, out: TextIO) -> None:
    lines = [f"model: {found.model}", *_pool("training pool", found.pool)]
    if found.heldout is not None:
        lines += _pool("held-out", found.heldout)
    if found.noise is not None:
        lines += _noise(found.noise)
    if found.cosine is not None:
        lines.append(
            "direction: cosine of the pool's and the held-out mean gradient, noise taken out, "
            f"{found.cosine:.2f}"
        )
    if found.gains:
        lines += _gains(found)
    for by, rows in found.tables.items():
        lines += ["", *_rows(by, rows)]
    if found.transfer:
        lines += _transfer(found)
    lines += [f"note: {note}" for note in found.notes]
    print("\n".join(lines), file=out)


def _pool(name: str, pool: PoolReport) -> list[str]:
    taught = ""
    if pool.taught is not None and pool.taught != pool.live:
        taught = f"with a gradient {number(pool.taught, 3)}, "
    shares = "  ".join(f"{bin_}: {share:.2f}" for bin_, share in pool.histogram.items())
    return [
        f"{name}: {pool.prompts} of {pool.of} prompts, {pool.rollouts} rollouts",
        f"  live groups {number(pool.live, 3)}, {taught}pass rate {number(pool.pass_rate, 3)}, "
        f"variance of a reward "
        f"{number(pool.variance, 4)}",
        f"  prompts by pass rate  {shares}",
    ]


def _noise(noise: NoiseReport) -> list[str]:
    scale, size, regime = noise.scale, noise.group_rollouts, noise.regime
    if math.isnan(scale.groups.value):
        told = "no mean gradient can be told from the noise"
        if not math.isnan(scale.at_least):
            told += f"; more than {scale.at_least:.0f} groups"
    else:
        groups = scale.groups
        in_rollouts = Measured(groups.value * size, groups.error * size)
        told = f"{number(groups, 0)} groups of {size} = {number(in_rollouts, 0)} rollouts"
    how = f"all {noise.parameters:,} parameters"
    if noise.projected_to is not None:
        how = f"{noise.parameters:,} parameters projected to {noise.projected_to:,} numbers"
    fixed, tuned = regime.exponent_fixed_rate, regime.exponent_tuned_rate
    return [
        f"gradient noise scale: {told}",
        f"  (tr cov / |mean|^2 of group gradients as the run's learner makes them, of {how})",
        f"  the run's step: {noise.batch_rollouts} rollouts = {noise.batch_groups:.0f} groups; "
        f"x = batch / noise scale = {number(regime.batch_over_noise)}: {regime.name}",
        "  rollouts with g times the SNR^2 (a better supply of live groups) bring about",
        f"  g^{fixed:.2f} at the same learning rate, g^{tuned:.2f} at a rate tuned anew, g as g "
        "times the steps",
        f"  {_in_words(regime.name)}",
    ]


def _in_words(regime: str) -> str:
    if regime == "noise-limited":
        return (
            "so: about the root of it at the same rate; all of it in smaller steps, or at a higher "
            "rate"
        )
    if regime == "signal-limited":
        return "so: next to nothing in steps of this size; only more steps a rollout bring it"
    return (
        "so: less than the root of it at the same rate (or too rough an estimate to tell); more "
        "steps bring it all"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [list(heads), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return [
        "  "
        + "  ".join(
            [line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:]))]
        ).rstrip()
        for line in lines
    ]


def _gains(found: Diagnosis) -> list[str]:
    x = math.nan if found.noise is None else found.noise.regime.batch_over_noise.value

    def row(name: str, gain: Gain) -> list[str]:
        same, tuned, more = progress(gain.snr.value, x)
        return [
            name,
            number(gain.value),
            number(gain.noise),
            number(gain.snr),
            number(gain.support),
            number(same),
            number(tuned),
            number(more),
        ]

    heads = ("allocation", "value", "noise", "SNR^2 gain", "support")
    heads += ("same rate", "rate tuned", "more steps")
    rows = [row(name, gain) for name, gain in found.gains.items()]
    return [
        "",
        "ideal allocations against uniform (worth from other samples than value and noise); what a",
        "rollout brings by them at the same rate, at a rate tuned anew, and as more steps:",
        *_table(heads, rows),
    ]


def _rows(by: str, rows: Sequence[Row]) -> list[str]:
    heads = (by, "prompts", "share", "live", "pass rate", "variance")
    # where the mean group's value is unknown a label's may still be told from 0
    relative = any(row.value is not None for row in rows)
    heads += ("value / mean", "per variance") if relative else ("value / its error",)
    cells = [
        [
            row.name,
            str(row.prompts),
            number(row.share),
            number(row.live),
            number(row.pass_rate),
            number(row.variance, 3),
            *([number(row.value), number(row.per_variance)] if relative else [_clarity(row.own)]),
        ]
        for row in rows
    ]
    what = ", over the mean group's" if relative else ""
    return [f"value of a group by {by}{what}:", *_table(heads, cells)]


def _clarity(own: Measured | None) -> str:
    if own is None or not own.error > 0:
        return "-"
    return f"{own.value / own.error:+.1f}"


def _transfer(found: Diagnosis) -> list[str]:
    heads = ("prompts", "train gain", "held-out gain", "ratio", "covered")
    rows = [
        [
            each.name,
            number(each.transfer.train, 3),
            number(each.transfer.heldout, 3),
            number(each.transfer.ratio),
            number(each.transfer.covered),
        ]
        for each in found.transfer
    ]
    return [
        "",
        "transfer: gain in pass rate since the start, on strata of equal start pass rate:",
        *_table(heads, rows),
    ]
