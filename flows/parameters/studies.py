"""What every study may be asked for that inverts images, edits all of them alike, and has a judge look at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from domains.domain import Domain
from flows.parameters.edit import EditRun
from flows.parameters.evaluate import EvaluateRun
from flows.parameters.invert import InvertRun
from flows.parameters.numbers import MANY_IMAGES, Index, Number, Seed, Whole
from flows.parameters.run_file import ParameterError, Parameters
from flows.parameters.shared import HEADS, LABEL, WorkerParameters
from lsap_core.encoders.config import Heads
from tasks.inversion.request import InversionRequest
from tasks.settings import Settings

CALIBRATION_IMAGES = 128


@dataclass(frozen=True)
class EditedAlike:
    """What is inverted and how it is edited, with every open choice taken from the domain.

    Attributes:
        domain: of the study; it has a judge.
        judge: name of the network, in no loss of any method, that looks at what comes out.
        inversion: by all embeddings.
        directions: name of the direction by attribute.
        changes: how far each attribute is edited, in its standard deviations over synthetic images.
        synthetic_images: of the generator's own, that set the unit of a change.
        seed: of these images.
    """

    domain: Domain
    judge: str
    inversion: InversionRequest
    directions: dict[str, str]
    changes: dict[str, float]
    synthetic_images: int
    seed: int


class StudyOfEdits(Parameters):
    """Fields of a study that edits the inversions of several methods alike."""

    source: str = Field(description="held-out images")
    output: str = Field(description="path or URL of the folder for archive, tables and picture")
    domain: str = Field(description="name of a built-in domain, or the path of one's own .yaml; it has a judge")
    generator: str | None = Field(None, description="weights; the domain's by default")
    generator_label: Index | None = Field(None, description=LABEL)
    methods: tuple[str, ...] = Field(min_length=1, description="published names, encoders and variants")
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict, description="as in a run of `invert`")
    encoders: dict[str, str] = Field(default_factory=dict, description="as in a run of `invert`")
    heads: dict[str, Heads] = Field(default_factory=dict, description=HEADS)
    directions: dict[str, str] = Field(
        default_factory=dict, description="by attribute: name of the direction that changes it; its own by default"
    )
    attributes: tuple[str, ...] = Field((), description="what is edited; all of the domain's by default")
    changes: dict[str, Number] = Field(
        default_factory=dict,
        description="by attribute: how far it is edited, in its standard deviations over synthetic images; else 1",
    )
    reference: str = Field(description="real images that edited ones are compared with; not the inverted ones")
    synthetic_images: Whole = Field(
        2000, ge=10, le=MANY_IMAGES, description="of the generator's own, that set the unit of a change"
    )
    seed: Seed = Field(0, description="of these images")
    workers: WorkerParameters = WorkerParameters()

    def archive_url(self) -> str:
        """Of the archive with every code, edit and measurement."""
        return f"{self.output.rstrip('/')}/archive"

    def edited_alike(self, settings: Settings) -> EditedAlike:
        """What is inverted and edited.

        Raises:
            ParameterError: a field names something that does not exist, or the domain lacks what the study needs.
        """
        run = self.inversion()
        inversion = run.resolve(settings)
        domain = run.resolved_domain(settings)
        if domain.judge is None:
            raise ParameterError(f'domain: "{domain.name}" has no judge; wanted one with a network that is in no loss')
        attributes = self.attributes or domain.attributes
        if len(attributes) < 2:
            raise ParameterError(f"attributes: {', '.join(attributes) or 'none'}; wanted two or more, one may leak")
        directions = {name: self.directions.get(name, name) for name in attributes}
        for name, direction in directions.items():
            if direction not in domain.directions:
                raise ParameterError(
                    f'directions.{name}: domain "{domain.name}" has no direction {direction}; wanted one of '
                    f"{', '.join(domain.directions) or 'its own: none is there'}"
                )
        if unknown := sorted(set(self.changes) - set(attributes)):
            raise ParameterError(f'changes: "{unknown[0]}" is not among the attributes {", ".join(attributes)}')
        changes = {name: self.changes.get(name, 1.0) for name in attributes}
        if bad := [name for name, change in changes.items() if not change > 0]:
            raise ParameterError(f"changes.{bad[0]}: {changes[bad[0]]}; wanted a number above 0, both ways are edited")
        return EditedAlike(domain, domain.judge, inversion, directions, changes, self.synthetic_images, self.seed)

    def inversion(self) -> InvertRun:
        """The inversion by all methods."""
        return InvertRun(
            source=self.source,
            archive=self.archive_url(),
            domain=self.domain,
            generator=self.generator,
            label=self.generator_label,
            methods=self.methods,
            variants=self.variants,
            encoders=self.encoders,
            heads=self.heads,
            workers=self.workers,
            report_images=2,
        )

    def editing(self, methods: tuple[str, ...], edits: Mapping[str, Mapping[str, Any]]) -> EditRun:
        """Edits of inversions and refinements."""
        return EditRun(
            archive=self.archive_url(),
            domain=self.domain,
            generator=self.generator,
            label=self.generator_label,
            methods=methods,
            edits={name: dict(edit) for name, edit in edits.items()},
            calibration_images=CALIBRATION_IMAGES,
            workers=self.workers,
            previews=0,  # so many edits are measured, not looked at
            report_images=0,
        )

    def evaluation(
        self,
        alike: EditedAlike,
        methods: tuple[str, ...] = (),
        versions: Mapping[str, str] | None = None,
    ) -> EvaluateRun:
        """What the judge and the attributes say of inversions, refinements and edits; of all by default."""
        return EvaluateRun(
            archive=self.archive_url(),
            domain=self.domain,
            generator=self.generator,
            label=self.generator_label,
            source=self.source,
            methods=methods,
            versions=dict(versions or {}),
            lpips=(alike.judge,),
            identity=(alike.judge,),
            attributes=tuple(alike.directions),
            reference=self.reference,
            encoders=self.encoders,
            heads=self.heads,
            workers=self.workers,
            report_images=0,
        )
