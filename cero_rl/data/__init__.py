"""Prompts with stable content-hash ids: reading (`load`), records (`prompts`), tokens (`encode`).
Imports no torch."""
