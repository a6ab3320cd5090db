"""Features taken from the middle of a generator, put in and edited: numbers of the published program."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsap_core.errors import ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.checkpoints import build_generator, canonical_shapes, from_rosinality, to_rosinality
from lsap_core.refinement.sfe import RefinedBySfe
from lsap_core.refinement.sfe_features import FeatureEditing, feature_shift, image_from, image_with, invert, state_at
from lsap_core.refinement.sfe_networks import ContentLayerDeepFast, SfeConfig, SfeNetworks, reduced

CONV = 8
"""Of the published feature 9, the second of side 64."""


class Given(nn.Module):
    """A backbone that answers what it was given."""

    def __init__(self, codes: Tensor, content: Tensor):
        super().__init__()
        self.codes, self.content = codes, content

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.codes, self.content


@pytest.fixture(scope="module")
def generator_128(fill: ModuleType) -> Callable[..., Generator]:
    """The published generator of 128 pixels with a channel multiplier, frozen."""
    kept: dict[int, Generator] = {}

    def get(multiplier: int) -> Generator:
        if multiplier not in kept:
            channels = (512, 512, 512, 512, 256 * multiplier, 128 * multiplier)
            config = GeneratorConfig(128, channels)
            zeros = {name: torch.zeros(shape) for name, shape in canonical_shapes(config).items()}
            shapes = {name: tuple(tensor.shape) for name, tensor in to_rosinality(config, zeros).items()}
            kept[multiplier] = build_generator(from_rosinality(fill.fill_dict(shapes, "stylegan2"))).freeze()
        return kept[multiplier]

    return get


def fusing(fill: ModuleType, salt: str, *sizes: int) -> ContentLayerDeepFast:
    network = fill.fill_module(ContentLayerDeepFast(*sizes), "plain", salt=salt).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("body.4.weight"):
                parameter *= 0.25
    return network.requires_grad_(False)


def check_map(numbers: Any, name: str, features: Tensor, step: int) -> None:
    """Every `step`-th channel of every 4th row and column, and mean and deviation of all."""
    numbers.check(f"{name}_sub", features[:, ::step, ::4, ::4])
    numbers.check(f"{name}_mean", features.mean(dim=(2, 3)))
    numbers.check(f"{name}_std", features.flatten(2).std(dim=2, correction=0))


def rebuilt(fill: ModuleType, name: str, shape: tuple[int, ...], gain: float, offset: float = 0.0) -> Tensor:
    return torch.from_numpy(fill.array(f"in/{name}", shape, gain, offset))


@torch.no_grad()
def test_features_out_and_in_are_the_published_ones(
    reference: Callable[[str], Any], fill: ModuleType, generator_128: Callable[..., Generator]
) -> None:
    numbers, generator = reference("sfe_generator"), generator_128(2)
    styles = generator.styles(numbers["w"])
    plain = generator.synthesize_styles(styles, collect=range(11))
    numbers.check("plain_sub", plain.image[:, :, ::2, ::2])
    features = [generator.synthesis.const[None], *(plain.states[conv].features for conv in range(11))]
    numbers.check("feature_rms", torch.stack([one.square().mean().sqrt() for one in features]))
    at_layer = state_at(generator, styles, CONV)
    assert torch.equal(at_layer.features, features[9])
    numbers.check("feature_9_sub", features[9][:, ::64, ::4, ::4])
    numbers.check("feature_9_mean", features[9].mean(dim=(2, 3)))
    numbers.check("feature_9_std", features[9].flatten(2).std(dim=2, correction=0))
    assert at_layer.rgb is not None
    numbers.check("early_sub", at_layer.rgb[:, :, ::2, ::2])
    ninth = rebuilt(fill, "sfe_generator/feature_9", (1, 512, 64, 64), 0.7, 0.1)
    third = rebuilt(fill, "sfe_generator/feature_3", (1, 512, 8, 8), 0.7)
    sixth = rebuilt(fill, "sfe_generator/feature_6", (1, 512, 32, 32), 0.7)
    for name, image in {
        "inserted_sub": image_from(generator, styles, at_layer, ninth),
        "inserted_quarter_sub": image_with(generator, styles, {8: ninth}, scale=0.25),
        "inserted_two_sub": image_with(generator, styles, {5: sixth, 2: third}, scale=0.5),
    }.items():
        numbers.check(name, image[:, :, ::2, ::2])


@torch.no_grad()
def test_inversions_with_and_without_feature_editor_are_the_published_ones(
    reference: Callable[[str], Any], fill: ModuleType, generator_128: Callable[..., Generator]
) -> None:
    numbers, generator = reference("sfe_invert"), generator_128(1)
    generator.mapping.w_avg.copy_(numbers["latent_avg"])
    networks = SfeNetworks(SfeConfig("small", 12, 512, 3, input_side=256, feature_channels=256)).eval()
    content = rebuilt(fill, "sfe_invert/content", (1, 256, 64, 64), 0.8)
    networks.inverter.fs_backbone = Given(numbers["codes"], content)
    networks.inverter.fuser = fusing(fill, "fuser:", 2, 512, 256)
    editor = fusing(fill, "editor:", 2, 512, 256)
    view = networks.view(fill.image_to_float(numbers["sfe_dev_b"].numpy()))
    numbers.check("resized_sub", view[:, :, ::4, ::4])
    found = invert(networks.inverter, generator, view)
    numbers.check("w", found.w_plus)
    numbers.check("w_feat_mean", found.at_layer.features.mean(dim=(2, 3)))
    numbers.check("w_feat_std", found.at_layer.features.flatten(2).std(dim=2, correction=0))
    check_map(numbers, "fused", found.features, 32)
    styles = generator.styles(found.w_plus)
    without = image_from(generator, styles, found.at_layer, found.features)
    numbers.check("inverter_image_sub", without[:, :, ::2, ::2])
    check_map(numbers, "edited", editor(torch.cat([found.features, torch.zeros_like(found.features)], dim=1)), 32)
    refined = RefinedBySfe(
        generator,
        FeatureEditing(editor),
        w_plus=found.w_plus,
        features=found.features,
        guide_w_plus=found.w_plus,
    )
    numbers.check("full_image_sub", refined.synthesize()[:, :, ::2, ::2])


@torch.no_grad()
def test_edits_of_codes_and_of_styles_are_the_published_ones(
    reference: Callable[[str], Any], fill: ModuleType, generator_128: Callable[..., Generator]
) -> None:
    numbers, generator = reference("sfe_edit"), generator_128(2)
    editor = fusing(fill, "editor:", 2, 1024, 512)
    w_plus, guide = numbers["w"], numbers["w_e4e"]
    fused = rebuilt(fill, "sfe_edit/fused", (1, 512, 64, 64), 0.7)
    refined = RefinedBySfe(generator, FeatureEditing(editor), w_plus=w_plus, features=fused, guide_w_plus=guide)

    def edited(shift: Tensor) -> Tensor:
        return editor(torch.cat([fused, shift], dim=1))

    def features_of(styles: Any) -> Tensor:
        return state_at(generator, styles, CONV).features

    older = -3.0 / 2 * numbers["direction"]  # the published power -3, halved
    shift = feature_shift(refined.guide_features, features_of(generator.styles(guide + older)))
    check_map(numbers, "age_delta", shift, 64)
    check_map(numbers, "age_edited", edited(shift), 64)
    numbers.check("age_image_sub", refined.synthesize(w_plus + older)[:, :, ::2, ::2])

    def blond(codes: Tensor) -> list[Tensor]:
        styles = [style.clone() for style in generator.styles(codes)]
        styles[12][:, [479, 266]] += 3 * 4.0  # the published power 4
        return styles

    mask = numbers["mask"].float()[None, None]  # 1 where nothing is to change
    shift = feature_shift(refined.guide_features, features_of(blond(guide)), mask)
    check_map(numbers, "style_delta", shift, 64)
    check_map(numbers, "style_edited", edited(shift), 64)
    image = refined.synthesize_styles(blond(w_plus), blond(guide), mask=mask)
    numbers.check("style_image_sub", image[:, :, ::2, ::2])


@torch.no_grad()
def test_the_low_resolutions_still_show_the_code(
    random_generator: Callable[..., Generator], numbers: Callable[..., Tensor]
) -> None:
    generator = random_generator().freeze()
    one, other = numbers(1, 8, 24, seed=1), numbers(1, 8, 24, seed=2)
    other[:, 3:] = one[:, 3:]  # all that later layers read; row 3 is also that of the ToRGB of side 8
    features = numbers(1, 16, 8, 8)
    images = [image_with(generator, generator.styles(codes), {2: features}) for codes in (one, other)]
    assert (images[0] - images[1]).abs().max() > 0.01  # through the RGB sum up to side 8, made of unreplaced features


def test_features_of_another_shape_are_refused(random_generator: Callable[..., Generator]) -> None:
    generator = random_generator().freeze()
    styles = generator.styles(torch.zeros(1, 24))
    with pytest.raises(ShapeError, match=r"features for convolution 2 are \[1, 15, 8, 8\]; wanted \[1, 16, 8, 8\]"):
        image_with(generator, styles, {2: torch.zeros(1, 15, 8, 8)})


def test_images_of_the_wanted_side_are_not_touched(numbers: Callable[..., Tensor]) -> None:
    images = numbers(1, 3, 32, 32)
    assert reduced(images, 32) is images
