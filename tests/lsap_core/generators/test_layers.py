"""Mapping network, modulated convolutions and what freezing keeps of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.generators import Generator
from lsap_core.generators.layers import ModulatedConv, StyleConv, ToRGB
from lsap_core.generators.resample import fir_kernel
from lsap_core.spaces.statistics import CodeStatistics


def test_mapping_network_gives_the_published_codes(
    reference: Callable[[str], Any], published_generator: Callable[[int], Generator]
) -> None:
    numbers = reference("gen_mapping")
    w = published_generator(32).map(numbers["z"])
    numbers.check("w", w)


def test_mapping_network_does_not_depend_on_the_resolution(
    reference: Callable[[str], Any], published_generator: Callable[[int], Generator]
) -> None:
    numbers = reference("gen_mapping")
    numbers.check("w", published_generator(64).map(numbers["z"]))


def test_mean_and_deviation_of_1000_mapped_codes_are_the_published_ones(
    reference: Callable[[str], Any], published_generator: Callable[[int], Generator]
) -> None:
    numbers = reference("gen_mapping")
    z = np.random.RandomState(int(numbers["z_many_seed"])).standard_normal((1000, 512)).astype(np.float32)
    w = published_generator(32).map(torch.from_numpy(z))
    numbers.check("w_many_first8", w[:8])
    statistics = CodeStatistics.of(w)
    numbers.check("w_mean", statistics.mean())
    numbers.check("latent_std", np.float32(statistics.deviation()))


def test_truncation_around_the_mean_gives_the_published_codes(
    reference: Callable[[str], Any], published_generator: Callable[[int], Generator]
) -> None:
    numbers = reference("gen_mapping")
    w_avg = torch.from_numpy(numbers.expected("w_mean"))
    w = published_generator(32).map(numbers["z"])
    numbers.check("w_trunc", w_avg + numbers["psi"] * (w - w_avg))


def test_only_the_direction_of_z_counts(random_generator: Callable[..., Generator], numbers: Callable[..., Tensor]):
    generator, z = random_generator(dtype=torch.float64), numbers(3, 16, dtype=torch.float64)
    torch.testing.assert_close(generator.map(7.0 * z), generator.map(z), rtol=1e-6, atol=1e-6)


def style_conv(*, upsample: bool, conv_clamp: float | None = None) -> StyleConv:
    torch_state = torch.Generator().manual_seed(3)
    layer = StyleConv(
        5, 7, 4, output_size=(8, 8) if upsample else (4, 4), upsample=upsample, conv_clamp=conv_clamp
    ).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch_state, dtype=torch.float64))
    return layer


def demodulation(layer: ModulatedConv, style: Tensor) -> Tensor:
    """With the energy that the layer itself keeps or computes."""
    return layer.demodulation(style, layer.prepared()[1])


def published_style_conv(layer: StyleConv, features: Tensor, style: Tensor, noise: Tensor) -> Tensor:
    """A style convolution image by image, as the equations of Karras et al. 2020 say it."""
    outputs = []
    for image, s, n in zip(features, style, noise, strict=True):
        modulated = layer.weight * s[None, :, None, None] / np.sqrt(layer.weight[0].numel())
        length = torch.sqrt((modulated**2).sum(dim=(1, 2, 3)) + 1e-8)
        weight = modulated / length[:, None, None, None]
        if layer.upsample:
            spread = image.new_zeros(5, 11, 11)  # zero insertion, and the 2 zeros around it that correlation needs
            spread[:, 2:-2:2, 2:-2:2] = image
            grown = F.conv2d(spread[None], weight.flip(2, 3))  # [1, 7, 9, 9]
            kernel = (4 * fir_kernel().double()).expand(7, 1, 4, 4)
            output = F.conv2d(grown, kernel, padding=1, groups=7)
        else:
            output = F.conv2d(image[None], weight, padding=1)
        outputs.append(output + n * layer.noise_strength + layer.bias[:, None, None])
    return F.leaky_relu(torch.cat(outputs), 0.2) * np.sqrt(2)


@pytest.mark.parametrize("modulation", ["activations", "weights"])
@pytest.mark.parametrize("upsample", [False, True])
def test_both_forms_compute_the_published_equations_image_by_image(
    modulation: str, upsample: bool, numbers: Callable[..., Tensor]
) -> None:
    layer = style_conv(upsample=upsample)
    features, style = numbers(3, 5, 4, 4, dtype=torch.float64), numbers(3, 5, seed=1, dtype=torch.float64)
    side = 8 if upsample else 4
    noise = numbers(3, 1, side, side, seed=2, dtype=torch.float64)
    found = layer(features, style, noise, fir_kernel().double(), modulation)
    torch.testing.assert_close(found, published_style_conv(layer, features, style, noise), rtol=1e-10, atol=1e-10)


def test_to_rgb_modulates_without_demodulation(numbers: Callable[..., Tensor]) -> None:
    layer = ToRGB(5, 3, 4, conv_clamp=None).double()
    features, style = numbers(2, 5, 6, 6, dtype=torch.float64), numbers(2, 5, seed=1, dtype=torch.float64)
    expected = torch.stack(
        [
            F.conv2d(image[None], layer.weight * s[None, :, None, None] / np.sqrt(5))[0]
            for image, s in zip(features, style, strict=True)
        ]
    )
    torch.testing.assert_close(layer(features, style), expected, rtol=1e-10, atol=1e-10)


def test_demodulation_is_the_inverse_length_of_the_modulated_weights(numbers: Callable[..., Tensor]) -> None:
    layer, style = style_conv(upsample=False), numbers(3, 5, dtype=torch.float64)
    gain = 1 / np.sqrt(5 * 3 * 3)
    modulated = gain * layer.weight * style[:, None, :, None, None]
    expected = 1 / torch.sqrt(modulated.square().sum(dim=(2, 3, 4)) + 1e-8)
    torch.testing.assert_close(demodulation(layer, style), expected, rtol=1e-12, atol=0)


def test_demodulation_of_vanishing_styles_is_bounded_by_its_epsilon(numbers: Callable[..., Tensor]) -> None:
    layer = style_conv(upsample=False)
    found = demodulation(layer, torch.zeros(1, 5).double())
    torch.testing.assert_close(found, torch.full((1, 7), 1e4, dtype=torch.float64))


@pytest.mark.parametrize("layer", ["conv", "to_rgb"])
@pytest.mark.parametrize("modulation", ["activations", "weights"])
def test_a_clamp_bounds_the_output_of_each_layer(layer: str, modulation: str, numbers: Callable[..., Tensor]) -> None:
    features, style = numbers(2, 5, 4, 4, dtype=torch.float64), numbers(2, 5, seed=1, dtype=torch.float64)
    if layer == "to_rgb":
        free, clamped = (ToRGB(5, 3, 4, conv_clamp=clamp).double() for clamp in (None, 0.3))
        clamped.load_state_dict(free.state_dict())
        outputs = [each(features, style) for each in (free, clamped)]
    else:
        free, clamped = (style_conv(upsample=False, conv_clamp=clamp) for clamp in (None, 0.3))
        outputs = [each(features, style, None, fir_kernel().double(), modulation) for each in (free, clamped)]
    assert outputs[0].abs().max() > 0.3
    assert torch.equal(outputs[1], outputs[0].clamp(-0.3, 0.3))


def layers(generator: Generator) -> list[ModulatedConv]:
    return [*generator.synthesis.conv_layers(), *generator.synthesis.to_rgb_layers()]


def test_freezing_stops_gradients_to_all_weights(random_generator: Callable[..., Generator]) -> None:
    generator = random_generator().freeze()
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    assert not generator.training


@pytest.mark.parametrize("order", ["freeze, then cast", "cast, then freeze"])
def test_casting_after_freezing_renews_what_was_kept(order: str, random_generator: Callable[..., Generator]) -> None:
    generator = random_generator()
    generator = generator.freeze().double() if order == "freeze, then cast" else generator.double().freeze()
    fresh = random_generator().double()
    # Made from the widened weights, not widened itself: equal to the last bit.
    for layer, expected in zip(layers(generator), layers(fresh), strict=True):
        for kept, computed in zip(layer.prepared(), expected.prepared(), strict=True):
            assert torch.equal(kept, computed) and not kept.requires_grad


def test_loading_other_weights_after_freezing_renews_what_was_kept(
    random_generator: Callable[..., Generator], numbers: Callable[..., Tensor]
) -> None:
    frozen, other = random_generator(seed=1).freeze(), random_generator(seed=2)
    frozen.load_state_dict(other.state_dict())
    assert torch.equal(frozen.synthesize(numbers(2, 24)), other.synthesize(numbers(2, 24)))


def test_weights_that_may_move_again_get_their_gradients_and_are_not_taken_from_what_was_kept(
    random_generator: Callable[..., Generator], numbers: Callable[..., Tensor]
) -> None:
    thawed, fresh = random_generator().freeze().requires_grad_(True), random_generator()
    for generator in (thawed, fresh):
        generator.synthesize(numbers(2, 24)).square().sum().backward()
        with torch.no_grad():
            for layer in layers(generator):
                layer.weight += 0.1
    for (name, parameter), other in zip(thawed.synthesis.named_parameters(), fresh.synthesis.parameters(), strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, other.grad), name
    assert torch.equal(thawed.synthesize(numbers(2, 24)), fresh.synthesize(numbers(2, 24)))


def test_moving_a_frozen_generator_keeps_it_frozen(random_generator: Callable[..., Generator]) -> None:
    generator = random_generator().freeze().to(torch.float64).to("cpu")
    assert not any(parameter.requires_grad for parameter in generator.parameters())
