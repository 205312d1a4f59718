"""The parity callback in a real TRL run: a sampler that follows the policy, and one that kept the
start weights without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from model_sampler import ModelSampler
from transformers import TrainerCallback
from trl_driver import ASSETS, RaggedScheduler, config, train

from cero_rl.adapters.trl import ParityCallback
from cero_rl.errors import ConfigError, EngineError
from cero_rl.models.load import load_model
from cero_rl.parity import ParityOptions

pytestmark = pytest.mark.slow
QUICK = ParityOptions(answers=2, tokens=4)


class Attach(TrainerCallback):
    """Gives the callbacks their samplers as soon as there is a model, as a trainer with vLLM has
    them."""

    def __init__(self) -> None:
        self.current = self.stale = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.current = ParityCallback(sampler=ModelSampler(model), every_steps=2, options=QUICK)
        # loaded anew: a copy would go on calling the forward that accelerate put into the original
        old = ModelSampler(load_model(str(ASSETS / "tiny_digits"), "float32", "sdpa").eval())
        self.stale = ParityCallback(sampler=old, every_steps=1, options=QUICK, stop=False)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        for callback in (self.current, self.stale):
            assert callback is not None
            callback.on_step_end(*args, **kwargs)


def test_a_sampler_left_behind_is_found_at_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = Attach()
    scheduler = RaggedScheduler(3, 38, 2, 3, 16, (7, 8, 4))
    odd = lambda completions, **_: [sum(map(ord, text)) % 7 / 7.0 for text in completions]
    args = config(tmp_path, learning_rate=1e-3)
    trainer, _ = train(args, scheduler, odd, callbacks=[probes])
    assert probes.current is not None
    assert probes.stale is not None
    steps = trainer.state.global_step
    assert [step for step, _ in probes.current.reports] == list(range(2, steps + 1, 2))
    assert all(report.same and report.gap < 1e-5 for _, report in probes.current.reports)
    assert [step for step, _ in probes.stale.reports] == list(range(1, steps + 1))
    for _, report in probes.stale.reports:
        assert report.gap > report.bound
        assert [finding.code for finding in report.findings] == ["other_weights"]
    with pytest.raises(EngineError, match="does not run the wanted weights"):
        probes.stale.reports[0][1].raise_if_wrong()
    assert capsys.readouterr().err.count("parity: step") == steps
    with pytest.raises(ConfigError, match="samples from the model that it trains"):
        ParityCallback(trainer)
    with pytest.raises(ConfigError, match="every_steps 0"):
        ParityCallback(trainer, every_steps=0)
