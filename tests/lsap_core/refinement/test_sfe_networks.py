"""Inverter and Feature Editor: numbers of the published program, names and sizes, and a small variant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import GeneratorConfig
from lsap_core.refinement.sfe_networks import (
    ContentLayerDeepFast,
    Inverter,
    SfeBackboneNetwork,
    SfeConfig,
    SfeNetworks,
    sfe_misfit,
)

KEYS = Path(__file__).parents[2] / "reference" / "keys"
FACES = SfeConfig.for_generator(GeneratorConfig.config_f(1024), backbone="iresnet_50")
DIGITS = GeneratorConfig(32, (64, 64, 32, 16), w_dim=64, image_channels=1)


def quarter(network: nn.Module, ending: str) -> None:
    """The last convolutions of residual branches are a quarter of what their names say, as in the published run."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(ending):
                parameter *= 0.25


def mean_and_deviation(maps: Tensor) -> tuple[Tensor, Tensor]:
    return maps.mean(dim=(2, 3)), maps.flatten(2).std(dim=2, correction=0)


@pytest.fixture(scope="module")
def backbone(fill: ModuleType) -> SfeBackboneNetwork:
    with torch.device("meta"):
        network = SfeBackboneNetwork(FACES)
    network = network.to_empty(device="cpu")
    fill.fill_module(network, "plain")
    quarter(network, "conv2.weight")
    return network.eval()


@torch.no_grad()
def test_the_backbone_gives_the_published_numbers(
    reference: Callable[[str], Any], fill: ModuleType, backbone: SfeBackboneNetwork
) -> None:
    numbers = reference("sfe_backbone")
    images = fill.image_to_float(numbers["sfe_dev_a"].numpy())
    maps = backbone.stages(images)
    assert [list(one.shape) for one in maps] == [[1, 64, 64, 64], [1, 128, 32, 32], [1, 256, 32, 32], [1, 512, 16, 16]]
    for stage, features in enumerate(maps, start=1):
        mean, deviation = mean_and_deviation(features)
        numbers.check(f"block_{stage}_mean", mean)
        numbers.check(f"block_{stage}_std", deviation)
    numbers.check("pooled", backbone.pooled(maps))
    codes, content = backbone(images)
    numbers.check("codes", codes)
    numbers.check("content_sub", content[:, ::64, ::2, ::2])
    mean, deviation = mean_and_deviation(content)
    numbers.check("content_mean", mean)
    numbers.check("content_std", deviation)


@torch.no_grad()
def test_fuser_and_feature_editor_give_the_published_numbers(reference: Callable[[str], Any], fill: ModuleType) -> None:
    numbers = reference("sfe_fuser")
    full = fill.fill_module(ContentLayerDeepFast(6, 1024, 512), "plain").eval()
    small = fill.fill_module(ContentLayerDeepFast(4, 24, 40), "plain", salt="small:").eval()
    for network in (full, small):
        quarter(network, "body.4.weight")
    fused = full(torch.from_numpy(fill.array("in/sfe_fuser/features", (1, 1024, 12, 16))))
    mean, deviation = mean_and_deviation(fused)
    numbers.check("fused_sub", fused[:, ::8])
    numbers.check("fused_mean", mean)
    numbers.check("fused_std", deviation)
    numbers.check("small", small(numbers["small_features"]))


@pytest.mark.parametrize(
    ("table", "make"),
    [("sfe_inverter", lambda: Inverter(FACES)), ("sfe_feature_editor", lambda: SfeNetworks(FACES).editor)],
)
def test_names_and_shapes_are_those_of_the_released_weights(table: str, make: Callable[[], nn.Module]) -> None:
    wanted = json.loads((KEYS / f"{table}.json").read_text())["keys"]
    with torch.device("meta"):
        found = {name: list(tensor.shape) for name, tensor in make().state_dict().items()}
    assert found == wanted


def test_there_are_as_many_parameters_as_in_the_released_networks() -> None:
    with torch.device("meta"):
        networks = SfeNetworks(FACES)
    backbone = networks.inverter.fs_backbone
    counted = {
        "backbone": backbone,
        "heads": backbone.styles,
        "content": backbone.content_layer,
        "fuser": networks.inverter.fuser,
        "inverter": networks.inverter,
        "editor": networks.editor,
    }
    assert {name: sum(one.numel() for one in part.parameters()) for name, part in counted.items()} == {
        "backbone": 113_920_704,
        "heads": 79_635_456,
        "content": 3_542_016,
        "fuser": 24_135_680,
        "inverter": 138_056_384,
        "editor": 24_135_680,
    }


def test_the_small_networks_of_small_gray_images_are_small(numbers: Callable[..., Tensor]) -> None:
    config = SfeConfig.for_generator(DIGITS, backbone="small")
    networks = SfeNetworks(config).eval()
    assert sum(parameter.numel() for parameter in networks.parameters()) < 200_000
    codes, content = networks.inverter.fs_backbone(numbers(2, 1, 32, 32))
    assert (codes.shape, content.shape) == ((2, 8, 64), (2, 64, 8, 8))
    assert networks.inverter.fuser(torch.cat([content, content], dim=1)).shape == content.shape


@pytest.mark.parametrize(
    ("generator", "input_side", "side", "channels"),
    [
        (GeneratorConfig.config_f(1024), 256, 64, 512),
        (GeneratorConfig.config_e(256), 256, 64, 256),
        (GeneratorConfig.config_f(512, content_box=(64, 448, 0, 512)), 256, 64, 512),
        (GeneratorConfig.config_f(128), 128, 32, 512),
        (DIGITS, 32, 8, 64),
        (GeneratorConfig(16, (6, 5, 4)), 16, 4, 6),
    ],
)
def test_sizes_follow_from_the_generator(generator: GeneratorConfig, input_side: int, side: int, channels: int) -> None:
    config = SfeConfig.for_generator(generator, backbone="small")
    assert (config.input_side, config.feature_side, config.feature_channels) == (input_side, side, channels)
    assert sfe_misfit(config, generator) is None
    assert SfeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_what_does_not_fit_is_said_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="8 pixels has no feature map of side 2"):
        SfeConfig.for_generator(GeneratorConfig(8, (4, 4)), backbone="small")
    with pytest.raises(ConfigError, match='backbone is "large"; wanted one of "iresnet_50", "small"'):
        SfeConfig("large", 18, 512, 3, 256, 512)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="input_side is 100; wanted a power of two, at least 16"):
        SfeConfig("small", 18, 512, 3, 100, 512)
    with pytest.raises(ConfigError, match="num_ws at most 64"):
        SfeConfig("small", 65, 512, 3, 256, 512)
    problem = sfe_misfit(FACES, GeneratorConfig.config_e(1024))
    assert problem is not None and "feature_channels of the networks of StyleFeatureEditor is 512" in problem


def test_the_backbone_sees_the_central_pixels_of_blocks(numbers: Callable[..., Tensor]) -> None:
    networks = SfeNetworks(SfeConfig.for_generator(GeneratorConfig(1024, (2,) * 9, w_dim=4), backbone="small"))
    images = numbers(1, 3, 1024, 1024)
    centre = images.unflatten(3, (256, 4))[..., 1:3].unflatten(2, (256, 4))[:, :, :, 1:3].mean(dim=(3, 5))
    torch.testing.assert_close(networks.view(images), centre)
    with pytest.raises(ShapeError, match=r"these networks read \[N, 3, R, R\]"):
        networks.view(images[..., :512])
