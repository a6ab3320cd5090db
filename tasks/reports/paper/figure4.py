"""Figure 4: codes of real images beside the generator's own, in W, S and Sᴺ; a panel for each space and encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from lsap_archive import to_parquet
from lsap_core.errors import ConfigError
from lsap_core.generators.generator import Generator
from lsap_core.spaces.styles import StyleSet, normalize, select
from tasks.reports.figure_style import INK, Picture, figure_png, strip, svg_uri, write
from tasks.reports.text import reference_title

SPACES = {"w": "W", "s": "S", "s_n": "Sᴺ"}
SYNTHETIC, INVERSE = "#0072B2", "#D55E00"
BATCH = 4096

Points = dict[str, NDArray[np.float64]]
"""Two entries of each code by space, [N, 2]."""


@dataclass(frozen=True)
class Clouds:
    """What figure 4 shows.

    Attributes:
        synthetic: points of sampled codes.
        inverse: points of each method's codes, by title.
        layer: which row of W+, and which style vector.
        entries: which two entries of it.
    """

    synthetic: Points
    inverse: Mapping[str, Points]
    layer: int
    entries: tuple[int, int]


@torch.no_grad()
def code_points(
    generator: Generator, w_plus: Tensor, *, layer: int, entries: tuple[int, int] = (0, 1), style_set: StyleSet
) -> Points:
    """Two entries of one layer of codes, in W, S and Sᴺ.

    Args:
        generator: its affine layers give the styles.
        w_plus: codes [N, K, w_dim].
        layer: row of W+, and style vector of the set.
        entries: the two entries.
        style_set: which style vectors form S.

    Raises:
        ConfigError: no such layer or entry.
    """
    found: dict[str, list[Tensor]] = {space: [] for space in SPACES}
    for batch in w_plus.split(BATCH):
        styles = select(generator.styles(batch), generator.config, style_set)
        if not 0 <= layer < len(styles):
            raise ConfigError(f"figure 4 asks for layer {layer}; the generator has layers 0 to {len(styles) - 1}")
        style = styles[layer]
        width = min(batch.shape[-1], style.shape[-1])
        if not 0 <= min(entries) <= max(entries) < width:
            raise ConfigError(f"figure 4 asks for entries {entries[0]} and {entries[1]}; there are 0 to {width - 1}")
        for space, values in (("w", batch[:, layer]), ("s", style), ("s_n", normalize([style])[0])):
            found[space].append(values[:, list(entries)].double().cpu())
    return {space: torch.cat(parts).numpy() for space, parts in found.items()}


@torch.no_grad()
def sample_codes(generator: Generator, count: int, seed: int) -> Tensor:
    """Codes that the generator itself makes, [count, K, w_dim], without truncation."""
    z = torch.randn(count, generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
    w = generator.map(z.to(generator.mapping.w_avg))
    return w[:, None].expand(-1, generator.config.num_ws, -1)


def draw_figure_4(clouds: Clouds) -> Figure:
    """The grid: rows W, S, Sᴺ with the same axes in a row, a column for each method."""
    titles = list(clouds.inverse)
    figure = Figure(figsize=(3.15 * len(titles) + 0.5, 8.6), dpi=160)
    axes = figure.subplots(len(SPACES), len(titles), sharex="row", sharey="row", squeeze=False)
    dots: dict[str, Any] = {"linestyle": "", "marker": "o", "markeredgewidth": 0, "rasterized": True}
    for row, (space, name) in enumerate(SPACES.items()):
        for column, title in enumerate(titles):
            ax = axes[row, column]
            strip(ax)
            ax.locator_params(nbins=5)
            synthetic, inverse = clouds.synthetic[space], clouds.inverse[title][space]
            ax.plot(*synthetic.T, color=SYNTHETIC, markersize=3.8, alpha=0.45, label="synthetic codes", **dots)
            ax.plot(*inverse.T, color=INVERSE, markersize=3.8, alpha=0.6, label="codes of real images", **dots)
            if row == 0:
                write(ax, 0.5, 1.06, title, transform=ax.transAxes, ha="center", fontsize=11, fontweight="bold")
            if column == 0:
                write(ax, -0.24, 0.5, name, transform=ax.transAxes, ha="center", va="center", fontsize=13, rotation=90)
    for ax in axes[-1]:
        ax.set_xlabel(f"entry {clouds.entries[0]} of layer {clouds.layer}", color=INK, fontsize=8.5)
    for ax in axes[:, 0]:
        ax.set_ylabel(f"entry {clouds.entries[1]}", color=INK, fontsize=8.5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="upper center", ncols=2, frameon=False, fontsize=9.5, labelcolor=INK, markerscale=2
    )
    for handle in filter(None, legend.legend_handles):
        handle.set_alpha(1)
    figure.subplots_adjust(left=0.11, right=0.985, top=0.915, bottom=0.065, wspace=0.12, hspace=0.2)
    return figure


def picture_of(clouds: Clouds) -> Picture:
    """Figure 4 for a page."""
    sizes = {len(points["w"]) for points in clouds.inverse.values()}
    images = " to ".join(f"{size:,}" for size in sorted({min(sizes), max(sizes)}))
    caption = (
        f"Entries {clouds.entries[0]} and {clouds.entries[1]} of layer {clouds.layer} for {images} real images of each "
        f"encoder, and for {len(clouds.synthetic['w']):,} codes that the generator itself makes ("
        f"{reference_title('psi = 1')}). All panels of a row have the same axes."
    )
    return Picture(svg_uri(draw_figure_4(clouds)), "Scatter plots of codes in W, S and S^N for each encoder", caption)


def png_of(clouds: Clouds) -> bytes:
    """Figure 4 as a PNG file."""
    return figure_png(draw_figure_4(clouds))


def parquet_of(clouds: Clouds, image_ids: Mapping[str, list[str]]) -> bytes:
    """Every point of figure 4 as a Parquet file: space, codes (a method's title or "synthetic"), image_id, x, y."""
    tables = []
    for title, points in {"synthetic": clouds.synthetic, **clouds.inverse}.items():
        ids = image_ids.get(title)
        for space, name in SPACES.items():
            count = len(points[space])
            columns = {
                "space": pa.array([name] * count, pa.string()),
                "codes": pa.array([title] * count, pa.string()),
                "image_id": pa.array([*ids] if ids else [None] * count, pa.string()),
                "x": pa.array(points[space][:, 0]),
                "y": pa.array(points[space][:, 1]),
            }
            tables.append(pa.table(columns))
    return to_parquet(pa.concat_tables(tables))
