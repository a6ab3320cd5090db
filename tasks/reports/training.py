"""What a training has come to: numbers, curves and where its files are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.training.spec import TrainingSpec
from tasks.training.store import BEST_KEY, TrainingStore
from tasks.visible_text import markdown_table

BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 32
NOT_CURVES = frozenset({"step", "time", "epoch", "num_images", "stage", "learning_rate", "images_per_second"})


@dataclass(frozen=True)
class TrainingReport:
    """What a training has come to, in numbers.

    Attributes:
        output: URL of its folder.
        what: what was trained, "encoder" or "networks" of a refiner.
        last_file: URL of what the last step gave.
        best_file: URL of what had the lowest validation loss.
        step: steps taken, in all.
        num_images: images trained on.
        num_bad_images: images of those that could not be used.
        validation: after the last step: loss and its terms.
        best: where the loss was lowest, with the step.
        images_per_second: at the end.
        seconds: wall time of this command.
        table: the curves, Markdown.
        sheet: URL of the newest sheet of samples, if there is one.
    """

    output: str
    what: str
    last_file: str
    best_file: str
    step: int
    num_images: int
    num_bad_images: int
    validation: dict[str, Any]
    best: dict[str, Any]
    images_per_second: float
    seconds: float
    table: str
    sheet: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the files are called "encoder" and "best_encoder", or whatever was trained."""
        files = {self.what: self.last_file, f"best_{self.what}": self.best_file}
        others = {name: value for name, value in asdict(self).items() if name not in ("what", "last_file", "best_file")}
        return {**files, **others}

    def lines(self) -> list[str]:
        """For people."""
        bad = f", {self.num_bad_images} of them cannot be used" if self.num_bad_images else ""
        best = f"{self.best['loss']:.4f} at step {self.best['step']}"
        return [
            *self.table.split("\n"),
            "",
            f"step {self.step}; {self.num_images} images{bad}; {self.images_per_second:.1f} images per second, "
            f"{self.seconds:.0f} s in all",
            f"validation loss {self.validation['loss']:.4f}, the lowest {best}",
            f"{self.what}: {self.last_file}",
            f"{'best:':<{len(self.what) + 1}} {self.best_file}",
        ]


def report_training(spec: TrainingSpec, seconds: float) -> TrainingReport:
    """Read what a finished training has measured."""
    store = TrainingStore(spec.output)
    saved = store.latest()
    assert saved is not None, "a finished training has a state"
    tables = {name: store.table(name) for name in ("metrics", "validation")}
    rows = {name: table.to_pylist() if table is not None else [] for name, table in tables.items()}
    last = {name: value for name, value in rows["validation"][-1].items() if name != "time"}
    return TrainingReport(
        output=store.url,
        what=spec.what,
        last_file=store.store.join(spec.last_key),
        best_file=store.store.join(BEST_KEY),
        step=saved.step,
        num_images=saved.summary["num_images"],
        num_bad_images=saved.summary["num_bad_images"],
        validation=last,
        best=saved.summary["best"],
        images_per_second=rows["metrics"][-1]["images_per_second"],
        seconds=seconds,
        table=curves_table(rows["metrics"], rows["validation"]),
        sheet=store.newest_sheet(),
    )


def curves_table(metrics: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of every logged term: first and last value and the curve between them."""
    lines = [["term", "first", "last", "curve"]]
    for group, rows in (("", metrics), ("validation ", validation)):
        for name in dict.fromkeys(name for row in rows for name in row if name not in NOT_CURVES):
            values = [row[name] for row in rows if row.get(name) is not None]
            lines.append([f"{group}{name}", f"{values[0]:.4g}", f"{values[-1]:.4g}", sparkline(values)])
    return markdown_table(lines, "lrrl")


def sparkline(values: Sequence[float]) -> str:
    """A curve of blocks, the lowest value the lowest block; what is not finite is a blank.

    Example:
        >>> sparkline([0.0, 1.0, 2.0, float("nan"), 7.0])
        '▁▂▃ █'
    """
    if len(values) > CURVE_WIDTH:
        edges = [round(index * len(values) / CURVE_WIDTH) for index in range(CURVE_WIDTH + 1)]
        values = [math.fsum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    finite = [value for value in values if math.isfinite(value)]
    low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)
    top = len(BARS) - 1
    return "".join(
        BARS[round((value - low) / span * top) if span else 0] if math.isfinite(value) else " " for value in values
    )
