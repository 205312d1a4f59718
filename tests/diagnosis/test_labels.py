"""Names of prompts: bins of pass rates, columns of the data, quarters of numbers."""

from __future__ import annotations

import math

import pytest

from cero_rl.data.prompts import make_prompt
from cero_rl.diagnosis.labels import (
    MOST_LABELS,
    RATE_BINS,
    UNKNOWN,
    column,
    names_of,
    order,
    rate_bin,
)
from cero_rl.errors import DataError


def test_bins_of_pass_rates() -> None:
    rates = (0.0, 1e-9, 0.249, 0.25, 0.5, 0.74, 0.75, 0.999, 1.0)
    wanted = [RATE_BINS[i] for i in (0, 1, 1, 2, 3, 3, 4, 4, 5)]
    assert [rate_bin(rate) for rate in rates] == wanted
    assert rate_bin(math.nan) == UNKNOWN


def test_columns() -> None:
    prompts = [
        make_prompt("a", "1", "file", {"level": 3}),
        make_prompt("b", "1", "file", {"answer": "1"}),
    ]
    assert column(prompts, "level") == [3, None]
    assert column(prompts, "source") == ["file", "file"]
    with pytest.raises(DataError, match="it has answer, level, source"):
        column(prompts, "family")


def test_names_of_a_column() -> None:
    assert names_of(["b", None, "a"]) == ["b", UNKNOWN, "a"]
    assert names_of([True, False, True]) == ["True", "False", "True"]
    many = [f"kind {i}" for i in range(30)] + ["kind 3"] * 5
    names = names_of(many)
    assert len(set(names)) == MOST_LABELS
    assert names[-1] == "kind 3"
    assert names.count("other") == 30 - (MOST_LABELS - 1)


def test_numbers_with_many_values_stand_in_quarters() -> None:
    names = names_of([*range(40), None])
    assert [names.count(n) for n in order(names)] == [10, 10, 10, 10, 1]
    assert order(names)[0] == "0 to 9.75"
    assert order(names)[-1] == UNKNOWN
    skewed = names_of([0] * 90 + list(range(1, 14)))
    assert set(skewed) == {"0 to 13"} or len(set(skewed)) <= 4


def test_order() -> None:
    assert order(["1", "0", "(0, .25)", "1"]) == ["0", "(0, .25)", "1"]
    assert order(["10", "9", "other", "C", UNKNOWN]) == ["9", "10", "C", "other", UNKNOWN]
