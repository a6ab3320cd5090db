"""HFGI's networks: the published numbers, names and sizes, and every other size of image."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import GeneratorConfig
from lsap_core.refinement.hfgi_checkpoints import HFGI
from lsap_core.refinement.hfgi_networks import HfgiConfig, HfgiNetworks
from lsap_core.refinement.network_files import NetworkCheckpoint

KEYS = Path(__file__).parents[2] / "reference" / "keys"
TABLES = {"aligner": "hfgi_residual_aligner", "encoder": "hfgi_residual_encoder"}


@pytest.fixture(scope="module")
def published(filled: Callable[..., dict[str, Tensor]]) -> HfgiNetworks:
    """The networks that the published programs ran."""
    tensors = {
        f"{module}.{name}": tensor
        for module, table in TABLES.items()
        for name, tensor in filled(table, "plain").items()
    }
    config = HfgiConfig()
    return HFGI.build(NetworkCheckpoint(config, HFGI.canonical(config, tensors, what="a test"), "hfgi"))


def random_networks(config: HfgiConfig) -> HfgiNetworks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HfgiNetworks(config).eval()


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def test_conditions_are_the_published_ones(
    published: HfgiNetworks, reference: Callable[[str], Any], fill: ModuleType
) -> None:
    expected = reference("hfgi_nets")
    a, b = (fill.image_to_float(expected[f"hfgi_dev_{name}"].numpy()) for name in "ab")
    aligned, scale, shift = published(a - b, b)
    expected.check("aligned_sub", aligned[:, :, ::4, ::4])
    expected.check("aligned_mean", aligned.mean(dim=(2, 3)))
    expected.check("aligned_std", aligned.std(dim=(2, 3), correction=0))
    for source, conditions in (("aligned", (scale, shift)), ("a", published.encoder(a))):
        for name, condition in zip(("scale", "shift"), conditions, strict=True):
            assert condition.shape == (1, 512, 64, 64)
            expected.check(f"{name}_from_{source}_sub", condition[:, ::64, ::2, ::2])
            expected.check(f"{name}_from_{source}_mean", condition.mean(dim=(2, 3)))
            expected.check(f"{name}_from_{source}_std", condition.std(dim=(2, 3), correction=0))


@pytest.mark.parametrize("module", TABLES)
def test_names_and_shapes_are_those_of_released_weights(module: str) -> None:
    table = json.loads((KEYS / f"{TABLES[module]}.json").read_text())["keys"]
    with torch.device("meta"):
        state = getattr(HfgiNetworks(HfgiConfig()), module).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == table


def test_parameters_are_as_many_as_published(published: HfgiNetworks) -> None:
    assert (count(published.aligner), count(published.encoder)) == (596_801, 5_647_344)


def test_small_networks_are_small() -> None:
    digits = GeneratorConfig(32, (64, 64, 32, 16), w_dim=64, image_channels=1)
    config = HfgiConfig.for_generator(digits, widths="small")
    assert config == HfgiConfig(image_channels=1, condition_channels=64, widths="small")
    assert count(HfgiNetworks(config)) < 100_000


@pytest.mark.parametrize(
    ("size", "channels", "found"),
    [
        ((192, 256), 3, (48, 64)),
        ((32, 32), 1, (8, 8)),
        ((24, 32), 1, (6, 8)),
        ((30, 17), 3, (8, 5)),
        ((5, 3), 1, (2, 1)),
    ],
)
@torch.no_grad()
def test_sizes_follow_the_images(size: tuple[int, int], channels: int, found: tuple[int, int]) -> None:
    networks = random_networks(HfgiConfig(channels, 6, "small"))
    images = torch.linspace(-1, 1, channels * size[0] * size[1]).view(1, channels, *size)
    aligned, scale, shift = networks(images, -images)
    assert aligned.shape == images.shape
    assert scale.shape == shift.shape == (1, 6, *found)


@torch.no_grad()
def test_what_an_image_gets_does_not_depend_on_its_neighbours() -> None:
    networks = random_networks(HfgiConfig(3, 6, "small"))
    residual, images = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0)).unbind()
    together = networks(residual, images)
    for row in range(3):
        for whole, single in zip(together, networks(residual[row : row + 1], images[row : row + 1]), strict=True):
            torch.testing.assert_close(whole[row : row + 1], single, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [HfgiConfig(), HfgiConfig(1, 64, "small")])
def test_sizes_survive_json(config: HfgiConfig) -> None:
    assert HfgiConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "values",
    [{"widths": "huge"}, {"image_channels": 0}, {"condition_channels": 1 << 20}, {"condition_channels": 64.0}],
)
def test_impossible_sizes_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"wanted|must be"):
        HfgiConfig.from_dict({**HfgiConfig().to_dict(), **values})


def test_a_residual_of_another_shape_is_refused() -> None:
    networks = random_networks(HfgiConfig(3, 6, "small"))
    for residual, images in (
        ((1, 3, 8, 8), (1, 3, 16, 16)),
        ((1, 1, 8, 8), (1, 1, 8, 8)),
        ((2, 3, 8, 8), (1, 3, 8, 8)),
    ):
        with pytest.raises(ShapeError, match="wanted"):
            networks(torch.zeros(residual), torch.zeros(images))
    with pytest.raises(ShapeError, match=r"wanted \[N, 6, H, W\]"):
        networks.aligner(torch.zeros(1, 3, 8, 8))
