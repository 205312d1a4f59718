"""A pool that changes, and a run that starts from what another one learnt."""

import numpy as np
import pytest
from scheduler_sim import play

from cero_rl.scheduler import CeroScheduler, export_posterior, import_posterior, indices_of


def scheduler(pool: int = 12, **options) -> CeroScheduler:
    return CeroScheduler(pool, 20, 20 * 16, 4, 2, 24, spend_down=True, seed=2, **options)


def test_prompts_leave_and_join() -> None:
    plan, rates = scheduler(), np.random.default_rng(0).random(12)
    spent = int(np.sum(play(plan, rates, 0, stop_round=6)))
    old_keys, new_keys = (
        [f"p{i}" for i in range(12)],
        [f"p{i}" for i in (11, 3, 20, 5, 21, 22, 0, 7)],
    )
    previous = indices_of(old_keys, new_keys)
    assert previous.tolist() == [11, 3, -1, 5, -1, -1, 0, 7]
    before, ranks = plan.state_dict(), plan._tie_rank
    plan.set_pool(previous)
    stays = previous >= 0
    for field in ("posterior_a", "posterior_b", "slope", "exposure"):
        np.testing.assert_array_equal(
            plan.state_dict()[field][stays], np.asarray(before[field])[previous[stays]]
        )
    np.testing.assert_array_equal(plan.posterior.a[~stays], 1.0)
    np.testing.assert_allclose(plan.slope[~stays], 4 / 6)
    assert sorted(plan._tie_rank.tolist()) == list(range(8))
    np.testing.assert_array_equal(
        np.argsort(plan._tie_rank[stays]), np.argsort(ranks[previous[stays]])
    )
    resumed = scheduler(8)
    resumed.load_state_dict(plan.state_dict())
    new_rates = np.random.default_rng(1).random(8)
    np.testing.assert_array_equal(
        np.array(play(plan, new_rates, 0)), np.array(play(resumed, new_rates, 0))
    )
    assert plan.remaining_rollouts == 0
    assert spent < 320


def test_the_same_pool_is_no_change_but_for_the_record() -> None:
    plan, rates = scheduler(forgetting=0.9), np.random.default_rng(0).random(12)
    other = scheduler(forgetting=0.9)
    for each in (plan, other):
        play(each, rates, 0, stop_round=5)
    plan.set_pool(np.arange(12))
    np.testing.assert_array_equal(np.array(play(plan, rates, 0)), np.array(play(other, rates, 0)))


def test_priors_and_labels_follow_the_pool() -> None:
    plan = scheduler(prior=(np.arange(1.0, 13.0), 2.0), value="progress", labels=np.arange(12) % 3)
    play(plan, np.full(12, 0.5), 0, stop_round=3)
    with pytest.raises(ValueError, match="labels"):
        plan.set_pool(np.array([4, -1, 5, 6, 7, 8]))
    plan.set_pool(np.array([4, -1, 5, 6, 7, 8]), new_prior=(0.5, 0.25), labels=[0, 4, 1, 1, 2, 2])
    np.testing.assert_array_equal(plan.posterior.prior[0], [5.0, 0.5, 6.0, 7.0, 8.0, 9.0])
    np.testing.assert_array_equal(plan.posterior.prior[1], [2.0, 0.25, 2.0, 2.0, 2.0, 2.0])
    assert plan.progress is not None
    assert plan.progress.by_label().shape == (5,)
    play(plan, np.full(6, 0.5), 0)


def test_bad_pools() -> None:
    plan = scheduler()
    for previous, message in (
        ([0, 0, 1], "distinct old indices"),
        ([-2, 1, 2], "distinct old indices"),
        ([], "distinct old indices"),
        ([0.0, 1.0], "distinct old indices"),
        ([0, 1, 12], "index 12 is not in the old pool of 12"),
        ([0, 1], "capacity_rollouts <= num_prompts"),
    ):
        with pytest.raises(ValueError, match=message):
            plan.set_pool(previous)
    plan.next_round()
    with pytest.raises(RuntimeError, match="middle of a round"):
        plan.set_pool(np.arange(12))


def test_posterior_goes_to_the_next_run_by_key(tmp_path) -> None:
    pytest.importorskip("pyarrow")
    plan, rates = scheduler(forgetting=0.9), np.random.default_rng(0).random(12)
    play(plan, rates, 0)
    keys, path = [f"key{i}" for i in range(12)], tmp_path / "posterior.parquet"
    export_posterior(path, keys, plan)
    successes, failures, known = import_posterior(path, ["new", "key7", "key2"])
    assert known.tolist() == [False, True, True]
    np.testing.assert_array_equal(successes, [0.0, *plan.posterior.evidence()[0][[7, 2]]])
    np.testing.assert_array_equal(failures, [0.0, *plan.posterior.evidence()[1][[7, 2]]])
    warm = CeroScheduler(3, 20, 80, 4, 2, 16, prior=(2.0, 1.0))
    warm.warm_start(successes, failures)
    np.testing.assert_array_equal(warm.posterior.a, 2.0 + successes)
    np.testing.assert_allclose(warm.slope, np.minimum(4.0 * warm.value, 1.0))
    warm.next_round()
    with pytest.raises(RuntimeError, match="before the first round"):
        warm.warm_start(successes, failures)
    for bad in (["a", "a"], ["a"]):
        with pytest.raises(ValueError, match="keys"):
            export_posterior(path, bad, warm.posterior)
    with pytest.raises(ValueError, match="successes of"):
        CeroScheduler(3, 20, 80, 4, 2, 16).warm_start([-1.0, 0.0, 0.0], np.zeros(3))


def test_a_foreign_file_is_refused(tmp_path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"key": ["a"], "wins": [1.0]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="wanted columns key, successes, failures"):
        import_posterior(tmp_path / "other.parquet", ["a"])
    pq.write_table(
        pa.table({"key": ["a"], "successes": [-1.0], "failures": [1.0]}), tmp_path / "bad.parquet"
    )
    with pytest.raises(ValueError, match="column successes"):
        import_posterior(tmp_path / "bad.parquet", ["a"])
