"""A run in the terminal: its accuracy, prompts, groups, samples and steps, live or finished."""
