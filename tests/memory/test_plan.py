"""The plan's arithmetic: published sizes, the workspace against a count by hand, states by stage,
and the key that helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from cero_rl.config import Config, load_config
from cero_rl.errors import ConfigError
from cero_rl.memory.advice import advise
from cero_rl.memory.plan import Plan, micro_shape
from cero_rl.memory.planner import Planner, engine_of
from cero_rl.memory.states import Machine, learner_states
from cero_rl.memory.workspace import MicroShape, workspace_of
from cero_rl.models.shapes import find_config, published, shape_of

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
H100 = int(80 * GIB * 0.99)


def recipe(name: str, *settings: str) -> Config:
    return load_config(ROOT / f"recipes/{name}.yaml", list(settings))


def planned(config: Config, ranks: int, *, gpu: bool = True, size: int = H100) -> Plan:
    return Planner(config).plan(config, Machine(ranks, size, gpu))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as their model cards and weight files have them
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("Qwen/Qwen3-30B-A3B", 30_532_122_624),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
    ],
)
def test_published_architectures_have_their_published_sizes(name: str, parameters: int) -> None:
    shape = shape_of(find_config(name)[0], recipe("qwen3_8b"))
    assert shape.parameters == shape.trained == parameters
    assert shape.active < parameters or published()[name]["tie_word_embeddings"]


def test_lora_and_experts_are_counted() -> None:
    config = recipe("qwen3_8b", "lora.rank=8", "lora.targets=[q_proj, v_proj]")
    shape = shape_of(find_config("Qwen/Qwen3-8B")[0], config)
    by_layer = 8 * (4096 + 4096) + 8 * (4096 + 1024)
    assert shape.adapters == shape.trained == 36 * by_layer
    experts = shape_of(find_config("Qwen/Qwen3-30B-A3B")[0], recipe("qwen3_8b"))
    of_layer = 3 * 2048 * 768
    held, met = 48 * 128 * of_layer, 48 * 8 * of_layer
    assert experts.active == experts.parameters - 151_936 * 2048 - held + met


TINY = ROOT / "recipes/assets/tiny_digits"


def test_activations_are_those_counted_by_hand() -> None:
    """What a layer of this Qwen3 keeps of a token, in widths w of the residual stream. For each of
    its two norms: input, normed, scaled. Queries: projected, normed, turned; keys the same at half
    the width, values half. Attention's output, and again in the order of the next layer. The MLP
    is 3 w wide: gate, its silu, up, product. And single numbers: the scale of 2 norms and of those
    of 4 heads of queries and 2 of keys, attention's sum of each of the 4 heads."""
    model, _ = find_config(str(TINY))
    tokens = 4096
    micro = MicroShape(tokens, 64, tokens)
    few, more = (
        workspace_of(_deep(model, layers), micro, "float32", checkpointing=False)
        for layers in (6, 12)
    )
    by_layer = (more.backward - few.backward) / 6
    widths = 2 * 3 + 3 + 1.5 + 0.5 + 2 + 4 * 3
    numbers = 2 + 4 + 2 + 4
    assert by_layer == 4 * tokens * (widths * model.hidden_size + numbers)
    again = workspace_of(_deep(model, 12), micro, "float32", checkpointing=True)
    kept = workspace_of(_deep(model, 6), micro, "float32", checkpointing=True)
    assert (again.backward - kept.backward) / 6 == 4 * model.hidden_size * tokens
    assert again.forward < few.forward * 1.01 < few.backward


def _deep(model, layers: int):
    import copy

    deep = copy.deepcopy(model)
    deep.num_hidden_layers, deep.layer_types = layers, ["full_attention"] * layers
    return deep


@pytest.mark.parametrize(
    ("settings", "bytes_each"),
    [  # of a bfloat16 model on 8 ranks: weights, masters, moments, gradient sums
        (
            (),
            {
                "weights": 2 / 8,
                "float32 masters": 4 / 8,
                "Adam's moments": 1,
                "gradient sums": 4 / 8,
            },
        ),
        (("zero.stage=2",), {"weights": 2, "float32 masters": 4 / 8, "gradient sums": 4 / 8}),
        (("zero.stage=1",), {"weights": 2, "Adam's moments": 1, "gradient sums": 2}),
        (("zero.stage=0",), {"weights": 2, "float32 masters": 4, "Adam's moments": 8}),
        (("zero.gradient_dtype=bfloat16",), {"gradient sums": 2 / 8}),
        (("learner.kl_coefficient=0.01",), {"reference": 2 / 8}),
        (("zero.offload_optimizer=cpu",), {"weights": 2 / 8}),
    ],
)
def test_states_by_stage(settings: tuple[str, ...], bytes_each: dict[str, float]) -> None:
    config = recipe("qwen3_8b", *settings)
    shape = shape_of(find_config(config.model.path)[0], config)
    states = learner_states(config, shape, Machine(8, H100, gpu=True))
    held = (*states.always, *states.offloaded, *states.learning)
    sizes = {item.name: item.bytes for item in held}
    for name, each in bytes_each.items():
        assert sizes[name] == pytest.approx(each * shape.parameters, rel=1e-6), name
    if "zero.offload_optimizer=cpu" in settings:
        assert not {"float32 masters", "Adam's moments", "gradient sums"} & sizes.keys()


def test_slices_hold_their_share_of_the_activations() -> None:
    def activations(slices: int) -> int:
        long = "rollout.max_response_tokens=39936"  # with the prompt the model's longest
        plan = planned(recipe("qwen3_8b", f"zero.sequence_parallel={slices}", long), 8)
        items = next(p.items for p in plan.phases if p.name == "learner")
        return next(item.bytes for item in items if item.name == "activations")

    one, two, four = (activations(n) for n in (1, 2, 4))
    assert two < 0.65 * one  # a chunk of the head is what it was
    assert four < 0.65 * two
    config = recipe("qwen3_8b", "zero.sequence_parallel=4")
    micro = micro_shape(config, Planner(config).shape, 8)
    # of three sequences of 1024 + 4096 tokens three quarters of one, at most 3840 of them response
    assert micro == MicroShape(3 * 1280, 1280, 3840)
    whole = micro_shape(recipe("qwen3_8b"), Planner(config).shape, 8)
    assert whole == MicroShape(3 * 5120, 5120, 3 * 4096)
    for slices, ranks, words in ((3, 9, "32 attention heads"), (2, 3, "the 3 ranks")):
        with pytest.raises(ConfigError, match=words):
            planned(recipe("qwen3_8b", f"zero.sequence_parallel={slices}"), ranks)


def test_what_is_handed_on_to_deepspeed_is_planned() -> None:
    sizes = "zero.deepspeed={reduce_bucket_size: 1e8, stage3_max_live_parameters: 2e8}"
    plain, small = planned(recipe("qwen3_8b"), 8), planned(recipe("qwen3_8b", sizes), 8)
    before, after = ({p.name: p.bytes for p in plan.phases} for plan in (plain, small))
    assert before["rollout"] - after["rollout"] == 4 * 4e8
    assert before["learner"] - after["learner"] == 2 * 4 * 4e8 + 2 * 8e8


def test_states_that_leave_make_room_for_the_sampler_alone() -> None:
    config = recipe("qwen3_8b")
    leaves = recipe("qwen3_8b", "zero.offload_states_in_rollout=true")
    stay, leave = planned(config, 8), planned(leaves, 8)
    before, after = ({p.name: p.bytes for p in plan.phases} for plan in (stay, leave))
    parameters = 8_190_735_360
    freed = before["rollout"] - after["rollout"]
    assert freed == pytest.approx(16 * parameters / 8 + 4 * 5e8, rel=1e-6)
    assert before["learner"] == after["learner"]


def test_one_key_makes_it_fit_and_is_tried_on_the_plan() -> None:
    settings = ["rollout.gpu_memory_fraction=0.6"]
    config = recipe("qwen3_8b", *settings)
    planner = Planner(config)
    machine = Machine(4, H100, gpu=True)
    plan = planner.plan(config, machine)
    assert not plan.fits
    assert plan.too_large is not None
    assert plan.too_large.name == "rollout"

    def other(changed: Config, ranks: int) -> Plan:
        return planner.plan(changed, Machine(ranks, H100, gpu=True))

    advice = advise(config, plan, other)
    assert advice is not None
    assert advice.fits
    key, _, value = advice.setting.partition("=")
    again = planner.plan(
        recipe("qwen3_8b", "rollout.gpu_memory_fraction=0.6", f"{key}={value}"), machine
    )
    assert again.fits
    assert again.peak.bytes == advice.plan.peak.bytes


def test_a_cache_below_one_sequence_is_a_problem_of_its_own() -> None:
    plan = planned(recipe("qwen3_8b", "rollout.gpu_memory_fraction=0.2"), 8)
    assert not plan.fits
    assert plan.problem is not None
    assert "below one sequence of 5120" in plan.problem


def test_the_engine_is_that_of_the_machine_planned_for() -> None:
    assert engine_of(recipe("gsm8k_qwen3_0_6b"), gpu=True) == "vllm"
    assert engine_of(recipe("gsm8k_qwen3_0_6b"), gpu=False) == "transformers"
    assert engine_of(recipe("qwen3_8b", "rollout.mode=server"), gpu=True) == "server"


def test_states_wait_with_stage_3_on_the_gpu_and_without_overlap() -> None:
    ahead = ["rollout.mode=server", "rollout.overlap=true"]
    for settings in (["zero.stage=2"], ["zero.offload_optimizer=cpu"], ahead):
        with pytest.raises(ConfigError, match="offload_states_in_rollout"):
            recipe("qwen3_8b", "zero.offload_states_in_rollout=true", *settings)
