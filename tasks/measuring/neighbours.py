"""Real images in a judge's embedding, for measuring how far others lie from them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.images import ContentBox
from lsap_core.metrics.neighbours import NEIGHBOURS, distance_to_neighbours
from tasks.measuring.networks import Judge
from tasks.pictures.saved import read_back


class RealNeighbours:
    """Embeddings of real images by a judge; made once, asked for every batch."""

    def __init__(self, judge: Judge, embeddings: Tensor):
        """Keep embeddings [M, D] that this judge made.

        Raises:
            ConfigError: fewer real images than neighbours.
        """
        if len(embeddings) < NEIGHBOURS:
            raise ConfigError(
                f"the reference holds {len(embeddings)} usable images; wanted at least {NEIGHBOURS}, better thousands"
            )
        self.judge = judge
        self.embeddings = embeddings

    @classmethod
    @torch.no_grad()
    def of(cls, judge: Judge, batches: Iterable[Tensor], *, content_box: ContentBox | None = None) -> RealNeighbours:
        """The reference of batches of real images [N, C, R, R] in [-1, 1].

        Raises:
            ConfigError: fewer images than neighbours.
        """
        embeddings = [judge.embed(read_back(batch, content_box=content_box)) for batch in batches]
        return cls(judge, torch.cat(embeddings) if embeddings else torch.zeros(0, 1))

    @torch.no_grad()
    def distances(self, seen: Tensor) -> Tensor:
        """Distance to the third nearest real image of images as they are read back, [N, C, h, w]: [N]."""
        return distance_to_neighbours(self.judge.embed(seen), self.embeddings.to(seen.device))
