"""Sizes of encoders: from a generator, through JSON, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lsap_core.encoders import EncoderConfig
from lsap_core.errors import ConfigError
from lsap_core.generators import GeneratorConfig


@pytest.mark.parametrize(
    ("generator", "input_size", "num_ws"),
    [
        (GeneratorConfig.config_f(1024), (256, 256), 18),
        (GeneratorConfig.config_f(512, content_box=(64, 448, 0, 512)), (192, 256), 16),
        (GeneratorConfig.config_f(256), (256, 256), 14),
        (GeneratorConfig(32, (2, 2, 2, 2), image_channels=1, w_dim=64), (32, 32), 8),
        (GeneratorConfig(32, (2, 2, 2, 2), content_box=(4, 28, 2, 30)), (24, 28), 8),
    ],
)
def test_an_encoder_reads_what_the_generator_is_compared_by(
    generator: GeneratorConfig, input_size: tuple[int, int], num_ws: int
) -> None:
    config = EncoderConfig.for_generator(generator, heads="offsets", backbone="small")
    assert (config.input_size, config.num_ws, config.w_dim) == (input_size, num_ws, generator.w_dim)
    assert config.image_channels == config.in_channels == generator.image_channels


def test_an_iterative_encoder_reads_two_images() -> None:
    config = EncoderConfig.for_generator(
        GeneratorConfig.config_f(256), heads="direct", backbone="resnet_34", is_iterative=True, has_pyramid=False
    )
    assert (config.image_channels, config.in_channels, config.num_heads) == (3, 6, 14)


def test_the_configuration_survives_json() -> None:
    config = EncoderConfig("offsets", "small", 8, 20, (24, 32), 1, is_iterative=True, has_pyramid=False)
    assert EncoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_single_head_has_no_pyramid() -> None:
    config = EncoderConfig("single", "ir_se_50", 18, 512, (256, 256), 3)
    assert (config.has_pyramid, config.num_heads) == (False, 1)
    assert config == EncoderConfig("single", "ir_se_50", 18, 512, (256, 256), 3, has_pyramid=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": "deltas"}, 'heads is "deltas"; wanted one of "direct", "offsets", "single"'),
        ({"backbone": "vgg"}, 'backbone is "vgg"; wanted one of "ir_se_50", "resnet_34", "small"'),
        ({"num_ws": 0}, "every size must be a whole number, at least 1"),
        ({"num_ws": 10**9}, "num_ws at most 64"),
        ({"w_dim": 4.5}, "every size must be a whole number"),
        ({"input_size": (0, 4)}, "every size must be a whole number, at least 1"),
        ({"input_size": (4, 4, 3)}, r"input_size is \(4, 4, 3\); wanted height and width"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {"heads": "direct", "backbone": "small", "num_ws": 8, "w_dim": 4, "input_size": (8, 8)}
    with pytest.raises(ConfigError, match=message):
        EncoderConfig(**{**sizes, "image_channels": 1, **change})
