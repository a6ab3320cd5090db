"""A small convolutional network for small domains: perceptual distance, identity and class in one."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.errors import ShapeError

NORMALIZATION_EPSILON = 1e-2


@dataclass(frozen=True)
class FeatureNetConfig:
    """Sizes of a `FeatureNet`.

    Attributes:
        resolution: side of the images it was trained on.
        image_channels: 1, 3 or 4.
        channels: width of each stage; every stage halves the side.
        embedding_dim: width of the embedding.
        num_classes: classes it tells apart.
    """

    resolution: int
    image_channels: int
    channels: tuple[int, ...] = (16, 32, 64, 64)
    embedding_dim: int = 64
    num_classes: int = 10

    def to_dict(self) -> dict[str, Any]:
        """The sizes as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FeatureNetConfig:
        """The inverse of `to_dict`, also after a round through JSON."""
        return cls(**{**values, "channels": tuple(values["channels"])})


class FeatureNet(nn.Module):
    """Stages of convolution, batch normalization, ReLU (tapped) and max pooling; then embedding and classes."""

    def __init__(self, config: FeatureNetConfig):
        super().__init__()
        self.config = config
        widths = (config.image_channels, *config.channels)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in config.channels)
        side = config.resolution >> len(config.channels)
        self.embedding = nn.Linear(config.channels[-1] * side * side, config.embedding_dim)
        self.classes = nn.Linear(config.embedding_dim, config.num_classes)

    def taps(self, images: Tensor) -> list[Tensor]:
        """The activations of every stage before pooling, [N, C, side, side], sides R, R/2, ..."""
        if images.ndim != 4 or images.shape[1:] != (
            self.config.image_channels,
            self.config.resolution,
            self.config.resolution,
        ):
            raise ShapeError(
                f"images are {list(images.shape)}; this network wants "
                f"[N, {self.config.image_channels}, {self.config.resolution}, {self.config.resolution}]"
            )
        features, taps = images, []
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            features = F.relu(norm(conv(F.max_pool2d(features, 2) if index else features)))
            taps.append(features)
        return taps

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings [N, embedding_dim] of images [N, C, R, R] in [-1, 1]; not normalized."""
        embedding: Tensor = self.embedding(F.max_pool2d(self.taps(images)[-1], 2).flatten(1))
        return embedding

    def forward(self, images: Tensor) -> Tensor:
        """Class logits [N, num_classes]."""
        logits: Tensor = self.classes(F.relu(self.embed(images)))
        return logits


class Tapped(Protocol):
    """A network that shows the activations of its stages."""

    def taps(self, images: Tensor) -> list[Tensor]:
        """Activations [N, C, side, side] of every stage."""
        ...


class FeatureDistance(nn.Module):
    """Perceptual distance in LPIPS form on the taps of a small network (Zhang et al. 2018, eq. 1, unit weights).

    At every position the features are divided by their length; the squared difference is summed over channels,
    averaged over positions and over taps. An epsilon inside the length keeps empty positions from dominating.
    """

    def __init__(self, network: Tapped):
        super().__init__()
        self.network = network

    def features(self, images: Tensor) -> list[Tensor]:
        """Normalized taps of images [N, C, R, R] in [-1, 1]; compute them once for a fixed target."""
        return [
            tap * (tap.square().sum(dim=1, keepdim=True) + NORMALIZATION_EPSILON).rsqrt()
            for tap in self.network.taps(images)
        ]

    def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        """One distance for each image, [N], at least 0; lower is closer."""
        terms = [(a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in zip(features, target_features, strict=True)]
        return torch.stack(terms).mean(dim=0)

    def spatial(self, features: list[Tensor], target_features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The distance at every pixel of images of a size, [N, height, width], at least 0.

        Every tap's squared differences, interpolated bilinearly to the size, averaged over taps.
        """
        maps = [
            F.interpolate((a - b).square().sum(dim=1, keepdim=True), size, mode="bilinear", align_corners=False)
            for a, b in zip(features, target_features, strict=True)
        ]
        return torch.stack(maps).mean(dim=0)[:, 0]

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Distance of images [N, C, R, R] to target, the same shape, both in [-1, 1]: [N]."""
        return self.distance(self.features(images), self.features(target))


class EmbeddingSimilarity(nn.Module):
    """Identity similarity: cosine of the embeddings of a `FeatureNet`, in [-1, 1]; higher is closer."""

    def __init__(self, network: FeatureNet):
        super().__init__()
        self.network = network

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors [N, embedding_dim] of images [N, C, R, R] in [-1, 1]."""
        return F.normalize(self.network.embed(images), dim=1)

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Similarity of images [N, C, R, R] to target, the same shape, both in [-1, 1]: [N]."""
        return (self.embed(images) * self.embed(target)).sum(dim=1)
