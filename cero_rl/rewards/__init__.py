"""Verifiable rewards: verifiers, user plug-ins, and the pool of killable workers that runs them.
Imports no torch.

Nothing is re-exported here, because the worker process imports this package and must start fast.
"""
