"""Pages of reports: templates whose every text is escaped, with one look for all of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from tasks.reports.text import as_duration, as_number, shortened
from tasks.visible_text import HARD_SPACE, visible


def page_template(room: str, **filters: Callable[[Any], str]) -> Template:
    """The template of a page; `style` in it is the look that all reports share.

    Args:
        room: the folder that it lies in.
        filters: further filters by name.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {
        "duration": as_duration,
        "lines": lambda text: Markup(escape(visible(text, kept=f"\n{HARD_SPACE}"))),
        "number": as_number,
        "shortened": shortened,
        **filters,
    }
    environment.globals["style"] = Markup(_read(__package__, "report.css"))  # ours, not a text to be escaped
    return environment.from_string(_read(f"{__package__}.{room}", "page.html.j2"))


def _read(package: str, file: str) -> str:
    return resources.files(package).joinpath(file).read_text("utf-8")
