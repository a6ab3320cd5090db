"""Codes of earlier steps, so that a discriminator does not forget them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError


class CodePool:
    """Up to `size` codes, exchanged one after another (Shrivastava et al. 2017, section 2.3, as e4e uses it).

    While the pool is not full, a code is stored and also returned. Afterwards a coin decides for each code: return it,
    or return a random stored one and store the new one in its place.

    Args:
        size: how many codes it holds; 0 returns what it is given.

    Raises:
        ConfigError: a negative size.
    """

    def __init__(self, size: int):
        if size < 0:
            raise ConfigError(f"size of a pool is {size}; wanted at least 0")
        self.size = size
        self.codes: Tensor | None = None

    def exchange(self, codes: Tensor, stream: torch.Generator) -> Tensor:
        """Give codes [N, D] to the pool and get as many back, [N, D], without gradient.

        Args:
            codes: the new codes.
            stream: a random stream on the CPU; from it come N coins, then N places.

        Raises:
            ShapeError: codes of another width than those in the pool, or no rows of codes.
        """
        codes = codes.detach()
        if codes.ndim != 2 or (self.codes is not None and codes.shape[1] != self.codes.shape[1]):
            held = "any width" if self.codes is None else self.codes.shape[1]
            raise ShapeError(f"codes are {list(codes.shape)}; this pool wants [N, D] with D = {held}")
        if self.size == 0:
            return codes
        is_swapped = (torch.rand(len(codes), generator=stream) < 0.5).tolist()
        places = torch.randint(self.size, (len(codes),), generator=stream).tolist()
        known = codes if self.codes is None else torch.cat([self.codes.to(codes), codes])
        stored, returned = list(range(len(known) - len(codes))), []
        for new, swap, place in zip(range(len(stored), len(known)), is_swapped, places, strict=True):
            if len(stored) < self.size:
                stored.append(new)
                returned.append(new)
            elif swap:
                returned.append(stored[place])
                stored[place] = new
            else:
                returned.append(new)
        self.codes = known[torch.tensor(stored, device=known.device)]
        return known[torch.tensor(returned, device=known.device)]

    def to_tensors(self) -> dict[str, Tensor]:
        """What is in the pool, for storage; nothing before the first exchange."""
        return {} if self.codes is None else {"codes": self.codes}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `to_tensors` returned.

        Raises:
            ShapeError: more codes than the pool holds.
        """
        codes = tensors.get("codes")
        if codes is not None and (codes.ndim != 2 or len(codes) > self.size):
            raise ShapeError(f"saved codes are {list(codes.shape)}; this pool holds [{self.size}, D]")
        self.codes = None if codes is None else codes.clone()
