"""The figures of a report, drawn by matplotlib as SVG in a data: URI: histograms, and LPIPS against SNCD."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tasks.reports.figure_style import INK, Picture, Spot, name_axes, strip, svg_uri, write
from tasks.reports.inversion.data import MethodInfo
from tasks.reports.statistics import column_values
from tasks.reports.text import as_number, count_of, decimals_for, reference_title, short_reference_title
from tasks.visible_text import visible

# Okabe and Ito's palette, then Tol's: told apart with every common colour blindness, and visible on light and dark.
_PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#882255",
    "#999933",
    "#44AA99",
    "#777777",
)
_MARKERS = "osD^vPX*<>"
_SCATTER_POINTS = 20_000  # per method
_REFERENCE_LINE: dict[str, Any] = {"color": INK, "alpha": 0.45, "linewidth": 0.8, "linestyle": (0, (3, 2))}


_SPOT = 5.0  # radius in points of what a click on a point of the scatter plot hits


@dataclass(frozen=True)
class Shown:
    """An image that is on the page, as one method inverted it.

    Attributes:
        image_id: of it.
        target: id of its element.
        lpips: NaN where none was measured.
        sncd: likewise.
    """

    image_id: str
    target: str
    lpips: float
    sncd: float


def method_color(index: int) -> str:
    return _PALETTE[index % len(_PALETTE)]


def draw_distribution(
    methods: Sequence[MethodInfo],
    values: Mapping[str, NDArray[np.float64]],
    label: str,
    references: Mapping[str, float],
    shown: Mapping[str, Sequence[tuple[float, Shown]]],
) -> Picture | None:
    """Histograms of one metric, a row for each method, over shared bins; bars lead to images that are on the page.

    Args:
        methods: one for each row.
        values: of the metric by method, [N], finite.
        label: of the metric.
        references: values that are marked, by label.
        shown: by method, values of the images that are on the page.
    """
    everything = np.concatenate([*values.values(), np.zeros(0)])
    if not everything.size:
        return None
    low, high, num_beyond = _limits(everything, references.values())
    num_bins = int(np.clip(math.sqrt(max(one.size for one in values.values())) * 2, 12, 48))
    bins = np.linspace(low, high, num_bins + 1)
    num_rows = len(methods)
    figure = Figure(figsize=(5.2, 1.15 + 0.72 * num_rows))  # the same for every metric: rows stand side by side
    axes = figure.subplots(num_rows, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for index, (method, ax) in enumerate(zip(methods, axes, strict=True)):
        own = values[method.name]
        strip(ax)
        ax.spines["left"].set_visible(False)
        ax.set_yticks([])
        mean = f"mean {as_number(float(own.mean()), decimals_for([float(own.mean())]))}" if own.size else "no values"
        write(ax, 0, 1.02, f"{method.title}  ·  {mean}", ha="left", va="bottom", transform=ax.transAxes)
        for value in references.values():
            ax.axvline(value, **_REFERENCE_LINE)
        if own.size:
            shares = np.full(own.size, 1 / own.size)
            clipped = np.clip(own, low, high)
            ax.hist(clipped, bins, weights=shares, color=method_color(index), alpha=0.85)
            ax.plot([own.mean()], [0], marker="^", markersize=6, color=INK, clip_on=False, zorder=3)
    axes[-1].set_xlim(low, high)
    name_axes(axes[-1], label, "")
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.03, right=0.97, top=1 - 0.68 / height, bottom=0.48 / height, hspace=0.55)
    _label_references(axes[0], references, low, high)
    caption = "Share of a method's images in each bin; all rows have the same axes. ▲ marks the mean."
    if num_beyond:
        caption += f" The outermost bins also hold {count_of(num_beyond, 'value')} beyond the axis."
    spots = [
        spot
        for method, ax in zip(methods, axes, strict=True)
        for spot in _bar_spots(figure, ax, method, bins, shown.get(method.name, ()))
    ]
    if spots:
        caption += " Underlined bars hold images of this page; a click leads to one."
    return Picture(svg_uri(figure), f"Histograms of {label}, one for each method", caption, tuple(spots))


def _bar_spots(
    figure: Figure, ax: Axes, method: MethodInfo, bins: NDArray[np.float64], shown: Sequence[tuple[float, Shown]]
) -> list[Spot]:
    """A place for each bar that holds images of the page; it leads to the first of them."""
    in_bar: dict[int, list[Shown]] = {}
    for value, image in shown:
        if math.isfinite(value):
            clipped = float(np.clip(value, bins[0], bins[-1]))
            bar = min(int(np.searchsorted(bins, clipped, side="right")) - 1, len(bins) - 2)
            in_bar.setdefault(bar, []).append(image)
    low, high = ax.get_ylim()
    spots = []
    for bar, images in sorted(in_bar.items()):
        (left, bottom), (right, top) = ax.transData.transform([(bins[bar], low), (bins[bar + 1], high)])
        title = f"{method.title}: {_names_of(images)}"
        spots.append(Spot.of_pixels(figure, (left, bottom, right, top), images[0].target, title))
    return spots


def _names_of(images: Sequence[Shown]) -> str:
    others = len(images) - 1
    return images[0].image_id + (f" and {others} more" if others else "")


def draw_scatter(
    methods: Sequence[MethodInfo],
    tables: Mapping[str, pa.Table],
    lpips_label: str,
    references: Mapping[str, float],
    shown: Mapping[str, Sequence[Shown]],
) -> Picture | None:
    """LPIPS against SNCD, a point for each image and a large mark for each method's mean; some lead to their images.

    Args:
        methods: in the order of their colours.
        tables: ok rows by method.
        lpips_label: of the horizontal axis.
        references: values of SNCD by label.
        shown: by method, the images that are on the page.
    """
    points = {}
    for name, table in tables.items():
        pairs = np.stack([column_values(table, "lpips"), column_values(table, "sncd")])
        points[name] = pairs[:, np.isfinite(pairs).all(axis=0)]
    everything = np.concatenate([*points.values(), np.zeros((2, 0))], axis=1)
    if not everything.shape[1]:
        return None
    landmarks = {label: references[label] for label in ("floor", "synthetic, psi = 1") if label in references}
    x_limits, y_limits = _limits(everything[0], ()), _limits(everything[1], landmarks.values())
    figure = Figure(figsize=(10.6, 4.8), dpi=160)
    ax = figure.subplots()
    strip(ax)
    num_drawn = 0
    for index, method in enumerate(methods):
        if points[method.name].shape[1]:
            num_drawn += _plot_method(ax, index, method, points[method.name])
    ax.set_xlim(x_limits[:2])
    ax.set_ylim(y_limits[:2])
    for label, value in landmarks.items():
        ax.axhline(value, **_REFERENCE_LINE)
        write(ax, 1.012, value, reference_title(label), ha="left", va="center", transform=ax.get_yaxis_transform())
    name_axes(ax, f"{lpips_label}: further from the original →", "SNCD")
    legend = ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
    legend_rows = math.ceil(sum(bool(own.shape[1]) for own in points.values()) / 3)
    figure.subplots_adjust(left=0.06, right=0.89, top=0.985 - 0.055 * legend_rows, bottom=0.11)
    caption = "A point is an image, an outlined mark the mean of a method."
    num_beyond = x_limits[2] + y_limits[2]
    if num_beyond:
        caption += f" {count_of(num_beyond, 'value')} beyond the axes."
    if num_drawn < everything.shape[1]:
        caption += f" Of each method at most {_SCATTER_POINTS:,} images are drawn; the means use all."
    spots = [spot for method in methods for spot in _point_spots(figure, ax, method, shown.get(method.name, ()))]
    if spots:
        caption += " Ringed points are images of this page; a click leads there."
    return Picture(svg_uri(figure), "Scatter plot of LPIPS and SNCD, coloured by method", caption, tuple(spots))


def _point_spots(figure: Figure, ax: Axes, method: MethodInfo, shown: Sequence[Shown]) -> list[Spot]:
    """A place around each point within the axes whose image is on the page."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    reach = _SPOT * figure.dpi / 72
    spots = []
    for image in shown:
        if left <= image.lpips <= right and bottom <= image.sncd <= top:  # never so for NaN
            x, y = ax.transData.transform((image.lpips, image.sncd))
            box = (x - reach, y - reach, x + reach, y + reach)
            spots.append(Spot.of_pixels(figure, box, image.target, f"{method.title}: {image.image_id}"))
    return spots


def _plot_method(ax: Axes, index: int, method: MethodInfo, points: NDArray[np.float64]) -> int:
    """Draw a method's points [2, N] and their mean; how many points were drawn."""
    drawn = points[:, :: math.ceil(points.shape[1] / _SCATTER_POINTS)]
    look: dict[str, Any] = {"linestyle": "", "marker": _MARKERS[index % len(_MARKERS)], "color": method_color(index)}
    size = 4 if points.shape[1] < 500 else 2.5
    ax.plot(*drawn, markersize=size, markeredgewidth=0, alpha=0.5, rasterized=True, **look)
    mean = points.mean(axis=1, keepdims=True)
    outline: dict[str, Any] = {"markeredgecolor": INK, "markeredgewidth": 1.4}
    ax.plot(*mean, markersize=11, label=visible(method.title), zorder=4, **outline, **look)
    return int(drawn.shape[1])


def _limits(values: NDArray[np.float64], references: Collection[float]) -> tuple[float, float, int]:
    """Ends of an axis, and how many values lie beyond it: a few strays must not squeeze all others."""
    low, high = float(values.min()), float(values.max())
    first, middle, last = (float(value) for value in np.quantile(values, [0.01, 0.5, 0.99]))
    reach = 2.5 * max(last - middle, middle - first)
    if reach > 0:
        low, high = max(low, middle - reach), min(high, middle + reach)
    low, high = min([low, *references]), max([high, *references])
    margin = 0.03 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = low - margin, high + margin
    return low, high, int(((values < low) | (values > high)).sum())


def _label_references(ax: Axes, references: Mapping[str, float], low: float, high: float) -> None:
    """Names above the reference lines, on as many levels as keep them apart; equal lines share a label."""
    gathered: list[tuple[float, str]] = []
    for label, value in sorted(references.items(), key=lambda item: item[1]):
        short = short_reference_title(label)
        if gathered and value - gathered[-1][0] < 0.012 * (high - low):
            gathered[-1] = (gathered[-1][0], f"{gathered[-1][1]}, {short}")
        else:
            gathered.append((value, short))
    ends = [-math.inf] * 3
    for value, label in gathered:
        place, width = (value - low) / (high - low), 0.0115 * len(label) + 0.015  # shares of the axis
        start = min(max(place - width / 2, 0), 1 - width)
        level = next((index for index, end in enumerate(ends) if start > end), len(ends) - 1)
        ends[level] = start + width
        write(
            ax,
            start + width / 2,
            1.4 + 0.26 * level,
            label,
            ha="center",
            va="bottom",
            transform=ax.transAxes,
            fontsize=7.5,
            alpha=0.8,
        )
