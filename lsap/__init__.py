"""Invert a photo and edit it, in this process: no server, no cluster, no archive.

    >>> import lsap
    >>> seven = lsap.load("digits").invert("seven.jpg", "lsap_o_w_plus")       # doctest: +SKIP
    >>> seven.edit("slant", 2).save("x.png")                                   # doctest: +SKIP

`load` gives a `Model`, that an `Inversion`, and that an `Edited`; both show themselves in a notebook. For whole sets of
images there is the command `lsap run`, whose archives `open_archive` reads; the method itself, for code of
one's own, is the package `lsap_core`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lsap_archive import open_archive

if TYPE_CHECKING:  # torch is loaded when a model is
    from lsap.inversion import Edited, Inversion
    from lsap.model import Model, load
    from lsap.photos import Photo

__all__ = ["Edited", "Inversion", "Model", "Photo", "load", "open_archive"]

_HOMES = {
    "Edited": "lsap.inversion",
    "Inversion": "lsap.inversion",
    "Model": "lsap.model",
    "Photo": "lsap.photos",
    "load": "lsap.model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"lsap has no {name}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
