"""An environment that plays the user: guess a number between two bounds in at most six turns.

After each guess it says `higher` or `lower`. The secret is the column `answer` of the data; the
prompt names the bounds. Half of the reward is for finding it, half for how near the last guess
came, so that a game which was lost still says something.
"""

from types import SimpleNamespace
from typing import Any

from cero_rl.environments import metric, reward


class GuessNumber:
    """One episode: a game of at most `turns` guesses."""

    def __init__(self, data: SimpleNamespace, turns: int = 6) -> None:
        low, high = map(int, data.prompt.split("-"))
        self.width = high - low
        self.secret = int(data.answer)
        self.turns = turns

    def hint(self, guess: str) -> str:
        if not guess.isdigit():
            return "number?"
        return "higher" if int(guess) < self.secret else "lower"

    async def run(self, task: SimpleNamespace, agents: Any) -> None:
        async with agents.player.interaction(task) as game:
            said = await game.turn()
            while not said.terminated and said.last_reply != task.answer:
                if game.trace.num_turns == self.turns:
                    game.trace.stop("not_found")
                    break
                said = await game.turn(self.hint(said.last_reply))

    @reward(weight=0.5)
    def found(self, task: SimpleNamespace, trace: Any) -> float:
        return float(trace.last_reply == task.answer)

    @reward(weight=0.5)
    def near(self, trace: Any) -> float:
        if not trace.last_reply.isdigit():
            return 0.0
        return max(0.0, 1.0 - abs(int(trace.last_reply) - self.secret) / self.width)

    @metric
    def guesses(self, trace: Any) -> float:
        return float(trace.num_turns)
