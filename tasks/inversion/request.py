"""An inversion as it was asked for: what its planner, its workers, its cost and its report read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lsap_core.encoders.config import Heads
from lsap_core.presets import Method
from tasks.archived.anchors import AnchorOptions
from tasks.inversion.compiling import Compile
from tasks.pictures.decoding import Fit
from tasks.weights.generators import GeneratorFile
from tasks.weights.networks import NetworkChoice


@dataclass(frozen=True)
class InversionRequest:
    """Which images are inverted, how, and where to; small, so that it travels to workers.

    Attributes:
        source: where the images are.
        archive: URL of the archive.
        domain: name of the domain.
        generator: the generator's weights.
        methods: what to run, in order.
        networks: what compares images.
        anchor: what decides the anchor.
        fit: what to do with images that are not square, or not of the shape of the content box.
        seed: of the run.
        shard_rows: images of a shard.
        batch_size: images embedded together, at most.
        fits_batch: whether fewer are taken where memory is not enough for so many.
        num_workers: that share the work, and the memory of a machine.
        memory_bytes: that each of them may take; None for a share of what is free.
        encoders: path or URL of every encoder that a method names.
        heads: how those of encoders make rows of W+, by name, for files that do not say it.
        device: "auto", "cpu", "cuda", ...
        compile: whether steps of optimizations are compiled.
        previews: pixels of the longer side of the small pictures that are kept; 0 keeps none.
    """

    source: str
    archive: str
    domain: str
    generator: GeneratorFile
    methods: tuple[Method, ...]
    networks: NetworkChoice
    anchor: AnchorOptions
    fit: Fit
    seed: int
    shard_rows: int
    batch_size: int
    encoders: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, Heads] = field(default_factory=dict)
    device: str = "auto"
    fits_batch: bool = False
    num_workers: int = 1
    memory_bytes: int | None = None
    compile: Compile = "auto"
    previews: int = 0
