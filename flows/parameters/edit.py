"""What an editing run may be asked for."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from flows.parameters.of_archives import SHOWN_IMAGES, ArchiveRun, ShownImages, check_methods, parse_edits
from flows.parameters.run_file import ParameterError
from flows.parameters.shared import PREVIEWS, PreviewSide, generator_of
from tasks.editing.request import EditRequest
from tasks.settings import Settings
from tasks.weights.of_domains import published_of


class EditRun(ArchiveRun):
    """Edit the codes of an archive; each method and edit becomes a run of its own beside the inversions."""

    methods: tuple[str, ...] = Field((), description="inversions to edit, by name; all of the archive by default")
    edits: dict[str, dict[str, Any]] = Field(
        description="edits by name, such as {slant: {direction: slant, strength: 3}}"
    )
    source: str | None = Field(None, description="the originals, to be shown beside their edits; none leaves them out")
    keep_images: bool = Field(False, description="also keep every edited image as a PNG file in the archive")
    previews: PreviewSide = PREVIEWS
    report_images: ShownImages = Field(4, description=SHOWN_IMAGES)

    def resolve(self, settings: Settings) -> EditRequest:
        """The run with its domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist.
        """
        domain = self.resolved_domain(settings)
        check_methods(self.methods)
        if not self.edits:
            raise ParameterError("edits: none given; wanted names and edits, such as {slant: {direction: slant, ...}}")
        return EditRequest(
            archive=self.archive,
            generator=generator_of(domain),
            methods=self.methods,
            edits=parse_edits("edits", self.edits, domain),
            keep_images=self.keep_images,
            calibration=self.calibration_options(),
            batch_size=self.batch_size or domain.batch_size,
            device=self.workers.device,
            refiners=domain.refiners,
            published=published_of(domain, settings),
            source=self.source,
            previews=self.previews,
        )
