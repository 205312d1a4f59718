"""An environment with a tool: sums that the model may hand to a calculator.

The protocol is that of verifiers 0.4; docs/environments.md explains it line by line. The task's
answer is the column `answer` of the data.
"""

import re
from types import SimpleNamespace
from typing import Any

from cero_rl.environments import metric, reward, tool


class Calculator:
    """One episode: the model asks the tool, or not, and writes the number."""

    def __init__(self, data: SimpleNamespace) -> None:
        self.data = data

    @tool
    def calculate(self, expression: str) -> str:
        """The value of a sum of whole numbers, such as 12+7-4."""
        if not re.fullmatch(r"\d{1,6}([+-]\d{1,6}){0,15}", expression):
            return "error"
        return str(sum(int(part) for part in re.findall(r"[+-]?\d+", expression)))

    @reward
    def correct(self, task: SimpleNamespace, trace: Any) -> float:
        return float(trace.last_reply == task.answer)

    @metric
    def tool_calls(self, trace: Any) -> float:
        return float(len(trace.tool_messages))
