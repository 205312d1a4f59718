"""Random interleavings, crashes and duplicates: whatever a trainer does with its tickets, each is
counted once, the budget closes, and the scheduler knows what it would know from one round after
another."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cero_rl.adapters.rounds import AdvantageRule
from cero_rl.adapters.stream import PromptStream, Ticket
from cero_rl.errors import CheckpointError
from cero_rl.scheduler import CeroScheduler

PROMPTS, BUDGET = 10, 48


def make() -> PromptStream:
    scheduler = CeroScheduler(PROMPTS, 6, BUDGET, 2, 2, 12, spend_down=True)
    return PromptStream(scheduler, budget_rollouts=BUDGET, pool="a pool", rule=AdvantageRule("std"))


def rewards_of(ticket: Ticket) -> list[float | None]:
    """The same for a ticket whoever answers it: what a world of fixed luck gives."""
    drawn = np.random.default_rng([ticket.round, ticket.prompt_id]).random(ticket.rollouts)
    return [None if x > 0.9 else float(x < 0.1 * ticket.prompt_id) for x in drawn]


def is_lost(ticket: Ticket) -> bool:
    return (ticket.round + ticket.prompt_id) % 7 == 0


def end(stream: PromptStream, ticket: Ticket) -> None:
    if is_lost(ticket):
        stream.lose(ticket)
    else:
        stream.put(ticket, rewards_of(ticket))


def in_order() -> tuple[PromptStream, list[Ticket]]:
    """One group after another."""
    stream, seen = make(), []
    while tickets := stream.take(1):
        seen += tickets
        end(stream, tickets[0])
    return stream, seen


def known(stream: PromptStream) -> list[object]:
    state = stream.scheduler.state_dict()
    return [(key, np.asarray(value).tolist()) for key, value in sorted(state.items())]


@settings(max_examples=20)
@given(data=st.data())
def test_any_interleaving_counts_every_group_once(data: st.DataObject) -> None:
    plain, order = in_order()
    stream, ended, out = make(), [], []
    with tempfile.TemporaryDirectory() as folder:
        saved: tuple[list[Ticket], int] | None = None
        for _ in range(60):
            if stream.over:
                break
            acts = ["take", "take", "end", "end", "end", "again", "save", "crash"]
            act = data.draw(st.sampled_from(acts))
            if act == "take":
                out += stream.take(data.draw(st.integers(1, 4)))
            elif act == "end" and out:
                ticket = out.pop(data.draw(st.integers(0, len(out) - 1)))
                end(stream, ticket)
                ended.append(ticket)
            elif act == "again" and ended:
                before = stream.duplicates + stream.late
                end(stream, data.draw(st.sampled_from(ended)))
                assert stream.duplicates + stream.late == before + 1
            elif act == "save":
                stream.save(Path(folder))
                saved = list(ended), stream.ledger.spent_rollouts
            elif act == "crash" and saved is not None:
                stream, out, ended = make(), [], list(saved[0])
                stream.load(Path(folder))
                assert stream.ledger.spent_rollouts == saved[1]
        while not stream.over:  # what draws left undone
            out += stream.take(9)
            end(stream, out[0])
            ended.append(out.pop(0))
    assert sorted(ended, key=str) == sorted(order, key=str)
    assert known(stream) == known(plain)
    spent = sum(t.rollouts for t in order if not is_lost(t))
    assert stream.ledger.spent_rollouts == plain.ledger.spent_rollouts == spent
    assert stream.ledger.refunded_rollouts == sum(t.rollouts for t in order if is_lost(t))
    assert stream.scheduler.remaining_rollouts == BUDGET - spent


def test_an_early_end_gives_back_what_is_out_and_late_answers_are_dropped() -> None:
    stream = make()
    first, *others = stream.take(99)
    stream.put(first, rewards_of(first))
    back = stream.close_round()
    assert back == sum(t.rollouts for t in others)
    assert stream.ledger.spent_rollouts == first.rollouts
    assert stream.scheduler.remaining_rollouts == BUDGET - first.rollouts
    assert stream.put(others[0], rewards_of(others[0])) is None
    assert not stream.lose(first)
    assert (stream.late, stream.duplicates) == (2, 0)
    assert stream.take(1)[0].round == first.round + 1
    assert stream.put(first, rewards_of(first)) is None
    assert stream.late == 3


def test_advantages_are_those_of_the_group_and_odd_answers_are_refused(tmp_path: Path) -> None:
    stream = make()
    ticket = stream.take(1)[0]
    with pytest.raises(ValueError, match="rewards: got shape"):
        stream.put(ticket, [1.0])
    with pytest.raises(ValueError, match="gave no such group"):
        stream.put(Ticket(ticket.round, ticket.prompt_id, ticket.rollouts + 1), [0.0])
    assert stream.out == [ticket]
    values = np.zeros(ticket.rollouts)
    values[0] = 1.0
    got = stream.put(ticket, values.tolist())
    assert got is not None
    np.testing.assert_allclose(got, (values - values.mean()) / values.std(ddof=1), rtol=1e-4)
    stream.save(tmp_path)
    (tmp_path / "cero_tickets.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no tickets of a stream"):
        make().load(tmp_path)
