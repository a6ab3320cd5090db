"""The terms of a refiner's training that compare images: pixel error, perceptual distance, identity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsap_core.images import ContentBox, comparison_view
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.objectives.terms import pixel_error
from lsap_core.training.encoder_step import IdentityNetwork
from lsap_core.training.sfe_settings import SfeTrainingSettings


class ImageTerms:
    """Compares images made with their targets, at 256 pixels on the longer side at most, averaged down (area).

    Args:
        perceptual: frozen.
        identity: frozen; not needed where the identity term has no weight.
        settings: their weights say which terms are computed.
        content_box: rows and columns that carry the picture, or None for all.
    """

    def __init__(
        self,
        perceptual: PerceptualDistance,
        identity: IdentityNetwork | None,
        settings: SfeTrainingSettings,
        *,
        content_box: ContentBox | None,
    ):
        self.perceptual = perceptual
        self.identity = identity
        self.settings = settings
        self.content_box = content_box

    def averaged(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Terms of each image, [N], averaged over pairs of what was made of it and the target, [N, C, R, R] each."""
        every = [self.of_pair(made, target) for made, target in pairs]
        return {name: torch.stack([terms[name] for terms in every]).mean(dim=0) for name in every[0]}

    def of_pair(self, made: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Terms [N] where they have a weight: "l2", "lpips", "identity" (1 - similarity); no gradient to the target."""
        seen = comparison_view(made, content_box=self.content_box)
        wanted = comparison_view(target, content_box=self.content_box).detach()
        terms: dict[str, Tensor] = {}
        if self.settings.l2_weight > 0:
            terms["l2"] = pixel_error(seen, wanted)
        if self.settings.lpips_weight > 0:
            with torch.no_grad():
                features = self.perceptual.features(wanted)
            terms["lpips"] = self.perceptual.distance(self.perceptual.features(seen), features)
        if self.settings.identity_weight > 0 and self.identity is not None:
            with torch.no_grad():
                embedding = self.identity.embed(wanted)
            terms["identity"] = 1 - (self.identity.embed(seen) * embedding).sum(dim=1)
        return terms
