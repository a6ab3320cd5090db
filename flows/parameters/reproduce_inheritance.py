"""What the study of inheritance may be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from flows.parameters.refine import RefineRun
from flows.parameters.studies import EditedAlike, StudyOfEdits
from tasks.refinement.request import RefinementRequest
from tasks.reports.inheritance.study import ComparedMethod
from tasks.settings import Settings


class ReproduceInheritance(StudyOfEdits):
    """Refine every embedding by every refiner, edit all of them alike, and see what comes from the embedding."""

    refiners: tuple[str, ...] = Field(min_length=1, description="published names and variants")
    refiner_variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="as `variants` in a run of `refine`"
    )
    refiner_networks: dict[str, str] = Field(
        default_factory=dict, description="files of networks of refiners by name, over the domain's"
    )
    segmenter: str | None = Field(None, description="as in a run of `refine`")

    def resolve(self, settings: Settings) -> ResolvedInheritance:
        """The study with its domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist, or the domain lacks what the study needs.
        """
        alike = self.edited_alike(settings)
        refinement = self.refinement().resolve(settings)
        methods = []
        for method in alike.inversion.methods:
            methods.append(ComparedMethod(method.name, method.title))
            methods += [
                ComparedMethod(method.name, method.title, refiner.name, refiner.title)
                for refiner in refinement.refiners
            ]
        return ResolvedInheritance(self, alike, refinement, tuple(methods))

    def refinement(self) -> RefineRun:
        """The refinement of all inversions."""
        return RefineRun(
            archive=self.archive_url(),
            domain=self.domain,
            generator=self.generator,
            label=self.generator_label,
            source=self.source,
            methods=self.methods,
            refiners=self.refiners,
            variants=self.refiner_variants,
            refiner_networks=self.refiner_networks,
            segmenter=self.segmenter,
            workers=self.workers,
            report_images=2,
        )


@dataclass(frozen=True)
class ResolvedInheritance:
    """A study whose every open choice has been taken from its domain.

    Attributes:
        run: as it was asked for.
        alike: what is inverted and how it is edited.
        refinement: of all inversions, by all refiners.
        methods: every embedding, each before its refinements.
    """

    run: ReproduceInheritance
    alike: EditedAlike
    refinement: RefinementRequest
    methods: tuple[ComparedMethod, ...]
