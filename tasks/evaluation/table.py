"""What evaluations came to: means over images by method, as Markdown."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lsap_archive import Archive
from tasks.visible_text import markdown_table


def evaluation_table(archive: Archive, evaluations: Mapping[str, Sequence[str]]) -> str:
    """Number of images, the Fréchet distance where one is known, and the mean of every measure, by method or edit.

    Args:
        archive: opened when they were published.
        evaluations: ids by method or edit, in the order of the lines.
    """
    ids = [evaluation_id for of_method in evaluations.values() for evaluation_id in of_method]
    sums: defaultdict[tuple[str, str, str | None], list[float]] = defaultdict(lambda: [0.0, 0])
    for part in archive.measurement_parts(["method", "measure", "by", "value"], evaluations=ids):
        grouped = part.group_by(["method", "measure", "by"]).aggregate([("value", "sum"), ("value", "count")])
        for row in grouped.to_pylist():
            of = sums[row["method"], row["measure"], row["by"]]
            of[0] += row["value_sum"] or 0.0
            of[1] += row["value_count"]
    means = {key: (total / count if count else None, int(count)) for key, (total, count) in sums.items()}
    measures = sorted({key[1:] for key in means}, key=lambda one: (one[0], one[1] or ""))
    distances = set_numbers(archive, evaluations)
    of_sets = sorted({str(one["name"]) for one in distances.values()})
    names = [measure if by is None else f"{measure} [{by}]" for measure, by in measures]
    lines = [["", "images", *of_sets, *names]]
    for name in evaluations:
        found = [means.get((name, *one), (None, 0)) for one in measures]
        number = max((count for _, count in found), default=0)
        whole = distances.get(name, {})
        columns = [whole.get("value") if whole.get("name") == one else None for one in of_sets]
        lines.append([name, str(number), *map(_shown, columns), *(_shown(mean) for mean, _ in found)])
    return markdown_table(lines)


def set_numbers(archive: Archive, evaluations: Mapping[str, Sequence[str]]) -> dict[str, Mapping[str, Any]]:
    """The Fréchet distance by method or edit, over all its images that readers see, where it is known.

    Args:
        archive: opened when they were published.
        evaluations: ids by method or edit.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for one in archive.sets:
        if (
            one.summary is not None
            and not (one.unmeasured or one.mixed)
            and set(one.parts) & set(evaluations.get(one.method, ()))
        ):
            found[one.method] = one.summary
    return found


def unknown_set_numbers(archive: Archive, evaluations: Mapping[str, Sequence[str]]) -> list[str]:
    """Of which methods and edits the Fréchet distance was asked for and is not known, and why: a sentence each.

    Args:
        archive: opened when they were published.
        evaluations: ids by method or edit.
    """
    return [
        f"{one.method}: the Fréchet distance by {one.network} is not known ({one.problem.replace('_', ' ')})"
        for one in archive.sets
        if one.problem is not None and set(one.parts) & set(evaluations.get(one.method, ()))
    ]


def _shown(mean: float | None) -> str:
    if mean is None:
        return "-"
    return "inf" if math.isinf(mean) else f"{mean:.4g}"
