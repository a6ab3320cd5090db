"""A method with all that decides its result, its plan over images, and the shards of a run that are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lsap_archive import (
    Geometry,
    PlannedRow,
    RunArray,
    RunPlan,
    RunWriter,
    code_arrays,
    noise_arrays,
    trace_arrays,
)
from lsap_core.presets import Method, recorded_settings
from tasks.archived.jobs import provenance_of
from tasks.archived.originals import fit_of
from tasks.archived.rendering import CONSTANT_NOISE, FULL_NOISE
from tasks.digests import digest_of
from tasks.inversion.listing import UNREADABLE
from tasks.pictures.decoding import Fit
from tasks.pictures.formats import readers
from tasks.sources.source import PlannedImage
from tasks.stage import Shard
from tasks.weights.networks import NetworkChoice, network_digest


@dataclass(frozen=True)
class MethodPlan:
    """A method with everything that decides its result, and the digest of all that.

    Attributes:
        method: name and settings.
        config: what the archive keeps of it, JSON values.
        digest: two runs with the same digest give the same image the same codes, if it has the generator's shape or
            they have the same `fit`.
        arrays: what its runs keep of each image.
    """

    method: Method
    config: dict[str, Any]
    digest: str
    arrays: tuple[RunArray, ...]

    @property
    def fit(self) -> Fit:
        """What its runs do with images of another shape."""
        return fit_of(self.config)


def plan_method(
    method: Method,
    *,
    generator_digest: str,
    anchor: str,
    networks: NetworkChoice,
    fit: str,
    seed: int,
    geometry: Geometry,
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
        geometry: of the generator.
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
            role: None if name is None else {"name": name, "digest": network_digest(name, networks.published)}
            for role, name in names.items()
        },
        "fit": fit,
        "seed": seed,
    }
    # Only where they say something: methods of archives that know neither keep their digests.
    if method.encoder is not None:
        config["encoder"] = {"name": method.encoder, "digest": encoder}
    if method.noise != FULL_NOISE:
        config["noise"] = method.noise
    return MethodPlan(method, config, digest_of(config), kept_arrays(method, geometry))


def missing_shards(run: RunWriter, moved: Mapping[str, str]) -> list[Shard]:
    """The shards of a run that no attempt has committed, with their duplicates.

    Args:
        run: a planned run.
        moved: image id -> where the image is now, of images that lay elsewhere when the run was planned.
    """
    ids, digests = (run.images.column(name).to_pylist() for name in ("image_id", "digest"))
    first_of: dict[str, str] = {}
    duplicates: dict[str, str] = {}
    for image_id, digest in zip(ids, digests, strict=True):
        if digest.startswith(UNREADABLE):
            continue
        original = first_of.setdefault(digest, image_id)
        if original != image_id:
            duplicates[image_id] = original
    shards = []
    for shard in run.missing_shards():
        members = [ids[row] for row in run.rows_of(shard)]
        own, away = ({name: of[name] for name in members if name in of} for of in (duplicates, moved))
        shards.append(Shard(run.run_id, run.plan["method"], shard, len(members), away, own))
    return shards


def kept_arrays(method: Method, geometry: Geometry) -> tuple[RunArray, ...]:
    """What runs of a method keep of each image: codes, and noise maps and a trace where it has them."""
    steps = method.settings.trace_steps
    noise = () if method.noise == CONSTANT_NOISE else noise_arrays(geometry, method.noise)
    return (*code_arrays(geometry), *noise, *trace_arrays(steps, method.settings.trace_terms if steps else ()))


def run_plan(
    planned: MethodPlan,
    images: Sequence[PlannedImage],
    shard_rows: int,
    *,
    repetition: int = 0,
    known_as: str | None = None,
) -> RunPlan:
    """The plan of a method over images; all that the run's folder begins with decides the run id.

    So a planner that was killed on the way finds its own beginnings, and nobody finds those of another plan.

    Args:
        planned: the method.
        images: the images.
        shard_rows: images of a shard.
        repetition: tells plans apart that are alike.
        known_as: digest that the archive has the method under, where that is another than its own.
    """
    joined = known_as or planned.digest
    rows = planned_rows(images)
    content: list[Any] = [
        planned.digest,
        shard_rows,
        [(row.image_id, row.uri, row.digest, row.version) for row in rows],
    ]
    if repetition:
        content.append(repetition)
    if joined != planned.digest:
        content.append(joined)
    return RunPlan(
        run_id=f"{planned.method.name}-{digest_of(content)[:16]}",
        method=planned.method.name,
        method_digest=joined,
        config=planned.config,
        provenance=provenance_of(planned.config["generator"], settings={"readers": readers()}),
        rows=rows,
        arrays=planned.arrays,
        shard_rows=shard_rows,
    )


def planned_rows(images: Sequence[PlannedImage]) -> tuple[PlannedRow, ...]:
    """Images as the archive keeps them, numbered from 0."""
    return tuple(
        PlannedRow(row, image.image_id, image.uri, image.digest, image.version) for row, image in enumerate(images)
    )
