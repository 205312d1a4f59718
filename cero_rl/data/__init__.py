"""Prompts with stable content-hash ids: reading (`load`), records (`prompts`), tokens (`encode`),
all of it for a run (`pool`). Imports no torch."""
