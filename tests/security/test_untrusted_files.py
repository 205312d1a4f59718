"""Files from elsewhere are data: a shard, a model directory or a data set with code in it is
refused, and the code does not run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cero_rl.data.sources import kind_of
from cero_rl.errors import CheckpointError, DataError, EngineError
from cero_rl.models.load import load_model, load_model_config, load_tokenizer
from cero_rl.zero.shards import read_shard

MODEL = Path(__file__).resolve().parents[2] / "recipes/assets/tiny_digits"


class Payload:
    """Unpickling this makes a directory."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def test_the_payload_works_where_nothing_guards_against_it(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


@pytest.mark.parametrize("nested", [False, True])
def test_a_shard_with_a_program_in_it_is_refused_and_does_not_run(
    tmp_path: Path, nested: bool
) -> None:
    shard, mark = tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt", tmp_path / "ran"
    torch.save(
        {"optimizer_state_dict": {"step": Payload(mark)}, "weight": torch.ones(2)}
        if nested
        else Payload(mark),
        shard,
    )
    with pytest.raises(
        CheckpointError, match="refused, it is more than tensors and settings"
    ) as caught:
        read_shard(shard)
    assert str(shard) in str(caught.value)
    assert "GLOBAL posix.mkdir" in str(caught.value)
    assert "safe_globals" not in str(caught.value), "torch's advice to trust the file is left out"
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 4
    assert not mark.exists()


def test_a_bare_pickle_in_place_of_a_shard_is_refused(tmp_path: Path) -> None:
    shard, mark = tmp_path / "x.pt", tmp_path / "ran"
    shard.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(CheckpointError, match="refused"):
        read_shard(shard)
    assert not mark.exists()


def test_a_shard_of_tensors_and_settings_is_read(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(3), "step": 7, "names": ["a"]}, tmp_path / "x.pt")
    found = read_shard(tmp_path / "x.pt")
    assert found["step"] == 7
    assert found["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "load", [load_model_config, lambda path: load_model(path, "float32", "sdpa"), load_tokenizer]
)
def test_code_that_comes_with_a_model_does_not_run(tmp_path: Path, load: Any) -> None:
    folder, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(MODEL, folder)
    (folder / "evil.py").write_text(
        f"open({str(mark)!r}, 'w')\nclass Evil: pass\n", encoding="utf-8"
    )
    names = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "evil", "auto_map": names}), encoding="utf-8"
    )
    words = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    words |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(words), encoding="utf-8")
    with pytest.raises(EngineError):
        load(str(folder))
    assert not mark.exists()


def test_weights_in_a_pickle_run_nothing(tmp_path: Path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(MODEL, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Payload(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(EngineError, match="a pickle that holds more than tensors, refused"):
        load_model(str(folder), "float32", "sdpa")
    assert not mark.exists()


def test_a_script_is_no_data_source(tmp_path: Path) -> None:
    (tmp_path / "set.py").write_text("raise SystemExit('ran')\n", encoding="utf-8")
    for source in (tmp_path / "set.py", tmp_path):
        with pytest.raises(DataError):
            kind_of(str(source), "data.source")
