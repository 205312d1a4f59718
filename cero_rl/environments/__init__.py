"""Environments: tasks of several turns, with tools. What a file with an environment imports; the
marks are those of the package verifiers (0.4), whose own do as well."""

from cero_rl.environments.marks import metric, reward, stop, tool

__all__ = ["metric", "reward", "stop", "tool"]
