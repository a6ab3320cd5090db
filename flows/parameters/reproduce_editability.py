"""What the study of editability may be asked for."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from pydantic import Field

from flows.parameters.run_file import ParameterError
from flows.parameters.studies import EditedAlike, StudyOfEdits
from lsap_core.inversion.by_optimization import OptimizationSettings
from lsap_core.presets import Method
from tasks.reports.editability.study import Family, StudiedMethod
from tasks.settings import Settings


class ReproduceEditability(StudyOfEdits):
    """Invert images by methods of very different alignment, edit all of them alike, and see what SNCD predicts."""

    methods: tuple[str, ...] = Field(min_length=3, description="published names, encoders and variants")
    controls: dict[str, str] = Field(
        default_factory=dict, description="by name of an aligned method: the control that has its LPIPS"
    )
    label: str = Field(r"-(\w+)$", description="regular expression: what in an image id names its class")

    def resolve(self, settings: Settings) -> ResolvedStudy:
        """The study with its domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist, or the domain lacks what the study needs.
        """
        alike = self.edited_alike(settings)
        for aligned, control in self.controls.items():
            if unknown := sorted({aligned, control} - set(self.methods)):
                raise ParameterError(f'controls: "{unknown[0]}" is not among the methods of this study')
        try:
            re.compile(self.label)
        except re.error as error:
            raise ParameterError(f'label: "{self.label}" is no regular expression ({error})') from error
        return ResolvedStudy(self, alike, tuple(map(self._studied, alike.inversion.methods)))

    def _studied(self, method: Method) -> StudiedMethod:
        pairs = {**self.controls, **{control: control for control in self.controls.values()}}
        return StudiedMethod(method.name, _title(method), _family(method), pairs.get(method.name))


@dataclass(frozen=True)
class ResolvedStudy:
    """A study whose every open choice has been taken from its domain.

    Attributes:
        run: as it was asked for.
        alike: what is inverted and how it is edited.
        methods: as the tables name them.
    """

    run: ReproduceEditability
    alike: EditedAlike
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
