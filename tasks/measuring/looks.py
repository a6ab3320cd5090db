"""Pictures and what networks saw in them: each looked for once, whichever measures want it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor


class Look(NamedTuple):
    """Something to be seen in a picture, by name.

    Attributes:
        name: such as "embedding of arcface".
        digest: of the weights that see it; None where nothing tells two versions of what sees it apart, so that it is
            not kept.
    """

    name: str
    digest: str | None = None


class Memory(Protocol):
    """What was seen before in these pictures, by others perhaps."""

    def recall(self, look: Look) -> Tensor | None:
        """What was seen, [N, ...]; None where it is not known of all of them."""
        ...

    def note(self, look: Look, seen: Tensor) -> None:
        """Take note of what was seen now, [N, ...]."""
        ...


class Looks:
    """Pictures, and what is seen in them.

    Attributes:
        pictures: [N, C, h, w] in [-1, 1].
    """

    def __init__(self, pictures: Tensor, memory: Memory | None = None):
        """For pictures, with what is remembered of them; nothing by default."""
        self.pictures = pictures
        self._memory = memory
        self._seen: dict[Look, Tensor] = {}

    def of(self, look: Look, how: Callable[[Tensor], Tensor]) -> Tensor:
        """What is to be seen in each picture, [N, ...]; NaN where there is nothing.

        Args:
            look: what.
            how: pictures to what is seen in them; asked only where nobody knows yet.
        """
        if look not in self._seen:
            known = None if self._memory is None or look.digest is None else self._memory.recall(look)
            if known is None:
                known = how(self.pictures)
                if self._memory is not None and look.digest is not None:
                    self._memory.note(look, known)
            self._seen[look] = known
        return self._seen[look]
