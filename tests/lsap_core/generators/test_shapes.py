"""Generators that start from another constant than 4 x 4: sizes, files, and images by plain operators."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.checkpoints import (
    CanonicalCheckpoint,
    build_generator,
    from_generator_document,
    from_nvlabs,
    from_tensorflow_document,
    read_records,
    to_nvlabs,
    to_rosinality,
    to_rosinality_document,
)
from tests.tensorflow_pickles import pickled_tensorflow, tensorflow_network

RandomGenerator = Callable[..., Generator]
Numbers = Callable[..., Tensor]

TALL = GeneratorConfig(32, (8, 7, 6, 5), z_dim=6, w_dim=9, num_mapping_layers=2, constant=(4, 2))
SHAPES = {
    "tall": TALL,
    "wide": replace(TALL, resolution=40, constant=(3, 5), conv_clamp=256.0),
    "square of 5": replace(TALL, resolution=40, constant=(5, 5)),
    "one row": replace(TALL, resolution=16, constant=(1, 2)),
}


def checkpoint_of(random_generator: RandomGenerator, config: GeneratorConfig) -> CanonicalCheckpoint:
    return CanonicalCheckpoint(config, {n: t.detach() for n, t in random_generator(config).state_dict().items()})


def published_image(state: Mapping[str, Tensor], w: Tensor, clamp: float | None) -> Tensor:
    """The image of one code [1, w_dim], by rosinality's names and the equations of the paper, layer after layer."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=w.dtype)
    fir = (taps[:, None] * taps / 64)[None, None]

    def modulated(layer: str, x: Tensor, *, up: bool = False, demodulate: bool = True) -> Tensor:
        affine = state[f"{layer}.conv.modulation.weight"]
        style = w @ affine.T / math.sqrt(affine.shape[1]) + state[f"{layer}.conv.modulation.bias"]
        weight = state[f"{layer}.conv.weight"][0]
        weight = weight / math.sqrt(weight[0].numel()) * style[:, :, None, None]
        if demodulate:
            weight = weight * (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        if not up:
            return F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
        spread[:, :, ::2, ::2] = x
        y = F.conv2d(spread, weight.flip(2, 3), padding=2)
        return F.conv2d(y.transpose(0, 1), 4 * fir, padding=1).transpose(0, 1)

    def styled(layer: str, x: Tensor, noise: str, *, up: bool) -> Tensor:
        y = modulated(layer, x, up=up) + state[f"{layer}.noise.weight"] * state[f"noises.{noise}"]
        y = F.leaky_relu(y + state[f"{layer}.activate.bias"][:, None, None], 0.2) * math.sqrt(2)
        return y if clamp is None else y.clamp(-clamp, clamp)

    x = styled("conv1", state["input.input"], "noise_0", up=False)
    rgb = modulated("to_rgb1", x, demodulate=False) + state["to_rgb1.bias"]
    for index in range(sum(name.endswith("blur.kernel") for name in state)):
        x = styled(f"convs.{2 * index}", x, f"noise_{2 * index + 1}", up=True)
        x = styled(f"convs.{2 * index + 1}", x, f"noise_{2 * index + 2}", up=False)
        spread = rgb.new_zeros(*rgb.shape[:2], 2 * rgb.shape[2], 2 * rgb.shape[3])
        spread[:, :, ::2, ::2] = rgb
        rgb = F.conv2d(F.pad(spread, (2, 1, 2, 1)).transpose(0, 1), 4 * fir).transpose(0, 1)
        rgb = rgb + modulated(f"to_rgbs.{index}", x, demodulate=False) + state[f"to_rgbs.{index}.bias"]
    return rgb


# --- sizes ---------------------------------------------------------------------------------------------


def test_sizes_follow_from_the_constant() -> None:
    people = GeneratorConfig(1024, GeneratorConfig.config_f(512).channels, constant=(8, 4))
    assert (people.size, people.num_ws, people.is_square, people.shown_size) == ((1024, 512), 16, False, "1024 x 512")
    assert people.content_size == (1024, 512) and people.image_shape == (3, 1024, 512)
    assert TALL.noise_sizes == ((4, 2), (8, 4), (8, 4), (16, 8), (16, 8), (32, 16), (32, 16))
    assert TALL.conv_sizes[:3] == (8 * 4 * 2, 7 * 8 * 4, 7 * 8 * 4)
    assert (SHAPES["square of 5"].size, SHAPES["square of 5"].shown_size) == ((40, 40), "40")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_survives_json_and_the_published_one_is_not_written(shape: str) -> None:
    config = SHAPES[shape]
    assert GeneratorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    square = GeneratorConfig(32, (8, 7, 6, 5))
    assert "constant" not in square.to_dict() and square == replace(square, constant=(4, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"constant": (4, 0)}, r"constant is \(4, 0\); wanted height and width"),
        ({"constant": (1, 1)}, "not both 1"),
        ({"constant": (4,)}, "wanted height and width"),
        ({"constant": (5, 2)}, "resolution is 32; wanted 10, 20, 40, ...: StyleGAN2 doubles its constant of 5 x 2"),
        ({"constant": (32, 16)}, "resolution is 32; wanted 64"),
        ({"constant": (8, 4)}, "4 channel counts for resolution 32; wanted 3, one for each size 8 x 4, ..., "),
        ({"content_box": (0, 32, 0, 17)}, r"content box \(0, 32, 0, 17\) lies outside 32 x 16 pixels"),
    ],
)
def test_impossible_constants_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TALL, **changes)


# --- files and images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["rosinality", "nvlabs", "document"])
@torch.no_grad()
def test_a_file_of_any_layout_makes_the_images_of_the_paper(
    layout: str, shape: str, random_generator: RandomGenerator, numbers: Numbers
) -> None:
    config = SHAPES[shape]
    made = checkpoint_of(random_generator, config)
    state = to_rosinality(config, made.state)
    document: object = {"g_ema": state}
    if layout == "nvlabs":
        document = {"state_dict": {f"G_ema.{name}": tensor for name, tensor in to_nvlabs(config, made.state).items()}}
    elif layout == "document":
        document = to_rosinality_document(made)
    _, found = from_generator_document(document)
    wanted = config if layout == "document" else replace(config, conv_clamp=None)  # which names and shapes do not tell
    assert found.config == wanted
    generator, w = build_generator(found).double(), numbers(1, config.w_dim, dtype=torch.float64)
    expected = published_image({name: value.double() for name, value in state.items()}, w, wanted.conv_clamp)
    image = generator.synthesize(w)
    assert image.shape == (1, *config.image_shape)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-9)
    generator.modulation = "weights"
    torch.testing.assert_close(generator.synthesize(w), expected, rtol=0, atol=1e-9)


def test_blocks_of_forks_keep_their_names_and_what_they_call_a_resolution_is_not_asked(
    random_generator: RandomGenerator,
) -> None:
    made = checkpoint_of(random_generator, TALL)
    state = to_nvlabs(TALL, made.state)
    assert state["synthesis.b4.const"].shape == (8, 4, 2) and state["synthesis.b32.conv1.noise_const"].shape == (32, 16)
    for told in (32, 16, [32, 16]):
        assert from_nvlabs(state, {"img_resolution": told}).digest == made.digest


def test_noise_maps_have_the_shape_of_their_features(random_generator: RandomGenerator, numbers: Numbers) -> None:
    generator, w = random_generator(TALL), numbers(2, 9)
    maps = [numbers(2, 1, *size) for size in TALL.noise_sizes]
    assert generator.synthesize(w, noise=maps).shape == (2, 3, 32, 16)
    with pytest.raises(ShapeError, match=r"noise map 1 is \[2, 1, 4, 8\]; wanted \[N, 1, 8, 4\]"):
        generator.synthesize(w, noise=[maps[0], maps[1].transpose(2, 3), *maps[2:]])
    styles = generator.styles(w)
    state = generator.synthesize_styles(styles, noise=maps, collect=(3,)).states[3]
    assert state.features.shape == (2, 6, 16, 8)
    again = generator.synthesize_styles(styles, noise=maps, start=state).image
    torch.testing.assert_close(again, generator.synthesize(w, noise=maps))
    with pytest.raises(ShapeError, match="features of convolution 3 are"):
        generator.synthesize_styles(styles, noise=maps, start=replace(state, features=state.features.mT))


def test_a_tensorflow_pickle_of_another_constant_holds_the_same_network(random_generator: RandomGenerator) -> None:
    made = checkpoint_of(random_generator, TALL)
    found = from_tensorflow_document(read_records(pickled_tensorflow(tensorflow_network(made))))
    assert found.config == TALL
    for name, tensor in made.state.items():
        torch.testing.assert_close(found.state[name], tensor, equal_nan=True)  # biases of styles are stored less one
