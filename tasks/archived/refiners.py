"""By which refiner a refinement was made: what its runs say of it, and the refiner built again from that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from lsap_archive import RunInfo, typed
from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.generator import Generator
from lsap_core.presets import refinement_settings_of
from lsap_core.refinement import RefinementParts, Refiner
from tasks.weights.devices import place
from tasks.weights.refiners import load_refiner_networks, name_of_networks
from tasks.weights.segmenters import Segmenter

Kept = Literal["state", "images", "nothing"]


@dataclass(frozen=True)
class RefinerOfRun:
    """What the configuration of a refinement, and of an edit of it, says of the refiner.

    Attributes:
        name: as configurations call it.
        settings: its constants, and their kind.
        networks: name of the file of its networks, such as "hfgi" or, of one embedding alone, "e4e/hfgi"; None where
            it has none.
        digest: of their weights.
        segmenter: what finds the segments of images, or None where none are asked for.
        keep: what is kept of every image: "state", from which it and edits of it are rendered; "images", as files; or
            "nothing" but codes and measurements.
    """

    name: str
    settings: dict[str, Any]
    networks: str | None = None
    digest: str | None = None
    segmenter: Segmenter | None = None
    keep: Kept = "state"

    @property
    def key(self) -> str:
        """What tells it from other refiners."""
        segmenter = None if self.segmenter is None else asdict(self.segmenter)
        return json.dumps([self.settings, self.digest, segmenter], sort_keys=True)


@dataclass(frozen=True)
class _Config:
    refiner: RefinerOfRun | None = None


def refiner_of(config: Mapping[str, Any]) -> RefinerOfRun | None:
    """By which refiner a run was refined, or what it edits was; None where nothing is refined.

    Raises:
        CorruptArchiveError: the configuration makes no sense.
    """
    found: _Config = typed(_Config, dict(config), "the configuration of a refinement")
    return found.refiner


def renderable(
    runs: Mapping[str, tuple[RunInfo, ...]], names: Sequence[str], files: Mapping[str, str]
) -> tuple[dict[str, tuple[RunInfo, ...]], list[str]]:
    """The methods whose images can be made again, and a sentence about each that is left out.

    Args:
        runs: of each method that was chosen.
        names: of methods that were asked for; empty where all were.
        files: paths or URLs of the networks of refiners, by name.

    Raises:
        ConfigError: one that was asked for kept no state, or it is not known where the networks lie that restore one.
    """
    kept, notes = {}, []
    for name, of_method in runs.items():
        about = refiner_of(of_method[-1].config)
        if about is not None and about.keep != "state":
            if name in names:
                raise ConfigError(_no_state(name, about))
            notes.append(f"left out: {_no_state(name, about)}")
            continue
        if about is not None and not refinement_settings_of(about.settings).restores_alone:
            _file_of(about, files)
        kept[name] = of_method
    return kept, notes


def build_refiner(about: RefinerOfRun, generator: Generator, files: Mapping[str, str]) -> Refiner[Any]:
    """The refiner of a refinement, to restore what it found.

    Args:
        about: what the run says of it.
        generator: of the archive.
        files: paths or URLs of the networks of refiners, by name.

    Raises:
        ConfigError: the refinement kept no state, or it is not known where the networks lie that restore it.
        CheckpointError: their file holds others.
    """
    if about.keep != "state":
        raise ConfigError(_no_state(about.name, about))
    settings = refinement_settings_of(about.settings)
    networks = None if settings.restores_alone else networks_of(about, files, generator)
    return settings.refiner(RefinementParts(generator, NoLoss(), networks))


def networks_of(about: RefinerOfRun, files: Mapping[str, str], generator: Generator) -> nn.Module | None:
    """The networks that a refinement was planned with, on the device of its generator, or None where it has none.

    Raises:
        ConfigError: it is not known where they lie.
        CheckpointError: the file holds others.
    """
    if about.networks is None:
        return None
    file = _file_of(about, files)
    found = load_refiner_networks(file, generator.config)
    if found.digest != about.digest:
        raise CheckpointError(
            f"{file} holds networks {found.digest[:16]}, the refinement was made with "
            f"{str(about.digest)[:16]}: name the file of those, refiner_networks.{about.networks}=..."
        )
    return place(found.networks, generator.mapping.w_avg.device)


def _file_of(about: RefinerOfRun, files: Mapping[str, str]) -> str:
    assert about.networks is not None, "it has some"
    name = name_of_networks(about.networks, files)
    if name is None:
        raise ConfigError(
            f"networks {about.networks} of a refinement have no file; name it: refiner_networks.{about.networks}=..."
        )
    return files[name]


def _no_state(name: str, about: RefinerOfRun) -> str:
    return (
        f"refinement {name} kept no state (keep: {about.keep}), so its images cannot be made again, nor edits of them: "
        "refine once more with keep: state, or name other methods"
    )


class NoLoss:
    """In the place of a loss: what restores does not search."""

    def features(self, images: Tensor) -> list[Tensor]:
        raise AssertionError("what is restored is not searched")

    def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        raise AssertionError("what is restored is not searched")
