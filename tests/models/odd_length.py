"""A reward that every random model earns now and then, so that there is something to learn."""


def reward(completions: list[str], **columns: object) -> list[float]:
    return [float(len(text) % 2) for text in completions]
