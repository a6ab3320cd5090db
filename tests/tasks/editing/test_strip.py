"""Strips of edits: a picture with every tile where it belongs."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.editing.strip import LABEL_HEIGHT, LARGEST_TILE, MARGIN, draw_strips


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
