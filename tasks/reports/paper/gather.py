"""From archives to the paper's tables and figures: what is read and drawn."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from lsap_archive import OK, Archive, ArchiveMismatchError, RunInfo, open_archive
from lsap_core.alignment.references import reference_rows
from lsap_core.generators.generator import Generator
from lsap_core.images import to_uint8
from tasks.archived.anchors import open_anchor
from tasks.archived.originals import fit_of
from tasks.archived.rendering import Renderer, Stored
from tasks.archived.runs import current_rows, runs_by_method
from tasks.errors import BadImageError
from tasks.inversion.plan import InversionFacts, facts_of
from tasks.inversion.request import InversionRequest
from tasks.measuring.networks import EvaluationChoice
from tasks.pictures.decoding import decode_image
from tasks.pictures.sheets import Pixels
from tasks.refinement.request import RefinementRequest
from tasks.reports.measured_means import frechet_numbers
from tasks.reports.paper.figure4 import Clouds, code_points, sample_codes
from tasks.reports.paper.figure5 import EditedImage, spread
from tasks.reports.paper.published import paper_problem, refined_title
from tasks.reports.paper.tables import Evidence, ShownEdit
from tasks.reports.paper.traced_numbers import asking
from tasks.sources.items import SourceItem
from tasks.sources.source import open_source
from tasks.weights.devices import module_device, place
from tasks.weights.networks import network_digest


@dataclass(frozen=True)
class Refined:
    """A refinement that is done.

    Attributes:
        title: as tables have it, such as "HFGI, e4e".
        digest: which version of a refinement of its name.
    """

    title: str
    digest: str


@dataclass(frozen=True)
class Inverted:
    """An inversion that is done, with its refinements: what was asked, and what it came to.

    Attributes:
        request: what was asked for.
        facts: methods with titles, digests of anchor and encoders.
        num_images: images in its source.
        refined: its refinements by name, such as "e4e/hfgi".
        refiner_networks: paths or URLs of the networks of refiners, by name.
        notes: what whoever reads the tables should know of these networks, a sentence each.
    """

    request: InversionRequest
    facts: InversionFacts
    num_images: int
    refined: Mapping[str, Refined] = field(default_factory=dict)
    refiner_networks: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: InversionRequest) -> Inverted:
        """The inversion of a request; its source is listed, and nothing read or planned."""
        with open_source(request.source) as source:
            return cls(request, facts_of(request), sum(1 for _ in source.items()))

    def with_refinements(
        self, request: RefinementRequest, digests: Mapping[str, str], notes: Sequence[str] = ()
    ) -> Inverted:
        """The same with further refinements.

        Args:
            request: what was asked for.
            digests: which version of each refinement came of it, by name.
            notes: what was told of networks of refiners.
        """
        titles = self.titles
        refined = {
            f"{method}/{refiner.name}": Refined(
                refined_title(refiner.title, method, titles[method]), digests[f"{method}/{refiner.name}"]
            )
            for refiner in request.refiners
            for method in request.methods
        }
        files = {**self.refiner_networks, **request.refiner_networks}
        told = (*self.notes, *notes)
        return replace(self, refined={**self.refined, **refined}, refiner_networks=files, notes=told)

    @property
    def titles(self) -> dict[str, str]:
        """Of the methods, by name, in order; refined ones last."""
        embeddings = {method.name: method.title for method in self.facts.methods}
        return embeddings | {name: one.title for name, one in self.refined.items()}


@dataclass(frozen=True)
class Looks:
    """What looks at the images, by name.

    Attributes:
        networks: of LPIPS and identity, and the judge.
        frechet: network of the Fréchet distance, or None.
        attributes: unit of each attribute by name.
    """

    networks: EvaluationChoice
    frechet: str | None
    attributes: Mapping[str, str]

    def digests(self) -> dict[str, str]:
        """Name and digest of each network by its role, for print."""
        roles: dict[str, Sequence[str | None]] = {
            "LPIPS": self.networks.lpips,
            "identity": self.networks.identity,
            "judge": (self.networks.judge,),
            "Fréchet distance": (self.frechet if self.frechet != "inception" else None,),
        }
        return {
            role: "; ".join(f"{name} {network_digest(name, self.networks.published)}" for name in names if name)
            for role, names in roles.items()
            if any(names)
        }


def gather(
    inverted: Inverted,
    archive: Archive,
    looks: Looks,
    edits: tuple[ShownEdit, ...],
    *,
    evaluations: Mapping[str, tuple[str, ...]],
    domain: str,
) -> Evidence:
    """What the tables of an archive are made from.

    Args:
        inverted: the inversions.
        archive: where they are.
        looks: what looked at them.
        edits: in order.
        evaluations: ids of the evaluations that count, by method or edit.
        domain: name of the domain.

    Raises:
        ArchiveMismatchError: what was measured are not the inversions that were asked for.
    """
    current_runs(archive, inverted, list(inverted.titles))
    loaded = inverted.request.generator.load()
    anchor = open_anchor(inverted.request.archive, inverted.facts.anchor)
    return Evidence(
        ask=asking(measurements_of(archive, evaluations)),
        titles=inverted.titles,
        evaluations=evaluations,
        lpips=looks.networks.lpips,
        identity=looks.networks.identity,
        judge=looks.networks.judge,
        attributes=looks.attributes,
        edits=edits,
        frechet=frechet_numbers(archive, evaluations),
        frechet_network=looks.frechet,
        references=reference_rows(loaded.generator.eval(), anchor).labelled(),
        refiner_notes=inverted.notes,
        domain=domain,
        paper_problem=paper_problem(domain, inverted.num_images),
    )


def measurements_of(archive: Archive, evaluations: Mapping[str, tuple[str, ...]]) -> pa.Table:
    """What some evaluations have measured of images that readers see, also where a later one has measured it again.

    Args:
        archive: where they were measured.
        evaluations: ids of the evaluations that count, by method or edit.
    """
    return archive.measurements(evaluations=[evaluation_id for ids in evaluations.values() for evaluation_id in ids])


def draw_clouds(
    inverted: Inverted,
    methods: Sequence[str],
    *,
    layer: int,
    entries: tuple[int, int],
    samples: int | None,
    seed: int,
    device: str,
) -> tuple[Clouds, dict[str, list[str]]]:
    """Figure 4: the codes of every method's images, and as many of the generator's own.

    Returns:
        The points, and the image ids of each method by title.
    """
    generator = _generator(inverted, device)
    archive = open_archive(inverted.request.archive)
    runs = current_runs(archive, inverted, methods)
    where = generator.mapping.w_avg.device
    looked: dict[str, Any] = {"layer": layer, "entries": entries, "style_set": inverted.request.anchor.style_set}
    points, ids = {}, {}
    for name in methods:
        title = inverted.titles[name]
        ids[title] = _images_of(archive, runs[name])
        codes = torch.from_numpy(archive.codes(ids[title], runs[name][-1].method_digest)).to(where)
        points[title] = code_points(generator, codes, **looked)
    count = samples or max(len(one) for one in ids.values())
    synthetic = code_points(generator, sample_codes(generator, count, seed), **looked)
    return Clouds(synthetic, points, layer, entries), ids


def show_edits(
    inverted: Inverted,
    methods: Sequence[str],
    labels: Mapping[str, str],
    *,
    absent: Collection[str],
    versions: Mapping[str, str],
    num_images: int,
    device: str,
) -> tuple[EditedImage, ...]:
    """Figures 3 and 5: originals, inversions and edits of some images that as many methods as possible have.

    Args:
        inverted: the inversions and refinements.
        methods: in order.
        labels: label of each picture by edit, "" for the inversion.
        absent: edited methods, such as "e4e/slant", of which nothing is shown.
        versions: digest of each edit, which tells it from others of its name.
        num_images: how many images.
        device: where pictures are made.
    """
    renderer = Renderer(_generator(inverted, device), inverted.refiner_networks)
    archive = open_archive(inverted.request.archive)
    known = {*archive.methods, *archive.edits} - set(absent)
    names = [f"{name}/{edit}" if edit else name for name in methods for edit in labels]
    runs = runs_by_method(archive, [name for name in names if name in known], with_edits=True, versions=versions)
    inversions = current_runs(archive, inverted, methods)
    common = set.intersection(*(set(_images_of(archive, inversions[name])) for name in methods))
    chosen = spread(sorted(common), num_images)
    originals = _originals(inverted, archive, inversions[methods[0]], chosen, renderer.generator)
    chosen = [image_id for image_id in chosen if image_id in originals]
    made: dict[str, dict[str, dict[str, Pixels]]] = {image_id: {} for image_id in chosen}
    for name in methods:
        title = inverted.titles[name]
        for edit, label in labels.items():
            of = runs.get(f"{name}/{edit}" if edit else name)
            for image_id, pixels in _pictures(renderer, archive, of, chosen):
                made[image_id].setdefault(title, {})[label] = pixels
    return tuple(EditedImage(image_id, originals[image_id], made[image_id]) for image_id in chosen)


def current_runs(archive: Archive, inverted: Inverted, methods: Sequence[str]) -> dict[str, tuple[RunInfo, ...]]:
    """The runs of each method, refined ones among them, which have to be those that were asked for.

    Raises:
        ArchiveMismatchError: the newest runs of a method have other settings.
    """
    facts, refined = inverted.facts, inverted.refined
    rows = current_rows(archive, facts.methods, facts.anchor, facts.encoders)
    asked = set(rows.column("run_id").unique().to_pylist())
    runs = runs_by_method(archive, methods, with_edits=False)
    for name, of_method in runs.items():
        newest = of_method[-1]
        is_asked = newest.method_digest == refined[name].digest if name in refined else newest.run_id in asked
        if not is_asked:
            made = "refinements" if name in refined else "inversions"
            raise ArchiveMismatchError(
                f"{archive.url} holds newer {made} by {name} with other settings (run {newest.run_id}): "
                "ask for those settings, or name an archive of one's own"
            )
    return runs


def _generator(inverted: Inverted, device: str) -> Generator:
    loaded = inverted.request.generator.load()
    generator: Generator = place(loaded.generator, module_device(device)).freeze()
    return generator


def _rows_of(archive: Archive, runs: Sequence[RunInfo]) -> pa.Table:
    """Rows of the images that have a code in these runs."""
    rows = archive.rows(["run_id", "status", "image_id", "uri"], history=True)
    wanted = pa.array([run.run_id for run in runs], pa.string())
    return rows.filter(pc.and_(pc.is_in(rows.column("run_id"), wanted), pc.equal(rows.column("status"), OK)))


def _images_of(archive: Archive, runs: Sequence[RunInfo]) -> list[str]:
    """Ids of the images that have a code in these runs, sorted."""
    return sorted(set(_rows_of(archive, runs).column("image_id").to_pylist()))


def _originals(
    inverted: Inverted, archive: Archive, runs: Sequence[RunInfo], ids: Sequence[str], generator: Generator
) -> dict[str, Pixels]:
    """Pixels of originals by id; one that is gone is left out."""
    rows = _rows_of(archive, runs)
    places = {row["image_id"]: (row["uri"], row["run_id"]) for row in rows.to_pylist()}
    fits = {run.run_id: fit_of(run.config) for run in runs}
    config, found = generator.config, {}
    with open_source(inverted.request.source) as source:
        for image_id in ids:
            try:
                uri, run_id = places[image_id]
                data = source.read(SourceItem(image_id, uri))
                image = decode_image(data, size=config.content_size, channels=config.image_channels, fit=fits[run_id])
            except BadImageError:
                continue
            found[image_id] = image.pixels
    return found


def _pictures(
    renderer: Renderer, archive: Archive, runs: Sequence[RunInfo] | None, ids: Sequence[str]
) -> list[tuple[str, Pixels]]:
    """Images of those ids that runs have codes of, with the noise of their inversion and what a refinement keeps."""
    if not runs:
        return []
    there = set(_images_of(archive, runs))
    shown = [image_id for image_id in ids if image_id in there]
    if not shown:
        return []
    stored = Stored.of_images(renderer, archive, shown, runs[-1].method_digest)
    return [(image_id, to_uint8(one.show())[0]) for image_id, one in zip(shown, stored.one_by_one(), strict=True)]
