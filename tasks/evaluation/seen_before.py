"""What networks saw of a shard's originals, by this evaluation or another: looked at once, kept in the archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsap_archive import EvaluationWriter
from tasks.digests import digest_of
from tasks.measuring.looks import Look
from tasks.measuring.measures import View

VERSION = 1  # of how originals are decoded, placed and looked at

Seen = dict[str, NDArray[np.floating]]  # by digest of the image


@dataclass
class SeenBefore:
    """Of the originals of one shard; runs of the same images in the same shards share it, whatever their method.

    What is kept is decided by the network's weights, the images' content, in which order a shard has them, and how they
    are placed. Where an evaluation could not read some of the images, another one keeps those that it adds.

    Attributes:
        evaluation: opens the archive.
        digests: of the shard's images, those of which something is measured.
        placement: how an image becomes a picture of the generator, JSON values.
    """

    evaluation: EvaluationWriter
    digests: Sequence[str]
    placement: Mapping[str, Any]
    _kept: dict[tuple[View, Look], Seen] = field(default_factory=dict)
    _new: dict[tuple[View, Look], Seen] = field(default_factory=dict)

    def of(self, digests: Sequence[str]) -> dict[View, OfBatch]:
        """What is remembered of some of these images, by view."""
        return {"compared": OfBatch(self, "compared", digests), "whole": OfBatch(self, "whole", digests)}

    def kept(self, view: View, look: Look) -> Seen:
        """What the archive has of it, and what was seen since."""
        at = view, look
        if at not in self._kept:
            found: Seen = {}
            while left := self._left(found):
                part = self.evaluation.seen(self._name(view, look, left))
                if part is None or part.keys().isdisjoint(left):
                    break
                found |= part
            self._kept[at] = found
        return self._kept[at] | self._new.get(at, {})

    def note(self, view: View, look: Look, digests: Sequence[str], seen: Tensor) -> None:
        """Take note of what was seen now."""
        new = self._new.setdefault((view, look), {})
        new.update(zip(digests, seen.detach().cpu().numpy(), strict=True))

    def keep(self) -> None:
        """Put into the archive what it has not."""
        for (view, look), new in self._new.items():
            known = self._kept.get((view, look), {})
            added = {digest: seen for digest, seen in new.items() if digest not in known}
            if added:
                self.evaluation.keep_seen(self._name(view, look, self._left(known)), added)

    def _left(self, found: Mapping[str, Any]) -> list[str]:
        return [digest for digest in self.digests if digest not in found]

    def _name(self, view: View, look: Look, digests: Sequence[str]) -> str:
        return digest_of([VERSION, view, *look, dict(self.placement), list(digests)])[:32]


@dataclass(frozen=True)
class OfBatch:
    """Of some images in one view: a `Memory` of their pictures."""

    whole: SeenBefore
    view: View
    digests: Sequence[str]

    def recall(self, look: Look) -> Tensor | None:
        """What was seen, [N, ...], if it is known of all of them."""
        kept = self.whole.kept(self.view, look)
        if any(digest not in kept for digest in self.digests):
            return None
        return torch.from_numpy(np.stack([kept[digest] for digest in self.digests]))

    def note(self, look: Look, seen: Tensor) -> None:
        """Take note of what was seen now."""
        self.whole.note(self.view, look, self.digests, seen)
