"""Many runs: every entry of every case on the same seeds, in worker processes where wanted.

In: a Suite and a number of seeds. Out: CaseResults. A job is one (case, seed): its entries meet
the same world, so the offline optimum is computed once and differences between entries are
paired.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from cero_rl.scheduler.simulation.run import Outcome, optimum_curve, simulate
from cero_rl.scheduler.simulation.suites import Case, Suite
from cero_rl.scheduler.simulation.worlds import ReplayWorld, World, build_world

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# the recorded run's own plan would meet the luck that its rates were estimated from
_REPLAY_SEEDS = 1_000_003
_cases: tuple[Case, ...] = ()  # of this worker process


@dataclass(frozen=True, slots=True)
class CaseResult:
    """outcomes[entry][seed]"""

    case: Case
    outcomes: tuple[tuple[Outcome, ...], ...]


def new_world(case: Case, seed: int) -> World:
    if case.recorded is not None:
        return ReplayWorld(case.recorded.rates, seed)
    return build_world(case.pool, seed)


def run_seed(case: Case, seed: int) -> tuple[Outcome, ...]:
    """Every entry of a case on one seed (in a replay shifted, away from the seed that the
    recorded run may have had)."""
    seed += _REPLAY_SEEDS if case.recorded is not None else 0
    world = new_world(case, seed)
    prompts = world.rates.shape[0]
    optimum = optimum_curve(world, case.budget_rollouts) if world.static else None
    outcomes = []
    for entry in case.entries:
        scheduler = entry.build(prompts, case.rounds, case.budget_rollouts, seed)
        outcomes.append(simulate(scheduler, new_world(case, seed), optimum=optimum))
    return tuple(outcomes)


def _nothing() -> None:
    """What a worker process begins with where nobody asks for more."""


def _start_worker(cases: tuple[Case, ...], begin: Callable[[], None]) -> None:
    global _cases
    _cases = cases
    begin()


def _work(job: tuple[int, int]) -> tuple[tuple[int, int], tuple[Outcome, ...]]:
    case, seed = job
    return job, run_seed(_cases[case], seed)


def _here(
    suite: Suite, jobs: Iterable[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], tuple[Outcome, ...]]]:
    for case, seed in jobs:
        yield (case, seed), run_seed(suite.cases[case], seed)


def _in_workers(
    suite: Suite, jobs: list[tuple[int, int]], processes: int, begin: Callable[[], None]
) -> Iterator[tuple[tuple[int, int], tuple[Outcome, ...]]]:
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # inherited by the workers: one thread each
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(
            processes, mp_context=context, initializer=_start_worker, initargs=(suite.cases, begin)
        ) as pool:
            try:
                for future in as_completed([pool.submit(_work, job) for job in jobs]):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def run_suite(
    suite: Suite,
    seeds: int,
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
    begin: Callable[[], None] = _nothing,
) -> tuple[CaseResult, ...]:
    """All cases on seeds 0..seeds-1. progress(done, total) is called after every job, begin() once
    in every worker process. The same result for any `processes`.

    Raises ValueError for fewer than 2 seeds (an interval needs two) or sizes that do not fit.
    """
    if seeds < 2:
        raise ValueError(f"seeds = {seeds}, wanted at least 2: an interval needs two runs")
    for case in suite.cases:  # wrong sizes are said before anything is run
        prompts = case.pool.prompts if case.recorded is None else case.recorded.rates.shape[1]
        for entry in case.entries:
            entry.build(prompts, case.rounds, case.budget_rollouts, 0)
    jobs = [(case, seed) for seed in range(seeds) for case in range(len(suite.cases))]
    done: dict[tuple[int, int], tuple[Outcome, ...]] = {}
    stream = _here(suite, jobs) if processes == 1 else _in_workers(suite, jobs, processes, begin)
    for job, outcomes in stream:
        done[job] = outcomes
        progress(len(done), len(jobs))
    return tuple(
        CaseResult(case, tuple(zip(*(done[index, seed] for seed in range(seeds)))))
        for index, case in enumerate(suite.cases)
    )
