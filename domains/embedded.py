"""What the folder of a built-in domain brings besides its `domain.yaml`; this module finds it and knows none by name.

A folder of `domains` with a `domain.yaml` is a domain; its `parts.py` holds `PARTS`. What is in there needs torch only
behind a function: sources are listed, and the command line is read, without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import domains

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from lsap_core.perceptual.features import FeatureNet
    from lsap_core.perceptual.judge import JudgeNet

    NetworkFile: TypeAlias = tuple[Path, type[FeatureNet] | type[JudgeNet]]
    Augmentation: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]


class ImageArray(Protocol):
    """What a source loads: uint8 images [N, H, W] or [N, H, W, C], C = 1 or 3, and N ids."""

    @property
    def images(self) -> NDArray[np.uint8]: ...

    @property
    def ids(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Attribute:
    """Something that can be measured of an image.

    Attributes:
        name: what configurations call it.
        title: what people call it.
        unit: of the values.
        measure: images [N, C, R, R] in about [-1, 1] to one value each, [N]; NaN where there is nothing to measure.
    """

    name: str
    title: str
    unit: str
    measure: Callable[[Tensor], Tensor]


class Quality(Protocol):
    """How good the images of a domain's generator are."""

    def to_dict(self) -> dict[str, Any]: ...

    def table(self) -> str: ...


@dataclass(frozen=True)
class Parts:
    """What a domain brings; names are those that runs and domain files use, and no two domains may share one.

    Attributes:
        sources: loaders of built-in images, by the name of the source, such as "digits:test".
        networks: file and kind of networks that look at its images, by name.
        attributes: what can be measured of its images, by name.
        augmentations: what a training may change at random in an image [C, R, R], by name.
        quality: measures its generator, and writes a sheet of samples where a path is given.
    """

    sources: Mapping[str, Callable[[], ImageArray]]
    networks: Callable[[], Mapping[str, NetworkFile]]
    attributes: Callable[[], Mapping[str, Attribute]]
    augmentations: Mapping[str, Augmentation]
    quality: Callable[[str | None], Quality]


def embedded_folders() -> dict[str, Path]:
    """The domains that have a folder in the package, by name."""
    files = (file for place in domains.__path__ for file in Path(place).glob("*/domain.yaml"))
    return {file.parent.name: file.parent for file in sorted(files)}


def parts_of(name: str) -> Parts:
    """What the folder of this name brings."""
    parts: Parts = import_module(f"domains.{name}.parts").PARTS
    return parts


def embedded_sources() -> dict[str, Callable[[], ImageArray]]:
    """The sources of every domain, by name."""
    return {name: load for parts in _all_parts() for name, load in parts.sources.items()}


def embedded_networks() -> dict[str, NetworkFile]:
    """The networks of every domain, by name."""
    return {name: file for parts in _all_parts() for name, file in parts.networks().items()}


def embedded_attributes() -> dict[str, Attribute]:
    """The attributes of every domain, by name."""
    return {name: attribute for parts in _all_parts() for name, attribute in parts.attributes().items()}


def embedded_augmentations() -> dict[str, Augmentation]:
    """The augmentations of every domain, by name."""
    return {name: change for parts in _all_parts() for name, change in parts.augmentations.items()}


def _all_parts() -> list[Parts]:
    return [parts_of(name) for name in embedded_folders()]
