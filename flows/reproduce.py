"""Reproduce the paper's tables and figures: invert, refine, edit, measure, train where asked, and write one page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import yaml
from prefect import flow

from domains.domain import Domain
from flows.edit import edit
from flows.evaluate import evaluate
from flows.invert import invert
from flows.parameters.invert import InvertRun
from flows.parameters.paper_parts import Part
from flows.parameters.reproduce import ReproduceRun, unit_of
from flows.refine import refine
from flows.reproduce_table3 import reproduce_table3
from flows.running.artifacts import publish_artifacts
from flows.running.exclusive import writing
from flows.running.results import kept
from flows.running.retries import retried
from lsap_archive import open_archive
from tasks.reports.paper.gather import Inverted, Looks, current_runs
from tasks.reports.paper.write import (
    MeasuredParts,
    PaperRequest,
    ShownMethods,
    WrittenReproduction,
    write_reproduction,
)
from tasks.settings import Settings
from tasks.workers.cluster import opened_cluster


@dataclass(frozen=True)
class ReproductionReport:
    """What a reproduction came to.

    Attributes:
        page: URL of the HTML page.
        archive: URL of the archive that its numbers come from.
        files: URLs of everything that was written.
        num_numbers: measured numbers in the tables.
        seconds: wall time of this command.
        table: the tables and claims, Markdown.
    """

    page: str
    archive: str
    files: tuple[str, ...]
    num_numbers: int
    seconds: float
    table: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        numbers = f"{self.num_numbers} measured numbers, {self.seconds:.0f} s"
        return [*self.table.split("\n"), f"{numbers}; archive: {self.archive}", f"report: {self.page}"]


@flow(name="reproduce", persist_result=False)
def reproduce(run: ReproduceRun, asked: Literal["all", Part] = "all") -> ReproductionReport:
    """Make what the asked tables and figures need, and write them.

    Args:
        run: on which images, and where to.
        asked: "all", or one table or figure.
    """
    started = time.monotonic()
    settings = Settings.from_environment()
    parts = run.chosen(asked)
    domain = run.resolved_domain(settings, parts)
    workers = run.workers
    cluster = opened_cluster(settings.ray_address, workers.count, threads=workers.threads, device=workers.device)
    with writing(run.output, "reproduction", run.when_busy), cluster:
        measured = on_images(run, domain, parts)
        if "table2" in parts:
            measured = replace(measured, synthetic=evaluate(run.synthetic_run(domain)).evaluations)
        if "table3" in parts:
            measured = with_table3(run, domain, measured)
        written = tabulate(paper_request(run, domain, parts, asked, settings), measured, time.monotonic() - started)
    publish_artifacts(
        "reproduction",
        f"{written.num_numbers} measured numbers",
        written.markdown,
        links={"archive": run.archive, "report": written.page},
        sheet=next((url for url in written.files if url.endswith(".png")), None),
    )
    seconds = time.monotonic() - started
    return kept(
        ReproductionReport(written.page, run.archive, written.files, written.num_numbers, seconds, written.markdown)
    )


def on_images(run: ReproduceRun, domain: Domain, parts: Sequence[Part]) -> MeasuredParts:
    """Inversions, refinements, edits and measurements of the run's images, as far as these parts need them."""
    methods, edited = run.inverted(parts), run.edited(parts)
    if not methods:
        return MeasuredParts()
    inversion = run.inversion_run(domain, methods)
    invert(inversion)
    inverted = with_refinements(run, domain, parts, done(inversion))
    edits = edit(run.edit_run(domain, edited)) if edited else None
    refused = edits.refused if edits else {}
    versions = {**{name: one.digest for name, one in inverted.refined.items()}, **(edits.digests if edits else {})}
    evaluations: dict[str, tuple[str, ...]] = {}
    if measured := [name for name in run.measured(parts) if name not in refused]:
        evaluations = evaluate(run.evaluation_run(domain, tuple(measured), versions)).evaluations
    return MeasuredParts(inverted=inverted, evaluations=evaluations, refused=refused, versions=versions)


def with_refinements(run: ReproduceRun, domain: Domain, parts: Sequence[Part], inverted: Inverted) -> Inverted:
    """The inversions with the refinements that these parts need.

    Raises:
        ArchiveMismatchError: the archive holds newer ones with other settings, which would be edited in their place.
    """
    names = run.refinements(parts)
    for refinement in run.refinement_runs(domain, names):
        request = refinement.resolve(Settings.from_environment())
        report = refine(refinement)
        inverted = inverted.with_refinements(request, report.digests, report.notes)
    if names:
        current_runs(open_archive(run.archive), inverted, names)
    return inverted


def with_table3(run: ReproduceRun, domain: Domain, measured: MeasuredParts) -> MeasuredParts:
    """What was measured, with the trainings of Table 3 and what their encoders do."""
    trained = run.table3_run(domain)
    reproduce_table3(trained)
    evaluations = evaluate(run.table3_evaluation(domain, trained)).evaluations
    _, sweep = trained.variants()
    seed = (trained.sweep_seeds or trained.seeds)[0]
    trainings = trained.resolve(Settings.from_environment())
    steps = trainings[sweep[0].encoder(seed)].spec.method.settings.num_steps
    return replace(
        measured,
        trained=done(trained.inversion()),
        trained_evaluations=evaluations,
        weights={variant.encoder(seed): variant.sncd_weight for variant in sweep},
        trainings=f": {len(sweep)} trainings of {steps:,} steps, seed {seed}",
    )


def done(inversion: InvertRun) -> Inverted:
    """An inversion that has been run, with what its plan says of it."""
    return Inverted.of(inversion.resolve(Settings.from_environment()))


def paper_request(
    run: ReproduceRun, domain: Domain, parts: Sequence[Part], asked: str, settings: Settings
) -> PaperRequest:
    """The run as the tasks take it."""
    evaluation = run.evaluation_run(domain, run.methods).resolve(settings)
    units = {name: unit_of("attributes", name) for name in evaluation.attributes}
    return PaperRequest(
        parts=tuple(parts),
        stem="report" if asked == "all" else asked,
        output=run.output,
        archive=run.archive,
        generator=evaluation.generator,
        domain=domain.name,
        about=domain.description,
        source=run.source,
        methods=run.rows("table1"),
        compared={name: domain.method(name).title for name in run.compared},
        table4=run.rows("table4"),
        edits=run.shown_edits(),
        looks=Looks(evaluation.networks, run.frechet, units),
        num_synthetic=run.synthetic.count,
        layer=run.figure4.layer,
        entries=run.figure4.entries,
        samples=run.figure4.samples,
        seed=run.figure4.seed,
        figure3=ShownMethods(run.rows("figure3"), run.figure3.images),
        figure5=ShownMethods(run.rows("figure5"), run.figure5.images),
        device=run.workers.device,
        config_yaml=yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False),
    )


@retried("tabulate")
def tabulate(request: PaperRequest, measured: MeasuredParts, seconds: float) -> WrittenReproduction:
    """Tables, figures, claims and the page, from what is in the archives."""
    return write_reproduction(request, measured, seconds)
