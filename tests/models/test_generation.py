"""The start model's generation settings: what transformers would load and then refuse to save is
repaired, the rest refused before weights are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from cero_rl.errors import ConfigError
from cero_rl.models.generation import exportable_generation_config, read_generation_config
from cero_rl.models.load import load_tokenizer

MODEL = Path(__file__).resolve().parents[2] / "recipes/assets/tiny_digits"


def model_with(tmp_path: Path, settings: Any) -> str:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    return str(folder)


@pytest.mark.covers("generation settings that cannot be saved")
@pytest.mark.parametrize(
    ("settings", "kept", "said"),
    [
        ({"do_sample": True, "temperature": 0.6}, {"do_sample": True, "temperature": 0.6}, ""),
        (
            {"do_sample": False, "temperature": 0.6, "top_k": 20},
            {"do_sample": True, "temperature": 0.6, "top_k": 20},
            "do_sample set to true, without which temperature 0.6, top_k 20 is ignored",
        ),
        ({"top_p": 0.9}, {"do_sample": True, "top_p": 0.9}, "do_sample set to true"),
        (
            {"temperature": 0, "top_p": 0.9},
            {"temperature": None, "top_p": None},
            "temperature 0, top_p 0.9 taken out, without effect in greedy decoding",
        ),
        ({"top_k": 0}, {"do_sample": None, "top_k": None}, "top_k 0 taken out"),
        ({"pad_token_id": -1}, {"pad_token_id": None}, "pad_token_id -1 taken out"),
        ({"length_penalty": 2.0}, {"length_penalty": None}, "length_penalty 2.0 taken out"),
        ({"output_scores": True}, {"output_scores": None}, "output_scores True taken out"),
    ],
)
def test_settings_are_repaired_and_the_repair_is_said(
    tmp_path: Path, settings: dict[str, Any], kept: dict[str, Any], said: str
) -> None:
    path = model_with(tmp_path, {"eos_token_id": [1, 2], **settings})
    loaded = read_generation_config(path)
    before = loaded.to_dict()
    fit, repairs = exportable_generation_config(loaded, path)
    assert said in "; ".join(repairs)
    assert bool(repairs) == bool(said)
    assert loaded.to_dict() == before, "the model's own is left alone"
    fit.save_pretrained(tmp_path / "export")
    again = GenerationConfig.from_pretrained(tmp_path / "export")
    assert again.eos_token_id == [1, 2]
    assert {name: getattr(again, name) for name in kept} == kept


@pytest.mark.covers("generation settings that cannot be saved")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` must be greater than 0"),
        ({"num_return_sequences": 3}, "`num_return_sequences` different than 1"),
        ({"temperature": "hot"}, "temperature is 'hot', no number"),
        ({"cache_implementation": "none such"}, "Invalid `cache_implementation`"),
        ("{", "not a valid JSON file"),
        ([1], "is not a mapping"),
    ],
)
def test_settings_that_nothing_repairs_are_refused(
    tmp_path: Path, settings: Any, said: str
) -> None:
    path = model_with(tmp_path, settings)
    with pytest.raises(ConfigError) as caught:
        exportable_generation_config(read_generation_config(path), path)
    assert said in str(caught.value)
    assert str(caught.value).startswith("model.path: the generation_config.json of")
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_without_the_file_is_read_from_its_config(tmp_path: Path) -> None:
    path = model_with(tmp_path, {})
    (Path(path) / "generation_config.json").unlink()
    generation = read_generation_config(path)
    assert generation.eos_token_id == 1
    assert exportable_generation_config(generation, path)[1] == ()


def test_a_saved_tokenizer_does_not_say_how_it_was_loaded(tmp_path: Path) -> None:
    """The library writes down whether its process was offline; an export and a conversion of the
    same model would differ by it."""
    tokenizer = load_tokenizer(str(MODEL))
    tokenizer.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only"} & set(written)
