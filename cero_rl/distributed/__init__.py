"""Ranks: the group they form, and where they meet."""
