"""Faces and their five points, by MTCNN (Zhang et al. 2016) as the published identity scores run it.

Three networks in a row: the first proposes boxes at every place and scale, the second and third refine them; the third
also tells the points. Layers carry the names of the published weights (`features.conv1`, `conv4_1`).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.perceptual.face_boxes import Boxes, calibrate, non_maximum_suppression, square, to_whole_pixels
from lsap_core.perceptual.published_weights import named_tensors, with_weights

SIDE_OF_PROPOSALS, SIDE_OF_REFINEMENT, SIDE_OF_OUTPUT = 12, 24, 48
PYRAMID_FACTOR = 0.707
STRIDE = 2
CANDIDATES_AT_ONCE = 256
PIXELS_AT_ONCE = 2**18  # of all images at one scale: more leave a CPU's caches, fewer leave a GPU idle
FACE = 1  # of the two classes


@dataclass(frozen=True)
class DetectorSettings:
    """How boldly faces are found; the defaults are those of the published identity scores.

    Attributes:
        min_face: side in pixels of the smallest face that is looked for.
        thresholds: of the three networks' probabilities, to be exceeded.
        scale_overlap: of two proposals at one scale whose overlap exceeds this, the surer one is kept.
        overlaps: likewise after each network.
        softmax: over what the first network's scores are normalized. "columns": over the columns of the map, as the
            published code does, and what its low thresholds belong to; "classes": face or not, as MTCNN means it;
            thresholds such as (0.6, 0.7, 0.8) go with it.
    """

    min_face: float = 20.0
    thresholds: tuple[float, float, float] = (0.15, 0.25, 0.35)
    scale_overlap: float = 0.5
    overlaps: tuple[float, float, float] = (0.7, 0.7, 0.7)
    softmax: Literal["columns", "classes"] = "columns"

    def __post_init__(self) -> None:
        """Refuse what cannot be looked for."""
        if self.min_face < SIDE_OF_PROPOSALS:
            raise ConfigError(f"min_face is {self.min_face}; wanted {SIDE_OF_PROPOSALS} pixels or more")
        if self.softmax not in ("columns", "classes"):
            raise ConfigError(f'softmax is "{self.softmax}"; wanted "columns" or "classes"')
        for value in (*self.thresholds, self.scale_overlap, *self.overlaps):
            if not 0 <= value <= 1:
                raise ConfigError(f"a threshold or overlap of the face detector is {value}; wanted 0 to 1")


@dataclass(frozen=True)
class Faces:
    """The faces of one image, the surest first.

    Attributes:
        boxes: left, top, right, bottom in pixels and probability [M, 5].
        landmarks: eyes, tip of the nose, corners of the mouth, left in the image first: (x, y) in pixels [M, 5, 2],
            float64, on the CPU.
    """

    boxes: Tensor
    landmarks: Tensor


class _SwapAndFlatten(nn.Module):
    """[N, C, H, W] -> [N, C W H]: the weights come from a program that stores columns first."""

    def forward(self, features: Tensor) -> Tensor:
        return features.transpose(2, 3).flatten(1)


def _stages(*layers: nn.Module) -> nn.Sequential:
    """Layers under the published names: conv1, prelu1, pool1, conv2, ...; a linear layer is a "conv" there too."""
    names, stage = [], 0
    for layer in layers:
        stage += isinstance(layer, nn.Conv2d | nn.Linear)
        kind = {nn.PReLU: "prelu", nn.MaxPool2d: "pool", _SwapAndFlatten: "flatten"}.get(type(layer), "conv")
        names.append(f"{kind}{stage}")
    return nn.Sequential(OrderedDict(zip(names, layers, strict=True)))


class ProposalNet(nn.Module):
    """Every 12 x 12 window of an image, 2 pixels apart: is it a face, and where is its box."""

    def __init__(self, softmax: Literal["columns", "classes"] = "columns") -> None:
        super().__init__()
        self.features = _stages(
            *(nn.Conv2d(3, 10, 3), nn.PReLU(10), nn.MaxPool2d(2, 2, ceil_mode=True)),
            *(nn.Conv2d(10, 16, 3), nn.PReLU(16)),
            *(nn.Conv2d(16, 32, 3), nn.PReLU(32)),
        )
        self.conv4_1 = nn.Conv2d(32, 2, 1)
        self.conv4_2 = nn.Conv2d(32, 4, 1)
        self.softmax_axis = {"columns": 3, "classes": 1}[softmax]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, H, W] in [-1, 1] -> offsets [N, 4, h, w], probabilities [N, 2, h, w]."""
        features = self.features(images)
        return self.conv4_2(features), self.conv4_1(features).softmax(dim=self.softmax_axis)


class RefinementNet(nn.Module):
    """Is a window of 24 x 24 pixels a face, and where is its box."""

    def __init__(self) -> None:
        super().__init__()
        self.features = _stages(
            *(nn.Conv2d(3, 28, 3), nn.PReLU(28), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(28, 48, 3), nn.PReLU(48), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(48, 64, 2), nn.PReLU(64), _SwapAndFlatten()),
            *(nn.Linear(576, 128), nn.PReLU(128)),
        )
        self.conv5_1 = nn.Linear(128, 2)
        self.conv5_2 = nn.Linear(128, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, 24, 24] in [-1, 1] -> offsets [N, 4], probabilities [N, 2]."""
        features = self.features(images)
        return self.conv5_2(features), self.conv5_1(features).softmax(dim=1)


class OutputNet(nn.Module):
    """Is a window of 48 x 48 pixels a face, where is its box, and where are its five points."""

    def __init__(self) -> None:
        super().__init__()
        self.features = _stages(
            *(nn.Conv2d(3, 32, 3), nn.PReLU(32), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(32, 64, 3), nn.PReLU(64), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(64, 64, 3), nn.PReLU(64), nn.MaxPool2d(2, 2, ceil_mode=True)),
            *(nn.Conv2d(64, 128, 2), nn.PReLU(128), _SwapAndFlatten()),
            *(nn.Linear(1152, 256), nn.PReLU(256)),
        )
        self.conv6_1 = nn.Linear(256, 2)
        self.conv6_2 = nn.Linear(256, 4)
        self.conv6_3 = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [N, 3, 48, 48] in [-1, 1] -> points (five x, then five y) [N, 10], offsets [N, 4], probabilities."""
        features = self.features(images)
        return self.conv6_3(features), self.conv6_2(features), self.conv6_1(features).softmax(dim=1)


Net = TypeVar("Net", ProposalNet, RefinementNet, OutputNet)


class FaceDetector(nn.Module):
    """Faces in images: looked for in all of a batch at once, found in each for itself."""

    def __init__(
        self,
        proposal: ProposalNet,
        refinement: RefinementNet,
        output: OutputNet,
        settings: DetectorSettings = DetectorSettings(),
    ):
        super().__init__()
        self.proposal = proposal
        self.refinement = refinement
        self.output = output
        self.settings = settings

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Faces]:
        """The faces of each image.

        Args:
            images: [N, 3, H, W] in about [-1, 1]; rounded to 8 bits first, as the detector reads pictures.

        Returns:
            One for each image, without any box where there is no face.

        Raises:
            ShapeError: the images have another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"images are {list(images.shape)}; wanted [N, 3, H, W]")
        levels = ((images.detach().clamp(-1, 1) + 1) * 127.5).round()
        first, second, third = self.settings.overlaps
        found = []
        for boxes, offsets in self._propose(levels):
            keep = non_maximum_suppression(boxes, first)
            found.append(to_whole_pixels(square(calibrate(boxes[keep], offsets[keep]))))

        answers = self._answers(self.refinement, levels, found, SIDE_OF_REFINEMENT)
        for at, (boxes, (moved, scores)) in enumerate(zip(found, answers, strict=True)):
            boxes, moved = _surer(boxes, scores, self.settings.thresholds[1], moved)
            keep = non_maximum_suppression(boxes, second)
            found[at] = to_whole_pixels(square(calibrate(boxes[keep], moved[keep])))

        answers = self._answers(self.output, levels, found, SIDE_OF_OUTPUT)
        faces = []
        for boxes, (points, moved, scores) in zip(found, answers, strict=True):
            boxes, moved, points = _surer(boxes, scores, self.settings.thresholds[2], moved, points)
            points = points.reshape(-1, 2, 5).transpose(0, 2, 1)
            landmarks = boxes[:, None, :2] + (boxes[:, None, 2:4] - boxes[:, None, :2] + 1) * points
            boxes = calibrate(boxes, moved)
            keep = non_maximum_suppression(boxes, third, of_smaller=True)
            faces.append(Faces(torch.from_numpy(boxes[keep]), torch.from_numpy(landmarks[keep])))
        return faces

    def _propose(self, levels: Tensor) -> list[tuple[Boxes, Boxes]]:
        """Boxes [M, 5] and offsets [M, 4] of each image at every scale; a scale is looked at in all images at once."""
        height, width = levels.shape[-2:]
        found: list[list[NDArray[np.float64]]] = [[np.zeros((0, 9))] for _ in levels]
        for scale in _scales(min(height, width), self.settings.min_face):
            size = (int(np.ceil(height * scale)), int(np.ceil(width * scale)))
            at_once = _resize(levels, size).split(max(1, PIXELS_AT_ONCE // (size[0] * size[1])))
            parts = [self.proposal(_seen(part)) for part in at_once]
            answers = [torch.cat(answer).cpu().double().numpy() for answer in zip(*parts, strict=True)]
            for of_image, offsets, probabilities in zip(found, *answers, strict=True):
                rows, columns = np.nonzero(probabilities[FACE] > self.settings.thresholds[0])
                corners = np.stack([columns, rows, columns, rows], axis=1) * STRIDE + 1.0
                corners[:, 2:] += SIDE_OF_PROPOSALS
                boxes = np.concatenate(
                    [
                        np.round(corners / scale),
                        probabilities[FACE, rows, columns][:, None],
                        offsets[:, rows, columns].T,
                    ],
                    axis=1,
                )
                of_image.append(boxes[non_maximum_suppression(boxes[:, :5], self.settings.scale_overlap)])
        together = [np.concatenate(of_image) for of_image in found]
        return [(boxes[:, :5], boxes[:, 5:]) for boxes in together]

    def _answers(
        self, network: RefinementNet | OutputNet, levels: Tensor, boxes: Sequence[Boxes], side: int
    ) -> list[tuple[NDArray[np.float64], ...]]:
        """What a network says of the picture in every box, by image; candidates of all images go through together."""
        windows = torch.cat([_cut(picture[None], of_one, side) for picture, of_one in zip(levels, boxes, strict=True)])
        parts = [network(_seen(part)) for part in windows.split(CANDIDATES_AT_ONCE)]
        ends = np.cumsum([len(of_one) for of_one in boxes])[:-1]
        whole = [torch.cat(answer).cpu().double().numpy() for answer in zip(*parts, strict=True)]
        return list(zip(*(np.split(answer, ends) for answer in whole), strict=True))


def surest_points(faces: Sequence[Faces]) -> Tensor:
    """The five points of the surest face of each image.

    Args:
        faces: what `FaceDetector.detect` found in N images.

    Returns:
        (x, y) in pixels [N, 5, 2], float64, on the CPU; NaN without a face.
    """
    missing = torch.full((1, 5, 2), torch.nan, dtype=torch.float64)
    return torch.cat([one.landmarks[:1] if len(one.landmarks) else missing for one in faces])


def build_face_detector(
    proposal: Mapping[str, object],
    refinement: Mapping[str, object],
    output: Mapping[str, object],
    settings: DetectorSettings = DetectorSettings(),
) -> FaceDetector:
    """MTCNN with the weights of `pnet.npy`, `rnet.npy` and `onet.npy`, frozen.

    Args:
        proposal: tensors of the first network by name (`features.conv1.weight`, `conv4_1.weight`).
        refinement: of the second.
        output: of the third.
        settings: see there.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or does not fit.
    """

    def filled(network: Net, tensors: Mapping[str, object], name: str) -> Net:
        return with_weights(network, named_tensors(tensors), f"MTCNN ({name}.npy)")

    with torch.device("meta"):
        nets = ProposalNet(settings.softmax), RefinementNet(), OutputNet()
    detector = FaceDetector(
        filled(nets[0], proposal, "pnet"),
        filled(nets[1], refinement, "rnet"),
        filled(nets[2], output, "onet"),
        settings,
    )
    return detector.requires_grad_(False).eval()


def _scales(shortest: int, min_face: float) -> list[float]:
    """Sizes at which an image is looked at, 1 being its own, down to where its shorter side has 12 pixels."""
    largest = SIDE_OF_PROPOSALS / min_face
    scales = (largest * PYRAMID_FACTOR**step for step in itertools.count())
    return list(itertools.takewhile(lambda scale: shortest * scale > SIDE_OF_PROPOSALS, scales))


def _surer(boxes: Boxes, scores: Boxes, threshold: float, *answers: Boxes) -> tuple[Boxes, ...]:
    """Boxes whose probability exceeds the threshold, with that probability, and what else was said of them."""
    keep = scores[:, FACE] > threshold
    return np.concatenate([boxes[keep, :4], scores[keep, FACE, None]], axis=1), *(answer[keep] for answer in answers)


def _cut(levels: Tensor, boxes: Boxes, side: int) -> Tensor:
    """The picture in each box [M, 3, side, side], black outside the image."""
    height, width = levels.shape[-2:]
    pictures = levels.new_zeros(len(boxes), levels.shape[1], side, side)
    for index, (left, top, right, bottom) in enumerate(boxes[:, :4].astype(int)):
        if right < 0 or bottom < 0 or left >= width or top >= height or right < left or bottom < top:
            continue  # all of it lies outside
        inside = levels[:, :, max(top, 0) : bottom + 1, max(left, 0) : right + 1]
        around = (max(-left, 0), max(right + 1 - width, 0), max(-top, 0), max(bottom + 1 - height, 0))
        pictures[index] = _resize(F.pad(inside, around), (side, side))[0]
    return pictures


def _resize(levels: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with antialiasing, rounded to 8 bits, like Pillow's within a level."""
    return F.interpolate(levels, size, mode="bilinear", align_corners=False, antialias=True).round()


def _seen(levels: Tensor) -> Tensor:
    """What the networks read: (v - 127.5) / 128."""
    return (levels - 127.5) * 0.0078125
