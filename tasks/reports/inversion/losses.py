"""What the final losses are made of: weighted terms that add up to the loss, so that losses of methods can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lsap_archive import OK, Archive
from lsap_core.inversion.by_optimization import OptimizationSettings
from lsap_core.presets import Method
from tasks.reports.inversion.data import LossParts, ReportData
from tasks.reports.statistics import newest_rows, with_status
from tasks.reports.text import NOTHING, as_number, decimals_for, listed

MOST_TRACED = 256  # images of a method whose traces are read: a trace is as large as a code
MOST_OF_IT = 0.5  # share of the loss from which on a term that is no distance to the image is spoken of

TERMS = {
    "lpips": "LPIPS",
    "mse": "MSE",
    "sncd": "SNCD",
    "mean_code_distance": "L2 to the mean code",
    "noise_regularization": "noise regularization",
}
_DISTANCES = ("lpips", "mse")
_MEANINGS = {
    "sncd": "which says nothing of how close the images are",
    "mean_code_distance": "which says nothing of how close the images are",
    "noise_regularization": "which says how much structure is left in the noise maps, and nothing of how close the "
    "images are; it falls from step to step",
}


def loss_parts(archive: Archive, rows: pa.Table, methods: Sequence[Method]) -> dict[str, LossParts]:
    """The parts of each optimization's loss at the last step that was recorded, by name of the method.

    Args:
        archive: that the rows are of.
        rows: table in ROW_SCHEMA; of several rows of an image and a method the last one counts.
        methods: of the report; an encoder has no loss.
    """
    digest_of = {run.run_id: run.method_digest for run in archive.runs}
    found = {}
    for method in methods:
        if not isinstance(method.settings, OptimizationSettings):
            continue
        ok = with_status(newest_rows(rows, method.name), OK).slice(0, MOST_TRACED)
        by_digest: dict[str, list[tuple[str, int]]] = {}
        for row in ok.select(["run_id", "image_id", "num_steps"]).to_pylist():
            by_digest.setdefault(digest_of[row["run_id"]], []).append((row["image_id"], row["num_steps"]))
        ends = [_final_terms(archive, digest, images) for digest, images in by_digest.items()]
        if not ends:
            continue
        means = {name: float(np.mean([end[name] for of_run in ends for end in of_run])) for name in ends[0][0]}
        weights = method.settings.loss_weights
        parts = {name: weight * means[name] for name, weight in weights.items()}
        found[method.name] = LossParts(ok.num_rows, means["loss"], weights, parts)
    return found


def _final_terms(archive: Archive, digest: str, images: Sequence[tuple[str, int]]) -> list[dict[str, float]]:
    """Each term of each image, not weighted, at the last step that it recorded."""
    trace = archive.trace([image_id for image_id, _ in images], digest)
    ends = np.searchsorted(trace.steps, [num_steps for _, num_steps in images], side="right") - 1
    last = trace.values[np.arange(len(images)), ends].astype(np.float64)
    return [dict(zip(trace.terms, values, strict=True)) for values in last.tolist()]


@dataclass(frozen=True)
class LossTable:
    """The parts of losses as a page shows them.

    Attributes:
        terms: titles of the terms that some loss has.
        rows: number of the method, each weighted term with what it is the product of, and their sum.
        sentences: what a reader has to know of them.
    """

    terms: tuple[str, ...]
    rows: tuple[tuple[int, tuple[tuple[str, str], ...], str], ...]
    sentences: tuple[str, ...]


def loss_table(data: ReportData) -> LossTable | None:
    """Methods by terms; None where no method has a loss."""
    used = [name for name in TERMS if any(name in losses.parts for losses in data.losses.values())]
    rows, sentences = [], []
    mostly: dict[str, list[str]] = {}
    for index, method in enumerate(data.methods):
        losses = data.losses.get(method.name)
        if losses is None:
            continue
        cells = [
            _cell(losses.parts[name], losses.weights[name]) if name in losses.parts else (NOTHING, "") for name in used
        ]
        rows.append((index, tuple(cells), as_number(losses.loss, _decimals(losses.loss))))
        for name in used:
            if name not in _DISTANCES and losses.parts.get(name, 0.0) > MOST_OF_IT * losses.loss:
                mostly.setdefault(name, []).append(method.title)
    for name, titles in mostly.items():
        sentences.append(f"Most of the final loss of {listed(titles)} is {TERMS[name]}, {_MEANINGS[name]}.")
    sizes = sorted({losses.num_images for losses in data.losses.values()})
    if sizes:
        size = f"{sizes[-1]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        sentences.append(
            f"Means over {size} images of each method at the last recorded step, exploration noise included; the "
            "parts add up to the loss."
        )
    return LossTable(tuple(TERMS[name] for name in used), tuple(rows), tuple(sentences)) if rows else None


def _cell(part: float, weight: float) -> tuple[str, str]:
    term = part / weight
    return as_number(part, _decimals(part)), f"{weight:,g} × {as_number(term, _decimals(term))}"


def _decimals(value: float) -> int:
    return decimals_for([value], least=2)
