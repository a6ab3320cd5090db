"""Edits as they were asked for: what their planner and their workers read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.editing.calibration import CalibrationOptions
from tasks.editing.spec import EditSpec
from tasks.weights.generators import GeneratorFile
from tasks.weights.published import TORCH_CACHE, Published


@dataclass(frozen=True)
class EditRequest:
    """Which codes of an archive are edited, and how; small, so that it travels to workers.

    Attributes:
        archive: URL of the archive.
        generator: the generator's weights.
        methods: inversions to edit, by name; empty for all.
        edits: by name.
        keep_images: whether edited images are kept.
        calibration: how edits of equal effect are calibrated.
        batch_size: images edited and rendered together.
        device: "auto", "cpu", "cuda", ...
        refiners: paths or URLs of the networks of refiners, by name.
        published: where published networks lie.
        source: where the originals are, to be shown beside their edits; None to leave them out.
        previews: pixels of the longer side of the small pictures that are kept; 0 keeps none, and then no edit is
            rendered whose images are not kept either.
    """

    archive: str
    generator: GeneratorFile
    methods: tuple[str, ...]
    edits: Mapping[str, EditSpec]
    keep_images: bool
    calibration: CalibrationOptions
    batch_size: int
    device: str = "auto"
    refiners: Mapping[str, str] = field(default_factory=dict)
    published: Published = TORCH_CACHE
    source: str | None = None
    previews: int = 0
