"""A network that only judges: another architecture than `FeatureNet`, in no loss of any method."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.perceptual.features import FeatureNetConfig


class JudgeNet(nn.Module):
    """Residual network with group normalization, SiLU and strided convolutions; 5x5 filters at the entrance.

    `features` are what Fréchet distances and precision/recall are computed in; `forward` gives class logits.
    """

    def __init__(self, config: FeatureNetConfig):
        super().__init__()
        self.config = config
        widths = config.channels
        self.entrance = nn.Conv2d(config.image_channels, widths[0], 5, padding=2)
        self.downs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(widths, (*widths[1:], widths[-1]), strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths)
        self.residuals = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in widths)
        self.embedding = nn.Linear(widths[-1], config.embedding_dim)
        self.classes = nn.Linear(config.embedding_dim, config.num_classes)

    def taps(self, images: Tensor) -> list[Tensor]:
        """The activations of every stage before its stride, [N, C, side, side], sides R, R/2, ..."""
        hidden, taps = self.entrance(images), []
        for norm, residual, down in zip(self.norms, self.residuals, self.downs, strict=True):
            tap = F.silu(hidden + residual(F.silu(norm(hidden))))
            taps.append(tap)
            hidden = down(tap)
        return taps

    def features(self, images: Tensor) -> Tensor:
        """Embeddings [N, embedding_dim] of images [N, C, R, R] in [-1, 1]."""
        hidden = self.downs[-1](self.taps(images)[-1])
        embedding: Tensor = self.embedding(F.silu(hidden).mean(dim=(2, 3)))
        return embedding

    def forward(self, images: Tensor) -> Tensor:
        """Class logits [N, num_classes]."""
        logits: Tensor = self.classes(F.silu(self.features(images)))
        return logits
