"""Strips of edits: the noise of the inversion, and a picture with every tile where it belongs."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lsap_core.editing import Direction, along
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.presets import method
from tasks.archived.rendering import edited_images, inversion_noise
from tasks.editing.strip import LABEL_HEIGHT, LARGEST_TILE, MARGIN, draw_strips
from tasks.weights.generators import load_generator

CPU = torch.device("cpu")


def test_an_edit_of_strength_0_is_the_inversion_with_its_own_noise(laboratory: Any) -> None:
    laboratory.fill(3)
    archive = laboratory.invert()
    generator = load_generator(laboratory.generator).generator.freeze()
    ids, method = ["2.png", "0.png"], "stylegan2_w_plus"
    noise = inversion_noise(archive, ids, method, CPU)
    assert [maps.shape for maps in noise] == [(2, 1, side, side) for side in generator.config.noise_sides]
    codes = torch.from_numpy(archive.codes(ids, method))
    direction = Direction("d", torch.randn(1, 8, generator=torch.Generator().manual_seed(0)))
    inversion, same, other = edited_images(
        generator, codes, noise, [along(direction, strength) for strength in (0.0, 2.0)]
    )
    assert torch.equal(same, inversion) and not torch.equal(other, inversion)
    with torch.no_grad():
        assert torch.equal(inversion, generator.synthesize(codes, noise=noise))
        assert not torch.equal(inversion, generator.synthesize(codes))


def test_an_encoder_keeps_no_noise_and_its_edits_have_the_generators(laboratory: Any, new_encoder: Any) -> None:
    laboratory.fill(1)
    path = new_encoder(laboratory.source.parent / "e4e.safetensors", title="e4e")
    archive = laboratory.invert(methods=(method("e4e"),), encoders={"e4e": path}, worker={"encoders": {"e4e": path}})
    assert inversion_noise(archive, ["0.png"], "e4e", CPU) == "constant"


def test_only_the_content_box_is_shown() -> None:
    config = GeneratorConfig(32, (4, 4, 4, 4), z_dim=4, w_dim=4, num_mapping_layers=1, content_box=(4, 28, 0, 32))
    (images,) = edited_images(Generator(config).freeze(), torch.ones(2, config.num_ws, 4), "constant", [])
    assert images.shape == (2, 3, 24, 32)


@pytest.mark.parametrize(("side", "factor", "channels"), [(32, 3, 1), (100, 1, 3)])
def test_every_tile_is_in_its_row_and_column(side: int, factor: int, channels: int) -> None:
    random = torch.Generator().manual_seed(0)
    columns = [torch.rand(2, channels, side, side, generator=random) * 2 - 1 for _ in range(3)]
    sheet = np.asarray(Image.open(io.BytesIO(draw_strips(columns, ["inversion", "-1", "+1"], ["anna", "bert"]))))
    tile = side * factor
    left = sheet.shape[1] - 3 * (tile + MARGIN)
    assert left > 2 * MARGIN and sheet.shape[0] == LABEL_HEIGHT + 2 * (tile + MARGIN)
    for column, batch in enumerate(columns):
        for row, image in enumerate(batch):
            x, y = left + column * (tile + MARGIN), LABEL_HEIGHT + row * (tile + MARGIN)
            wanted = ((image + 1) / 2 * 255).to(torch.uint8).permute(1, 2, 0).numpy()
            shown = sheet[y : y + tile : factor, x : x + tile : factor]
            np.testing.assert_array_equal(shown, np.broadcast_to(wanted, shown.shape))
    assert (sheet[:LABEL_HEIGHT, left:] < 128).any() and (sheet[LABEL_HEIGHT:, :left] < 128).any()  # the labels


def test_large_images_are_reduced() -> None:
    sheet = Image.open(io.BytesIO(draw_strips([torch.zeros(1, 3, 1024, 1024)], ["inversion"], [""])))
    assert sheet.height == LABEL_HEIGHT + LARGEST_TILE + MARGIN
