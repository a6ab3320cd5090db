"""What a refinement may be asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from domains.domain import Domain
from flows.parameters.invert import own_title
from flows.parameters.numbers import MANY_SHOWN, Seed, Whole
from flows.parameters.of_archives import ArchiveRun, check_methods
from flows.parameters.run_file import ParameterError, refused
from flows.parameters.shared import PREVIEWS, PreviewSide, generator_of, refuse_memory
from lsap_core.errors import ConfigError
from lsap_core.presets import REFINERS, NamedRefiner
from tasks.refinement.request import RefinementRequest
from tasks.settings import Settings
from tasks.weights.networks import NetworkChoice
from tasks.weights.of_domains import published_of
from tasks.weights.segmenters import MAPS, check_segmenter_name


class RefineRun(ArchiveRun):
    """Refine the inversions of an archive; each inversion and refiner becomes a run of its own beside it."""

    source: str = Field(description="where the images are that were inverted")
    methods: tuple[str, ...] = Field((), description="inversions to refine, by name; all of the archive by default")
    refiners: tuple[str, ...] = Field(("pti",), description="by published name")
    refiner_settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings by refiner, over the domain's"
    )
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="refiners of one's own by name: a published one, and what is different about it, such as "
        "{refiner: pti, num_steps: 100}",
    )
    segmenter: str | None = Field(
        None,
        description="what finds the segments of images, for SAM: superpixels, face, face_with_hair, or maps: and the "
        "folder of label maps, PNG files named like the images; the domain's by default",
    )
    perceptual: str | None = Field(None, description="network of the loss; the domain's by default")
    metric_perceptual: str | None = Field(None, description="network of the reported LPIPS")
    seed: Seed = Field(0, description="of every image's own random state, together with its id")
    keep: Literal["state", "images", "nothing"] = Field(
        "state",
        description="what is kept of every image: the state that edits are rendered from, its picture alone, or "
        "neither; codes and measurements always are",
    )
    previews: PreviewSide = PREVIEWS
    report_images: Whole = Field(16, ge=0, le=MANY_SHOWN, description="images on the sheet of the report")
    state_type: Literal["float16", "float32"] = Field("float16", description="of the numbers of the state")

    def resolve(self, settings: Settings) -> RefinementRequest:
        """The run with its domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist.
        """
        domain = self.resolved_domain(settings)
        check_methods(self.methods)
        if not self.refiners:
            raise ParameterError(f"refiners: none given; wanted some of {', '.join({**REFINERS, **self.variants})}")
        if len(set(self.refiners)) != len(self.refiners):
            raise ParameterError(f"refiners: {', '.join(self.refiners)} names a refiner twice")
        if unknown := sorted(set(self.refiner_settings) - set(self.refiners)):
            raise ParameterError(f'refiner_settings: "{unknown[0]}" is not among the refiners of this run')
        refiners = tuple(refused(f"refiners[{name}]", self._refiner, name, domain) for name in self.refiners)
        segmenter = self.segmenter or domain.segmenter
        refused("segmenter", check_segmenter_name, segmenter)
        refuse_memory("segmenter", segmenter.removeprefix(MAPS))
        perceptual = self.perceptual or domain.perceptual
        metric = self.metric_perceptual or domain.metric_perceptual or perceptual
        names = (perceptual, metric, domain.identity, domain.judge)
        return RefinementRequest(
            archive=self.archive,
            source=self.source,
            generator=generator_of(domain),
            methods=self.methods,
            refiners=refiners,
            networks=refused("perceptual", NetworkChoice, *names, published_of(domain, settings)),
            seed=self.seed,
            keep=self.keep,
            state_type=self.state_type,
            batch_size=self.batch_size or domain.batch_size,
            refiner_networks=self._networks_of_refiners(domain),
            segmenter=segmenter,
            device=self.workers.device,
            previews=self.previews,
        )

    def _networks_of_refiners(self, domain: Domain) -> dict[str, str]:
        """Files by name: what the run names for a refiner stands above what its domain has for one embedding of it."""
        own = self.refiner_networks
        return {
            name: file for name, file in domain.refiners.items() if name in own or name.partition("/")[2] not in own
        }

    def _refiner(self, name: str, domain: Domain) -> NamedRefiner:
        """A published refiner, or a variant of one, with its settings filled in."""
        changes = self.refiner_settings.get(name, {})
        if name not in self.variants:
            return domain.refiner(name, changes)
        if name in REFINERS:
            raise ConfigError("a refiner of that name is there already; give the variant a name of its own")
        own = dict(self.variants[name])
        published = own.pop("refiner", None)
        if published is None:
            raise ConfigError(f'the variant does not say of what; wanted "refiner": one of {", ".join(REFINERS)}')
        base = domain.refiner(published, {**own, **changes})
        return replace(base, name=name, title=own_title(base.title, own))
