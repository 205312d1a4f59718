"""Does this sampler run these weights? Log-probabilities of its own answers, against a model's.

    from cero_rl.parity import HttpSampler, ModelScorer, check_parity

    report = check_parity(HttpSampler("http://127.0.0.1:8000"), ModelScorer.load("out/step_40"))
    report.raise_if_wrong()

`cero-rl parity` is the same as a command; docs/parity.md has the cases it tells apart.
"""

from cero_rl.parity.judge import Answer, Finding, Gap, ParityReport, Scored
from cero_rl.parity.probe import check_parity
from cero_rl.parity.questions import ParityOptions
from cero_rl.parity.samplers import HttpSampler
from cero_rl.parity.scorers import CallableScorer, ModelScorer
from cero_rl.parity.vllm_llm import LlmSampler

__all__ = [
    "Answer",
    "CallableScorer",
    "Finding",
    "Gap",
    "HttpSampler",
    "LlmSampler",
    "ModelScorer",
    "ParityOptions",
    "ParityReport",
    "Scored",
    "check_parity",
]
