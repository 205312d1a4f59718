"""What stands at a model's path, told from names of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cero_rl.errors import ConfigError
from cero_rl.models.directory import find_model

MODEL = Path(__file__).resolve().parents[2] / "recipes/assets/tiny_digits"


def test_directories_and_ids_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_model(str(MODEL)) == "directory"
    monkeypatch.chdir(tmp_path)
    assert find_model("owner/name-1.5B") == "hub"
    (tmp_path / "owner").mkdir()
    with pytest.raises(ConfigError, match="does not exist"):
        find_model("owner/name-1.5B")  # a misspelt path in a directory that is there


@pytest.mark.covers("reward file or model that is not there")
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "holds no config.json (it is empty)"),
        (["a.gguf", "b.txt"], "holds no config.json (a.gguf, b.txt); give a directory"),
        (["config.json", "tokenizer.json"], "has a config.json and no weights"),
        (["adapter_config.json", "adapter_model.safetensors"], "is a LoRA adapter; merge it"),
        (["config.resolved.yaml", "metrics.jsonl"], "is a run's directory; give"),
        (["MANIFEST.json", "zero"], "is a checkpoint of a run; go on with --resume"),
    ],
)
def test_a_directory_that_is_no_model_is_told_what_it_is(
    tmp_path: Path, files: list[str], said: str
) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ConfigError) as caught:
        find_model(str(tmp_path), "--model")
    assert str(caught.value).startswith(f"--model: {str(tmp_path)!r} ")
    assert said in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file; give a directory"):
        find_model(str(tmp_path / "file"))
