"""Pages of reports: templates whose every text is escaped, with one look for all of them."""

from __future__ import annotations

import base64
import datetime
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from tasks.reports.text import as_duration, as_number, shortened
from tasks.visible_text import HARD_SPACE, visible

VERSIONED = ("torch", "ray", "prefect", "zarr", "pyarrow", "fsspec")
"""Packages that what is on a page was computed by."""


@dataclass(frozen=True)
class Tile:
    """A number at the head of a page."""

    title: str
    value: str
    detail: str


def page_template(room: str, **filters: Callable[[Any], str]) -> Template:
    """The template of a page; `style` in it is the look that all reports share.

    Args:
        room: the folder that it lies in.
        filters: further filters by name.
    """
    environment = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {
        "data_uri": data_uri,
        "duration": as_duration,
        "lines": lambda text: Markup(escape(visible(text, kept=f"\n{HARD_SPACE}"))),
        "number": as_number,
        "shortened": shortened,
        **filters,
    }
    style = resources.files(__package__).joinpath("report.css").read_text("utf-8")
    environment.globals["style"] = Markup(style)  # ours, not a text to be escaped
    return environment.get_template(f"{room}/page.html.j2")


def data_uri(png: bytes) -> str:
    """A PNG file as a data: URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def now() -> str:
    """UTC time, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of what computed, by name."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
