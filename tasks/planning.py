"""What is left to do: the images of a source, minus what the archive already shows, as runs of whole shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lsap_archive import ArchiveWriter, PlannedRow, Provenance, RunPlan, RunWriter
from lsap_archive.layout import manifest_key
from lsap_core.generators.config import GeneratorConfig
from lsap_core.inversion.by_encoder import EncoderSettings
from lsap_core.inversion.by_optimization import TRACE_TERMS, OptimizationSettings
from lsap_core.presets import Method, method_of_encoder
from tasks.networks import NetworkChoice, network_digest
from tasks.sources import PlannedImage

PROVENANCE_PACKAGES = ("torch", "ray", "prefect", "lpips", "pillow", "safetensors")


@dataclass(frozen=True)
class MethodPlan:
    """A method with everything that decides its result, and the digest of all that.

    Attributes:
        method: name and settings.
        config: what the archive keeps of it, JSON values.
        digest: two runs with the same digest give the same image the same codes.
    """

    method: Method
    config: dict[str, Any]
    digest: str


@dataclass(frozen=True)
class PlannedShard:
    """A shard that still needs work.

    Attributes:
        run_id: its run.
        method: name of the method.
        shard: its number.
        num_images: how many images it has.
        duplicates: image id -> id of the image with the same content.
        moved: image id -> where the image is now, if it lay elsewhere when the run was planned.
    """

    run_id: str
    method: str
    shard: int
    num_images: int
    duplicates: Mapping[str, str]
    moved: Mapping[str, str] = field(default_factory=dict)


def plan_method(
    method: Method,
    *,
    generator_digest: str,
    anchor: str,
    networks: NetworkChoice,
    fit: str,
    seed: int,
    encoder: str | None = None,
) -> MethodPlan:
    """Put together what decides a method's result, and digest it.

    Args:
        method: name and settings.
        generator_digest: of the generator.
        anchor: digest of the anchor.
        networks: what compares images.
        fit: what is done with images of another shape.
        seed: of the run.
        encoder: digest of the method's encoder, if it has one.
    """
    names = {
        "perceptual": networks.perceptual,
        "metric_perceptual": networks.metric_perceptual,
        "identity": networks.identity,
        "judge": networks.judge,
    }
    config = {
        "method": method.name,
        "title": method.title,
        "base": method.base,
        "settings": recorded_settings(method.settings),
        "generator": generator_digest,
        "anchor": anchor,
        "networks": {
            role: None if name is None else {"name": name, "digest": network_digest(name, networks.backbones)}
            for role, name in names.items()
        },
        "fit": fit,
        "seed": seed,
    }
    # Only where they say something: methods of archives that know neither keep their digests.
    if method.encoder is not None:
        config["encoder"] = {"name": method.encoder, "digest": encoder}
    if isinstance(method.settings, EncoderSettings):
        config["noise"] = "constant"
    return MethodPlan(method, config, _digest(config))


def recorded_settings(settings: OptimizationSettings | EncoderSettings) -> dict[str, Any]:
    """Settings as an archive keeps them; where codes start is told only when it is not the mean, as it always was."""
    values = asdict(settings)
    if values.get("start") == "mean":
        del values["start"]
    return values


def settings_of(config: Mapping[str, Any]) -> OptimizationSettings | EncoderSettings:
    """The settings of a run, from what the archive keeps of its method."""
    values = config["settings"]
    return EncoderSettings(**values) if "num_refinements" in values else OptimizationSettings(**values)


def encoder_settings(settings: OptimizationSettings | EncoderSettings, encoder: str | None) -> EncoderSettings:
    """How a method asks its encoder: as it says, or where it only starts there, as published for the encoder's name."""
    own = settings if isinstance(settings, EncoderSettings) else method_of_encoder(encoder or "").settings
    assert isinstance(own, EncoderSettings)
    return own


def has_noise_maps(config: Mapping[str, Any]) -> bool:
    """Whether images have noise maps of their own, rather than the generator's constant ones."""
    return config.get("noise") != "constant"


def plan_runs(
    archive: ArchiveWriter,
    methods: Sequence[MethodPlan],
    images: Sequence[PlannedImage],
    *,
    shard_rows: int,
    start: bool = True,
) -> tuple[list[RunWriter], list[RunPlan]]:
    """The runs that have to be worked: unfinished ones first, then a new one for every method with images left.

    An image is left when neither a published nor an unfinished run of the method holds it with the same content. An
    unfinished run that shares nothing with the source is that of another source, and waits for it.

    Args:
        archive: the archive, opened for this generator.
        methods: what to run.
        images: the source, in order.
        shard_rows: images of a shard.
        start: write the new runs' plans into the archive; False only tells what would be written.

    Returns:
        The runs to work on, and the plans of those among them that are new.
    """
    runs: list[RunWriter] = []
    plans: list[RunPlan] = []
    for planned in methods:
        unfinished = [run for run in archive.unfinished_runs(planned.digest) if _is_of_source(run, images)]
        runs += unfinished
        taken = set(archive.visible_digests(planned.digest).items())
        for run in unfinished:
            table = run.images
            taken |= set(zip(table.column("image_id").to_pylist(), table.column("digest").to_pylist(), strict=True))
        left = [image for image in images if (image.image_id, image.digest) not in taken]
        if left:
            plan, repetition = run_plan(planned, left, shard_rows), 0
            while archive.store.exists(manifest_key(plan.run_id)):  # content came back that had been replaced
                repetition += 1
                plan = run_plan(planned, left, shard_rows, repetition=repetition)
            plans.append(plan)
            if start:
                runs.append(archive.start_run(plan))
    return runs, plans


def _is_of_source(run: RunWriter, images: Sequence[PlannedImage]) -> bool:
    """Whether a source has an image of the run: at the same place, or of the same name and content."""
    ids, uris, digests = (run.images.column(name).to_pylist() for name in ("image_id", "uri", "digest"))
    places, contents = set(uris), set(zip(ids, digests, strict=True))
    return any(image.uri in places or (image.image_id, image.digest) in contents for image in images)


def missing_shards(run: RunWriter, images: Sequence[PlannedImage] = ()) -> list[PlannedShard]:
    """The shards of a run that no attempt has committed, with their duplicates.

    Args:
        run: a planned run.
        images: the source as it is now; its images may have moved since the run was planned.
    """
    ids, uris, digests = (run.images.column(name).to_pylist() for name in ("image_id", "uri", "digest"))
    now = {(image.image_id, image.digest): image.uri for image in images}
    moved = {
        image_id: now[image_id, digest]
        for image_id, uri, digest in zip(ids, uris, digests, strict=True)
        if now.get((image_id, digest), uri) != uri
    }
    first_of: dict[str, str] = {}
    duplicates: dict[str, str] = {}
    for image_id, digest in zip(ids, digests, strict=True):
        if digest.startswith("unreadable:"):
            continue
        original = first_of.setdefault(digest, image_id)
        if original != image_id:
            duplicates[image_id] = original
    shards = []
    for shard in run.missing_shards():
        members = [ids[row] for row in run.rows_of(shard)]
        own, away = ({name: of[name] for name in members if name in of} for of in (duplicates, moved))
        shards.append(PlannedShard(run.run_id, run.plan["method"], shard, len(members), own, away))
    return shards


def bytes_per_image(config: GeneratorConfig, *, has_noise: bool = True) -> int:
    """Archive bytes of one image before compression: codes and, of an optimization, noise maps in float32."""
    num_values = config.num_ws * config.w_dim
    if has_noise:
        num_values += sum(side * side for side in config.noise_sides)
    return 4 * num_values


def run_plan(planned: MethodPlan, images: Sequence[PlannedImage], shard_rows: int, *, repetition: int = 0) -> RunPlan:
    """The plan of a method over images; the same images, method and repetition give the same run id."""
    rows = tuple(PlannedRow(row, image.image_id, image.uri, image.digest) for row, image in enumerate(images))
    content: list[Any] = [planned.digest, [(row.image_id, row.digest) for row in rows]]
    if repetition:
        content.append(repetition)
    provenance = Provenance.collect(PROVENANCE_PACKAGES, digests={"generator": planned.config["generator"]}).to_dict()
    del provenance["created"]  # the archive notes the time; a plan is the same whenever it is made
    settings = planned.method.settings
    return RunPlan(
        run_id=f"{planned.method.name}-{_digest(content)[:16]}",
        method=planned.method.name,
        method_digest=planned.digest,
        config=planned.config,
        provenance=provenance,
        rows=rows,
        shard_rows=shard_rows,
        trace_steps=settings.trace_steps,
        trace_terms=TRACE_TERMS if settings.trace_steps else (),
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:32]
