"""Interrupts: what the first signal does, and the second, in each part of a command."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from palaver.actors.interrupts import Interrupted, Interrupts


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    with Interrupts() as interrupts:
        yield interrupts


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def ended_by(interrupts: Interrupts, *numbers: int) -> tuple[Interrupted, bool]:
    """What signals raise in a part that is held back, and whether that part came to its end."""
    reached = False

    def work() -> None:
        nonlocal reached
        with interrupts.held_back("wait a moment"):
            send(*numbers)
            reached = True

    with pytest.raises(Interrupted) as raised:
        work()
    return raised.value, reached


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_raises_where_the_command_is_and_gives_the_shells_exit_code(
    interrupts: Interrupts, number: int
) -> None:
    with pytest.raises(Interrupted) as raised:
        send(number)
    assert raised.value.exit_code == 128 + number
    assert interrupts.received == number


def test_what_is_held_back_comes_to_its_end_first(
    interrupts: Interrupts, capfd: pytest.CaptureFixture[str]
) -> None:
    interrupted, reached = ended_by(interrupts, signal.SIGINT)
    assert (interrupted.signal_number, reached) == (signal.SIGINT, True)
    assert "wait a moment" in capfd.readouterr().err


def test_second_signal_does_not_wait_for_what_is_held_back(interrupts: Interrupts) -> None:
    _, reached = ended_by(interrupts, signal.SIGINT, signal.SIGINT)
    assert not reached


def test_closed_terminal_is_seen_after_what_is_held_back(interrupts: Interrupts) -> None:
    interrupted, reached = ended_by(interrupts, signal.SIGHUP)
    assert (interrupted.signal_number, reached) == (signal.SIGHUP, True)


def test_handlers_that_somebody_replaced_are_back_after_what_is_held_back(interrupts: Interrupts) -> None:
    with interrupts.held_back("wait"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with pytest.raises(Interrupted):
        send(signal.SIGTERM)


async def test_first_signal_is_told_and_the_work_goes_on(interrupts: Interrupts) -> None:
    told = asyncio.Event()
    with interrupts.told(told.set):
        send(signal.SIGTERM)
        await asyncio.wait_for(told.wait(), 5)
    assert interrupts.received == signal.SIGTERM


def test_second_signal_ends_the_event_loop() -> None:
    async def work(interrupts: Interrupts) -> None:
        with interrupts.told(lambda: None):
            send(signal.SIGINT)
            send(signal.SIGINT)

    with Interrupts() as interrupts, pytest.raises(Interrupted):
        asyncio.run(work(interrupts))


async def test_what_was_dealt_with_is_forgotten(interrupts: Interrupts) -> None:
    for _ in range(3):
        told = asyncio.Event()
        with interrupts.told(told.set):
            send(signal.SIGINT)
            await asyncio.wait_for(told.wait(), 5)
        interrupts.forget()
    assert interrupts.received is None


def test_nothing_disturbs_the_end(interrupts: Interrupts) -> None:
    interrupts.ignore()
    send(signal.SIGINT)
    send(signal.SIGINT)


def test_signal_that_was_ignored_from_the_start_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            send(signal.SIGHUP)
        assert interrupts.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_of_before_are_back_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Interrupts():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
