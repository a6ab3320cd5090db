"""Several requests to a store at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

_CONCURRENT_REQUESTS = 8


def in_threads(call: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """`call` of each item, several at a time; the first error ends it."""
    with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
        futures = [pool.submit(call, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
