"""Generators with weights of each image's own, beside generators that really have those weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.generator import conv_position
from lsap_core.refinement.tuned_weights import TunedGenerator, synthesis_shapes

Numbers = Callable[..., Tensor]
GRAY = GeneratorConfig(32, (12, 10, 8, 6), z_dim=6, w_dim=8, num_mapping_layers=2, image_channels=1)


@pytest.fixture(params=["activations", "weights"])
def generator(request: pytest.FixtureRequest, random_generator: Callable[..., Generator]) -> Generator:
    made = random_generator(dtype=torch.float64)
    made.modulation = request.param
    return made.freeze()


def all_weights(generator: Generator, numbers: Numbers, num_images: int) -> dict[str, Tensor]:
    """Other values for every parameter of synthesis and each image."""
    return {
        name: value + 0.3 * numbers(num_images, *value.shape, seed=index, dtype=value.dtype)
        for index, (name, value) in enumerate(generator.synthesis.state_dict().items())
        if "noise_const" not in name
    }


def with_weights(generator: Generator, weights: dict[str, Tensor], row: int) -> Generator:
    """A generator that really has the weights of one image."""
    other = Generator(generator.config, modulation=generator.modulation).to(generator.synthesis.const.dtype)
    state = generator.state_dict() | {f"synthesis.{name}": value[row].detach() for name, value in weights.items()}
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("chosen", ["all", "convs.3.weight to_rgbs.1.weight convs.0.affine.bias", ""])
def test_each_image_is_that_of_a_generator_with_its_weights(
    chosen: str, generator: Generator, numbers: Numbers
) -> None:
    codes = numbers(3, 8, 24, dtype=torch.float64)
    weights = all_weights(generator, numbers, 3)
    if chosen != "all":
        weights = {name: weights[name] for name in chosen.split()}
    found = TunedGenerator(generator).synthesize(codes, weights)
    for row in range(3):
        expected = with_weights(generator, weights, row).synthesize(codes[row : row + 1])
        torch.testing.assert_close(found[row : row + 1], expected, rtol=0, atol=1e-11)
    assert (found - generator.synthesize(codes)).abs().max() > 0.1 or not weights


@pytest.mark.parametrize("of_each", [True, False])
def test_a_shift_of_styles_is_one_of_the_biases_that_give_them(
    of_each: bool, generator: Generator, numbers: Numbers
) -> None:
    codes, weights = numbers(3, 8, 24, dtype=torch.float64), all_weights(generator, numbers, 3)
    bias = weights["convs.2.affine.bias"]
    added = numbers(3 if of_each else 1, bias.shape[1], seed=9, dtype=torch.float64)
    tuned, shift = TunedGenerator(generator), {conv_position(2): added}
    found = tuned.synthesize(codes, weights, style_shift=shift)
    expected = tuned.synthesize(codes, weights | {"convs.2.affine.bias": bias + added})
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    assert (found - tuned.synthesize(codes, weights)).abs().max() > 0.01
    alike = tuned.synthesize_alike(codes, {}, style_shift=shift)
    torch.testing.assert_close(alike, generator.synthesize(codes, style_shift=shift), rtol=0, atol=1e-11)


def test_gradients_are_those_of_a_generator_with_its_weights(generator: Generator, numbers: Numbers) -> None:
    codes = numbers(2, 8, 24, dtype=torch.float64)
    weights = {name: value.requires_grad_() for name, value in all_weights(generator, numbers, 2).items()}
    pull = numbers(2, 3, 32, 32, dtype=torch.float64)
    (TunedGenerator(generator).synthesize(codes, weights) * pull).sum().backward()
    for row in range(2):
        alone = with_weights(generator, weights, row)
        (alone.synthesize(codes[row : row + 1]) * pull[row]).sum().backward()
        for name, parameter in alone.synthesis.named_parameters():
            gradient = weights[name].grad
            assert gradient is not None and parameter.grad is not None
            torch.testing.assert_close(gradient[row], parameter.grad, rtol=1e-9, atol=1e-9)
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_noise_is_each_images_own_or_shared_or_none(generator: Generator, numbers: Numbers) -> None:
    codes = numbers(2, 8, 24, dtype=torch.float64)
    weights = all_weights(generator, numbers, 2)
    tuned = TunedGenerator(generator)
    sizes = generator.config.noise_sizes
    own = [numbers(2, 1, *size, seed=size[0], dtype=torch.float64) for size in sizes]
    mixed = [maps[:1] if index % 2 else maps for index, maps in enumerate(own)]
    for noise in (own, mixed, "none"):
        found = tuned.synthesize(codes, weights, noise=noise)
        for row in range(2):
            alone = noise if isinstance(noise, str) else [maps[row if len(maps) > 1 else 0][None] for maps in noise]
            expected = with_weights(generator, weights, row).synthesize(codes[row : row + 1], noise=alone)
            torch.testing.assert_close(found[row : row + 1], expected, rtol=0, atol=1e-11)


def test_weights_that_the_generator_gets_later_are_seen(generator: Generator, numbers: Numbers) -> None:
    tuned, codes = TunedGenerator(generator), numbers(2, 8, 24, dtype=torch.float64)
    tuned.synthesize(codes, {})
    with torch.no_grad():
        generator.synthesis.conv_layers()[2].weight.mul_(-1.5)
    generator.freeze()
    torch.testing.assert_close(tuned.synthesize(codes, {}), generator.synthesize(codes), rtol=0, atol=1e-11)


def test_one_channel(random_generator: Callable[..., Generator], numbers: Numbers) -> None:
    generator = random_generator(GRAY).freeze()
    weights, codes = all_weights(generator, numbers, 2), numbers(2, 8, 8)
    found = TunedGenerator(generator).synthesize(codes, weights)
    expected = [with_weights(generator, weights, row).synthesize(codes[row : row + 1]) for row in range(2)]
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-4)


def test_shapes_are_those_of_the_parameters_in_their_order(generator: Generator) -> None:
    expected = [(name, tuple(value.shape)) for name, value in generator.synthesis.named_parameters()]
    assert list(synthesis_shapes(generator.config).items()) == expected


def test_what_does_not_fit_is_named(generator: Generator, numbers: Numbers) -> None:
    tuned, codes = TunedGenerator(generator), numbers(2, 8, 24, dtype=torch.float64)
    const = generator.synthesis.const.detach()
    with pytest.raises(ShapeError, match=r"constant is no parameter of synthesis"):
        tuned.synthesize(codes, {"constant": const})
    with pytest.raises(ShapeError, match=r"const is \[3, 20, 4, 4\]; wanted \[2, 20, 4, 4\]"):
        tuned.synthesize(codes, {"const": const.expand(3, -1, -1, -1)})
    with pytest.raises(ShapeError, match=r"codes are \[2, 24\]; this generator wants W\+ \[N, 8, 24\]"):
        tuned.synthesize(codes[:, 0], {})
    with pytest.raises(ShapeError, match="6 noise maps"):
        tuned.synthesize(codes, {}, noise=[torch.zeros(1, 1, 4, 4)] * 6)
