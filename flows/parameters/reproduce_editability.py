"""What the study of editability may be asked for."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from domains.domain import Domain
from flows.parameters.invert import InvertRun
from flows.parameters.numbers import MANY_IMAGES, Number, Seed, Whole
from flows.parameters.run_file import ParameterError, Parameters
from flows.parameters.shared import WorkerParameters
from lsap_core.inversion.by_optimization import OptimizationSettings
from lsap_core.presets import Method
from tasks.inversion.request import InversionRequest
from tasks.reports.editability.study import Family, StudiedMethod
from tasks.settings import Settings


class ReproduceEditability(Parameters):
    """Invert images by methods of very different alignment, edit all of them alike, and see what SNCD predicts."""

    source: str = Field(description="held-out images")
    output: str = Field(description="path or URL of the folder for archive, tables and picture")
    domain: str = Field(description="name of a built-in domain, or the path of one's own .yaml; it has a judge")
    generator: str | None = Field(None, description="weights; the domain's by default")
    methods: tuple[str, ...] = Field(min_length=3, description="published names, encoders and variants")
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict, description="as in a run of `invert`")
    encoders: dict[str, str] = Field(default_factory=dict, description="as in a run of `invert`")
    controls: dict[str, str] = Field(
        default_factory=dict, description="by name of an aligned method: the control that has its LPIPS"
    )
    directions: dict[str, str] = Field(
        default_factory=dict, description="by attribute: name of the direction that changes it; its own by default"
    )
    attributes: tuple[str, ...] = Field((), description="what is edited; all of the domain's by default")
    changes: dict[str, Number] = Field(
        default_factory=dict,
        description="by attribute: how far it is edited, in its standard deviations over synthetic images; else 1",
    )
    reference: str = Field(description="real images that midpoints are compared with; not the inverted ones")
    label: str = Field(r"-(\w+)$", description="regular expression: what in an image id names its class")
    synthetic_images: Whole = Field(
        2000, ge=10, le=MANY_IMAGES, description="of the generator's own, that set the unit of a change"
    )
    seed: Seed = Field(0, description="of these images")
    workers: WorkerParameters = WorkerParameters()

    def resolve(self, settings: Settings) -> ResolvedStudy:
        """The study with its domain's presets filled in.

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
        for aligned, control in self.controls.items():
            if unknown := sorted({aligned, control} - set(self.methods)):
                raise ParameterError(f'controls: "{unknown[0]}" is not among the methods of this study')
        try:
            re.compile(self.label)
        except re.error as error:
            raise ParameterError(f'label: "{self.label}" is no regular expression ({error})') from error
        if unknown := sorted(set(self.changes) - set(attributes)):
            raise ParameterError(f'changes: "{unknown[0]}" is not among the attributes {", ".join(attributes)}')
        changes = {name: self.changes.get(name, 1.0) for name in attributes}
        if bad := [name for name, change in changes.items() if not change > 0]:
            raise ParameterError(f"changes.{bad[0]}: {changes[bad[0]]}; wanted a number above 0, both ways are edited")
        return ResolvedStudy(self, domain, inversion, directions, changes, tuple(map(self._studied, inversion.methods)))

    def inversion(self) -> InvertRun:
        """The inversion by all methods."""
        return InvertRun(
            source=self.source,
            archive=f"{self.output.rstrip('/')}/archive",
            domain=self.domain,
            generator=self.generator,
            methods=self.methods,
            variants=self.variants,
            encoders=self.encoders,
            workers=self.workers,
            report_images=2,
        )

    def _studied(self, method: Method) -> StudiedMethod:
        pairs = {**self.controls, **{control: control for control in self.controls.values()}}
        return StudiedMethod(method.name, _title(method), _family(method), pairs.get(method.name))


@dataclass(frozen=True)
class ResolvedStudy:
    """A study whose every open choice has been taken from its domain.

    Attributes:
        run: as it was asked for.
        domain: of the run.
        inversion: by all methods.
        directions: name of the direction by attribute.
        changes: how far each attribute is edited, in its standard deviations over synthetic images.
        methods: as the tables name them.
    """

    run: ReproduceEditability
    domain: Domain
    inversion: InversionRequest
    directions: dict[str, str]
    changes: dict[str, float]
    methods: tuple[StudiedMethod, ...]


def _family(method: Method) -> Family:
    settings = method.settings
    if settings.kind != OptimizationSettings.kind:
        return "encoder"
    if settings.needs_encoder:
        return "from encoder"
    values = asdict(settings)
    if values["mean_code_weight"] > 0:
        return "control"
    return "W" if values["space"] == "w" else "W+"


def _title(method: Method) -> str:
    """With the weight that makes the difference."""
    family, values = _family(method), asdict(method.settings)
    if family in ("encoder", "from encoder"):
        return method.title
    base = {"w": "W", "w_plus": "W+"}[values["space"]]
    if family == "control":
        return f"{base}, L2 to the mean code, weight {values['mean_code_weight']:g}"
    return f"LSAP_O-{base}, λ = {values['sncd_weight']:g}" if values["sncd_weight"] else f"StyleGAN2-{base}"
