"""Synthesis with masked offsets, beside the published programs; which spaces a generator has."""

import re
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.checkpoints import build_generator, from_rosinality
from lsap_core.refinement.sam_spaces import (
    FeatureSpace,
    Placement,
    feature_space,
    feature_spaces,
    space_names,
    synthesize_edited,
    synthesize_with_offsets,
)

NAMES = {"F4": 16, "F6": 32, "F8": 64, "F10": 128}


@pytest.fixture(scope="module")
def published(reference: Callable[[str], Any]) -> Any:
    return reference("sam_blend")


@pytest.fixture(scope="module")
def generator(filled: Callable[..., dict[str, Tensor]]) -> Generator:
    """The published program's generator at 128 pixels, without noise: that of 256 pixels without its last block."""
    last_block = re.compile(r"convs\.1[01]\.|to_rgbs\.5\.|noises\.noise_1[12]$")
    table = filled("rosinality_generator_256", "stylegan2")
    state = {name: tensor for name, tensor in table.items() if not last_block.match(name)}
    generator = build_generator(from_rosinality(state))
    for layer in generator.synthesis.conv_layers():
        layer.noise_strength.data.zero_()
    return generator.freeze()


@pytest.fixture(scope="module")
def masks(published: Any) -> list[Tensor]:
    return [published[f"mask_{name}"] for name in NAMES]


@pytest.fixture(scope="module")
def offsets(fill: ModuleType, generator: Generator) -> list[Tensor]:
    shapes = [(1, 256 if side == 128 else 512, side, side) for side in NAMES.values()]
    return [
        torch.from_numpy(fill.array(f"in/sam_blend/{name}", shape, 0.3))
        for name, shape in zip(NAMES, shapes, strict=True)
    ]


def spaces_of(generator: Generator, placement: Placement) -> list[FeatureSpace]:
    return [feature_space(generator.config, int(name[1:]), placement) for name in NAMES]


@torch.no_grad()
def test_images_features_and_edits_are_the_published_ones(
    published: Any, generator: Generator, masks: list[Tensor], offsets: list[Tensor]
) -> None:
    spaces, w_plus = spaces_of(generator, "block"), published["wplus"]
    plain, _ = synthesize_with_offsets(generator, w_plus, (), (), ())
    published.check("image_wplus", plain[:, :, ::2, ::2])
    image, features = synthesize_with_offsets(generator, w_plus, spaces, masks, offsets)
    published.check("image", image)
    for name, found in zip(NAMES, features, strict=True):
        published.check(f"feature_{name}_mean", found.mean(dim=(2, 3)))
        published.check(f"feature_{name}_std", found.std(dim=(2, 3), correction=0))
    edited = synthesize_edited(generator, w_plus + published["edit_direction"], spaces, masks, features)
    published.check("edited", edited)


@torch.no_grad()
def test_offsets_after_the_up_convolution_give_the_toolboxs_image(
    published: Any, generator: Generator, masks: list[Tensor], offsets: list[Tensor]
) -> None:
    image, _ = synthesize_with_offsets(generator, published["wplus"], spaces_of(generator, "up_conv"), masks, offsets)
    published.check("ganinverter_image", image)
    assert np.abs(image.numpy() - published.expected("image")).max() > 1


@pytest.mark.parametrize(
    ("resolution", "placement", "names"),
    [
        (1024, "block", ["W+", "F4", "F6", "F8", "F10"]),
        (256, "block", ["W+", "F4", "F6", "F8", "F10"]),
        (256, "up_conv", ["W+", "F4", "F6", "F8", "F10"]),
        (128, "block", ["W+", "F2", "F4", "F6", "F8"]),
        (128, "up_conv", ["W+", "F4", "F6", "F8", "F10"]),
        (32, "block", ["W+", "F2", "F4"]),
        (32, "up_conv", ["W+", "F2", "F4", "F6"]),
        (8, "block", ["W+"]),
        (8, "up_conv", ["W+", "F2"]),
    ],
)
def test_spaces_are_those_at_which_an_offset_can_change_the_image(
    resolution: int, placement: Placement, names: list[str]
) -> None:
    assert list(space_names(GeneratorConfig.config_f(resolution), placement)) == names


def test_published_shapes() -> None:
    config = GeneratorConfig.config_f(1024)
    for placement in ("block", "up_conv"):
        shapes = [space.shape for space in feature_spaces(config, placement)]
        assert shapes == [(512, 16, 16), (512, 32, 32), (512, 64, 64), (256, 128, 128)]
    assert [space.conv for space in feature_spaces(config)] == [4, 6, 8, 10]
    assert [space.conv for space in feature_spaces(config, "up_conv")] == [3, 5, 7, 9]


@pytest.mark.parametrize("placement", ["block", "up_conv"])
def test_every_offset_changes_the_image_and_none_changes_nothing(
    placement: Placement, random_generator: Callable[..., Generator], numbers: Callable[..., Tensor]
) -> None:
    generator = random_generator().freeze()
    w_plus = generator.expand(generator.map(numbers(2, 16)))
    spaces = feature_spaces(generator.config, placement)
    masks = [torch.ones(2, 1, *space.size) for space in spaces]
    none = [torch.zeros(2, *space.shape) for space in spaces]
    plain = generator.synthesize(w_plus)
    with torch.no_grad():
        assert torch.equal(synthesize_with_offsets(generator, w_plus, spaces, masks, none)[0], plain)
        for index, space in enumerate(spaces):
            offsets = list(none)
            offsets[index] = numbers(2, *space.shape)
            image, _ = synthesize_with_offsets(generator, w_plus, spaces, masks, offsets)
            assert (image - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3, space.name


@torch.no_grad()
def test_an_edit_is_seen_outside_the_masks_and_by_later_layers(
    random_generator: Callable[..., Generator], numbers: Callable[..., Tensor]
) -> None:
    generator = random_generator().freeze()
    w_plus = generator.expand(generator.map(numbers(1, 16)))
    edited = w_plus + numbers(*w_plus.shape, seed=1)
    spaces = feature_spaces(generator.config)[-1:]  # after convolution 4, at side 16
    offsets = [numbers(1, *spaces[0].shape, seed=2)]
    nothing, everything = [torch.zeros(1, 1, 16, 16)], [torch.ones(1, 1, 16, 16)]
    _, contents = synthesize_with_offsets(generator, w_plus, spaces, everything, offsets)
    outside = synthesize_edited(generator, edited, spaces, nothing, contents)
    assert torch.equal(outside, generator.synthesize(edited))
    inside = synthesize_edited(generator, edited, spaces, everything, contents)
    styles = generator.styles(edited)
    reached = generator.synthesize_styles(styles, until=4, collect=(4,)).block_end(4)
    expected = generator.synthesize_styles(styles, start=replace(reached, features=contents[0])).image
    assert torch.equal(inside, expected) and not torch.equal(inside, outside)


def test_another_placement_is_refused() -> None:
    with pytest.raises(ConfigError, match="up_conv"):
        feature_spaces(GeneratorConfig.config_f(32), "conv")  # type: ignore[arg-type]
