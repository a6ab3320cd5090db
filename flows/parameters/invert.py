"""What a run may be asked for: typed, described, refused before any work when it is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from domains.domain import Domain
from flows.parameters.numbers import MANY_SHOWN, MANY_TRIES, Count, Index, Seed, Share, Unbounded, Whole
from flows.parameters.run_file import ParameterError, Parameters, refused
from flows.parameters.shared import (
    HEADS,
    LABEL,
    PREVIEWS,
    AnchorParameters,
    PreviewSide,
    WhenBusy,
    WorkerParameters,
    check_workers,
    checked_shard_rows,
    domain_of,
    generator_of,
    refuse_memory,
)
from lsap_core.encoders.config import Heads
from lsap_core.errors import ConfigError
from lsap_core.inversion import KeepNoise
from lsap_core.presets import METHODS, Method
from tasks.archived.anchors import AnchorOptions
from tasks.inversion.request import InversionRequest
from tasks.inversion.run_planner import RUN_IMAGES
from tasks.settings import Settings
from tasks.weights.networks import NetworkChoice
from tasks.weights.of_domains import published_of


class InvertRun(Parameters):
    """Invert a set of images with one or more methods into an archive."""

    source: str = Field(description="folder, glob, .zip, .npy, .tar or .parquet shards, manifest, or digits:test")
    archive: str = Field(description="path or URL of the archive")
    domain: str = Field("full_scale", description="name of a built-in domain, or the path of one's own .yaml")
    generator: str | None = Field(None, description="weights, .pt, .pkl or .safetensors; the domain's by default")
    label: Index | None = Field(None, description=LABEL)
    methods: tuple[str, ...] = Field(("stylegan2_w_plus", "lsap_o_w_plus"), description="by published name")
    embedding: dict[str, Any] = Field(
        default_factory=dict, description="settings for every method that has them, over the domain's"
    )
    method_settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings by method name, over all others"
    )
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="methods of one's own by name: a published one, and what is different about it, such as "
        "{method: lsap_o_w_plus, sncd_weight: 2}",
    )
    encoders: dict[str, str] = Field(
        default_factory=dict,
        description="weights of encoders by name, over the domain's; a name that is no method's is a method of its own",
    )
    heads: dict[str, Heads] = Field(default_factory=dict, description=HEADS)
    perceptual: str | None = Field(None, description="network of the loss; the domain's by default")
    metric_perceptual: str | None = Field(None, description="network of the reported LPIPS")
    fit: Literal["refuse", "crop", "letterbox", "stretch"] = Field(
        "refuse", description="what to do with images that are not square, or not of the shape of the content box"
    )
    keep_noise: KeepNoise | None = Field(
        None,
        description="what is kept of the noise maps of optimizations: float32, float16, or none, which measures and "
        "shows them with the generator's constant ones; the domain's by default",
    )
    seed: Seed = Field(0, description="of every image's own random state, together with its id")
    anchor: AnchorParameters = AnchorParameters()
    shard_rows: Unbounded | None = Field(
        None, ge=1, le=RUN_IMAGES, description="images of a shard; below 16 or a multiple of 16"
    )
    batch_size: Count | Literal["auto"] | None = Field(
        None,
        description='images embedded together; "auto": as many of a shard as memory has room for; by default the '
        "domain's, or fewer where there is less room",
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description='whether the steps of optimizations are compiled first; "auto": where that saves time'
    )
    workers: WorkerParameters = WorkerParameters()
    max_failed_share: Share = Field(
        0.05, description="the run fails above this share of images that a method failed at"
    )
    retries: Whole = Field(3, ge=0, le=MANY_TRIES, description="tries again of a shard whose worker or storage failed")
    previews: PreviewSide = PREVIEWS
    report_images: Whole = Field(16, ge=0, le=MANY_SHOWN, description="images on the contact sheet")
    when_busy: WhenBusy = "wait"

    def resolve(self, settings: Settings) -> InversionRequest:
        """The run with its domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist.
        """
        refuse_memory("archive", self.archive)
        check_workers(self.workers, self.workers.count, settings)
        domain = self.resolved_domain(settings)
        known = {**METHODS, **domain.encoders, **self.variants}
        if not self.methods:
            raise ParameterError(f"methods: none given; wanted some of {', '.join(known)}")
        if len(set(self.methods)) != len(self.methods):
            raise ParameterError(f"methods: {', '.join(self.methods)} names a method twice")
        if unknown := sorted(set(self.method_settings) - set(self.methods)):
            raise ParameterError(f'method_settings: "{unknown[0]}" is not among the methods of this run')
        methods = tuple(refused(f"methods[{name}]", self._method, name, domain) for name in self.methods)
        perceptual = self.perceptual or domain.perceptual
        metric = self.metric_perceptual or domain.metric_perceptual or perceptual
        names = (perceptual, metric, domain.identity, domain.judge)
        networks = refused("perceptual", NetworkChoice, *names, published_of(domain, settings))
        shard_rows = checked_shard_rows(self.shard_rows or domain.shard_rows)
        batch_size = shard_rows if self.batch_size == "auto" else self.batch_size or domain.batch_size
        memory_gb = self.workers.memory_gb
        return InversionRequest(
            source=self.source,
            archive=self.archive,
            domain=domain.name,
            generator=generator_of(domain),
            methods=methods,
            networks=networks,
            anchor=AnchorOptions(**self.anchor.model_dump()),
            fit=self.fit,
            seed=self.seed,
            shard_rows=shard_rows,
            batch_size=batch_size,
            fits_batch=not isinstance(self.batch_size, int),
            num_workers=self.workers.count,
            memory_bytes=None if memory_gb is None else int(memory_gb * 2**30),
            encoders=_places_of_encoders(methods, domain),
            heads=domain.heads,
            device=self.workers.device,
            compile=self.compile,
            previews=self.previews,
        )

    def resolved_domain(self, settings: Settings) -> Domain:
        """The domain with this run's generator and encoders.

        Raises:
            ParameterError: a name means nothing.
        """
        domain = domain_of(self.domain, self.generator, settings, label=self.label)
        return refused("encoders", domain.with_encoders, self.encoders, self.heads)

    def _method(self, name: str, domain: Domain) -> Method:
        """A published method, one of an encoder, or a variant of one of them, with its settings filled in."""
        changes = self.method_settings.get(name, {})
        shared = self.embedding if self.keep_noise is None else {**self.embedding, "keep_noise": self.keep_noise}
        if name not in self.variants:
            return domain.method(name, changes, shared=shared)
        if name in {**METHODS, **domain.encoders}:
            raise ConfigError("a method of that name is there already; give the variant a name of its own")
        own = dict(self.variants[name])
        published = own.pop("method", None)
        if published is None:
            raise ConfigError(f'the variant does not say of what; wanted "method": one of {", ".join(METHODS)}')
        base = domain.method(published, {**own, **changes}, shared=shared)
        return replace(base, name=name, title=own_title(base.title, own))


def own_title(title: str, settings: Mapping[str, Any]) -> str:
    """What a variant is called: its published title, and what is different about it.

    Example:
        >>> own_title("LSAP_O-W+", {"sncd_weight": 2})
        'LSAP_O-W+ (sncd_weight 2)'
    """
    return f"{title} ({', '.join(f'{name} {value}' for name, value in settings.items())})" if settings else title


def _places_of_encoders(methods: Iterable[Method], domain: Domain) -> dict[str, str]:
    """Where the weights of every encoder lie that a method names."""
    places = {}
    for method in methods:
        if method.encoder is None:
            continue
        if method.encoder not in domain.encoders:
            raise ParameterError(
                f'methods[{method.name}]: domain "{domain.name}" has no encoder {method.encoder}; name a file: '
                f"encoders.{method.encoder}=..."
            )
        places[method.encoder] = domain.encoders[method.encoder]
    return places
