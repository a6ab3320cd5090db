"""What an editing run may be asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ConfigDict, Field

from domains.domain import Domain
from flows.parameters.of_archives import ArchiveRun, check_methods, parse_edits
from flows.parameters.run_file import ParameterError, Parameters, read_run_file
from tasks.editing.spec import EditSpec
from tasks.settings import Settings


class EditRun(ArchiveRun):
    """Edit the codes of an archive; each method and edit becomes a run of its own beside the inversions."""

    methods: tuple[str, ...] = Field((), description="inversions to edit, by name; all of the archive by default")
    edits: dict[str, dict[str, Any]] = Field(
        description="edits by name, such as {slant: {direction: slant, strength: 3}}"
    )
    keep_images: bool = Field(False, description="also keep every edited image as a PNG file in the archive")

    def resolve(self, settings: Settings) -> ResolvedEdits:
        """The run with its domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist.
        """
        domain = self.resolved_domain(settings)
        check_methods(self.methods)
        if not self.edits:
            raise ParameterError("edits: none given; wanted names and edits, such as {slant: {direction: slant, ...}}")
        assert domain.generator is not None
        return ResolvedEdits(
            run=self,
            domain=domain,
            generator=domain.generator,
            edits=parse_edits("edits", self.edits, domain),
            batch_size=self.batch_size or domain.batch_size,
            settings=settings,
        )


class ResolvedEdits(Parameters):
    """An editing run whose every open choice has been taken from its domain."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    run: EditRun
    domain: Domain
    generator: str
    edits: dict[str, EditSpec]
    batch_size: int
    settings: Settings


def read_edits(path: str, changes: Iterable[str] = ()) -> EditRun:
    """An editing run from its YAML file, with `key=value` changes on top (keys may have dots).

    Raises:
        ParameterError: the file or a field is wrong; the message names it.
    """
    return read_run_file(path, EditRun, changes)
