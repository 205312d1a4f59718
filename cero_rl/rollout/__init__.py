"""Sampling completions: the collector, the engines and their protocol, dealing groups to ranks."""
