"""Sheets of pictures: every tile where it belongs, and no pixel of it lost."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.pictures.sheets import GAP, LARGEST_STRIP_TILE, draw_pairs, draw_sheet, draw_strips, width_on_page

LABEL_HEIGHT = 12 + 12 // 4 + GAP  # one line


@pytest.mark.parametrize(("side", "factor", "channels"), [(32, 3, 1), (100, 1, 3)])
def test_every_tile_is_in_its_row_and_column(side: int, factor: int, channels: int) -> None:
    random = torch.Generator().manual_seed(0)
    columns = [torch.rand(2, channels, side, side, generator=random) * 2 - 1 for _ in range(3)]
    sheet = np.asarray(Image.open(io.BytesIO(draw_strips(columns, ["inversion", "-1", "+1"], ["anna", "bert"]))))
    tile = side * factor
    left = sheet.shape[1] - 3 * (tile + GAP)
    assert left > 2 * GAP and sheet.shape[0] == LABEL_HEIGHT + 2 * (tile + GAP)
    for column, batch in enumerate(columns):
        for row, image in enumerate(batch):
            x, y = left + column * (tile + GAP) + GAP // 2, LABEL_HEIGHT + row * (tile + GAP) + GAP // 2
            wanted = ((image + 1) / 2 * 255).to(torch.uint8).permute(1, 2, 0).numpy()
            shown = sheet[y : y + tile : factor, x : x + tile : factor]
            np.testing.assert_array_equal(shown, np.broadcast_to(wanted, shown.shape))
    assert (sheet[:LABEL_HEIGHT, left:] < 128).any() and (sheet[LABEL_HEIGHT:, :left] < 128).any()  # the labels


def test_large_images_are_reduced() -> None:
    sheet = Image.open(io.BytesIO(draw_strips([torch.zeros(1, 3, 1024, 1024)], ["inversion"], [""])))
    tile = (np.asarray(sheet) == 127).all(axis=-1)
    assert tile.any(axis=0).sum() == tile.any(axis=1).sum() == LARGEST_STRIP_TILE


@pytest.mark.parametrize("channels", [1, 3])
def test_pairs_stand_in_bands_of_eight(channels: int) -> None:
    images = torch.zeros(10, channels, 96, 128)
    data = draw_pairs(images, images)
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (8 * (128 + 4), 2 * (2 * 96 + 4))


def test_a_gap_stays_blank_and_a_long_name_widens_its_column() -> None:
    black = np.zeros((32, 32, 1), np.uint8)
    names = ["original", "a method with a name that is long", "slant, strength 2"]
    sheet = np.asarray(draw_sheet([[black, None, black], [None, black, black]], column_labels=names))
    tiles = (sheet[-2 * (96 + GAP) :] == 0).all(axis=-1)
    assert [tiles[: 96 + GAP].sum(), tiles[96 + GAP :].sum()] == [2 * 96 * 96] * 2
    assert sheet.shape[1] > 3 * (96 + GAP) + 100
    assert sheet.shape[0] > LABEL_HEIGHT + 2 * (96 + GAP)  # "strength 2" has a line of its own


def test_small_pictures_stand_on_a_page_at_a_whole_multiple_and_large_ones_at_what_there_is_room_for() -> None:
    assert [width_on_page(side, side, 192) for side in (28, 32, 100, 1024)] == [
        (84, True),
        (64, True),
        (100, False),
        (192, False),
    ]
