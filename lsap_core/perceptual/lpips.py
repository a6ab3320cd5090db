"""LPIPS (Zhang et al. 2018) by the `lpips` package, with the target's features computed once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.convolution import with_winograd
from lsap_core.errors import CheckpointError
from lsap_core.images import as_rgb

LpipsNet = Literal["vgg", "alex", "squeeze"]

LENGTH_EPSILON = 1e-10
GRADIENT_FLOOR = 1e-20


class LpipsDistance(nn.Module):
    """LPIPS v0.1 of RGB or gray images in [-1, 1]; the trunk and linear layers are the package's.

    Features are divided by their length plus 1e-10 at every position. Inside the root of the length stands a tiny
    number more than in the package: the gradient of a length is infinite where all features are exactly 0.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network: Any = with_winograd(network.requires_grad_(False).eval())

    def train(self, mode: bool = True) -> LpipsDistance:
        """The network stays in eval mode: dropout would make distances random."""
        self.training = mode
        return self

    def features(self, images: Tensor) -> list[Tensor]:
        """Normalized trunk features of images [N, C, H, W] in [-1, 1]."""
        rgb = as_rgb(images)
        features = []
        for tap in self.network.net(self.network.scaling_layer(rgb)):
            length = (tap.square().sum(dim=1, keepdim=True) + GRADIENT_FLOOR).sqrt()
            features.append(tap / (length + LENGTH_EPSILON))
        return features

    def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        """One distance for each image, [N], at least 0; lower is closer."""
        return self.per_layer(features, target_features).sum(dim=0)

    def per_layer(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        """The contributions of the taps, [taps, N]."""
        terms = [
            linear((a - b).square()).mean(dim=(1, 2, 3))
            for linear, a, b in zip(self.network.lins, features, target_features, strict=True)
        ]
        return torch.stack(terms)

    def spatial(self, features: list[Tensor], target_features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The distance at every pixel of images of a size, [N, height, width], at least 0.

        Every tap's contributions, interpolated bilinearly to the size, summed over taps.
        """
        maps = [
            F.interpolate(linear((a - b).square()), size, mode="bilinear", align_corners=False)
            for linear, a, b in zip(self.network.lins, features, target_features, strict=True)
        ]
        return torch.stack(maps).sum(dim=0)[:, 0]

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Distance of images [N, C, H, W] to target, the same shape, both in [-1, 1]: [N]."""
        return self.distance(self.features(images), self.features(target))


def build_lpips(
    net: LpipsNet, trunk: Mapping[str, Tensor], linear: Mapping[str, Tensor] | None = None
) -> LpipsDistance:
    """LPIPS with the given weights; nothing is downloaded.

    Args:
        net: which trunk.
        trunk: the trunk's weights under torchvision's keys (`features.0.weight`, ...); other keys are ignored.
        linear: weights of the linear layers (`lin0.model.1.weight`, ...); the package's own v0.1 by default.

    Raises:
        CheckpointError: the weights are not those of this trunk.
    """
    import lpips

    with warnings.catch_warnings():
        # lpips 0.1.4 builds its trunks through torchvision's old argument, which nobody who measures can change.
        for message in ("The parameter 'pretrained' is deprecated", "Arguments other than a weight enum"):
            warnings.filterwarnings("ignore", message, UserWarning)
        network = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("net.")}
    for name in network.net.state_dict():
        slice_name, rest = name.split(".", 1)
        published = f"features.{rest}"
        wanted = network.net.state_dict()[name].shape
        found = trunk.get(published) if isinstance(trunk, Mapping) else None
        if not isinstance(found, Tensor) or found.shape != wanted:
            raise CheckpointError(
                f"the trunk of lpips-{net} wants {published} {list(wanted)}, found "
                f"{list(found.shape) if isinstance(found, Tensor) else 'nothing'}: use torchvision's weights of this "
                "network"
            )
        state[f"net.{slice_name}.{rest}"] = found
    for name, value in (linear or {}).items():
        for alias in (name, f"lins.{name.removeprefix('lin')}"):
            if alias in state:
                state[alias] = value
    network.load_state_dict(state)
    return LpipsDistance(network)
