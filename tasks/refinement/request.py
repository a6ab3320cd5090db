"""A refinement as it was asked for: what its planner and its workers read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lsap_core.presets import NamedRefiner
from tasks.archived.refiners import Kept
from tasks.weights.generators import GeneratorFile
from tasks.weights.networks import NetworkChoice
from tasks.weights.segmenters import SUPERPIXELS

StateType = Literal["float16", "float32"]


@dataclass(frozen=True)
class RefinementRequest:
    """Which inversions of an archive are refined, how, and what is kept; small, so that it travels to workers.

    Attributes:
        archive: URL of the archive.
        source: where the images are that were inverted.
        generator: the generator's weights.
        methods: inversions to refine, by name; empty for all.
        refiners: by which refiners, in order.
        networks: what compares images.
        seed: of the run.
        keep: what is kept of every image: "state", from which it and edits of it are rendered; "images", as files; or
            "nothing" but codes and measurements.
        state_type: of the arrays of the state.
        batch_size: images refined together.
        refiner_networks: paths or URLs of the networks of refiners, by name; "e4e/hfgi" are those of one embedding.
        segmenter: what finds the segments of images, for refiners that ask: by name.
        device: "auto", "cpu", "cuda", ...
        previews: pixels of the longer side of the small pictures that are kept; 0 keeps none.
    """

    archive: str
    source: str
    generator: GeneratorFile
    methods: tuple[str, ...]
    refiners: tuple[NamedRefiner, ...]
    networks: NetworkChoice
    seed: int
    keep: Kept
    state_type: StateType
    batch_size: int
    refiner_networks: Mapping[str, str] = field(default_factory=dict)
    segmenter: str = SUPERPIXELS
    device: str = "auto"
    previews: int = 0
