"""Futures under way, a limited number of them; whichever ends first is dealt with first."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Window:
    """Futures under way and what is done when they end, by the thread that waits for them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way: dict[Any, Callable[[Any], None]] = {}
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def submit(self, submit: Callable[[], Any], when_ended: Callable[[Any], None]) -> None:
        """Submit something once there is room.

        Args:
            submit: gives the future.
            when_ended: is called with the future when it has ended, in this thread, by this method or `wait`.
        """
        while len(self._under_way) >= self._limit:
            self._deal_with_one()
        self.add(submit(), when_ended)

    def add(self, future: Any, when_ended: Callable[[Any], None]) -> None:
        """Watch a future, whether there is room or not."""
        self._under_way[future] = when_ended
        future.add_done_callback(self._ended.put)

    def wait(self) -> None:
        """Deal with all that is under way."""
        while self._under_way:
            self._deal_with_one()

    def one_ahead(self, items: Iterator[T]) -> Iterator[T]:
        """The items of an iterator, each made in a thread while the one before it is dealt with."""
        end = object()
        with ThreadPoolExecutor(1, thread_name_prefix="one-ahead") as thread:
            coming = thread.submit(next, items, end)
            while True:
                self.add(coming, lambda _: None)
                while coming in self._under_way:
                    self._deal_with_one()
                item: Any = coming.result()
                if item is end:
                    return
                coming = thread.submit(next, items, end)
                yield item

    def _deal_with_one(self) -> None:
        future = self._ended.get()
        self._under_way.pop(future)(future)
