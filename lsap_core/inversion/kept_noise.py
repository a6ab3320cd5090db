"""What is kept of the noise maps of an inversion, and the inversion as it is with that."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from lsap_core.generators.generator import Generator
from lsap_core.inversion.inversion import Inversion

KeepNoise = Literal["float32", "float16", "none"]
"""Maps as they were found, maps in half precision, or no maps: the generator's constant ones take their place."""
KEEP_NOISE: tuple[KeepNoise, ...] = get_args(KeepNoise)


@torch.no_grad()
def as_kept(inversion: Inversion, generator: Generator, keep: KeepNoise) -> Inversion:
    """The inversion as whoever reads it will render it: with the noise that is kept, and the image that this gives.

    Codes, trace and steps are those of the search, which knew its own maps in full precision.

    Args:
        inversion: of N images.
        generator: whose codes they are, on the same device.
        keep: "float32" changes nothing; "float16" rounds each map to the nearest half (11 bits; normalized maps are
            far from its limits); "none" puts the generator's constant maps in their place.

    Returns:
        With `noise` as float32 maps [N, 1, side, side] that lose nothing when they are stored, and `reconstruction`
        [N, C, R, R], unclamped, made with them.
    """
    if keep == "float32":
        return inversion
    if keep == "float16":
        noise = tuple(maps.half().float() for maps in inversion.noise)
    else:
        constant = (cast(Tensor, maps) for maps in generator.noise_maps("constant"))
        noise = tuple(maps.expand(len(inversion.w_plus), 1, -1, -1) for maps in constant)
    return replace(inversion, noise=noise, reconstruction=generator.synthesize(inversion.w_plus, noise=noise))
