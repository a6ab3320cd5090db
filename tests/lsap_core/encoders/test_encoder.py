"""The encoders beside the published programs: codes at every stage, maps, sizes, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.encoders.checkpoints import build_encoder, from_encoder_document
from lsap_core.errors import ConfigError, ShapeError

FFHQ = EncoderConfig("offsets", "ir_se_50", 18, 512, (256, 256), 3)


@pytest.fixture(scope="module")
def e4e(filled: Callable[..., dict[str, Tensor]], reference: Callable[[str], Any]) -> Iterator[Encoder]:
    """e4e's encoder, its weights made from their names and read as its file is; frozen."""
    document = {
        "state_dict": {f"encoder.{name}": tensor for name, tensor in filled("e4e_encoder", "plain").items()},
        "latent_avg": reference("enc_e4e")["latent_avg"],
        "opts": {"encoder_type": "Encoder4Editing", "stylegan_size": 1024},
    }
    yield build_encoder(from_encoder_document(document)).requires_grad_(False)


@pytest.fixture(scope="module")
def photo(fill: ModuleType, reference: Callable[[str], Any]) -> Tensor:
    return fill.image_to_float(reference("enc_e4e")["image_dev_a"].numpy())


@pytest.mark.parametrize("stage", [0, 5])
def test_codes_of_a_stage_are_the_published_ones(
    stage: int, e4e: Encoder, photo: Tensor, reference: Callable[[str], Any]
) -> None:
    reference("enc_e4e").check(f"codes_stage_{stage}", e4e.offsets(photo, stage=stage))


def test_all_codes_and_maps_are_the_published_ones(
    e4e: Encoder, photo: Tensor, reference: Callable[[str], Any]
) -> None:
    seen: list[list[Tensor]] = []
    with e4e.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output)):
        reference("enc_e4e").check("codes_stage_18", e4e.offsets(photo))
    maps = seen[0][-3:]
    assert [tuple(map_.shape) for map_ in maps] == [(1, 128, 64, 64), (1, 256, 32, 32), (1, 512, 16, 16)]
    for name, map_ in zip(("c1", "c2", "c3"), maps, strict=True):
        reference("enc_e4e").check(f"{name}_mean", map_.mean(dim=(2, 3)))
        reference("enc_e4e").check(f"{name}_std", map_.std(dim=(2, 3), unbiased=False))


def test_codes_start_from_the_mean(e4e: Encoder, photo: Tensor, reference: Callable[[str], Any]) -> None:
    numbers = reference("enc_e4e")
    codes = e4e(photo)
    numbers.check("wrapper", codes)
    numbers.check("wrapper_1d", (codes - e4e.w_avg + numbers["latent_avg_1d"])[:, :2])


def test_direct_heads_give_the_published_codes_of_psp(
    e4e: Encoder, photo: Tensor, reference: Callable[[str], Any]
) -> None:
    config = e4e.config
    e4e.config = dataclasses.replace(config, heads="direct")  # the same weights, as in the published numbers
    try:
        reference("enc_psp").check("codes", e4e.offsets(photo, stage=3))  # without stages
    finally:
        e4e.config = config


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (FFHQ, 267_136_704),
        (dataclasses.replace(FFHQ, heads="direct"), 267_136_704),
        (dataclasses.replace(FFHQ, num_ws=16), 238_293_696),
        (dataclasses.replace(FFHQ, num_ws=16, input_size=(192, 256)), 238_293_696),
        (dataclasses.replace(FFHQ, num_ws=14), 209_450_688),
        (dataclasses.replace(FFHQ, heads="single"), 31_212_736),
        (dataclasses.replace(FFHQ, is_iterative=True, has_pyramid=False), 205_585_792),
    ],
    ids=lambda value: None if isinstance(value, int) else f"{value.heads}-{value.num_ws}",
)
def test_parameters_are_as_many_as_published(config: EncoderConfig, count: int) -> None:
    with torch.device("meta"):
        encoder = Encoder(config)
        codes = encoder(torch.empty(2, config.in_channels, *config.input_size))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == count
    assert codes.shape == (2, config.num_ws, 512)


@pytest.mark.parametrize("backbone", ["ir_se_50", "resnet_34", "small"])
@pytest.mark.parametrize(
    ("input_size", "has_pyramid"), [((256, 256), True), ((192, 256), True), ((100, 37), True), ((100, 37), False)]
)
def test_every_head_ends_at_one_position(backbone: str, input_size: tuple[int, int], has_pyramid: bool) -> None:
    config = EncoderConfig("offsets", backbone, 10, 6, input_size, 3, has_pyramid=has_pyramid)  # type: ignore[arg-type]
    with torch.device("meta"):
        encoder = Encoder(config)
        ends: list[tuple[int, ...]] = []
        for head in encoder.heads:
            head.convs.register_forward_hook(lambda module, inputs, output: ends.append(tuple(output.shape[2:])))
        encoder(torch.empty(2, 3, *input_size))
    assert ends == [(1, 1)] * 10


def test_the_small_encoder_is_small(small_encoder: Callable[..., Encoder]) -> None:
    encoder = small_encoder()
    maps = encoder.backbone(torch.zeros(2, 1, 32, 32))
    assert [tuple(map_.shape) for map_ in maps] == [(2, 24, 16, 16), (2, 32, 8, 8), (2, 48, 4, 4)]
    convs = [sum(isinstance(layer, torch.nn.Conv2d) for layer in head.convs) for head in encoder.heads]
    assert convs == [2, 2, 2, 3, 3, 3, 3, 4]


# --- stages ------------------------------------------------------------------------------------------


def test_a_stage_changes_its_own_rows_only(
    small_encoder: Callable[..., Encoder], numbers: Callable[..., Tensor]
) -> None:
    encoder, images = small_encoder(), numbers(2, 1, 32, 32)
    with torch.no_grad():
        everything = encoder(images)
        for stage in range(8):
            codes = encoder(images, stage=stage)
            torch.testing.assert_close(codes[:, : stage + 1], everything[:, : stage + 1])
            torch.testing.assert_close(codes[:, stage + 1 :], codes[:, :1].expand(-1, 7 - stage, -1))
        assert torch.equal(encoder(images, stage=7), encoder(images, stage=100))


def test_heads_of_later_stages_get_no_gradient(
    small_encoder: Callable[..., Encoder], numbers: Callable[..., Tensor]
) -> None:
    encoder = small_encoder()
    encoder(numbers(2, 1, 32, 32), stage=3).square().sum().backward()
    with_gradient = [head.linear.weight.grad is not None for head in encoder.heads]
    assert with_gradient == [True] * 4 + [False] * 4
    assert encoder.pyramid is not None and encoder.pyramid.lateral1.weight.grad is not None
    assert encoder.pyramid.lateral2.weight.grad is None


@pytest.mark.parametrize("heads", ["direct", "single"])
def test_encoders_without_stages_ignore_them(
    heads: str, small_encoder: Callable[..., Encoder], numbers: Callable[..., Tensor]
) -> None:
    config = EncoderConfig(heads, "small", 8, 20, (32, 32), 1)  # type: ignore[arg-type]
    encoder, images = small_encoder(config), numbers(2, 1, 32, 32)
    encoder.w_avg.copy_(numbers(8, 20, seed=1))
    codes = encoder(images)
    assert torch.equal(encoder(images, stage=2), codes)
    torch.testing.assert_close(codes, encoder.w_avg + encoder.offsets(images))


def test_a_single_head_gives_one_w_for_all_rows(
    small_encoder: Callable[..., Encoder], numbers: Callable[..., Tensor]
) -> None:
    encoder = small_encoder(EncoderConfig("single", "small", 8, 20, (32, 32), 1))
    codes = encoder(numbers(2, 1, 32, 32))
    assert codes.shape == (2, 8, 20) and torch.equal(codes, codes[:, :1].expand(-1, 8, -1))
    features = encoder.backbone(numbers(2, 1, 32, 32))[-1].mean(dim=(2, 3))
    linear = encoder.heads[0].linear
    torch.testing.assert_close(codes[:, 0], features @ linear.weight.T / 48**0.5 + linear.bias)


def test_each_image_is_encoded_by_itself(small_encoder: Callable[..., Encoder], numbers: Callable[..., Tensor]) -> None:
    encoder, images = small_encoder(), numbers(3, 1, 32, 32)
    alone = torch.cat([encoder(images[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(encoder(images), alone, rtol=1e-4, atol=1e-5)


# --- sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "is_iterative", "message"),
    [
        ((2, 1, 32, 28), False, r"images are \[2, 1, 32, 28\]; this encoder reads \[N, 1, 32, 32\]: bring"),
        ((2, 3, 32, 32), False, r"\[2, 3, 32, 32\]; this encoder reads \[N, 1, 32, 32\]"),
        ((1, 32, 32), False, r"\[1, 32, 32\]; this encoder reads"),
        ((2, 1, 32, 32), True, r"reads \[N, 2, 32, 32\] \(an image and its reconstruction\)"),
    ],
)
def test_images_of_another_size_are_refused(
    shape: tuple[int, ...], is_iterative: bool, message: str, small_encoder: Callable[..., Encoder]
) -> None:
    encoder = small_encoder(EncoderConfig("offsets", "small", 8, 20, (32, 32), 1, is_iterative=is_iterative))
    with pytest.raises(ShapeError, match=message):
        encoder(torch.zeros(shape))


def test_a_negative_stage_is_refused(small_encoder: Callable[..., Encoder]) -> None:
    with pytest.raises(ConfigError, match=r"stage is -1; wanted 0 \(all rows equal\) to 7"):
        small_encoder()(torch.zeros(1, 1, 32, 32), stage=-1)
