"""How figures of a report look: axes that step back, the page's own text colour, and SVG in a data: URI."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from tasks.visible_text import visible

INK = "#010203"  # stands for the page's text colour until the SVG is written


@dataclass(frozen=True)
class Spot:
    """A place in a figure that leads to somewhere on the page.

    Attributes:
        left: of its left edge, in percent of the figure's width.
        top: of its upper edge, in percent of the figure's height.
        width: in percent of the figure's width.
        height: in percent of the figure's height.
        target: id of the element that a click leads to.
        title: what is there, in words.
    """

    left: float
    top: float
    width: float
    height: float
    target: str
    title: str

    @classmethod
    def of_pixels(cls, figure: Figure, box: tuple[float, float, float, float], target: str, title: str) -> Spot:
        """From left, bottom, right and top in matplotlib's pixels, which count from the lower left corner."""
        width, height = figure.bbox.width, figure.bbox.height
        left, bottom, right, top = box
        shares = (left / width, 1 - top / height, (right - left) / width, (top - bottom) / height)
        in_percent = [round(100 * float(share), 2) for share in shares]
        return cls(in_percent[0], in_percent[1], in_percent[2], in_percent[3], target, title)


@dataclass(frozen=True)
class Picture:
    """A figure of a page: data: URI, what it shows in words, its caption, and places in it that lead elsewhere."""

    uri: str
    alternative: str
    caption: str
    spots: tuple[Spot, ...] = ()


def strip(ax: Axes) -> None:
    """Axes that step back behind the data, in the page's text colour."""
    ax.set_facecolor("none")
    ax.spines[["top", "right"]].set_visible(False)
    for spine in ax.spines.values():
        spine.set_color(INK)
        spine.set_alpha(0.5)
    ax.tick_params(colors=INK, labelsize=8, length=3)


def name_axes(ax: Axes, x_name: str, y_name: str) -> None:
    ax.set_xlabel(visible(x_name), color=INK, fontsize=9, parse_math=False)
    ax.set_ylabel(visible(y_name), color=INK, fontsize=9, parse_math=False)


def write(ax: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Text that is not read as mathematics: names hold what they like."""
    looks: dict[str, Any] = {"color": INK, "fontsize": 8, **style}
    ax.text(x, y, visible(text), parse_math=False, **looks)


# Inside an <img> the drawing cannot see the page's colours, so it brings its own for light, dark and paper.
_INK_STYLE = "<style>svg{color:#1d2329}@media screen and (prefers-color-scheme:dark){svg{color:#dde3e9}}</style>"


def svg_uri(figure: Figure) -> str:
    """The figure as a data: URI, the same bytes for the same figure.

    The figure API keeps no global state, unlike pyplot, so reports can be drawn in threads. Matplotlib salts its
    ids at random unless a global setting says otherwise; they are numbered here instead.
    """
    figure.patch.set_alpha(0)
    drawn = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(figure).print_svg(drawn, metadata=nothing)
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for number, salted in enumerate(dict.fromkeys(re.findall(r'id="([A-Za-z]+[0-9a-f]{10})"', svg))):
        svg = svg.replace(salted, f"i{number}")
    end_of_tag = svg.index(">") + 1
    svg = svg[:end_of_tag] + _INK_STYLE + svg[end_of_tag:]
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    drawn = io.BytesIO()
    FigureCanvasAgg(figure).print_png(drawn)
    return drawn.getvalue()
