"""Every metric against its definition, on images as they would be saved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsap_archive import ROW_SCHEMA
from lsap_core.alignment.anchor import Anchor, estimate_anchor
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.images import from_uint8, quantize, to_uint8
from lsap_core.metrics import mse
from lsap_core.spaces.styles import select
from tasks.measuring.measures import MEASURES, Batch, MeasureKey, measure_all
from tasks.measuring.of_inversions import COLUMNS, measure
from tasks.weights.networks import NetworkChoice, Networks, load_networks

CONFIG = GeneratorConfig(32, (4, 4, 4, 4), z_dim=5, w_dim=6, num_mapping_layers=2, image_channels=1)
HALF_A_LEVEL = 1 / 255  # 256 levels lie between -1 and 1


class MeanDifference(nn.Module):
    """A perceptual distance that anybody can compute; remembers the size of what it saw."""

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        self.seen = tuple(images.shape[-2:]), tuple(target.shape[-2:])
        return (images - target).abs().mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def generator() -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Generator(CONFIG).freeze()


@pytest.fixture(scope="module")
def anchor(generator: Generator) -> Anchor:
    return estimate_anchor(generator, num_samples=64)


@pytest.fixture
def networks() -> Networks:
    return Networks(MeanDifference(), MeanDifference(), None, None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def digit_networks() -> Networks:
    choice = NetworkChoice("digits-features", "digits-judge", identity="digits-features", judge="digits-judge")
    return load_networks(choice, torch.device("cpu"))


def codes(count: int, config: GeneratorConfig = CONFIG) -> Tensor:
    return torch.randn(count, config.num_ws, config.w_dim, generator=torch.Generator().manual_seed(1))


def levels(count: int, seed: int = 2, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 1)).astype(np.uint8)


def as_saved(pixels: np.ndarray) -> Tensor:
    return from_uint8(pixels)


def test_values_are_those_of_the_definitions(generator: Generator, anchor: Anchor, digit_networks: Networks) -> None:
    target = as_saved(levels(3))
    reconstruction = 1.5 * torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    w_plus = codes(3)
    found = measure(reconstruction, target, w_plus, generator=generator, anchor=anchor, networks=digit_networks)
    assert found.keys() == {"mse", "lpips", "sncd", "w_distance", "lpips_judge", "identity_similarity"}
    assert {len(values) for values in found.values()} == {3}

    saved = np.floor((np.clip(reconstruction.numpy().astype(np.float64), -1, 1) + 1) / 2 * 255)
    seen = saved / 255 * 2 - 1
    wanted = {"mse": np.square(seen - target.numpy()).mean(axis=(1, 2, 3))}

    styles = [style.double().numpy() for style in select(generator.styles(w_plus), CONFIG, anchor.style_set)]
    cosines = [
        (style / np.linalg.norm(style, axis=1, keepdims=True)) @ direction.double().numpy()
        for style, direction in zip(styles, anchor.directions, strict=True)
    ]
    assert len(cosines) == CONFIG.num_ws
    wanted["sncd"] = np.mean([1 - cosine for cosine in cosines], axis=0)

    offset = w_plus.double().numpy() - anchor.w_avg.double().numpy()
    wanted["w_distance"] = np.square(offset).sum(axis=2).mean(axis=1) / anchor.code_deviation**2

    seen_tensor = torch.from_numpy(seen).float()
    with torch.no_grad():
        wanted["lpips"] = digit_networks.metric_perceptual(seen_tensor, target).numpy()  # not that of the loss
        wanted["lpips_judge"] = digit_networks.judge(seen_tensor, target).numpy()
        wanted["identity_similarity"] = digit_networks.identity(seen_tensor, target).numpy()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-4, atol=1e-6, err_msg=name)
    assert not np.allclose(wanted["lpips"], digit_networks.perceptual(seen_tensor, target).numpy(), rtol=0.1)


def test_a_network_that_is_not_there_leaves_its_column_out(
    generator: Generator, anchor: Anchor, digit_networks: Networks
) -> None:
    images = as_saved(levels(1))
    columns = {
        (judge, identity): measure(
            images,
            images,
            codes(1),
            generator=generator,
            anchor=anchor,
            networks=replace(
                digit_networks,
                judge=digit_networks.judge if judge else None,
                identity=digit_networks.identity if identity else None,
            ),
        ).keys()
        for judge in (True, False)
        for identity in (True, False)
    }
    always = {"mse", "lpips", "sncd", "w_distance"}
    assert columns == {
        (True, True): always | {"lpips_judge", "identity_similarity"},
        (True, False): always | {"lpips_judge"},
        (False, True): always | {"identity_similarity"},
        (False, False): always,
    }


def test_what_8_bits_do_not_keep_is_not_measured(generator: Generator, anchor: Anchor, networks: Networks) -> None:
    pixels = levels(1)
    target = as_saved(pixels)
    inside = (target + HALF_A_LEVEL).where(target < 1, 7.0)  # saved as the same level; what is too bright, as 255
    assert np.array_equal(to_uint8(inside), pixels)
    found = measure(inside, target, codes(1), generator=generator, anchor=anchor, networks=networks)
    assert (found["mse"], found["lpips"]) == ([0.0], [0.0])
    above = (target + 3 * HALF_A_LEVEL).where(target < 1, 1.0)  # the next level
    found = measure(above, target, codes(1), generator=generator, anchor=anchor, networks=networks)
    share = float((pixels < 255).mean())
    assert found["mse"] == pytest.approx([share * (2 / 255) ** 2], rel=1e-4)


def test_each_image_is_measured_for_itself(generator: Generator, anchor: Anchor, digit_networks: Networks) -> None:
    target, w_plus = as_saved(levels(3)), codes(3)
    reconstruction = as_saved(levels(3, seed=9))
    options = {"generator": generator, "anchor": anchor, "networks": digit_networks}
    together = measure(reconstruction, target, w_plus, **options)
    for index in range(3):
        alone = measure(*(part[index : index + 1] for part in (reconstruction, target, w_plus)), **options)
        for name, values in alone.items():
            assert values == pytest.approx([together[name][index]], rel=1e-4), name


def test_only_the_content_box_counts(generator: Generator, anchor: Anchor, networks: Networks) -> None:
    boxed = Generator(replace(CONFIG, content_box=(4, 28, 0, 16))).freeze()
    boxed.load_state_dict(generator.state_dict())
    target = as_saved(levels(1))
    outside, inside = target.clone(), target.clone()
    outside[:, :, :4], outside[:, :, 28:], outside[:, :, :, 16:] = 1.0, -1.0, 0.5
    inside[:, :, 4, 0] = -target[:, :, 4, 0].sign()
    options = {"generator": boxed, "anchor": anchor, "networks": networks}
    reference = measure(target, target, codes(1), **options)
    assert measure(outside, target, codes(1), **options) == reference
    found = measure(inside, target, codes(1), **options)
    assert found["mse"][0] > reference["mse"][0] and found["lpips"][0] > reference["lpips"][0]
    assert found["sncd"] == reference["sncd"]
    assert networks.metric_perceptual.seen == ((24, 16), (24, 16))


def test_large_images_are_compared_at_256_pixels(networks: Networks) -> None:
    config = GeneratorConfig(512, (2,) * 8, z_dim=2, w_dim=2, num_mapping_layers=1, image_channels=1)
    large = Generator(config).freeze()
    anchor = estimate_anchor(large, num_samples=8)
    target = as_saved(np.full((1, 512, 512, 1), 100, np.uint8))
    checked = (torch.arange(512)[:, None] + torch.arange(512)) % 2 * 0.5 - 0.25  # gone once it is averaged
    options = {"generator": large, "anchor": anchor, "networks": networks}
    found = measure(target + checked, target, codes(1, config), **options)
    assert networks.metric_perceptual.seen == ((256, 256), (256, 256))
    assert found["mse"][0] < 1e-3 < float(checked.square().mean())


def test_up_to_256_pixels_nothing_but_the_8_bits_comes_between(
    generator: Generator, anchor: Anchor, digit_networks: Networks
) -> None:
    """To the last bit: the columns of archives that exist."""
    target = as_saved(levels(64))
    reconstruction = torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    reconstruction[0] = target[0]  # levels to the last bit: some are truncated to the next darker ones
    found = measure(reconstruction, target, codes(64), generator=generator, anchor=anchor, networks=digit_networks)
    seen = quantize(reconstruction)
    assert found["mse"] == mse(seen, target).tolist() and found["mse"][0] > 0
    with torch.no_grad():
        assert found["lpips"] == digit_networks.metric_perceptual(seen, target).tolist()
        assert found["identity_similarity"] == digit_networks.identity(seen, target).tolist()


@pytest.mark.parametrize("content_box", [None, (64, 448, 0, 512)])
def test_large_images_are_measured_as_an_evaluation_measures_their_files(content_box: Any) -> None:
    config = GeneratorConfig(
        512, (2,) * 8, z_dim=2, w_dim=2, num_mapping_layers=1, image_channels=1, content_box=content_box
    )
    large = Generator(config).freeze()
    anchor, w_plus, target = estimate_anchor(large, num_samples=8), codes(2, config), as_saved(levels(2, side=512))
    images = target * 0.7 + 0.2 * torch.randn(target.shape, generator=torch.Generator().manual_seed(6))
    networks = Networks(MeanDifference(), MeanDifference(), MeanDifference(), None)  # type: ignore[arg-type]
    found = measure(images, target, w_plus, generator=large, anchor=anchor, networks=networks)
    instruments = {role: {"mean": MeanDifference()} for role in ("lpips", "identity")}
    evaluated = measure_all(Batch(large, w_plus, quantize(images), target, anchor), instruments)
    for column, (name, role) in COLUMNS.items():
        if column in found:
            assert found[column] == evaluated[MeasureKey(name, role and "mean")].values, column
    assert found.keys() == COLUMNS.keys() - {"lpips_judge"}


def test_the_columns_are_those_of_the_archive_and_of_the_table() -> None:
    assert COLUMNS.keys() <= set(ROW_SCHEMA.names)
    assert [column for column, (name, _) in COLUMNS.items() if MEASURES[name].better == "higher"] == [
        "identity_similarity"
    ]
