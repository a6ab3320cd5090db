"""The page itself, and the files that it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined

_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class StaticFile:
    """A file of the page, in memory."""

    content: bytes
    media_type: str


def static_files() -> dict[str, StaticFile]:
    """Script, style and icon, by name."""
    found = {}
    for file in resources.files(__package__).joinpath("static").iterdir():
        suffix = "." + file.name.rpartition(".")[2]
        if suffix in _MEDIA_TYPES:
            found[file.name] = StaticFile(file.read_bytes(), _MEDIA_TYPES[suffix])
    return found


def page_of(url: str) -> str:
    """The HTML of the page; what it shows of the archive, its script asks for.

    Args:
        url: of the archive.
    """
    environment = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("explorer.html.j2").render(url=url)
