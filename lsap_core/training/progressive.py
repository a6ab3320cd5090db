"""When each head of an encoder joins: first one w for all layers, then one offset more at a time."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from lsap_core.errors import ConfigError


@dataclass(frozen=True)
class ProgressiveSchedule:
    """The stage of a step: heads 1 ... stage add their offsets to w_0 (e4e, section 4.2).

    Attributes:
        start: step at which the first offset joins; None for all heads from the beginning.
        every: steps from one offset to the next.
        num_ws: heads K.

    Raises:
        ConfigError: a number lies outside its range.

    Example:
        >>> schedule = ProgressiveSchedule(start=20_000, every=2_000, num_ws=18)
        >>> schedule.stage(19_999), schedule.stage(20_000), schedule.stage(60_000)
        (0, 1, 17)
    """

    start: int | None
    every: int
    num_ws: int

    def __post_init__(self) -> None:
        """Refuse what is no schedule."""
        if self.start is not None and self.start < 0:
            raise ConfigError(f"start is {self.start}; wanted a step, at least 0, or None for all heads at once")
        if self.every < 0:
            raise ConfigError(f"every is {self.every}; wanted a number of steps, at least 0")
        if self.num_ws < 1:
            raise ConfigError(f"num_ws is {self.num_ws}; wanted at least 1")

    def stages(self) -> tuple[int, ...]:
        """The first step of each stage: 0, start, start + every, ..."""
        if self.start is None:
            return (0,) * self.num_ws
        return (0, *(self.start + self.every * index for index in range(self.num_ws - 1)))

    def stage(self, step: int) -> int:
        """The stage in which a step, counted from 0, is taken: 0 to K - 1."""
        return bisect_right(self.stages(), step) - 1
