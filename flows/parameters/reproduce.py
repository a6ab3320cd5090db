"""What a reproduction of the paper's tables and figures may be asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import Field

from domains.domain import Domain
from flows.parameters.edit import EditRun
from flows.parameters.evaluate import EvaluateRun, SyntheticParameters
from flows.parameters.invert import InvertRun
from flows.parameters.numbers import MANY_IMAGES, Count, Index, Whole
from flows.parameters.paper_parts import EQUAL, PARTS, PaperParts, Part
from flows.parameters.refine import RefineRun
from flows.parameters.reproduce_table3 import ReproduceTable3
from flows.parameters.run_file import ParameterError, Parameters, read_values, refused
from flows.parameters.shared import HEADS, LABEL, WhenBusy, WorkerParameters
from lsap_core.encoders.config import Heads
from lsap_core.refinement.sam import SamSettings
from tasks.editing.calibration import SYNTHETIC_IMAGES
from tasks.measuring.attributes import EMBEDDED, FACES
from tasks.reports.paper.tables import ShownEdit
from tasks.settings import Settings
from tasks.weights.of_domains import (
    DIRECTION,
    FACE_PARSER,
    GENERATOR,
    REFINER,
    check_weights,
    find_domain,
    published_of,
    with_published_weights,
)
from tasks.weights.refiners import name_of_networks
from tasks.weights.segmenters import FACE_PARSERS

Built = TypeVar("Built", bound=Parameters)


class ReproduceRun(PaperParts):
    """The paper's tables and figures on a domain, with the paper's numbers where they belong."""

    source: str = Field(description="images to invert, edit and measure")
    archive: str = Field(description="path or URL of the archive; may be that of other runs")
    output: str = Field(description="path or URL of the folder for tables, figures and the page")
    domain: str = Field("full_scale", description="name of a built-in domain, or the path of one's own .yaml")
    generator: str | None = Field(None, description="weights; the domain's by default")
    label: Index | None = Field(None, description=LABEL)
    encoders: dict[str, str] = Field(default_factory=dict, description="weights of encoders by name, over the domain's")
    heads: dict[str, Heads] = Field(default_factory=dict, description=HEADS)
    lpips: tuple[str, ...] | None = Field(None, description="networks of LPIPS; the first is the tables' column")
    identity: tuple[str, ...] | None = Field(None, description="networks of identity; the first is the tables' column")
    classifier: str | None = Field(None, description="judge of classes; the domain's by default")
    attributes: tuple[str, ...] | None = Field(None, description="measured of all images; the domain's by default")
    frechet: str | None = Field(None, description='network of the Fréchet distance: "inception" or a judge')
    reference: str | None = Field(None, description="real images, for the distance of images to their nearest ones")
    synthetic: SyntheticParameters = Field(SyntheticParameters(), description="images of Table 2")
    table3: dict[str, Any] | str | None = Field(
        None, description="the trainings of Table 3: fields of such a reproduction, or the path of its file"
    )
    inversion: dict[str, Any] = Field(
        default_factory=dict, description="further fields of the inversion, such as embedding or fit"
    )
    refiner_networks: dict[str, str] = Field(
        default_factory=dict, description="files of networks of refiners by name, over the domain's"
    )
    refinement: dict[str, Any] = Field(
        default_factory=dict,
        description="further fields of the refinement, such as refiner_settings, variants or segmenter",
    )
    calibration_images: Whole = Field(
        64, ge=2, le=MANY_IMAGES, description="images that decide the strength at equal effect"
    )
    calibration_synthetic: Whole = Field(
        SYNTHETIC_IMAGES, ge=2, le=MANY_IMAGES, description="synthetic images whose spread is the unit of a change"
    )
    batch_size: Count | None = Field(None, description="images of a batch; the domain's by default")
    workers: WorkerParameters = WorkerParameters()
    when_busy: WhenBusy = "wait"

    def chosen(self, asked: str) -> tuple[Part, ...]:
        """The parts of a command, "all" or one.

        Raises:
            ParameterError: the run does not have what that part needs.
        """
        parts = tuple(part for part in PARTS if asked in ("all", part) and (asked == part or part in self.parts))
        if asked == "all" and self.table3 is None:
            parts = tuple(part for part in parts if part != "table3")
        if "table3" in parts and self.table3 is None:
            raise ParameterError(
                "table3: not in this file; wanted its trainings, such as {source: digits:train, seeds: [0]}"
            )
        if asked == "all" and not self.rows("figure3"):
            parts = tuple(part for part in parts if part != "figure3")
        if "figure3" in parts and not self.rows("figure3"):
            raise ParameterError("figure3: nothing is refined in this file; wanted such rows: refined: [e4e/hfgi]")
        return parts

    def resolved_domain(self, settings: Settings, parts: Iterable[Part]) -> Domain:
        """The domain with published weights in place, after all that these parts need were found.

        Raises:
            ParameterError: a name means nothing.
            MissingWeightsError: published files are missing; the sentence names them all.
        """
        domain = refused("domain", find_domain, self.domain)
        published = published_of(domain, settings)
        roles = [*self._roles(domain, tuple(parts)), *self._roles_of_refiners(domain, parts, settings)]
        check_weights(domain, published, roles)
        return with_published_weights(domain, published)

    def shown_edits(self) -> tuple[ShownEdit, ...]:
        """The edits as the tables name them.

        Raises:
            ParameterError: an attribute that nobody knows.
        """
        return tuple(
            ShownEdit(
                name,
                fixed=name,
                equal=None if edit.attribute is None else name + EQUAL,
                attribute=edit.attribute,
                unit="" if edit.attribute is None else unit_of(f"edits.{name}.attribute", edit.attribute),
                strength=edit.strength,
                change=edit.change,
            )
            for name, edit in self.edits.items()
        )

    def inversion_run(self, domain: Domain, methods: tuple[str, ...]) -> InvertRun:
        """The inversion of the images.

        Raises:
            ParameterError: a field of `inversion` does not exist.
        """
        fields = {
            "source": self.source,
            "archive": self.archive,
            "domain": self.domain,
            "generator": self.generator or domain.generator,
            "label": self.label,
            "encoders": self._places(domain, methods),
            "heads": self.heads,
            "methods": methods,
            "workers": self.workers,
            **({} if self.batch_size is None else {"batch_size": self.batch_size}),
        }
        return _built("inversion", InvertRun, {**self.inversion, **fields})

    def refinement_runs(self, domain: Domain, names: Iterable[str]) -> tuple[RefineRun, ...]:
        """The refinements of these names, such as "e4e/hfgi": a run for all refiners of the same embeddings.

        Raises:
            ParameterError: a field of `refinement` does not exist, or its images could not be edited and measured.
        """
        embeddings: dict[str, tuple[str, ...]] = {}
        for name in names:
            embedding, _, refiner = name.partition("/")
            embeddings[refiner] = (*embeddings.get(refiner, ()), embedding)
        if (kept := self.refinement.get("keep", "state")) != "state":
            raise ParameterError(
                f"refinement.keep: {kept}; what is edited and measured is rendered again: wanted state"
            )
        settings = dict(self.refinement.get("refiner_settings", {}))
        if unknown := sorted(set(settings) - {name.partition("/")[2] for name in self.refinements(PARTS)}):
            raise ParameterError(f'refinement.refiner_settings: "{unknown[0]}" is not among the refiners of this run')
        runs = []
        for methods in dict.fromkeys(embeddings.values()):
            refiners = tuple(refiner for refiner, of in embeddings.items() if of == methods)
            fields = {
                **self._of_archive(domain),
                "source": self.source,
                "methods": methods,
                "refiners": refiners,
                "refiner_settings": {name: settings[name] for name in refiners if name in settings},
            }
            runs.append(_built("refinement", RefineRun, {**self.refinement, **fields}))
        return tuple(runs)

    def edit_run(self, domain: Domain, methods: tuple[str, ...]) -> EditRun:
        """The edits of their codes."""
        edits: dict[str, dict[str, Any]] = {}
        for name, each in self.edits.items():
            edits[name] = {**each.edit, "strength": each.strength}
            if each.attribute is not None:
                effect = {"attribute": each.attribute, "change": each.change}
                edits[name + EQUAL] = {**each.edit, "equal_effect": effect}
        fields = {**self._of_archive(domain), "source": self.source, "methods": methods, "edits": edits}
        return _built("edits", EditRun, fields)

    def evaluation_run(
        self, domain: Domain, methods: tuple[str, ...], versions: Mapping[str, str] | None = None
    ) -> EvaluateRun:
        """The measurements of inversions and edits; `versions` says which of several edits of one name is meant."""
        fields = {
            **self._of_archive(domain),
            **self._looks(),
            "source": self.source,
            "methods": methods,
            "versions": dict(versions or {}),
            "encoders": self._places(domain, tuple(domain.encoders)),
            "heads": self.heads,
            "lec": {name: {**each.edit, "strength": each.strength} for name, each in self.edits.items()},
            "frechet": self.frechet,
            "reference": self.reference,
            **{name: self.inversion[name] for name in ("fit",) if name in self.inversion},
        }
        return _built("evaluation", EvaluateRun, fields)

    def synthetic_run(self, domain: Domain) -> EvaluateRun:
        """The codes of synthetic images, Table 2."""
        fields = {
            **self._of_archive(domain),
            "methods": self.compared,
            "encoders": self._places(domain, self.compared),
            "heads": self.heads,
            "synthetic": self.synthetic,
            "style_set": self.inversion.get("anchor", {}).get("style_set", "authors"),
        }
        return _built("synthetic", EvaluateRun, fields)

    def table3_run(self, domain: Domain) -> ReproduceTable3:
        """The trainings of Table 3, by default on the run's own images and below its folder.

        Raises:
            ParameterError: a field does not exist.
        """
        if isinstance(self.table3, str):
            return ReproduceTable3.read(self.table3)
        fields = {
            "evaluation_source": self.source,
            "output": f"{self.output.rstrip('/')}/table3",
            "domain": self.domain,
            "generator": self.generator or domain.generator,
            "label": self.label,
            "workers": self.workers,
            **(self.table3 or {}),
        }
        return _built("table3", ReproduceTable3, fields)

    def table3_evaluation(self, domain: Domain, trained: ReproduceTable3) -> EvaluateRun:
        """The measurements of the encoders that Table 3 trained."""
        inversion = trained.inversion()
        evaluation = self.evaluation_run(domain, inversion.methods)
        changes = {
            "archive": inversion.archive,
            "source": inversion.source,
            "encoders": inversion.encoders,
            "domain": inversion.domain,
            "reference": None,
        }
        return evaluation.model_copy(update=changes)

    def _of_archive(self, domain: Domain) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "archive": self.archive,
            "domain": self.domain,
            "generator": self.generator or domain.generator,
            "label": self.label,
            "directions": dict(domain.directions),
            "refiner_networks": self.refiner_networks,
            "calibration_images": self.calibration_images,
            "calibration_synthetic": self.calibration_synthetic,
            "workers": self.workers,
        }
        return fields if self.batch_size is None else {**fields, "batch_size": self.batch_size}

    def _looks(self) -> dict[str, Any]:
        return {
            "lpips": self.lpips,
            "identity": self.identity,
            "classifier": self.classifier,
            "attributes": self.attributes,
        }

    def _places(self, domain: Domain, methods: tuple[str, ...]) -> dict[str, str]:
        """Files of the encoders that methods need: the run's, then the domain's."""
        names = (refused(f"methods[{name}]", domain.method, name).encoder for name in methods)
        places = {**domain.encoders, **self.encoders}
        return {name: places[name] for name in names if name is not None and name in places}

    def _roles_of_refiners(self, domain: Domain, parts: Iterable[Part], settings: Settings) -> list[str]:
        """Roles of the published files of refiners that these parts need and nobody else gives."""
        own, roles = {**domain.refiners, **self.refiner_networks}, []
        for run in self.refinement_runs(domain, self.refinements(parts)):
            try:
                request = run.resolve(settings)
            except ParameterError as error:
                raise ParameterError(f"refinement: {error}") from error
            for refiner in request.refiners:
                for method in request.methods if refiner.settings.needs_networks else ():
                    name = name_of_networks(f"{method}/{refiner.networks or refiner.name}", request.refiner_networks)
                    roles += [] if name is None or name in own else [REFINER + name]
                if isinstance(refiner.settings, SamSettings) and request.segmenter in FACE_PARSERS:
                    roles.append(FACE_PARSER)
        return roles

    def _roles(self, domain: Domain, parts: tuple[Part, ...]) -> list[str]:
        """Roles of the published files that these parts need and nobody else gives."""
        roles = [GENERATOR] if self.generator is None and domain.generator is None else []
        methods = set(self.inverted(parts)) | (set(self.compared) if "table2" in parts else set())
        roles += sorted(methods - set(self.encoders) - set(domain.encoders))
        if self.edits and set(parts) & {"table1", "table3", "figure3", "figure5"}:
            named = [str(each.edit.get(key)) for each in self.edits.values() for key in ("direction", "components")]
            roles += [DIRECTION + name for name in named if name not in domain.directions]
        networks = [domain.perceptual, domain.metric_perceptual, *(self.lpips or ()), *(self.identity or ())]
        measured = {*(self.attributes or domain.attributes), *(each.attribute for each in self.edits.values())}
        if "curricularface" in networks or measured & set(FACES):
            networks += [role for role in domain.weights if role.startswith("mtcnn")]
        return [*roles, *(name for name in networks if name), *([self.frechet] if self.frechet else [])]


def unit_of(field: str, attribute: str) -> str:
    """Unit of an attribute, without the networks that measure it.

    Raises:
        ParameterError: an attribute that nobody knows.
    """
    units = {**{name: known.unit for name, known in EMBEDDED.items()}, **{name: FACES[name][1] for name in FACES}}
    if attribute not in units:
        raise ParameterError(f'{field}: "{attribute}" is not known; wanted one of {", ".join(units)}')
    return units[attribute]


def is_table3_alone(path: str) -> bool:
    """Whether a file describes the trainings of Table 3 alone: those have encoders to train and no archive to fill.

    Raises:
        ParameterError: it cannot be read.
    """
    return "evaluation_source" in read_values(path)


def _built(field: str, kind: type[Built], values: dict[str, Any]) -> Built:
    try:
        return kind.of(values)
    except ParameterError as error:
        raise ParameterError(f"{field}: {error}") from error
