"""Futures under way: never too many, dealt with in the order in which they end, and the next item made meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from flows.running.window import Window


def test_never_more_than_the_limit_are_under_way() -> None:
    window, lock = Window(3), threading.Lock()
    under_way, most, dealt_with = 0, 0, []

    def work(number: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        threading.Event().wait(0.002)
        with lock:
            under_way -= 1
        return number

    with ThreadPoolExecutor(16) as threads:
        for number in range(40):
            window.submit(
                lambda number=number: threads.submit(work, number), lambda one: dealt_with.append(one.result())
            )
        window.wait()
    assert sorted(dealt_with) == list(range(40))
    assert 1 < most <= 3


def test_what_ends_first_makes_room_first() -> None:
    window = Window(2)
    slow, quick, third = Future[str](), Future[str](), Future[str]()
    order: list[str] = []
    window.submit(lambda: slow, lambda one: order.append(one.result()))
    window.submit(lambda: quick, lambda one: order.append(one.result()))
    quick.set_result("quick")
    window.submit(lambda: third, lambda one: order.append(one.result()))  # would wait for ever for the slow one
    assert order == ["quick"]
    slow.set_result("slow")
    third.set_result("third")
    window.wait()
    assert order == ["quick", "slow", "third"]


def test_the_next_item_is_made_while_one_is_dealt_with_and_ends_are_noticed_while_it_is_made() -> None:
    window = Window(4)
    shard, begun, may_go_on = Future[str](), threading.Event(), threading.Event()
    seen: list[str] = []

    def items() -> Iterator[str]:
        yield "first"
        begun.set()
        assert may_go_on.wait(10)
        yield "second"

    def when_ended(one: Future[str]) -> None:
        seen.append(one.result())
        may_go_on.set()

    for item in window.one_ahead(items()):
        seen.append(item)
        if item == "first":
            assert begun.wait(10)  # the second one is begun before the first one is done
            window.submit(lambda: shard, when_ended)
            shard.set_result("shard of the first")
    assert seen == ["first", "shard of the first", "second"]


def test_an_error_of_the_items_comes_after_what_was_made_before() -> None:
    window = Window(4)

    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the listing broke off")

    seen = []
    with pytest.raises(ValueError, match="broke off"):
        for item in window.one_ahead(items()):
            seen.append(item)
    assert seen == [1]
