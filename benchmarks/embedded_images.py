"""Images of a source as generators see them, and what is measured of their inversions: shared by benchmarks."""

from __future__ import annotations

from itertools import islice

import numpy as np
from torch import Tensor

from lsap_core.alignment.anchor import Anchor
from lsap_core.images import from_uint8
from lsap_core.inversion import Inversion
from tasks.measuring.of_inversions import measure
from tasks.pictures.decoding import Fit, decode_image, place_content
from tasks.sources.source import open_source
from tasks.weights.generators import LoadedGenerator
from tasks.weights.networks import Networks


def read_images(source: str, count: int, loaded: LoadedGenerator, *, fit: Fit = "refuse") -> Tensor:
    """The first images of a source, [N, C, R, R] in [-1, 1]."""
    config, pixels = loaded.config, []
    with open_source(source) as opened:
        for item in islice(opened.items(), count):
            image = decode_image(opened.read(item), size=config.content_size, channels=config.image_channels, fit=fit)
            pixels.append(place_content(image.pixels, size=config.size, content_box=config.content_box))
    return from_uint8(np.stack(pixels))


def quality(
    inversion: Inversion, target: Tensor, *, loaded: LoadedGenerator, anchor: Anchor, networks: Networks
) -> dict[str, list[float]]:
    """What a report measures of each image of an inversion of `target`, by name."""
    return measure(
        inversion.reconstruction,
        target,
        inversion.w_plus,
        generator=loaded.generator,
        anchor=anchor,
        networks=networks,
    )
