"""Whether a photo looks like what a generator makes, and if not, what about it is other: a hint, no measure.

A photo of another kind is inverted like any other, and what comes is then no fault of the method. Compared are features
of the domain's perceptual network, averaged over the whole picture and over each of 4 x 4 fields: the first sees how
bright it is and what it is made of, the second where in the picture that lies. A photo is unlike where its third
nearest synthetic image is farther than that of any synthetic image. Of held-out digits 1 in 100 is called unlike; of
their negatives all are, of those moved by a quarter of the picture 97 in 100.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lsap_core.generators.generator import Generator
from lsap_core.images import comparison_view, crop
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.metrics.neighbours import NEIGHBOURS, distance_to_neighbours
from tasks.digests import digest_of
from tasks.remembered import remembered_arrays

FIELDS = (1, 4)
"""Fields on each side of the picture, of the two looks."""
SMALL_SIDE, SMALL_SAMPLES, LARGE_SAMPLES = 64, 512, 64  # of large images each costs about a second
SAMPLE_SEED, TOGETHER = 20, 8
LEFT_OF_EXCESS = 0.2
"""Of how much farther a photo is than 1, that may be left for what was tried with it to be worth telling."""
FOUND_BY = 1
"""Goes up when other values are found, so that those remembered do not count any more."""


@dataclass(frozen=True)
class Unlike:
    """A photo that looks like nothing that the generator makes.

    Attributes:
        times: how far it is from its third nearest synthetic image, in what is usual between those.
        as_if: what about it is other: the one of CHANGES that makes it look alike, or nearly so, such as "negative";
            None where nothing does.
    """

    times: float
    as_if: str | None


class Familiarity:
    """What a generator's own images look like to a network."""

    def __init__(self, generator: Generator, perceptual: PerceptualDistance, *, key: object):
        """Look at synthetic images, or remember what was seen of them.

        Args:
            generator: frozen, on any device.
            perceptual: a network on the same device.
            key: digests of both.
        """
        self._perceptual = perceptual
        self._device = generator.mapping.w_avg.device
        self._kept = remembered_arrays("familiarity", digest_of([FOUND_BY, key]), lambda: self._seen(generator))

    @torch.no_grad()
    def judge(self, photo: Tensor, large: Tensor | None = None) -> Unlike | None:
        """Whether a photo is unlike all synthetic images; None where it is not.

        Args:
            photo: [1, C, h, w] in [-1, 1], the size of what a generator's images show.
            large: the same, a whole number of times as large where its file has so many pixels: there changes are
                tried.
        """
        times = self._times(photo)
        if times <= 1:
            return None
        best, best_times = None, 1 + (times - 1) * LEFT_OF_EXCESS
        height, width = photo.shape[-2:]
        for name in CHANGES:
            changed = self._times(change(photo if large is None else large, name, (height, width)))
            if changed <= 1:
                return Unlike(times, name)
            if changed < best_times:
                best, best_times = name, changed
        return Unlike(times, best)

    def _times(self, photo: Tensor) -> float:
        """How far a photo is, where 1 is as far as the farthest synthetic image; of both looks the larger."""
        found = []
        for fields, seen in zip(FIELDS, self._looks(photo.to(self._device)), strict=True):
            reference = torch.from_numpy(self._kept[f"seen_{fields}"])
            far = distance_to_neighbours(seen.cpu(), reference)
            found.append(far.item() / float(self._kept[f"farthest_{fields}"]))
        return max(found)

    def _looks(self, images: Tensor) -> list[Tensor]:
        """Features [N, D] of what images show, [N, C, h, w], for each number of fields."""
        taps = self._perceptual.features(comparison_view(images))
        return [torch.cat([_averages(tap, fields) for tap in taps], dim=1) for fields in FIELDS]

    @torch.no_grad()
    def _seen(self, generator: Generator) -> Mapping[str, NDArray[Any]]:
        config = generator.config
        count = SMALL_SAMPLES if max(config.content_size) <= SMALL_SIDE else LARGE_SAMPLES
        z = torch.randn(count, config.z_dim, generator=torch.Generator().manual_seed(SAMPLE_SEED))
        looks = []
        for part in z.split(TOGETHER):
            w_plus = generator.map(part.to(self._device))[:, None].expand(-1, config.num_ws, -1)
            shown = crop(generator.synthesize(w_plus).clamp(-1, 1), config.content_box)
            looks.append([look.cpu() for look in self._looks(shown)])
        arrays: dict[str, NDArray[Any]] = {}
        for fields, of_parts in zip(FIELDS, zip(*looks, strict=True), strict=True):
            seen = torch.cat(of_parts)
            others = distance_to_neighbours(seen, seen, k=NEIGHBOURS + 1)  # each is its own first neighbour
            arrays |= {f"seen_{fields}": seen.numpy(), f"farthest_{fields}": np.asarray(others.max())}
        return arrays


def change(images: Tensor, name: str, size: tuple[int, int]) -> Tensor:
    """One of CHANGES with images [N, C, h, w] in [-1, 1], which then have a size that theirs is a multiple of."""
    changed = CHANGES[name](images)
    return changed if tuple(changed.shape[-2:]) == size else F.interpolate(changed, size, mode="area")


def _averages(tap: Tensor, fields: int) -> Tensor:
    """Means of features [N, C, h, w] over fields, [N, D]; distances of them do not grow with their number."""
    side = min(fields, *tap.shape[-2:])
    averages: Tensor = F.adaptive_avg_pool2d(tap, side).flatten(1) / side
    return averages


def _zoomed(factor: float) -> Callable[[Tensor], Tensor]:
    """The middle enlarged, or all of it made smaller; what comes from outside repeats the edge."""

    def zoom(images: Tensor) -> Tensor:
        matrix = images.new_tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]]).expand(len(images), -1, -1)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    return zoom


def _centred(images: Tensor) -> Tensor:
    """What differs from the edge, moved to the middle by whole pixels; the edge is repeated."""
    edge = torch.cat([images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1]], dim=-1)
    differs = (images - edge.median(dim=-1).values[..., None, None]).abs().mean(dim=(0, 1))
    differs = differs * (differs > differs.max() / 4)
    height, width = differs.shape
    total = differs.sum().clamp_min(1e-6)
    down = (height - 1) / 2 - float((differs.sum(dim=1) * torch.arange(height, device=differs.device)).sum() / total)
    across = (width - 1) / 2 - float((differs.sum(dim=0) * torch.arange(width, device=differs.device)).sum() / total)
    rows = (torch.arange(height, device=images.device) - round(down)).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - round(across)).clamp(0, width - 1)
    return images[:, :, rows][:, :, :, columns]


def _more_contrast(images: Tensor) -> Tensor:
    """The darkest and the brightest hundredth become -1 and 1."""
    values = images.flatten(1)
    low, high = values.quantile(0.01, dim=1), values.quantile(0.99, dim=1)
    span = (high - low).clamp_min(1 / 128)
    return ((images - low[:, None, None, None]) / span[:, None, None, None] * 2 - 1).clamp(-1, 1)


def _then(*changes: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda images: functools.reduce(lambda image, change: change(image), changes, images)


_TONES: dict[str, Callable[[Tensor], Tensor]] = {
    "negative": torch.neg,
    "with more contrast": _more_contrast,
    "negative with more contrast": _then(torch.neg, _more_contrast),
}
_PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "moved to the middle": _centred,
    "enlarged": _then(_centred, _zoomed(1.5)),
    "enlarged twice": _then(_centred, _zoomed(2.0)),
    "enlarged three times": _then(_centred, _zoomed(3.0)),
    "made smaller": _then(_centred, _zoomed(0.7)),
}
_TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "turned by 90 degrees": lambda images: images.rot90(1, (2, 3)),
    "turned back by 90 degrees": lambda images: images.rot90(-1, (2, 3)),
    "turned upside down": lambda images: images.rot90(2, (2, 3)),
}
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    **_TONES,
    **_PLACES,
    **_TURNS,
    **{f"{tone}, {place}": _then(_TONES[tone], _PLACES[place]) for tone in _TONES for place in _PLACES},
}
"""What is tried with an unlike photo, the simplest first: of images [N, C, h, w], into the same shape."""
