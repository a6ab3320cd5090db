"""What every pixel of a face shows (BiSeNet, Yu et al. 2018), and labels that belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.encoders.backbone import BasicBlock
from lsap_core.errors import CheckpointError
from lsap_core.images import as_rgb
from lsap_core.perceptual.published_weights import describe_document, named_tensors, with_weights

NUM_LABELS = 19
WIDTHS = (64, 128, 256, 512)
CONTEXT_CHANNELS = 128
FUSED_CHANNELS = 256
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

Merges = Mapping[int, Sequence[int]]
"""A label, and the labels that become it."""

SKIN_BROWS_EYES_EARS_NOSE_MOUTH_NECK = (1, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14)
HAIR = 17
FACE_MERGES: Merges = {3: SKIN_BROWS_EYES_EARS_NOSE_MOUTH_NECK}
"""Of this parser's labels, in the authors' program of SAM."""
FACE_MERGES_WITH_HAIR: Merges = {3: (*SKIN_BROWS_EYES_EARS_NOSE_MOUTH_NECK, HAIR)}
"""The same in GANInverter."""
CAR_MERGES: Merges = {3: (6, 13), 60: (21,), 20: (102, 83), 9: (29,)}
"""Of the 150 labels of ADE20K, for cars."""


class ConvNormRelu(nn.Module):
    """Convolution that keeps the size, batch normalization, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H, W]."""
        return F.relu(self.bn(self.conv(features)))


class AttentionRefinement(nn.Module):
    """Features times a weight of each channel that follows from their means."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.conv = ConvNormRelu(in_channels, CONTEXT_CHANNELS, 3)
        self.conv_atten = nn.Conv2d(CONTEXT_CHANNELS, CONTEXT_CHANNELS, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(CONTEXT_CHANNELS)

    def forward(self, features: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, 128, H, W]."""
        features = self.conv(features)
        weights: Tensor = self.bn_atten(self.conv_atten(features.mean(dim=(2, 3), keepdim=True)))
        return features * weights.sigmoid()


class ResNet18Trunk(nn.Module):
    """Images [N, 3, H, W] -> maps of 128, 256 and 512 channels at H / 8, H / 16 and H / 32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        before = WIDTHS[0]
        for group, width in enumerate(WIDTHS):
            stride = 2 if group > 0 else 1
            self.add_module(
                f"layer{group + 1}", nn.Sequential(BasicBlock(before, width, stride), BasicBlock(width, width, 1))
            )
            before = width

    def forward(self, images: Tensor) -> list[Tensor]:
        """The last three maps."""
        features = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        maps = []
        for group in range(len(WIDTHS)):
            features = self.get_submodule(f"layer{group + 1}")(features)
            maps.append(features)
        return maps[1:]


class ContextPath(nn.Module):
    """ResNet-18, whose coarse maps are refined and brought back to H / 8."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet18Trunk()
        self.arm16 = AttentionRefinement(WIDTHS[2])
        self.arm32 = AttentionRefinement(WIDTHS[3])
        self.conv_head32 = ConvNormRelu(CONTEXT_CHANNELS, CONTEXT_CHANNELS, 3)
        self.conv_head16 = ConvNormRelu(CONTEXT_CHANNELS, CONTEXT_CHANNELS, 3)
        self.conv_avg = ConvNormRelu(WIDTHS[3], CONTEXT_CHANNELS, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The trunk's map and the context, both [N, 128, H / 8, W / 8]."""
        at8, at16, at32 = self.resnet(images)
        context = self.arm32(at32) + self.conv_avg(at32.mean(dim=(2, 3), keepdim=True))
        context = self.conv_head32(F.interpolate(context, at16.shape[2:], mode="nearest"))
        context = self.arm16(at16) + context
        return at8, self.conv_head16(F.interpolate(context, at8.shape[2:], mode="nearest"))


class FeatureFusion(nn.Module):
    """Both maps mixed, plus themselves times a weight of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.convblk = ConvNormRelu(2 * CONTEXT_CHANNELS, FUSED_CHANNELS, 1)
        self.conv1 = nn.Conv2d(FUSED_CHANNELS, FUSED_CHANNELS // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(FUSED_CHANNELS // 4, FUSED_CHANNELS, 1, bias=False)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        """Two maps [N, 128, h, w] -> [N, 256, h, w]."""
        features: Tensor = self.convblk(torch.cat([spatial, context], dim=1))
        weights: Tensor = self.conv2(F.relu(self.conv1(features.mean(dim=(2, 3), keepdim=True))))
        return features + features * weights.sigmoid()


class LabelHead(nn.Module):
    """Features -> logits of the labels."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.conv = ConvNormRelu(in_channels, width, 3)
        self.conv_out = nn.Conv2d(width, NUM_LABELS, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """[N, in, h, w] -> [N, 19, h, w]."""
        logits: Tensor = self.conv_out(self.conv(features))
        return logits


class BiSeNet(nn.Module):
    """Images [N, 3, H, W], normalized as ImageNet's, -> logits of 19 labels [N, 19, H, W]; 13.3 million parameters.

    `conv_out16` and `conv_out32` belong to its training, and to its files.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cp = ContextPath()
        self.ffm = FeatureFusion()
        self.conv_out = LabelHead(FUSED_CHANNELS, 256)
        self.conv_out16 = LabelHead(CONTEXT_CHANNELS, 64)
        self.conv_out32 = LabelHead(CONTEXT_CHANNELS, 64)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of every pixel."""
        logits = self.conv_out(self.ffm(*self.cp(images)))
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=True)


class FaceParser(nn.Module):
    """Segments of faces: the parser's labels, those that belong together merged.

    Args:
        network: frozen and put into eval mode.
        merges: which labels become one; the authors' of SAM by default.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: BiSeNet, *, merges: Merges = FACE_MERGES):
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.merges = dict(merges)
        for name, values in (("mean", IMAGENET_MEAN), ("deviation", IMAGENET_DEVIATION)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> FaceParser:
        """The network stays in eval mode."""
        self.training = mode
        return self

    def logits(self, images: Tensor) -> Tensor:
        """Logits [N, 19, H, W] of images [N, C, H, W] in [-1, 1]."""
        rgb = as_rgb(images)
        logits: Tensor = self.network(((rgb + 1) / 2 - self.mean) / self.deviation)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Labels [N, H, W], int64, of images [N, C, H, W] in [-1, 1]."""
        return merge_labels(self.logits(images).argmax(dim=1), self.merges)


def merge_labels(labels: Tensor, merges: Merges) -> Tensor:
    """Labels of any shape, some of which have become others, all at once.

    Example:
        >>> merge_labels(torch.tensor([1, 2, 3, 4]), {2: (1, 3), 9: (2,)})
        tensor([2, 9, 2, 4])
    """
    merged = labels.clone()
    for label, others in merges.items():
        for other in others:
            merged[labels == other] = label
    return merged


def build_face_parser(state: object, *, merges: Merges = FACE_MERGES) -> FaceParser:
    """The face parser with the weights of `79999_iter.pth`.

    Args:
        state: tensors by name (`cp.resnet.conv1.weight`, ..., `conv_out.conv_out.weight`).
        merges: which labels become one.

    Raises:
        CheckpointError: the weights are another network's.
    """
    tensors = named_tensors(state)
    if not {"cp.resnet.conv1.weight", "conv_out.conv_out.weight"} <= tensors.keys():
        raise CheckpointError(
            f"wanted the face parser BiSeNet (cp, ffm and conv_out); found {describe_document(state)}: put "
            "79999_iter.pth in its place"
        )
    with torch.device("meta"):
        network = BiSeNet()
    return FaceParser(with_weights(network, tensors, "the face parser (79999_iter.pth)"), merges=merges)
