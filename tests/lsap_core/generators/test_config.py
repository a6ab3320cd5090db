"""Sizes of StyleGAN2 generators."""

import json
from dataclasses import replace

import pytest
import torch

from lsap_core.errors import ConfigError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.generator import style_widths
from lsap_core.spaces.styles import style_positions

# resolution: rows of W+, convolutions, ToRGB layers, entries of the authors' style set, of the convolutions' alone
PUBLISHED_SIZES = {
    32: (8, 7, 4, 4096, 3584),
    64: (10, 9, 5, 5120, 4608),
    128: (12, 11, 6, 5632, 5376),
    256: (14, 13, 7, 5888, 5760),
    512: (16, 15, 8, 6016, 5952),
    1024: (18, 17, 9, 6080, 6048),
}


@pytest.mark.parametrize("resolution", PUBLISHED_SIZES)
def test_sizes_of_the_published_generators_follow_from_the_resolution(resolution: int) -> None:
    config = GeneratorConfig.config_f(resolution)
    widths = style_widths(config)
    entries = [
        sum(widths[position] for position in style_positions(config, style_set)) for style_set in ("authors", "conv")
    ]
    assert (config.num_ws, config.num_convs, config.num_to_rgbs, *entries) == PUBLISHED_SIZES[resolution]
    sides = [2 ** ((index + 5) // 2) for index in range(config.num_ws - 1)]
    assert config.noise_sizes == tuple(zip(sides, sides, strict=True))
    assert config.noise_sizes[-1] == config.size == (resolution, resolution)


@pytest.mark.parametrize(("resolution", "count"), [(256, 30_034_338), (512, 30_276_583), (1024, 30_370_060)])
def test_the_number_of_parameters_is_the_published_one(resolution: int, count: int) -> None:
    with torch.device("meta"):
        generator = Generator(GeneratorConfig.config_f(resolution))
    assert sum(parameter.numel() for parameter in generator.parameters()) == count


def test_channel_tables_of_both_published_widths() -> None:
    assert GeneratorConfig.config_f(1024).channels == (512, 512, 512, 512, 512, 256, 128, 64, 32)
    assert GeneratorConfig.config_e(256).channels == (512, 512, 512, 512, 256, 128, 64)


def test_a_configuration_survives_json() -> None:
    config = GeneratorConfig.config_e(64, conv_clamp=256.0, content_box=(8, 56, 0, 64), image_channels=1)
    assert GeneratorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 48}, "resolution is 48"),
        ({"resolution": 4}, "resolution is 4"),
        ({"resolution": 64}, "4 channel counts for resolution 64; wanted 5"),
        ({"channels": (4, 4, 0, 4)}, "at least 1"),
        ({"num_mapping_layers": 0}, "at least 1"),
        ({"content_box": (0, 33, 0, 32)}, r"content box \(0, 33, 0, 32\)"),
        ({"content_box": (8, 8, 0, 32)}, "content box"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(GeneratorConfig(32, (4, 4, 4, 4)), **changes)
