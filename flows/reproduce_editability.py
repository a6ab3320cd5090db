"""Does SNCD predict editability? Codes of very different alignment, all edited alike, looked at by a judge."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.edit import edit
from flows.evaluate import evaluate
from flows.invert import invert
from flows.parameters.edit import EditRun
from flows.parameters.evaluate import EvaluateRun
from flows.parameters.reproduce_editability import ReproduceEditability, ResolvedStudy
from flows.running.artifacts import publish_artifacts
from flows.running.exclusive import writing
from flows.running.results import kept
from flows.running.retries import retried
from tasks.inversion import cost
from tasks.inversion import plan as inversion
from tasks.reports.editability.study import MIDPOINT, SIGNS
from tasks.reports.editability.synthetic_steps import SyntheticStep, synthetic_steps
from tasks.reports.editability.write import partners_by_label, write_study
from tasks.settings import Settings
from tasks.weights.published import Published
from tasks.workers.cluster import opened_cluster

CALIBRATION_IMAGES = 128


@dataclass(frozen=True)
class EditabilityReport:
    """What the study came to.

    Attributes:
        output: URL of its folder.
        archive: URL of the archive with every code, edit and measurement.
        written: URLs of the tables and the picture.
        num_methods: methods compared.
        table: what was found, Markdown.
    """

    output: str
    archive: str
    written: tuple[str, ...]
    num_methods: int
    table: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        return [*self.table.split("\n"), f"archive: {self.archive}", *self.written]


@flow(name="reproduce_editability", persist_result=False)
def reproduce_editability(run: ReproduceEditability) -> EditabilityReport:
    """Invert, edit at a fixed step and at equal effect, look at midpoints, and correlate."""
    settings = Settings.from_environment()
    resolved = run.resolve(settings)
    workers = run.workers
    cluster = opened_cluster(settings.ray_address, workers.count, threads=workers.threads, device=workers.device)
    with writing(run.output, "reproduction"), cluster:
        invert(run.inversion())
        steps = measure_steps(resolved, settings)
        partners = partners_by_label(resolved.inversion.archive, run.methods, run.label)
        edit(editing(resolved, steps, partners))
        evaluate(evaluation(resolved))
        units = {name: resolved.changes[name] * step.deviation for name, step in steps.items()}
        table, urls = tabulate(resolved, units, partners)
    links = {"archive": resolved.inversion.archive, "tables and picture": run.output}
    picture = next((url for url in urls if url.endswith(".png")), None)
    publish_artifacts("editability", f"{len(resolved.methods)} methods", table, links=links, sheet=picture)
    return kept(EditabilityReport(run.output, resolved.inversion.archive, urls, len(resolved.methods), table))


def check(study: ResolvedStudy) -> None:
    """Everything that can be refused before any work."""
    inversion.check(study.inversion)


def dry_run(study: ResolvedStudy) -> dict[str, Any]:
    """What its inversion would do; the edits and measurements are small beside it."""
    return cost.dry_run(study.inversion)


@task(name="measure_steps", cache_policy=NO_CACHE)
def measure_steps(resolved: ResolvedStudy, settings: Settings) -> dict[str, SyntheticStep]:
    """The unit of every attribute, and the steps that move the generator's own codes by it."""
    run = resolved.run
    steps = synthetic_steps(
        resolved.domain,
        resolved.inversion.generator,
        resolved.directions,
        changes=resolved.changes,
        num_samples=run.synthetic_images,
        seed=run.seed,
        published=Published(settings.backbones),
    )
    for name, step in steps.items():
        get_run_logger().info("%s: %s", name, step)
    return steps


def editing(resolved: ResolvedStudy, steps: dict[str, SyntheticStep], partners: dict[str, str]) -> EditRun:
    """All edits of all methods: each attribute up and down, at the fixed step and at equal effect, and midpoints."""
    edits: dict[str, dict[str, Any]] = {}
    for name, direction in resolved.directions.items():
        for sign, factor in SIGNS.items():
            strength = getattr(steps[name], sign)
            edits[f"{name}-{sign}-step"] = {"direction": direction, "strength": strength}
            effect = {"attribute": name, "change": factor * resolved.changes[name]}
            edits[f"{name}-{sign}-equal"] = {"direction": direction, "equal_effect": effect}
    edits[MIDPOINT] = {"interpolate_to": partners, "weight": 0.5}
    return EditRun(
        archive=resolved.inversion.archive,
        domain=resolved.run.domain,
        generator=resolved.run.generator,
        methods=resolved.run.methods,
        edits=edits,
        calibration_images=CALIBRATION_IMAGES,
        workers=resolved.run.workers,
    )


def evaluation(resolved: ResolvedStudy) -> EvaluateRun:
    """What the judge and the attributes say of every inversion and edit."""
    judge = resolved.domain.judge
    assert judge is not None
    return EvaluateRun(
        archive=resolved.inversion.archive,
        domain=resolved.run.domain,
        generator=resolved.run.generator,
        source=resolved.run.source,
        lpips=(judge,),
        identity=(judge,),
        attributes=tuple(resolved.directions),
        reference=resolved.run.reference,
        encoders=resolved.run.encoders,
        workers=resolved.run.workers,
    )


@retried("tabulate")
def tabulate(resolved: ResolvedStudy, units: dict[str, float], partners: dict[str, str]) -> tuple[str, tuple[str, ...]]:
    """Means, correlations and the controls, as Markdown, a picture and Parquet."""
    return write_study(resolved.inversion, resolved.methods, units, partners)
