"""Sampling completions: the engine protocol, dealing groups to ranks, and the engines."""
