"""Perceptual networks with random weights: right in cost, without meaning; they need torch alone."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from lsap_core.generators import GeneratorConfig
from lsap_core.images import COMPARISON_SIDE
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.perceptual.lpips import LpipsDistance

RANDOM_FEATURES, RANDOM_VGG = "random features", "random lpips-vgg"
PERCEPTUAL = {"features": RANDOM_FEATURES, "lpips-vgg": RANDOM_VGG}
VGG_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Widths of VGG-16's convolutions; LPIPS taps the last one of every stage."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def random_perceptual(name: str, config: GeneratorConfig) -> FeatureDistance | LpipsDistance:
    """A perceptual distance with random weights for the images of a generator."""
    torch.manual_seed(1)
    if name == RANDOM_VGG:
        return LpipsDistance(RandomLpips())
    side = min(config.resolution, COMPARISON_SIDE)
    network = FeatureNet(FeatureNetConfig(side, config.image_channels))
    return FeatureDistance(network.requires_grad_(False).eval())


class RandomLpips(nn.Module):
    """The parts of LPIPS-VGG as the package `lpips` names them, in its sizes; linear weights are not negative."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = Scaling()
        self.net = VggTaps()
        self.lins = nn.ModuleList(Linear(widths[-1]) for widths in VGG_STAGES)


class Scaling(nn.Module):
    """Images in [-1, 1] as the trunk wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT)[None, :, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[None, :, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> the same shape."""
        return (images - self.shift) / self.scale  # type: ignore[operator]


class VggTaps(nn.Module):
    """VGG-16 up to its last convolution; returns the activations that LPIPS compares."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for number, widths in enumerate(VGG_STAGES, start=1):
            layers: list[nn.Module] = [] if number == 1 else [nn.MaxPool2d(2)]
            for before, width in itertools.pairwise((channels, *widths)):
                conv = nn.Conv2d(before, width, 3, padding=1)
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
                layers += [conv, nn.ReLU(inplace=True)]
            setattr(self, f"slice{number}", nn.Sequential(*layers))
            channels = widths[-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Activations of the five stages, [N, C, H, W], H and W halved from stage to stage."""
        taps, features = [], images
        for number in range(1, len(VGG_STAGES) + 1):
            features = getattr(self, f"slice{number}")(features)
            taps.append(features)
        return taps

    def layers(self) -> nn.Sequential:
        """All layers in a row, with the numbers of torchvision's `vgg16().features`; shared, not copied."""
        stages = (getattr(self, f"slice{number}") for number in range(1, len(VGG_STAGES) + 1))
        return nn.Sequential(*(layer for stage in stages for layer in stage))


class Linear(nn.Module):
    """One channel from the squared differences of a tap."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, 1, 1, bias=False)
        nn.init.uniform_(conv.weight, 0.0, 0.5)
        self.model = nn.Sequential(nn.Dropout(), conv)

    def forward(self, differences: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 1, H, W]."""
        weighted: Tensor = self.model(differences)
        return weighted
