"""Figures 4 and 5: which entries of which codes are drawn, and that no pixel of a sheet is lost."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.spaces.styles import normalize, select
from tasks.reports.paper.figure4 import Clouds, code_points, draw_figure_4, parquet_of, picture_of, png_of, sample_codes
from tasks.reports.paper.figure5 import EditedImage, page_uri, sheet, spread

CONFIG = GeneratorConfig(32, (8, 8, 8, 8), z_dim=6, w_dim=8, num_mapping_layers=2, mapping_lr_multiplier=0.1)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(CONFIG).eval()


def pixels(shade: int, side: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(shade).integers(0, 256, (side, side, channels)).astype(np.uint8)


# --- figure 4 -----------------------------------------------------------------------------------------


def test_points_are_two_entries_of_one_layer_in_each_space(generator: Generator) -> None:
    codes = torch.randn(5, CONFIG.num_ws, CONFIG.w_dim)
    points = code_points(generator, codes, layer=2, entries=(3, 1), style_set="authors")
    with torch.no_grad():
        styles = select(generator.styles(codes), CONFIG, "authors")
    assert points["w"] == pytest.approx(codes[:, 2, [3, 1]].numpy())
    assert points["s"] == pytest.approx(styles[2][:, [3, 1]].numpy(), rel=1e-6)
    assert points["s_n"] == pytest.approx(normalize(styles)[2][:, [3, 1]].numpy(), rel=1e-6)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"layer": 8}, "asks for layer 8; the generator has layers 0 to 7"),
        ({"layer": 0, "entries": (0, 8)}, "asks for entries 0 and 8; there are 0 to 7"),
    ],
)
def test_layers_and_entries_that_are_not_there_are_refused(generator: Generator, where: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        code_points(generator, torch.zeros(1, CONFIG.num_ws, CONFIG.w_dim), **where, style_set="authors")


def test_the_generators_own_codes_are_those_of_the_seed(generator: Generator) -> None:
    codes = sample_codes(generator, 3, seed=4)
    assert codes.shape == (3, CONFIG.num_ws, CONFIG.w_dim)
    assert torch.equal(codes[:, 0], codes[:, 5])
    assert torch.equal(codes, sample_codes(generator, 3, seed=4))
    assert not torch.equal(codes, sample_codes(generator, 3, seed=5))


def test_the_grid_has_a_row_for_each_space_with_the_same_axes_in_it() -> None:
    stream = np.random.default_rng(0)

    def cloud(size: int, shift: float) -> dict:
        return {space: stream.normal(shift, 1, (size, 2)) for space in ("w", "s", "s_n")}

    clouds = Clouds(cloud(20, 0), {"pSp": cloud(7, 5), "e4e": cloud(7, 1)}, 0, (0, 1))
    axes = draw_figure_4(clouds).axes
    assert len(axes) == 6
    for row in (axes[:2], axes[2:4], axes[4:]):
        assert row[0].get_xlim() == row[1].get_xlim() and row[0].get_ylim() == row[1].get_ylim()
    assert axes[0].get_xlim()[1] >= clouds.inverse["pSp"]["w"][:, 0].max()
    assert Image.open(io.BytesIO(png_of(clouds))).width > 800
    assert "7 real images of each encoder, and for 20 codes" in picture_of(clouds).caption
    ids = {title: [f"image {index}" for index in range(7)] for title in ("pSp", "e4e")}
    written = pq.read_table(io.BytesIO(parquet_of(clouds, ids))).to_pylist()
    assert len(written) == 3 * (20 + 7 + 7)
    row = next(one for one in written if (one["codes"], one["space"], one["image_id"]) == ("e4e", "S", "image 3"))
    assert (row["x"], row["y"]) == tuple(clouds.inverse["e4e"]["s"][3])


# --- figure 5 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "channels"), [(200, 3), (128, 1)])
def test_a_sheet_holds_every_picture_at_full_resolution(side: int, channels: int) -> None:
    labels = ("inversion", "slant, strength 2")
    made = {
        "pSp": {"inversion": pixels(1, side, channels), "slant, strength 2": pixels(2, side, channels)},
        "e4e": {"inversion": pixels(3, side, channels)},
    }
    image = EditedImage("a", pixels(0, side, channels), made)
    drawn = np.asarray(Image.open(io.BytesIO(sheet(image, labels))))
    shown = [image.original, *(picture for method in made.values() for picture in method.values())]
    windows = np.lib.stride_tricks.sliding_window_view(drawn, (side, side), axis=(0, 1))
    for picture in shown:
        first = np.broadcast_to(picture, (side, side, 3))
        places = np.argwhere((drawn[: -side + 1, : -side + 1] == first[0, 0]).all(-1))
        assert any((np.moveaxis(windows[y, x], 0, -1) == first).all() for y, x in places)


def test_small_pictures_are_enlarged_by_a_whole_number_and_large_ones_shrink_on_the_page() -> None:
    assert page_uri(pixels(0, 32, 1)).startswith("data:image/png")
    assert page_uri(pixels(0, 512)).startswith("data:image/jpeg")
    drawn = Image.open(io.BytesIO(sheet(EditedImage("a", pixels(0, 32, 1), {"pSp": {}}), ("inversion",))))
    assert drawn.height > 96


def test_shown_images_are_spread_over_all() -> None:
    assert spread([str(index) for index in range(10)], 3) == ["0", "3", "6"]
    assert spread(["a"], 5) == ["a"]
