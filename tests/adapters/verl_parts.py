"""What verl loads by path in test_verl.py: an agent loop that samples from the tiny model on a CPU,
and a reward function.

The agent loop is verl's extension point for generation; this one takes the place of the LLM server,
which needs a GPU engine.
"""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from verl.experimental.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics

_MODELS: dict[str, Any] = {}


class TinyAgentLoop(AgentLoopBase):
    """One turn, sampled at T = 1 with transformers."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        path = self.config.actor_rollout_ref.model.path
        if path not in _MODELS:
            _MODELS[path] = AutoModelForCausalLM.from_pretrained(path).eval()
        prompt_ids = await self.apply_chat_template(list(kwargs["raw_prompt"]))
        with torch.no_grad():
            out = _MODELS[path].generate(
                torch.tensor([prompt_ids]),
                do_sample=True,
                top_k=0,
                max_new_tokens=self.rollout_config.response_length,
            )
        response = out[0, len(prompt_ids) :].tolist()
        await asyncio.sleep(0)
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=response,
            response_mask=[1] * len(response),
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={},
        )


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict | None = None,
    **kwargs: Any,
) -> float:
    return float(solution_str.replace("<eos>", "").strip() == ground_truth)
