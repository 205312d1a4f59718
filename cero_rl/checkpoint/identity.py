"""What a run is, as opposed to how it is carried out: its settings, and the content of what they
name. A checkpoint keeps both; a resume compares them, key by key.

    settings   {"optimizer.learning_rate": 1e-06, ...}: every key of the configuration
    content    {"model": sha256, ...}: of the data, the start model and the reward file

A setting of `MAY_CHANGE` may differ, since the run goes on as well without the old value; one of
`NAMES_CONTENT` may, if what it names is the same: a file that was moved. Every other difference is
refused. Why each key stands where it does is in docs/decisions/0014.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cero_rl import redact
from cero_rl.checkpoint.ownership import CONVERTED
from cero_rl.config import Config
from cero_rl.config.reward import RewardConfig
from cero_rl.data.pool import Data
from cero_rl.data.prompts import fingerprint
from cero_rl.distributed.group import Group
from cero_rl.errors import CheckpointError, EngineError, RewardError
from cero_rl.files.durable import sha256
from cero_rl.models.content import weights_digest

MAY_CHANGE = (  # keys and whole sections
    "name",
    "output_dir",
    "logging",
    "checkpoint",
    "evaluation",
    "watchdog",
    "profile",
    "budget.total_rollouts",  # where the rounds left can hold it: `Progress.set_budget`
    "optimizer.learning_rate",
    "learner.max_micro_batch_tokens",
    "learner.max_nonfinite_steps",
    "model.attention",
    "model.gradient_checkpointing",
    "reward.max_missing_rate",
    "reward.memory_limit_mb",
    "reward.missing_window_rollouts",
    "reward.timeout_seconds",
    "reward.workers",
    "rollout.generate_timeout_seconds",
    "rollout.gpu_memory_fraction",
    "rollout.kv_cache_memory_bytes",
    "rollout.max_batch_tokens",
    "rollout.max_sequences",
    "rollout.mode",
    "rollout.parity_bound",
    "rollout.parity_every_syncs",
    "rollout.server",
    "rollout.sleep",
    "rollout.sync_timeout_seconds",
    "rollout.tensor_parallel",
    "scheduler.warm_start",  # its evidence is in the checkpoint
    "zero.offload_optimizer",
    "zero.offload_parameters",
    "zero.offload_reference",
    "zero.offload_states_in_rollout",
    "zero.overlap_comm",
    "zero.param_persistence_threshold",
    "zero.sequence_parallel",
)
NAMES_CONTENT = {  # key -> the content it names
    "data.source": "data",
    "data.split": "data",
    "data.config_name": "data",
    "data.heldout_source": "heldout",
    "data.heldout_split": "heldout",
    "data.heldout_config_name": "heldout",
    "data.heldout_prompt_column": "heldout",
    "data.heldout_answer_column": "heldout",
    "model.path": "model",
    "reward.function": "reward",
    "reward.functions": "reward",
    "rollout.environment": "environment",
}
_WHAT = {
    "data": "data.source: the prompts or answers in it",
    "heldout": "data.heldout_source: the prompts or answers in it",
    "prompt_tokens": "model.path: its tokenizer or chat template",
    "model": "model.path: the weights in it",
    "reward": "reward.function: the file's content",
    "environment": "rollout.environment: the file's content",
}
_REWARD = (  # beginnings of the keys that make a reward another one
    "reward.function",
    "reward.kwargs",
    "reward.evidence",
    "reward.range",
    "reward.threshold",
    "reward.answer_tags",
    "reward.thinking",
)
_OF_DATA = {"data", "heldout", "prompt_tokens"}


@dataclass(frozen=True)
class Identity:
    """settings: dotted key -> value as in JSON. content: a key of `_WHAT` -> a digest; None where
    there is nothing to compare."""

    settings: Mapping[str, Any]
    content: Mapping[str, str | None]

    def for_manifest(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Change:
    """A setting that is not what it was."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} was {_shown(self.was)}, is {_shown(self.now)}"


def settings_of(config: Config) -> dict[str, Any]:
    """Every key of the configuration with its value; those of LoRA only where there is one."""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                add(f"{prefix}.{name}" if prefix else name, inner)
        else:
            flat[prefix] = value

    add("", redact.tree(config.model_dump(mode="json")))
    unused = "lora." if not config.lora.rank else None
    return {
        key: value
        for key, value in flat.items()
        if unused is None or not key.startswith(unused) or key == "lora.rank"
    }


def identity_of(config: Config, data: Data, group: Group) -> Identity:
    """Reads every weight of the start model once, on rank 0; the same on every rank, and so is an
    error: EngineError or RewardError for a file that cannot be read."""
    files: list[dict[str, str | None]] = [{}]

    def read_files() -> None:
        files[0] = {
            "model": weights_digest(config.model.path),
            "reward": _reward_digest(config.reward),
        }
        if (environment := config.rollout.environment) is not None:
            digest = plugin_digest("rollout.environment", environment)
            files[0]["environment"] = digest

    group.on_main(read_files, (EngineError, RewardError))
    tokens = hashlib.sha256()
    for ids in data.train.tokens:
        tokens.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    content = {
        "data": data.fingerprint,
        "heldout": fingerprint(data.heldout.prompts),
        "prompt_tokens": tokens.hexdigest(),
        **group.gather_json(files[0])[0],
    }
    return Identity(settings_of(config), content)


def _reward_digest(reward: RewardConfig) -> str | None:
    """Of one function its file's; of several also what becomes of their scores."""
    if not reward.functions:
        return plugin_digest("reward.function", reward.function)
    rows = [
        [
            plugin_digest("reward.functions", part.function) or part.function,
            part.model_dump(mode="json", exclude={"function"}),
        ]
        for part in reward.functions
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def plugin_digest(key: str, named: str) -> str | None:
    """sha256 of a plug-in's file and the name in it; None for what comes with this program."""
    path, separator, name = named.rpartition(":")
    if not separator or not path.endswith(".py"):
        return None
    try:
        return f"{sha256(Path(path))}:{name}"
    except OSError as error:
        raise RewardError(f"{key}: {error}; give a file that can be read") from None


def changes_since(
    checkpoint: Path, manifest: Mapping[str, Any], now: Identity, *, new_reward: bool = False
) -> list[Change]:
    """What differs and may. `new_reward`: the reward may differ too.

    Raises CheckpointError that names every difference which may not be, with both values and what
    can be done instead.
    """
    saved = manifest.get("identity")
    if saved is None:
        raise CheckpointError(
            f"{checkpoint}: written by cero_rl {manifest.get('cero_rl', '?')}, whose checkpoints "
            "hold a hash of the settings and not the settings, so what changed cannot be told; "
            f"finish that run with that version, or {_NEW_RUN.format(checkpoint)}"
        )
    was, content = saved["settings"], saved["content"]
    accepted: list[Change] = []
    refused: list[str] = []
    remedies: dict[str, None] = {}  # in order, each once
    told: set[str] = set()  # contents that a refused setting accounts for
    for key in sorted(set(was) | set(now.settings)):
        change = Change(key, _value(was, key), _value(now.settings, key))
        if change.was == change.now:
            continue
        names = NAMES_CONTENT.get(key)
        if (
            _may_change(change, universal=bool(manifest.get("universal")))
            or (names is not None and _is_same(content, now.content, names))
            or (_is_of_reward(key) and new_reward)
        ):
            accepted.append(change)
            continue
        refused.append(str(change))
        remedies[_remedy("reward" if _is_of_reward(key) else names or key, checkpoint)] = None
        told |= {names} if names else _OF_DATA if key.startswith("data.") else set()
    for name, what in _WHAT.items():
        if name in told or not _differs(content, now.content, name):
            continue
        if name == "reward" and new_reward:
            digests = content[name][:12], str(now.content[name])[:12]
            accepted.append(Change("reward.function's file", *digests))
            continue
        refused.append(f"{what} changed")
        remedies[_remedy(name, checkpoint)] = None
    if refused:
        raise CheckpointError(
            f"{checkpoint}: not this run's: {'; '.join(refused)}. {'; '.join(remedies)}"
        )
    return accepted


def refuse_other_ranks(checkpoint: Path, manifest: Mapping[str, Any], ranks: int) -> None:
    """Can `ranks` ranks load its shards? Raises CheckpointError with the conversion that makes it
    so."""
    saved = manifest["world_size"]
    stage = manifest["identity"]["settings"]["zero.stage"]
    if saved == ranks or manifest.get("universal") or stage == 0:  # 0: every rank holds everything
        return
    command = f"reshard {checkpoint} --ranks {ranks}"
    if stage in (1, 2):
        command = f"zero-to-universal {checkpoint}"
    out = checkpoint.parent.parent / CONVERTED / checkpoint.name
    raise CheckpointError(
        f"{checkpoint}: written by {saved} ranks, this job has {ranks}; start it with {saved}, or "
        f"run python tools/convert.py {command} --out {out} and give --resume {out}"
    )


_NEW_RUN = (
    "begin another run from its weights: python tools/convert.py zero-to-hf {0} --out DIR, then "
    "--set model.path=DIR and another name"
)
_REMEDIES = {
    "zero.stage": "For another stage (1 to 3) run python tools/convert.py zero-to-universal {0} "
    "--out DIR and --resume DIR; stage 0 has none",
    "reward": "Give the old reward back, or --accept-new-reward to go on with the new one",
}


def _remedy(key: str, checkpoint: Path) -> str:
    give_back = "Give the old value back, or " + _NEW_RUN
    return _REMEDIES.get(key, give_back).format(checkpoint)


def _is_of_reward(key: str) -> bool:
    """Does it say what a response is worth?"""
    return key.startswith(_REWARD)


def _may_change(change: Change, *, universal: bool) -> bool:
    if change.key == "zero.stage":  # DeepSpeed's universal layout fits stages 1, 2 and 3
        return universal and change.now != 0
    return any(change.key == k or change.key.startswith(k + ".") for k in MAY_CHANGE)


def _is_same(was: Mapping[str, Any], now: Mapping[str, Any], name: str) -> bool:
    """Known and equal."""
    return was.get(name) is not None and was.get(name) == now.get(name)


def _differs(was: Mapping[str, Any], now: Mapping[str, Any], name: str) -> bool:
    """Known and not equal."""
    return None not in (was.get(name), now.get(name)) and was[name] != now[name]


def _value(settings: Mapping[str, Any], key: str) -> Any:
    """The setting; its default where a version wrote it that did not know the key."""
    if key in settings:
        return settings[key]
    model: Any = Config
    *sections, last = key.split(".")
    for name in sections:
        model = model.model_fields[name].annotation if name in model.model_fields else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return None
    field = model.model_fields.get(last)
    if field is None or field.is_required():
        return None
    return list(field.default) if isinstance(field.default, tuple) else field.default


def _shown(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
