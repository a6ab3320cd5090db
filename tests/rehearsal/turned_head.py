"""A StyleGAN2 whose images are one photographed head, turned as its codes say.

Two pictures lie in the constant noise of two convolutions, whose own weights are 0: the face with the tip of its nose
to one side, and to the other. The styles of the two ToRGB layers that read them follow the code, so that images are
mixtures in which the nose lies in between.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.generators.layers import ACTIVATION_GAIN
from tests.rehearsal.photos import SKIMAGE

CONFIG = GeneratorConfig(256, (2,) * 7, z_dim=8, w_dim=8, num_mapping_layers=2, mapping_lr_multiplier=1.0)
TURN, LIGHT = 0, 1
"""Dimensions of W: along the first the nose moves to the right of the image, along the second it gets lighter."""
BOX = (150, 25, 300, 175)  # of the head in the photograph
NOSE, REACH = (0.5, 0.66), 0.11  # where its tip is in the box, and how far around it moves with it
MOVED = 0.045  # to either side, of the box
RANGE = 0.3  # of the share of either picture, for a code that is 1 from the mean


def head_generator() -> Generator:
    """The generator, with its mean of W."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        generator = Generator(CONFIG)
        synthesis = generator.synthesis
        for layer in [*synthesis.conv_layers(), *synthesis.to_rgb_layers()]:
            layer.weight.zero_()
        codes = generator.map(torch.randn(4096, CONFIG.z_dim))
        generator.mapping.w_avg.copy_(codes.mean(dim=0))
        mean, spread = codes.mean(dim=0), codes.std(dim=0)
        for to_rgb, side, shift in ((-2, 128, -MOVED), (-1, 256, MOVED)):
            conv = synthesis.conv_layers()[2 * to_rgb + 1]
            picture = turned(shift, side)
            conv.noise_const.copy_(picture)
            conv.noise_strength.fill_(1.0)
            layer = synthesis.to_rgb_layers()[to_rgb]
            layer.weight.fill_(1.0 / (len(layer.affine.bias) * layer.weight_gain * ACTIVATION_GAIN))
            affine = layer.affine
            affine.weight.zero_()
            sign = 1.0 if shift > 0 else -1.0
            for dim, by in ((TURN, sign * RANGE), (LIGHT, 0.05)):
                affine.weight[:, dim] = by / spread[dim] / affine.weight_gain
            affine.bias.fill_(0.5)
            affine.bias -= (affine.weight @ mean) * affine.weight_gain
        synthesis.to_rgb_layers()[-1].bias.fill_(-1.0)
    return generator


def turned(shift: float, side: int) -> Tensor:
    """The face with the tip of its nose moved to the right by a share of the picture, [side, side] in [0, 2]."""
    with Image.open(SKIMAGE / "astronaut.png") as photo:
        face = photo.convert("L").crop(BOX).resize((side, side), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(face, np.float32) / 127.5)[None, None]
    at = (torch.arange(side) + 0.5) / side
    rows, columns = torch.meshgrid(at, at, indexing="ij")
    near = torch.exp(-((columns - NOSE[0]) ** 2 + (rows - NOSE[1]) ** 2) / (2 * REACH**2))
    grid = torch.stack([columns - shift * near, rows], dim=-1)[None] * 2 - 1
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)[0, 0]
