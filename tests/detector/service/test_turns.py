"""Turns between real threads: who gets the engine, in which order, and who hears of a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from detector.errors import BusyError
from detector.service.turns import EndedError, Turns

PATIENCE = 240.0


def in_thread(work: Callable[[], object]) -> Future[object]:
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - the test raises it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def test_a_reader_gets_in_between_two_turns_of_a_loop_that_never_rests() -> None:
    turns, over = Turns(), threading.Event()
    inside = 0

    def loop() -> None:
        nonlocal inside
        while not over.is_set():
            with turns.turn():
                inside += 1
                sum(range(10_000))
                inside -= 1

    looping = in_thread(loop)
    for _ in range(200):
        with turns.look(PATIENCE):
            assert inside == 0, "the loop is in a turn of its own"
    over.set()
    looping.result(PATIENCE)


def test_those_who_wait_are_served_in_their_order() -> None:
    turns, order = Turns(), []
    begun = [threading.Event() for _ in range(4)]

    def look(number: int) -> None:
        begun[number].set()
        with turns.look(PATIENCE):
            order.append(number)

    with turns.turn():
        readers = []
        for number in range(4):
            readers.append(in_thread(lambda number=number: look(number)))
            assert begun[number].wait(PATIENCE)
            while len(turns._waiting) <= number:
                pass
    for reader in readers:
        reader.result(PATIENCE)
    assert order == [0, 1, 2, 3]


def test_who_cannot_have_it_in_time_is_told_and_nobody_waits_for_it() -> None:
    turns = Turns()
    with turns.turn():
        refused = in_thread(lambda: turns.look(0.01).__enter__())
        with pytest.raises(BusyError, match="ask again"):
            refused.result(PATIENCE)
    with turns.look(0.0), turns.look(0.0):  # free again, and its owner may nest
        pass


def test_a_failure_within_gives_it_back() -> None:
    turns = Turns()
    with pytest.raises(RuntimeError, match="inside"), turns.turn():
        raise RuntimeError("inside")
    in_thread(lambda: turns.look(0.0).__enter__()).result(PATIENCE)


def test_calls_run_on_the_loops_thread_in_their_order() -> None:
    turns = Turns()
    done: list[tuple[int, int]] = []

    def note(number: int) -> int:
        done.append((number, threading.get_ident()))
        return number

    asked = in_thread(lambda: [turns.call(lambda number=number: note(number)) for number in range(3)])
    futures = asked.result(PATIENCE)
    assert not done
    with turns.turn():
        turns.run_calls()
    assert done == [(number, threading.get_ident()) for number in range(3)]
    assert [future.result(PATIENCE) for future in futures] == [0, 1, 2]  # type: ignore[attr-defined]


def test_an_error_is_for_whoever_asked_and_an_alarming_one_for_the_loop_as_well() -> None:
    def fail(error: Exception) -> None:
        raise error

    turns = Turns(alarming=(OSError,))
    wrong = turns.call(lambda: fail(ValueError("a wrong word")))
    right = turns.call(lambda: "fine")
    turns.run_calls()
    with pytest.raises(ValueError, match="a wrong word"):
        wrong.result(0)
    assert right.result(0) == "fine"
    bad = turns.call(lambda: fail(OSError("the disk")))
    with pytest.raises(OSError, match="the disk"):
        turns.run_calls()
    with pytest.raises(OSError, match="the disk"):
        bad.result(0)


def test_after_the_end_nothing_is_done_and_everyone_is_told() -> None:
    turns = Turns()
    done: list[int] = []
    before = turns.call(lambda: done.append(1))
    turns.end()
    after = turns.call(lambda: done.append(2))
    turns.run_calls()
    assert not done
    for future in (before, after):
        with pytest.raises(EndedError, match="stops"):
            future.result(0)
