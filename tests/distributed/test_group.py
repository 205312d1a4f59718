"""What fails on one rank fails on all, with the same words; on two real gloo ranks, and alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cero_rl.distributed.group import Group
from cero_rl.errors import CheckpointError, ConfigError, EngineError, RewardError

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import json, os
from safetensors import SafetensorError
from cero_rl.errors import *
from cero_rl.zero import launch

group = launch.start(60.0)
said = {}

def failing(where, error):
    def action():
        if group.rank in where:
            raise error
        return group.rank
    return action

def attempt(name, call):
    try:
        said[name] = ["returned", call()]
    except CeroError as error:
        said[name] = [type(error).__name__, str(error), type(error.__cause__).__name__]

attempt("fine", lambda: group.together("rollout", failing((), None)))
attempt("engine", lambda: group.together("rollout", failing((1,), EngineError("no answer"))))
attempt("memory", lambda: group.together("rollout", failing((1,), RuntimeError("out\\nof it"))))
full = failing((0, 1), OSError(28, "full"))
attempt("disk", lambda: group.together("save", full, CheckpointError))
attempt("tensors", lambda: group.together("export", failing((1,), SafetensorError("no space"))))
attempt("score", lambda: group.together("reward", failing((1,), RewardError("odd")), RewardError))
attempt("main", lambda: group.on_main(failing((0,), ConfigError("taken")), (ConfigError,)))
attempt("not main", lambda: group.on_main(failing((1,), ConfigError("never run")), (ConfigError,)))
attempt("data", lambda: group.alike(failing((1,), DataError("no rows"))))
attempt("seen by both", lambda: group.alike(failing((0, 1), ConfigError("bad"))))
attempt("sum", lambda: group.all_sum([1.0, group.rank]))
print(json.dumps(said))
launch.stop()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.covers("mistake that one rank sees")
def test_what_fails_on_one_rank_fails_on_all_with_the_same_words() -> None:
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_PORT": str(free_port())}
    shared |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    first, second = (json.loads(text.splitlines()[-1]) for text in outputs)
    assert [first.pop("fine"), second.pop("fine")] == [["returned", 0], ["returned", 1]]
    told = {name: entry[:2] for name, entry in first.items()}
    assert told == {name: entry[:2] for name, entry in second.items()}
    assert told == {
        "engine": ["EngineError", "rollout: rank 1: no answer"],
        "memory": ["EngineError", "rollout: rank 1: RuntimeError: out"],
        "disk": ["CheckpointError", "save: rank 0: OSError: [Errno 28] full"],
        "tensors": ["EngineError", "export: rank 1: SafetensorError: no space"],
        "score": ["RewardError", "reward: rank 1: odd"],
        "main": ["ConfigError", "taken"],
        "not main": ["returned", None],
        "data": ["DataError", "rank 1: no rows"],
        "seen by both": ["ConfigError", "bad"],
        "sum": ["returned", [2.0, 1.0]],
    }
    causes = first["engine"][2], second["engine"][2], second["memory"][2]
    assert causes == ("NoneType", "EngineError", "RuntimeError"), "the rank that failed keeps why"


def test_a_group_of_one_needs_no_process_group() -> None:
    alone = Group.alone()
    counts = np.arange(6).reshape(2, 3)
    assert alone.all_sum([0.5, 2.0]) == [0.5, 2.0]
    assert (alone.all_max(3), alone.all_max_float(0.25)) == (3, 0.25)
    assert np.array_equal(alone.sum_counts(counts), counts)
    assert np.array_equal(alone.gather_floats([1.0, 2.0]), [[1.0, 2.0]])
    assert alone.gather_json({"a": [1]}) == [{"a": [1]}]
    with pytest.raises(EngineError, match=r"^export: rank 0: OSError: gone$"):
        alone.together("export", lambda: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(CheckpointError, match=r"^taken$"):
        alone.on_main(
            lambda: (_ for _ in ()).throw(CheckpointError("taken")), (CheckpointError, ConfigError)
        )


def test_a_bug_is_not_taken_for_a_failure() -> None:
    with pytest.raises(KeyError):
        Group.alone().together("rollout", lambda: {}["never"])
    with pytest.raises(RewardError):
        Group.alone().together("reward", lambda: int("x"), RewardError)
