"""cero_rl: reinforcement learning with verifiable rewards that asks which prompts deserve the next
rollout."""

__version__ = "0.1.0"
