"""An evaluation as it was asked for: what its planner and its workers read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lsap_core.encoders.config import Heads
from lsap_core.inversion.by_encoder import EncoderSettings
from lsap_core.spaces.styles import StyleSet
from tasks.editing.calibration import CalibrationOptions
from tasks.editing.spec import EditSpec
from tasks.measuring.networks import EvaluationChoice
from tasks.pictures.decoding import Fit
from tasks.weights.generators import GeneratorFile
from tasks.weights.published import Published


@dataclass(frozen=True)
class Synthetic:
    """Images whose codes are known.

    Attributes:
        count: how many.
        psi: truncation of their codes.
        seed: of their codes.
        style_set: which style vectors S is made of.
        encoders: settings of each encoder by name.
        shard_rows: images of a shard.
    """

    count: int
    psi: float
    seed: int
    style_set: StyleSet
    encoders: Mapping[str, EncoderSettings]
    shard_rows: int


@dataclass(frozen=True)
class EvaluationRequest:
    """What is measured of an archive, or of encoders on synthetic images; small, so that it travels to workers.

    Attributes:
        archive: URL of the archive.
        generator: the generator's weights.
        methods: inversions and edits, by name; empty for all.
        versions: by name, digest of the configuration that is meant instead of the newest.
        networks: what looks at images.
        batch_size: images measured together.
        source: where the originals are, or None.
        fit: what is done with images of `reference` of another shape; originals are fitted as their run fitted them.
        attributes: measured of images, by name.
        lec: edits of the editing consistency, by name.
        calibration: how those of equal effect are calibrated.
        frechet: network of the Fréchet distance, or None.
        reference: source of real images, or None.
        encoders: path or URL of encoders by name.
        heads: how those of encoders make rows of W+, by name, for files that do not say it.
        synthetic: measure encoders on these, and not what is in the archive.
        device: "auto", "cpu", "cuda", ...
        refiners: paths or URLs of the networks of refiners, by name.
    """

    archive: str
    generator: GeneratorFile
    methods: tuple[str, ...]
    networks: EvaluationChoice
    calibration: CalibrationOptions
    batch_size: int
    source: str | None = None
    fit: Fit = "refuse"
    attributes: tuple[str, ...] = ()
    lec: Mapping[str, EditSpec] = field(default_factory=dict)
    frechet: str | None = None
    reference: str | None = None
    encoders: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, Heads] = field(default_factory=dict)
    synthetic: Synthetic | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    refiners: Mapping[str, str] = field(default_factory=dict)

    @property
    def published(self) -> Published:
        """Where published networks lie."""
        return self.networks.published
