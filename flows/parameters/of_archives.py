"""What every run over the codes of an archive may be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from domains.domain import Domain
from flows.parameters.numbers import MANY_IMAGES, MANY_SHOWN, MANY_TRIES, Count, Index, Seed, Whole
from flows.parameters.run_file import ParameterError, Parameters, refused
from flows.parameters.shared import LABEL, WhenBusy, WorkerParameters, check_workers, domain_of, refuse_memory
from tasks.editing.calibration import SYNTHETIC_IMAGES, CalibrationOptions
from tasks.editing.spec import EditSpec, parse_edit
from tasks.settings import Settings


def _shown_images(value: Any) -> Any:
    """One sentence for both forms, where each would complain for itself."""
    is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MANY_SHOWN
    are_ids = isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
    if not is_number and not (are_ids and len(value) <= MANY_SHOWN):
        told = f"wanted how many images, 0 to {MANY_SHOWN:,}, or a list of image ids"
        raise PydanticCustomError("shown_images", "{told}", {"told": told})
    return value


ShownImages = Annotated[int | tuple[str, ...], BeforeValidator(_shown_images)]
SHOWN_IMAGES = "images on the page of the report: how many, or which ones by id"


class ArchiveRun(Parameters):
    """Fields of a run over the codes of an archive."""

    archive: str = Field(description="path or URL of the archive")
    domain: str = Field("full_scale", description="name of a built-in domain, or the path of one's own .yaml")
    generator: str | None = Field(None, description="weights, .pt, .pkl or .safetensors; the domain's by default")
    label: Index | None = Field(None, description=LABEL)
    directions: dict[str, str] = Field(
        default_factory=dict, description="files of directions and components by name, over the domain's"
    )
    refiner_networks: dict[str, str] = Field(
        default_factory=dict,
        description='files of networks of refiners by name, over the domain\'s; "e4e/hfgi" names those of one encoder',
    )
    calibration_images: Whole = Field(
        64,
        ge=2,
        le=MANY_IMAGES,
        description="images of a method that decide how strong an edit of equal effect has to be",
    )
    calibration_synthetic: Whole = Field(
        SYNTHETIC_IMAGES,
        ge=2,
        le=MANY_IMAGES,
        description="synthetic images whose spread of an attribute is the unit of a change",
    )
    calibration_seed: Seed = Field(0, description="of the synthetic images whose spread is the unit of a change")
    batch_size: Count | None = Field(None, description="images of a batch; the domain's by default")
    workers: WorkerParameters = WorkerParameters()
    retries: Whole = Field(3, ge=0, le=MANY_TRIES, description="tries again of a shard whose worker or storage failed")
    when_busy: WhenBusy = "wait"

    def calibration_options(self) -> CalibrationOptions:
        """What decides a calibration besides the edit."""
        return CalibrationOptions(self.calibration_images, self.calibration_seed, self.calibration_synthetic)

    def resolved_domain(self, settings: Settings) -> Domain:
        """The domain with this run's generator, directions and networks of refiners.

        Raises:
            ParameterError: the archive is out of reach of workers, there are none such, or a name means nothing.
        """
        refuse_memory("archive", self.archive)
        check_workers(self.workers, self.workers.count, settings)
        domain = domain_of(self.domain, self.generator, settings, label=self.label)
        return replace(
            domain,
            directions={**domain.directions, **self.directions},
            refiners={**domain.refiners, **self.refiner_networks},
        )


def check_methods(methods: tuple[str, ...]) -> None:
    """No method stands twice.

    Raises:
        ParameterError: one does.
    """
    if len(set(methods)) != len(methods):
        raise ParameterError(f"methods: {', '.join(methods)} names a method twice")


def parse_edits(field: str, edits: Mapping[str, Mapping[str, Any]], domain: Domain) -> dict[str, EditSpec]:
    """Edits by name, each checked.

    Raises:
        ParameterError: a name that cannot be part of a key, or an edit that means nothing.
    """
    return {name: refused(f"{field}.{name}", parse_edit, name, spec, domain.directions) for name, spec in edits.items()}
