"""What a reproduction of the paper's tables and figures may be asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args

from pydantic import Field

from domains.domain import Domain
from flows.parameters.edit import EditRun
from flows.parameters.evaluate import EvaluateRun, SyntheticParameters
from flows.parameters.invert import InvertRun
from flows.parameters.numbers import MANY_IMAGES, MANY_SHOWN, Count, Index, Number, Seed, Whole
from flows.parameters.reproduce_table3 import ReproduceTable3
from flows.parameters.run_file import ParameterError, Parameters, read_values, refused
from flows.parameters.shared import WhenBusy, WorkerParameters
from tasks.measuring.attributes import EMBEDDED, FACES
from tasks.reports.paper.tables import ShownEdit
from tasks.settings import Settings
from tasks.weights.of_domains import DIRECTION, GENERATOR, check_weights, find_domain, with_published_weights
from tasks.weights.published import Published

Built = TypeVar("Built", bound=Parameters)
Part = Literal["table1", "table2", "table3", "table4", "figure4", "figure5"]
PARTS: tuple[Part, ...] = get_args(Part)
EQUAL = "_equal"
"""Behind the name of an edit: the same at equal effect."""


class EditParameters(Parameters):
    """One edit of the tables: at one strength for every method, and at equal effect."""

    edit: dict[str, Any] = Field(description="the edit without its strength, such as {direction: slant}")
    strength: Number = Field(description="of every method; LEC is measured with it")
    attribute: str | None = Field(
        None, description="what it changes; each method is also edited so strongly that this changes equally"
    )
    change: Number = Field(1.0, description="at equal effect, in standard deviations of the attribute")


class Figure4Parameters(Parameters):
    """Which codes figure 4 shows."""

    layer: Index = Field(0, description="row of W+, and style vector; the paper does not say which")
    entries: tuple[Index, Index] = Field((0, 1), description="the two entries that are drawn")
    samples: Count | None = Field(None, le=MANY_IMAGES, description="synthetic codes; as many as images by default")
    seed: Seed = Field(0, description="of the synthetic codes")


class Figure5Parameters(Parameters):
    """Which images figure 5 shows."""

    images: Count = Field(6, le=MANY_SHOWN, description="how many, spread evenly over the source")
    methods: tuple[str, ...] | None = Field(None, description="the run's by default")


class ReproduceRun(Parameters):
    """The paper's tables and figures on a domain, with the paper's numbers where they belong."""

    source: str = Field(description="images to invert, edit and measure")
    archive: str = Field(description="path or URL of the archive; may be that of other runs")
    output: str = Field(description="path or URL of the folder for tables, figures and the page")
    domain: str = Field("full_scale", description="name of a built-in domain, or the path of one's own .yaml")
    generator: str | None = Field(None, description="weights; the domain's by default")
    encoders: dict[str, str] = Field(default_factory=dict, description="weights of encoders by name, over the domain's")
    parts: tuple[Part, ...] = Field(PARTS, min_length=1, description='what "all" means')
    methods: tuple[str, ...] = Field(
        ("psp", "e4e", "lsap_e", "stylegan2_w", "lsap_o_w", "stylegan2_w_plus", "lsap_o_w_plus"),
        min_length=1,
        description="rows of Table 1",
    )
    compared: tuple[str, ...] = Field(
        ("psp", "e4e", "lsap_e"), min_length=1, description="encoders of Table 2 and Figure 4"
    )
    table4: tuple[str, ...] = Field(("e4e", "lsap_e"), min_length=1, description="rows of Table 4")
    edits: dict[str, EditParameters] = Field(default_factory=dict, description="edits by name")
    lpips: tuple[str, ...] | None = Field(None, description="networks of LPIPS; the first is the tables' column")
    identity: tuple[str, ...] | None = Field(None, description="networks of identity; the first is the tables' column")
    classifier: str | None = Field(None, description="judge of classes; the domain's by default")
    attributes: tuple[str, ...] | None = Field(None, description="measured of all images; the domain's by default")
    frechet: str | None = Field(None, description='network of the Fréchet distance: "inception" or a judge')
    reference: str | None = Field(None, description="real images, for the distance of images to their nearest ones")
    synthetic: SyntheticParameters = Field(SyntheticParameters(), description="images of Table 2")
    figure4: Figure4Parameters = Figure4Parameters()
    figure5: Figure5Parameters = Figure5Parameters()
    table3: dict[str, Any] | str | None = Field(
        None, description="the trainings of Table 3: fields of such a reproduction, or the path of its file"
    )
    inversion: dict[str, Any] = Field(
        default_factory=dict, description="further fields of the inversion, such as embedding or fit"
    )
    calibration_images: Whole = Field(
        64, ge=2, le=MANY_IMAGES, description="images that decide the strength at equal effect"
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
        return parts

    def resolved_domain(self, settings: Settings, parts: Iterable[Part]) -> Domain:
        """The domain with published weights in place, after all that these parts need were found.

        Raises:
            ParameterError: a name means nothing.
            MissingWeightsError: published files are missing; the sentence names them all.
        """
        domain = refused("domain", find_domain, self.domain)
        published = Published(settings.backbones)
        check_weights(domain, published, self._roles(domain, tuple(parts)))
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

    def inverted(self, parts: Iterable[Part]) -> tuple[str, ...]:
        """Methods whose inversions these parts need."""
        needed = {
            "table1": self.methods,
            "table4": self.table4,
            "figure4": self.compared,
            "figure5": self.figure5.methods or self.methods,
        }
        return tuple(dict.fromkeys(name for part in parts for name in needed.get(part, ())))

    def edited(self, parts: Iterable[Part]) -> tuple[str, ...]:
        """Methods whose edits these parts need."""
        parts = set(parts)
        return self.inverted([part for part in PARTS if part in parts & {"table1", "figure5"}]) if self.edits else ()

    def measured(self, parts: Iterable[Part]) -> tuple[str, ...]:
        """Inversions and edits that these parts measure."""
        parts = set(parts)
        inverted = self.inverted([part for part in PARTS if part in parts & {"table1", "table4"}])
        if "table1" not in parts:
            return inverted
        edits = [
            name + suffix for name, each in self.edits.items() for suffix in ("", EQUAL)[: 1 + bool(each.attribute)]
        ]
        return (*inverted, *(f"{method}/{edit}" for method in self.methods for edit in edits))

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
            "encoders": self._places(domain, methods),
            "methods": methods,
            "workers": self.workers,
            **({} if self.batch_size is None else {"batch_size": self.batch_size}),
        }
        return _built("inversion", InvertRun, {**self.inversion, **fields})

    def edit_run(self, domain: Domain, methods: tuple[str, ...]) -> EditRun:
        """The edits of their codes."""
        edits: dict[str, dict[str, Any]] = {}
        for name, each in self.edits.items():
            edits[name] = {**each.edit, "strength": each.strength}
            if each.attribute is not None:
                effect = {"attribute": each.attribute, "change": each.change}
                edits[name + EQUAL] = {**each.edit, "equal_effect": effect}
        return _built("edits", EditRun, {**self._of_archive(domain), "methods": methods, "edits": edits})

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
            "directions": dict(domain.directions),
            "calibration_images": self.calibration_images,
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

    def _roles(self, domain: Domain, parts: tuple[Part, ...]) -> list[str]:
        """Roles of the published files that these parts need and nobody else gives."""
        roles = [GENERATOR] if self.generator is None and domain.generator is None else []
        methods = set(self.inverted(parts)) | (set(self.compared) if "table2" in parts else set())
        roles += sorted(methods - set(self.encoders) - set(domain.encoders))
        if self.edits and set(parts) & {"table1", "table3", "figure5"}:
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
