"""The turn at an address: one at a time, rested after, and given back to other processes however its holder ends."""

import asyncio
import multiprocessing
from pathlib import Path
from typing import Any

from livelm.sources.web.turns import Turns
from livelm.sources.web.visit import Visits


def test_an_address_has_one_turn_at_a_time_and_rests_after_it() -> None:
    turns = Turns(None)
    assert turns.take(["a", "b"], 0.0, 1.0) == 0.0
    assert turns.take(["b"], 0.1, 1.0) > 0
    assert turns.take(["c"], 0.1, 1.0) == 0.0
    turns.give_back(["a", "b"], 0.5, 1.0)
    assert turns.take(["a"], 1.4, 1.0) > 0
    assert turns.take(["a"], 1.5, 1.0) == 0.0


def test_those_who_wait_for_an_address_are_told_different_times() -> None:
    turns = Turns(None)
    turns.take(["a"], 0.0, 1.0)
    waits = [turns.take(["a"], 0.0, 1.0) for _ in range(100)]
    assert waits[:3] == [1.0, 2.0, 3.0]
    assert max(waits) == 60.0


def _take(path: Path, connection: Any) -> None:
    turns = Turns(path)
    connection.send(turns.take(["a"], 0.0, 1.0))
    connection.recv()


def test_processes_share_the_turns_and_death_gives_them_back(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_take, args=(tmp_path / "lock", theirs))
    process.start()
    try:
        assert ours.recv() == 0.0
        turns = Turns(tmp_path / "lock")
        assert turns.take(["b", "a"], 0.0, 1.0) > 0
        process.kill()
        process.join()
        assert turns.take(["b", "a"], 100.0, 1.0) == 0.0
    finally:
        process.kill()


class EarlyLoop(asyncio.SelectorEventLoop):
    """Calls a little before the time, as uvloop may do by up to a millisecond."""

    def call_later(self, delay: float, callback: Any, *arguments: Any, context: Any = None) -> asyncio.TimerHandle:
        return super().call_later(delay * 0.9, callback, *arguments, context=context)


def test_the_turn_of_the_last_request_is_given_back_although_timers_are_early(tmp_path: Path) -> None:
    turns, nothing = Turns(tmp_path / "lock"), Any
    parts = dict.fromkeys(("settings", "frontier", "fetcher", "hosts", "reader", "drops", "box"), nothing)
    visits: Any = Visits(turns=turns, **parts)

    async def ask_once() -> None:
        assert turns.take(["a"], 0.0, 0.2) == 0.0
        visits._give_back(["a"], 0.2)
        await asyncio.sleep(0.5)

    loop = EarlyLoop()
    try:
        loop.run_until_complete(ask_once())
    finally:
        loop.close()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_take, args=(tmp_path / "lock", theirs))
    process.start()
    try:
        assert ours.recv() == 0.0
    finally:
        process.kill()
