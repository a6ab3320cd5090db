"""What an evaluation may be asked for."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from domains.domain import Domain
from flows.parameters.numbers import MANY_IMAGES, Number, Seed, Whole
from flows.parameters.of_archives import SHOWN_IMAGES, ArchiveRun, ShownImages, check_methods, parse_edits
from flows.parameters.run_file import ParameterError, Parameters, refused
from flows.parameters.shared import HEADS, checked_shard_rows, generator_of
from lsap_core.encoders.config import Heads
from lsap_core.presets import encoder_settings
from tasks.evaluation.request import EvaluationRequest, Synthetic
from tasks.measuring.networks import EvaluationChoice
from tasks.settings import Settings
from tasks.weights.of_domains import published_of

NO_CLASSIFIER = "none"


class SyntheticParameters(Parameters):
    """Synthetic images, whose codes are known (LSAP, Table 2)."""

    count: Whole = Field(5000, ge=2, le=MANY_IMAGES, description="how many; the paper takes 5,000")
    psi: Number = Field(1.0, ge=0.0, le=100.0, description="truncation of their codes; 1 for none")
    seed: Seed = Field(0, description="of their codes")


class EvaluateRun(ArchiveRun):
    """Measure the inversions and edits of an archive, or encoders on synthetic images; one row for each value."""

    source: str | None = Field(None, description="the originals, to compare with; none to measure the rest alone")
    methods: tuple[str, ...] = Field(
        (),
        description='inversions and edits, such as "e4e" and "e4e/slant"; all of the archive by default. '
        "With `synthetic`: encoders",
    )
    versions: dict[str, str] = Field(
        default_factory=dict,
        description="by method or edit: digest of the configuration that is meant where the archive has several; the "
        "newest by default",
    )
    lpips: tuple[str, ...] | None = Field(None, description="networks of LPIPS; the domain's and its judge by default")
    identity: tuple[str, ...] | None = Field(
        None, description="networks of identity; the domain's and its judge by default"
    )
    classifier: str | None = Field(None, description='judge of the class, "none" for none; the domain\'s by default')
    attributes: tuple[str, ...] | None = Field(None, description="what to measure of images; the domain's by default")
    lec: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="edits by name of the editing consistency (LEC); for encoders only"
    )
    frechet: str | None = Field(
        None, description='network of the Fréchet distance to the originals: "inception" or a judge; none by default'
    )
    reference: str | None = Field(
        None, description="real images, for the distance of each image to its nearest ones; none by default"
    )
    encoders: dict[str, str] = Field(default_factory=dict, description="weights of encoders by name, over the domain's")
    heads: dict[str, Heads] = Field(default_factory=dict, description=HEADS)
    synthetic: SyntheticParameters | None = Field(
        None, description="encode synthetic images and compare the codes, instead of measuring what is in the archive"
    )
    style_set: Literal["authors", "conv", "full"] = Field(
        "authors", description="which style vectors form S, for synthetic images"
    )
    fit: Literal["refuse", "crop", "letterbox", "stretch"] = Field(
        "refuse",
        description="what to do with real images of another shape; originals are fitted as they were when inverted",
    )
    report_images: ShownImages = Field(4, description=SHOWN_IMAGES)

    def resolve(self, settings: Settings) -> EvaluationRequest:
        """The run with its domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist, or two fields contradict each other.
        """
        domain = self.resolved_domain(settings)
        check_methods(self.methods)
        domain = refused("encoders", domain.with_encoders, self.encoders, self.heads)
        if self.frechet is not None and self.source is None and self.synthetic is None:
            raise ParameterError("frechet: it compares with the originals; name their source")
        return EvaluationRequest(
            archive=self.archive,
            generator=generator_of(domain),
            methods=self.methods,
            networks=refused("networks", self._networks, domain, settings),
            calibration=self.calibration_options(),
            batch_size=self.batch_size or domain.batch_size,
            source=self.source,
            fit=self.fit,
            attributes=domain.attributes if self.attributes is None else self.attributes,
            lec=parse_edits("lec", self.lec, domain),
            frechet=self.frechet,
            reference=self.reference,
            encoders=domain.encoders,
            heads=domain.heads,
            synthetic=self._synthetic(domain),
            versions=self.versions,
            device=self.workers.device,
            refiners=domain.refiners,
        )

    def _networks(self, domain: Domain, settings: Settings) -> EvaluationChoice:
        """What looks at images: nothing at synthetic ones, of which only codes are compared."""
        if self.synthetic is not None:
            return EvaluationChoice(published=published_of(domain, settings))
        judge = None if self.classifier == NO_CLASSIFIER else self.classifier or domain.judge
        metric = domain.metric_perceptual or domain.perceptual
        lpips = dict.fromkeys(name for name in (metric, domain.judge) if name is not None)
        identity = dict.fromkeys(name for name in (domain.identity, domain.judge) if name is not None)
        return EvaluationChoice(
            lpips=tuple(lpips) if self.lpips is None else self.lpips,
            identity=tuple(identity) if self.identity is None else self.identity,
            judge=judge,
            published=published_of(domain, settings),
        )

    def _synthetic(self, domain: Domain) -> Synthetic | None:
        """Synthetic images, and how the encoders are asked for their codes."""
        if self.synthetic is None:
            return None
        for field in ("source", "frechet", "reference", "lec"):
            if getattr(self, field):
                raise ParameterError(f"{field}: synthetic images have only codes to compare; leave it out")
        if not self.methods:
            raise ParameterError(f"methods: none given; wanted encoders: {', '.join(domain.encoders) or 'none there'}")
        found = {}
        for name in self.methods:
            if name not in domain.encoders:
                raise ParameterError(
                    f"methods[{name}]: only an encoder can be asked for codes of synthetic images; wanted some of "
                    f"{', '.join(domain.encoders)}, or its file: encoders.{name}=..."
                )
            found[name] = encoder_settings(domain.method(name).settings, name)
        return Synthetic(
            **self.synthetic.model_dump(),
            style_set=self.style_set,
            encoders=found,
            shard_rows=checked_shard_rows(domain.shard_rows),
        )
