"""A training run whose learner states leave at every turn of the sampler, as on a GPU: here they
move within host memory. Same arguments as recipes/train_cero.py."""

from __future__ import annotations

from typing import Any

from cero_rl.commands.rank import main
from cero_rl.zero import policy
from cero_rl.zero.offload import HostStates


class ToldStates(HostStates):
    def leave(self) -> None:
        if not self.away:
            print("the states leave", flush=True)
        super().leave()


def _unpinned(engine: Any, *, pinned: bool) -> HostStates:
    return ToldStates(engine, pinned=False)  # a machine without a GPU has no pinned memory


if __name__ == "__main__":
    policy.states_wait = lambda config, device: True
    policy.HostStates = _unpinned  # pyright: ignore[reportAttributeAccessIssue]
    main()
