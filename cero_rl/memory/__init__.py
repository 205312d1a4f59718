"""What a run holds in memory, by phase: measured while it runs, and told before it starts."""
