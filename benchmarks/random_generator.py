"""Generators with random weights: they cost what trained ones cost, and need no checkpoint."""

from __future__ import annotations

import torch

from lsap_core.generators import Generator, GeneratorConfig, Modulation

TABLES = ("digits", "config_f", "tiny")
NOISE_STRENGTH = 0.1


def generator_config(table: str, resolution: int) -> GeneratorConfig:
    """The sizes of a channel table: the digits domain's, the published "config-f", or a toy for tests and warm-ups."""
    if table == "digits":
        return GeneratorConfig(
            resolution,
            (64, 64, 32, 16),
            z_dim=12,
            w_dim=64,
            num_mapping_layers=3,
            image_channels=1,
            mapping_lr_multiplier=0.1,
        )
    if table == "config_f":
        return GeneratorConfig.config_f(resolution)
    num_sides = resolution.bit_length() - 2
    return GeneratorConfig(resolution, (8,) * num_sides, z_dim=8, w_dim=8, num_mapping_layers=2)


def has_resolution(table: str, resolution: int) -> bool:
    """Whether the table has that resolution: the digits are 32 pixels wide, the others exist at every size."""
    return table != "digits" or resolution == 32


def random_generator(table: str, resolution: int, form: Modulation, device: torch.device) -> Generator:
    """A frozen generator, with the same weights in both forms and noise at every convolution, as in trained ones."""
    torch.manual_seed(0)
    generator = Generator(generator_config(table, resolution), modulation=form)
    for layer in generator.synthesis.conv_layers():
        torch.nn.init.constant_(layer.noise_strength, NOISE_STRENGTH)
    return generator.freeze().to(device)
