"""Properties 3.1 to 3.3 of the paper (Cao et al., LSAP, section 3.2): which scalings leave the image unchanged.

Not tested, because nothing is claimed: plain W, where one code drives all layers and their linear systems cannot be
met at once, and Z, for which the paper constructs no code.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.generator import conv_position, to_rgb_position
from lsap_core.generators.layers import ModulatedConv
from lsap_core.spaces.styles import normalize

UNCHANGED = 1e-5  # of the range of the image


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator]) -> Generator:
    return random_generator().freeze()


@pytest.fixture(scope="module")
def w_plus(numbers: Callable[..., Tensor]) -> Tensor:
    return numbers(2, 8, 24)


@pytest.fixture(scope="module")
def image(generator: Generator, w_plus: Tensor) -> Tensor:
    return generator.synthesize(w_plus)


def scaled(styles: Sequence[Tensor], position: int, factor: float) -> list[Tensor]:
    return [factor * style if index == position else style for index, style in enumerate(styles)]


def relative_change(found: Tensor, image: Tensor) -> float:
    return ((found - image).abs().max() / (image.max() - image.min())).item()


@pytest.mark.parametrize("factor", [0.5, 3.0, 1000.0])
@pytest.mark.parametrize("conv", range(7))
def test_p1_scaling_the_style_of_a_convolution_changes_no_image(
    conv: int, factor: float, generator: Generator, w_plus: Tensor, image: Tensor
) -> None:
    styles = scaled(generator.styles(w_plus), conv_position(conv), factor)
    assert relative_change(generator.synthesize_styles(styles).image, image) <= UNCHANGED


@pytest.mark.parametrize("conv", range(7))
def test_p2_a_negative_factor_does_change_the_image(
    conv: int, generator: Generator, w_plus: Tensor, image: Tensor
) -> None:
    styles = scaled(generator.styles(w_plus), conv_position(conv), -1.0)
    assert relative_change(generator.synthesize_styles(styles).image, image) > 0.01


@pytest.mark.parametrize("factor", [1.0, 1e-1, 1e-3, 1e-4])
def test_p3_a_tiny_factor_loses_gain_by_the_epsilon_of_demodulation(
    factor: float, random_generator: Callable[..., Generator], numbers: Callable[..., Tensor]
) -> None:
    layer = random_generator(dtype=torch.float64).freeze().synthesis.conv_layers()[2]
    style = numbers(3, 16, dtype=torch.float64)
    modulated = layer.weight_gain * layer.weight * style[:, None, :, None, None]
    variance = modulated.square().sum(dim=(2, 3, 4))
    ideal = variance.rsqrt()
    error = 1 - factor * layer.demodulation(factor * style, layer.prepared()[1]) / ideal
    torch.testing.assert_close(error, 1 - (1 + 1e-8 / (factor**2 * variance)).rsqrt(), rtol=1e-6, atol=1e-14)
    if factor <= 1e-3:
        assert error.min() > 1e-4


@pytest.mark.parametrize("to_rgb", range(4))
def test_p4_scaling_the_style_of_a_to_rgb_layer_changes_the_image(
    to_rgb: int, generator: Generator, w_plus: Tensor, image: Tensor
) -> None:
    styles = scaled(generator.styles(w_plus), to_rgb_position(to_rgb), 3.0)
    assert relative_change(generator.synthesize_styles(styles).image, image) > 0.01


def test_p4_the_last_to_rgb_adds_its_own_output_again(generator: Generator, w_plus: Tensor, image: Tensor) -> None:
    styles = generator.styles(w_plus)
    features = generator.synthesize_styles(styles, collect=[6]).states[6].features
    layer = generator.synthesis.to_rgb_layers()[3]
    without_bias = layer(features, styles[10]) - layer.bias[:, None, None]
    changed = generator.synthesize_styles(scaled(styles, 10, 3.0)).image
    torch.testing.assert_close(changed, image + 2.0 * without_bias, rtol=1e-5, atol=1e-4)


def test_p5_codes_in_s_are_not_unique(generator: Generator, w_plus: Tensor, image: Tensor) -> None:
    styles = generator.styles(w_plus)
    other = scaled(styles, conv_position(3), 2.0)
    assert (other[conv_position(3)] - styles[conv_position(3)]).norm() > 1
    assert relative_change(generator.synthesize_styles(other).image, image) <= UNCHANGED


@pytest.mark.parametrize("factor", [0.5, 3.0, 1000.0])
def test_p6_codes_in_normalized_s_are_unique_under_positive_scaling(
    factor: float, generator: Generator, w_plus: Tensor
) -> None:
    styles = generator.styles(w_plus)
    for unit, again in zip(normalize(styles), normalize([factor * style for style in styles]), strict=True):
        torch.testing.assert_close(again, unit, rtol=0, atol=1e-6)


def test_p6_a_negative_factor_negates_the_normalized_style(generator: Generator, w_plus: Tensor) -> None:
    styles = generator.styles(w_plus)
    for unit, negated in zip(normalize(styles), normalize([-2.0 * style for style in styles]), strict=True):
        torch.testing.assert_close(negated, -unit, rtol=0, atol=1e-6)


def rescaled_row(layer: ModulatedConv, row: Tensor, factor: float) -> tuple[Tensor, float]:
    """The row of W+ nearest to a w whose style is a times as long, and what is left of A y / sqrt(D) = (a - 1) b."""
    weight = (layer.affine.weight * layer.affine.weight_gain).double()
    wanted = (factor - 1) * layer.affine.bias.double()
    addition = torch.linalg.pinv(weight) @ wanted
    residual = (weight @ addition - wanted).norm().item()
    return (factor * row.double() + addition).float(), residual


@pytest.mark.parametrize("row", [0, 2, 4, 6])
def test_p7_codes_in_w_plus_are_not_unique_in_rows_that_drive_a_convolution_alone(
    row: int, generator: Generator, w_plus: Tensor, image: Tensor
) -> None:
    layer = generator.synthesis.conv_layers()[row]
    changed = w_plus.clone()
    changed[:, row], residual = rescaled_row(layer, w_plus[:, row], 3.0)
    assert residual < 1e-10
    assert (changed - w_plus).norm() > 1
    torch.testing.assert_close(layer.affine(changed[:, row]), 3.0 * layer.affine(w_plus[:, row]), rtol=1e-4, atol=1e-4)
    assert relative_change(generator.synthesize(changed), image) <= UNCHANGED


@pytest.mark.parametrize("row", [1, 3, 5, 7])
def test_p8_rows_that_also_drive_a_to_rgb_layer_change_the_image(
    row: int, generator: Generator, w_plus: Tensor, image: Tensor
) -> None:
    is_last = row == 7
    layer = generator.synthesis.to_rgb_layers()[3] if is_last else generator.synthesis.conv_layers()[row]
    changed = w_plus.clone()
    changed[:, row], residual = rescaled_row(layer, w_plus[:, row], 3.0)
    assert residual < 1e-10
    torch.testing.assert_close(layer.affine(changed[:, row]), 3.0 * layer.affine(w_plus[:, row]), rtol=1e-4, atol=1e-4)
    assert relative_change(generator.synthesize(changed), image) > 0.01


def test_p11_an_affine_layer_of_lower_rank_has_no_code_for_a_scaled_style(
    random_generator: Callable[..., Generator], small_config: GeneratorConfig, numbers: Callable[..., Tensor]
) -> None:
    narrow = random_generator(GeneratorConfig(32, small_config.channels, z_dim=16, w_dim=6, num_mapping_layers=1))
    narrow.freeze()
    w_plus = numbers(2, 8, 6)
    layer = narrow.synthesis.conv_layers()[2]
    assert torch.linalg.matrix_rank(layer.affine.weight) == 6 < layer.affine.bias.numel()
    changed = w_plus.clone()
    changed[:, 2], residual = rescaled_row(layer, w_plus[:, 2], 3.0)
    assert residual > 0.1
    assert relative_change(narrow.synthesize(changed), narrow.synthesize(w_plus)) > 1e-3
