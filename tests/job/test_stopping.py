"""When a run stops, with real signals sent to this process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from cero_rl.job.stopping import Interrupt, Stopping, Walltime

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """What was installed before stays installed, whatever a test does."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def code_after(*numbers: int) -> int:
    with Interrupt() as interrupt:
        stopping = Stopping(interrupt, None)
        assert stopping.code == 0
        send(*numbers)
        return stopping.code


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGUSR1], 75),
        ([signal.SIGTERM], 75),
        ([signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGINT], 75),
        ([signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM], 75),
        ([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], 130),
    ],
)
def test_the_first_signal_names_the_exit_code(numbers: list[int], code: int):
    assert code_after(*numbers) == code


def test_a_second_ctrl_c_leaves_at_once():
    with Interrupt() as interrupt:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert Stopping(interrupt, None).code == 130


def test_a_signal_between_does_not_hide_the_second_ctrl_c():
    with Interrupt():
        send(signal.SIGINT, signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_second_ctrl_c_leaves_also_after_another_wish_to_stop():
    with Interrupt() as interrupt:
        send(signal.SIGTERM, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert interrupt.exit_code == 75


def test_handlers_are_there_while_it_is_open_and_no_longer():
    met = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: met.append(number))
    with Interrupt() as interrupt:
        send(signal.SIGTERM)
        assert (interrupt.exit_code, met) == (75, [])
    send(*SIGNALS)
    assert met == list(SIGNALS)
    assert interrupt.exit_code == 75, "what was asked stays known"


def test_handlers_come_back_after_an_error():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(RuntimeError, match="boom"), Interrupt():
        raise RuntimeError("boom")
    assert [signal.getsignal(number) for number in SIGNALS] == before


# --- walltime: far from its edges, so that the pace of the machine does not matter


def minutes_left(minutes: float, margin_seconds: float = 0.0) -> Stopping:
    walltime = Walltime(7200, margin_seconds, start=time.time() - 7200 + 60 * minutes)
    return Stopping(Interrupt(), walltime)


def test_without_a_limit_it_goes_on_for_ever():
    stopping = Stopping(Interrupt(), None)
    stopping.took(step_seconds=1e9, save_seconds=1e9)
    assert stopping.code == 0


def test_it_stops_while_a_step_and_a_save_still_fit():
    stopping = minutes_left(60)
    assert stopping.code == 0, "nothing is known to take long"
    stopping.took(step_seconds=50 * 60)
    assert stopping.code == 0
    stopping.took(save_seconds=5 * 60)
    assert stopping.code == 0
    stopping.took(save_seconds=15 * 60)
    assert stopping.code == 75


def test_the_longest_of_all_steps_and_saves_counts():
    stopping = minutes_left(60)
    stopping.took(step_seconds=40 * 60)
    stopping.took(save_seconds=30 * 60)
    for _ in range(3):
        stopping.took(step_seconds=60, save_seconds=1)
    assert stopping.code == 75


def test_the_margin_is_kept_free():
    for margin, code in ((10 * 60, 0), (30 * 60, 75)):
        stopping = minutes_left(60, margin_seconds=margin)
        stopping.took(step_seconds=40 * 60)
        assert stopping.code == code


def test_a_signal_goes_before_the_walltime():
    over = Walltime(60, 0, start=time.time() - 3600)
    with Interrupt() as interrupt:
        stopping = Stopping(interrupt, over)
        assert stopping.code == 75
        send(signal.SIGINT)
        assert stopping.code == 130
