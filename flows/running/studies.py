"""What studies of edits have in common: the steps that all methods are edited by, and what a study reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.parameters.studies import EditedAlike
from flows.running.artifacts import publish_artifacts
from tasks.reports.editability.synthetic_steps import SyntheticStep, synthetic_steps
from tasks.settings import Settings
from tasks.weights.of_domains import published_of


@dataclass(frozen=True)
class StudyReport:
    """What a study came to.

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

    def publish(self, name: str) -> None:
        """Show it in Prefect, under the name of the study."""
        links = {"archive": self.archive, "tables and picture": self.output}
        picture = next((url for url in self.written if url.endswith(".png")), None)
        publish_artifacts(name, f"{self.num_methods} methods", self.table, links=links, sheet=picture)


@task(name="measure_steps", cache_policy=NO_CACHE)
def measure_steps(alike: EditedAlike, settings: Settings) -> dict[str, SyntheticStep]:
    """The unit of every attribute, and the steps that move the generator's own codes by it."""
    steps = synthetic_steps(
        alike.domain,
        alike.inversion.generator,
        alike.directions,
        changes=alike.changes,
        num_samples=alike.synthetic_images,
        seed=alike.seed,
        published=published_of(alike.domain, settings),
    )
    for name, step in steps.items():
        get_run_logger().info("%s: %s", name, step)
    return steps


def units_of(alike: EditedAlike, steps: dict[str, SyntheticStep]) -> dict[str, float]:
    """By attribute, how far a step moves synthetic codes."""
    return {name: alike.changes[name] * step.deviation for name, step in steps.items()}
