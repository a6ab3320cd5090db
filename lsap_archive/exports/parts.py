"""A stream of items in parts, each for a file of its own; one item in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def in_parts(
    items: Iterator[T], bytes_of: Callable[[T], int], *, most_bytes: int, most_items: int
) -> Iterator[Iterator[T]]:
    """The items of each part in turn; a part has to be read to its end before the next.

    Args:
        items: that are divided.
        bytes_of: an item's size.
        most_bytes: of a part, unless one item is larger.
        most_items: of a part.

    Example:
        >>> [list(part) for part in in_parts(iter([3, 3, 9, 1, 1, 1]), int, most_bytes=6, most_items=2)]
        [[3, 3], [9], [1, 1], [1]]
    """
    waiting = next(items, None)

    def of_part() -> Iterator[T]:
        nonlocal waiting
        number, size = 0, 0
        while waiting is not None and (not number or (number < most_items and size + bytes_of(waiting) <= most_bytes)):
            number, size = number + 1, size + bytes_of(waiting)
            yield waiting
            waiting = next(items, None)

    while waiting is not None:
        yield of_part()
