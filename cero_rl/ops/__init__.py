"""The fused ragged group-advantage operators (csrc/), with their argument checks. `reference` holds
the float64 meaning."""

from cero_rl.ops import reference
from cero_rl.ops._load import build_info
from cero_rl.ops.advantage import (
    GroupAdvantage,
    TokenAdvantage,
    group_advantage,
    group_advantage_tokens,
    op_device,
    token_advantage,
)

__all__ = [
    "GroupAdvantage",
    "TokenAdvantage",
    "build_info",
    "group_advantage",
    "group_advantage_tokens",
    "op_device",
    "reference",
    "token_advantage",
]
