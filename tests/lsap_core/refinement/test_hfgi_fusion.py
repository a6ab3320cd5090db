"""Where HFGI's conditions enter a generator: the published place, its rule at other sizes, and the content box."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.generators import FeatureState, GeneratorConfig
from lsap_core.images import comparison_view
from lsap_core.refinement.hfgi_fusion import Fusion

Numbers = Callable[..., Tensor]
CARS = GeneratorConfig.config_f(512, content_box=(64, 448, 0, 512))


def small(resolution: int, **sizes: Any) -> GeneratorConfig:
    return GeneratorConfig(resolution, tuple(range(10, 9 + resolution.bit_length() - 1)), **sizes)


@pytest.mark.parametrize(
    ("config", "view_side", "side", "box", "view_size"),
    [
        (GeneratorConfig.config_f(1024), None, 64, (0, 64, 0, 64), (256, 256)),
        (GeneratorConfig.config_e(256), None, 64, (0, 64, 0, 64), (256, 256)),
        (CARS, None, 64, (8, 56, 0, 64), (192, 256)),
        (small(64), 256, 64, (0, 64, 0, 64), (256, 256)),  # as published for 256-pixel views
        (small(64), None, 16, (0, 16, 0, 16), (64, 64)),
        (small(32), None, 8, (0, 8, 0, 8), (32, 32)),
        (small(32, content_box=(4, 28, 0, 32)), None, 8, (1, 7, 0, 8), (24, 32)),
        (small(32, content_box=(5, 27, 0, 32)), None, 8, (1, 7, 0, 8), (22, 32)),  # rounded outward
        (small(32, content_box=(0, 32, 6, 26)), 64, 16, (0, 16, 3, 13), (64, 40)),
        (small(32), 256, 32, (0, 32, 0, 32), (256, 256)),  # the largest side there is
        (small(8), None, 4, (0, 4, 0, 4), (8, 8)),  # the smallest one
    ],
)
def test_conditions_belong_to_features_of_their_own_size(
    config: GeneratorConfig, view_side: int | None, side: int, box: tuple[int, ...], view_size: tuple[int, int]
) -> None:
    fusion = Fusion.of(config, view_side=view_side)
    assert (fusion.size, fusion.box, fusion.view_size) == ((side, side), box, view_size)
    assert config.noise_sizes.index((side, side)) == fusion.conv
    assert config.conv_out_channels(fusion.conv) == fusion.channels


def test_the_published_place_is_convolution_7() -> None:
    for resolution in (64, 128, 256, 512, 1024):
        assert Fusion.of(GeneratorConfig.config_f(resolution), view_side=256).conv == 7


def test_features_outside_the_content_box_stay_bit_for_bit(numbers: Numbers) -> None:
    config = small(32, content_box=(4, 28, 0, 32))
    fusion = Fusion.of(config)
    features = numbers(2, fusion.channels, 8, 8)
    state = FeatureState(fusion.conv, features, rgb=None)
    scale, shift = numbers(2, fusion.channels, 6, 8, seed=1), numbers(2, fusion.channels, 6, 8, seed=2)
    entered = fusion.enter(state, scale, shift).features
    assert torch.equal(entered[:, :, [0, 7]], features[:, :, [0, 7]])
    assert torch.equal(entered[:, :, 1:7], features[:, :, 1:7] * (1 + scale) + shift)


def test_conditions_of_another_size_are_interpolated(numbers: Numbers) -> None:
    fusion = Fusion.of(small(32))
    features, scale = numbers(1, fusion.channels, 8, 8), numbers(1, fusion.channels, 5, 7, seed=1)
    entered = fusion.enter(FeatureState(fusion.conv, features, None), scale, torch.zeros_like(scale)).features
    resized = F.interpolate(scale, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(entered, features * (1 + resized))


def test_the_view_is_clamped_at_every_size(numbers: Numbers) -> None:
    images = 3 * numbers(1, 3, 32, 32)
    assert torch.equal(Fusion.of(small(32)).view(images), images.clamp(-1, 1))
    large = Fusion.of(small(32), view_side=64).view(images)
    assert torch.equal(large, F.interpolate(images.clamp(-1, 1), (64, 64), mode="bilinear", align_corners=False))


def test_views_are_those_of_comparisons(numbers: Numbers) -> None:
    fusion, images = Fusion.of(CARS), numbers(1, 3, 512, 512).clamp(-1, 1)
    for downsampling, found in (
        ("bilinear_noaa", fusion.view(images)),
        ("bilinear", fusion.view(images, antialias=True)),
        ("area", fusion.pooled(images)),
    ):
        assert torch.equal(found, comparison_view(images, content_box=CARS.content_box, downsampling=downsampling))


@pytest.mark.parametrize("view_side", [0, 3, -256, 5000])
def test_a_view_that_nobody_can_want_is_refused(view_side: int) -> None:
    with pytest.raises(ConfigError, match=rf"view_side is {view_side}; wanted 4 to 1024"):
        Fusion.of(small(32), view_side=view_side)
