"""CERO inside verl 0.9 on a CPU: its config, data set, Ray, TransferQueue, agent loop manager
and workers, reward workers, replay buffer and advantage computation are the real ones. Left out
is what needs a GPU engine: the LLM server and the actor's update.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("verl")
pytest.importorskip("transfer_queue")

import ray
import torch
import transfer_queue as tq
import verl
from datasets import Dataset
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, get_trainer_cls
from verl.utils.config import validate_config

from cero_rl.adapters.verl import CeroPPOTrainer, CeroSettings
from cero_rl.ops import group_advantage

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "recipes" / "assets"
PROMPTS = 12
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template, the pool as verl's parquet, the agent loop's
    registration."""
    folder = tmp_path_factory.mktemp("verl")
    (folder / "model").mkdir()
    for file in (ASSETS / "tiny_digits").iterdir():
        (folder / "model" / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder / "model")
    rows = [
        json.loads(line)
        for line in (ASSETS / "digits_balanced.jsonl").read_text().splitlines()[:PROMPTS]
    ]
    Dataset.from_list(
        [
            {
                "data_source": "digits",
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "reward_model": {"style": "rule", "ground_truth": row["answer"]},
                "extra_info": {"index": i},
            }
            for i, row in enumerate(rows)
        ]
    ).to_parquet(folder / "pool.parquet")
    (folder / "loops.yaml").write_text("- name: tiny\n  _target_: verl_parts.TinyAgentLoop\n")
    return folder


def configuration(files: Path, *overrides: str) -> Any:
    """verl's own configuration: 4 prompts a step, rollout.n = 4, so a round of 16; units of 2,
    up to 3 a prompt."""
    lines = [
        f"data.train_files={files}/pool.parquet",
        f"data.val_files={files}/pool.parquet",
        "data.train_batch_size=4",
        "data.max_prompt_length=24",
        "data.max_response_length=8",
        "data.filter_overlong_prompts=false",
        "data.dataloader_num_workers=0",
        f"actor_rollout_ref.model.path={files}/model",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.agent.num_workers=1",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={files}/loops.yaml",
        "actor_rollout_ref.rollout.agent.default_agent_loop=tiny",
        "actor_rollout_ref.actor.use_kl_loss=false",
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "trainer.n_gpus_per_node=1",
        "reward.num_workers=1",
        f"reward.custom_reward_function.path={ROOT}/tests/adapters/verl_parts.py",
        "trainer.v1.trainer_mode=cero",
        "algorithm.adv_estimator=cero_rloo",
        "trainer.device=cpu",
        "trainer.save_freq=1",
        f"trainer.default_local_dir={files}/checkpoints",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "+cero.rounds=3",
        "+cero.rollouts_per_unit=2",
        "+cero.max_units_per_prompt=3",
        *overrides,
    ]
    with initialize_config_dir(
        str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None
    ):
        return compose("ppo_trainer", overrides=lines)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "adapters")))
    env = {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TRANSFER_QUEUE_ENABLE": "1",
    }
    # actors only reserve CPUs
    ray.init(num_cpus=16, include_dashboard=False, runtime_env={"env_vars": env})
    yield
    tq.close()
    ray.shutdown()


def build(config: Any) -> CeroPPOTrainer:
    """What TaskRunnerV1 does, up to the worker groups."""
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
    trainer._init_tokenizer()
    trainer._init_dataloader()
    trainer.global_steps = 1
    return trainer


def test_rounds_run_through_verls_rollout_stack(files: Path, cluster: None) -> None:
    from verl.experimental.reward_loop import RewardLoopManager

    config = configuration(files)
    config.transfer_queue.enable = True
    tq.init(config.transfer_queue)
    trainer = build(config)
    assert trainer.trainer_mode == "sync"
    assert trainer.total_training_steps == 3
    rewards = RewardLoopManager(config=config)
    trainer.agent_loop_manager = AgentLoopManagerTQ.create(
        config=config,
        llm_client=None,
        reward_loop_worker_handles=rewards.reward_loop_worker_handles,
    )
    spent, shapes = 0, set()
    for step in range(1, 4):
        trainer.global_steps = step
        metrics: dict[str, Any] = {}
        trainer._add_batch_to_generate()
        planned = trainer.plan_round()
        batch, _ = trainer.replay_buffer.sample(
            global_steps=step, partition_id="train", batch_size=len(trainer._groups)
        )
        made = Counter(key.split("_")[0] for key in batch.keys)
        assert {trainer._groups[uid]: n for uid, n in made.items()} == dict(
            enumerate(planned.rollouts.tolist())
        )
        batch = trainer._compute_advantage(batch, metrics)
        result = trainer.last_round
        spent += planned.total_rollouts
        shapes.update(planned.rollouts.tolist())

        offsets = torch.from_numpy(np.concatenate(([0], np.cumsum(planned.rollouts))))
        op = group_advantage(torch.from_numpy(result.rewards), offsets, norm="rloo")
        np.testing.assert_array_equal(result.advantages, op.adv.numpy())
        written = tq.kv_batch_get(
            keys=batch.keys,
            partition_id="train",
            select_fields=["advantages", "response_mask", "rm_scores"],
        )
        for advantage, mask in zip(
            written["advantages"].unbind(), written["response_mask"].unbind(), strict=True
        ):
            assert len(set(advantage[mask.bool()].tolist())) == 1, (
                "one advantage for all tokens of a rollout"
            )
        per_rollout = [float(advantage[0]) for advantage in written["advantages"].unbind()]
        np.testing.assert_allclose(np.sort(per_rollout), np.sort(result.advantages), atol=1e-6)
        assert result.trials.sum() == planned.total_rollouts
        assert result.successes.sum() == (result.rewards > 0.5).sum()
        assert metrics["budget/spent_rollouts"] == spent
        tq.kv_clear(keys=batch.keys, partition_id="train")
    assert spent == trainer.ledger.total_rollouts == 3 * 16
    assert shapes == {6, 4}, "ragged: two groups of 6 and the residual"
    assert trainer.plan_round() is None
    with pytest.raises(ValueError, match="no round left: 48 of 48 rollouts are spent"):
        trainer._next_train_batch()


def test_state_lies_beside_verls_checkpoint(files: Path) -> None:
    from cero_rl.adapters.rounds import load_state, save_state
    from cero_rl.errors import CheckpointError

    first, second = build(configuration(files)), build(configuration(files))
    allocation = first.plan_round()
    path = first._state_path(1)
    assert path == files / "checkpoints" / "global_step_1" / "cero_scheduler.npz"
    save_state(path, first.scheduler, first.ledger, first._pool)
    load_state(second._state_path(1), second.scheduler, second.ledger, second._pool)
    np.testing.assert_array_equal(second.plan_round().prompt_ids, allocation.prompt_ids)
    other = build(
        configuration(
            files,
            "trainer.resume_mode=resume_path",
            f"trainer.resume_from_path={files}/checkpoints/global_step_1",
        )
    )
    assert other._state_path(1) == path
    with pytest.raises(CheckpointError, match="not found"):
        load_state(first._state_path(2), second.scheduler, second.ledger, second._pool)


def test_lone_rollouts_and_missing_scores_get_nothing() -> None:
    """verl's own GRPO estimator gives a lone rollout its raw score; ragged groups must not."""
    rewards = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, float("nan")]])
    mask, uid = torch.ones(4, 2), np.array(["a", "b", "b", "b"], dtype=object)
    lone, _ = core_algos.compute_grpo_outcome_advantage(rewards[:3], mask[:3], uid[:3])
    assert lone[0, 0] > 0.99
    ours, returns = core_algos.get_adv_estimator_fn("cero_rloo")(
        token_level_rewards=rewards, response_mask=mask, index=uid, config=None
    )
    assert ours.tolist() == [[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]]
    assert returns is ours


def test_equal_groups_get_the_advantages_of_plain_verl() -> None:
    rewards = torch.zeros(8, 3)
    rewards[:, -1] = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.5, 0.0])
    mask, uid = torch.ones(8, 3), np.array(list("aaaabbbb"), dtype=object)
    plain, _ = core_algos.compute_grpo_outcome_advantage(rewards, mask, uid)
    ours, _ = core_algos.get_adv_estimator_fn("cero_std")(
        token_level_rewards=rewards, response_mask=mask, index=uid
    )
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["algorithm.adv_estimator=grpo"],
            "algorithm.adv_estimator: got 'grpo', wanted one of cero_std",
        ),
        (["+cero.budget=5"], "cero.budget: is not a setting, wanted one of budget_rollouts"),
        (
            ["trainer.v1.sampler.sync_refill_failed_groups=true"],
            "sync_refill_failed_groups: must be false",
        ),
    ],
)
def test_settings_that_do_not_fit_say_so(files: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(configuration(files, *overrides))


def snippet() -> list[str]:
    """The shell words of the command in the docs."""
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    return shlex.split(
        re.search(r"<!-- snippet: verl -->\n```bash\n(.*?)```", page, re.DOTALL).group(1)
    )


def test_the_command_of_the_docs_builds_the_trainer(files: Path) -> None:
    own = [word for word in snippet() if re.match(r"\+?(cero|trainer|algorithm)\.", word)]
    assert len(own) == 3
    config = configuration(files, *own[:-1], own[-1].replace("+", ""))
    validate_config(config, use_reference_policy=False, use_critic=False)
    trainer = build(config)
    assert isinstance(trainer, CeroPPOTrainer)
    assert trainer.total_training_steps == int(own[-1].split("=")[1])


def test_the_environment_variable_of_the_docs_registers_the_trainer() -> None:
    """verl imports the module in every process, the task runner's included."""
    (assignment,) = [word for word in snippet() if word.startswith("VERL_USE_EXTERNAL_MODULES=")]
    code = (
        "from verl.trainer.ppo.v1 import get_trainer_cls; print(get_trainer_cls('cero').__name__)"
    )
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        assignment.split("=")[0]: assignment.split("=")[1],
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env, cwd=ROOT
    )
    assert done.stdout.split()[-1:] == ["CeroPPOTrainer"], done.stderr[-2000:]


def test_default_budget_is_what_the_script_would_have_spent() -> None:
    scheduler = CeroSettings.read({"rounds": 7}).make_scheduler(
        num_prompts=20, train_batch_size=4, rollout_n=5
    )
    assert scheduler.remaining_rollouts == 7 * 4 * 5
    with pytest.raises(ValueError, match=r"cero\.rounds: is missing"):
        CeroSettings.read({})
