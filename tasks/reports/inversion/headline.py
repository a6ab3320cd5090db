"""What a report says first: how many images were inverted, how close, and where their SNCD lies."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from lsap_archive import DUPLICATE, FAILED, OK
from tasks.reports.inversion.data import MethodInfo, ReportData
from tasks.reports.inversion.summaries import MethodSummary
from tasks.reports.page import Tile
from tasks.reports.statistics import image_ids, newest_rows, with_status
from tasks.reports.text import NOTHING, as_number, as_percent, decimals_for, failed_and_duplicate, short_reference_title

COLLAPSED_WITHIN = 0.1  # of the way from the mean code's SNCD to that of psi = 1


def headline_method(methods: Sequence[MethodInfo], inverted: Collection[str]) -> MethodInfo | None:
    """The method that a report speaks of first: the last that aligns and inverted an image, else the last that did.

    Args:
        methods: in the order they are shown.
        inverted: names of those that inverted an image.
    """
    found = [method for method in methods if method.name in inverted]
    return next((method for method in reversed(found) if method.is_aligned), found[-1] if found else None)


def headline_tiles(data: ReportData, summaries: Sequence[MethodSummary]) -> list[Tile]:
    """The three numbers that a reader needs: how many images, how close, how well aligned by the headline's method."""
    by_name = {method.name: (method, summary) for method, summary in zip(data.methods, summaries, strict=True)}
    tiles = [_inverted_tile(data)]
    method = headline_method(data.methods, [name for name, (_, summary) in by_name.items() if summary.num_ok])
    if method is None:
        return [*tiles, Tile("LPIPS", NOTHING, "no image inverted"), Tile("SNCD", NOTHING, "no image inverted")]
    _, summary = by_name[method.name]
    base, base_summary = by_name.get(method.base or "", (None, None))
    level = data.references.get("synthetic, psi = 1")
    for metric, label in (("lpips", "LPIPS"), ("sncd", "SNCD")):
        mean, details = getattr(summary, metric).mean, []
        decimals = decimals_for([mean])
        if base and base_summary and base_summary.num_ok:
            details.append(f"{as_number(getattr(base_summary, metric).mean, decimals)} with {base.title}")
        if metric == "sncd" and level is not None:
            details.append(f"{as_number(level, decimals)} for the generator's own codes")
        detail = "; ".join(details) or "nothing to compare with"
        tiles.append(Tile(f"{label}, {method.title}", as_number(mean, decimals), detail))
    return tiles


def _inverted_tile(data: ReportData) -> Tile:
    """Images that every method inverted, of all images; each other one is told once, at its worst."""
    newest = [newest_rows(data.rows, method.name) for method in data.methods]

    def somewhere(status: str) -> set[str]:
        return set[str]().union(*(image_ids(with_status(table, status)) for table in newest))

    everywhere = set.intersection(*(image_ids(with_status(table, OK)) for table in newest)) if newest else set()
    total = set[str]().union(*(image_ids(table) for table in newest))
    failed = somewhere(FAILED)
    duplicate = somewhere(DUPLICATE) - failed
    untried = total - everywhere - failed - duplicate
    parts = ["by every method"] if len(newest) > 1 else []
    if failed or duplicate:
        parts.append(failed_and_duplicate(len(failed), len(duplicate)))
    if untried:
        parts.append(f"{len(untried):,} not tried by every method")
    return Tile("Images inverted", f"{len(everywhere):,} of {len(total):,}", "; ".join(parts))


def place_sncd(value: float, references: Mapping[str, float]) -> str:
    """Where a mean SNCD lies among its references."""
    if not math.isfinite(value):
        return "has no SNCD to place"
    level, mean_code = references.get("synthetic, psi = 1"), references.get("mean code")
    if level is None or mean_code is None:
        return "cannot be placed: the references were not measured"
    if value <= mean_code + COLLAPSED_WITHIN * (level - mean_code):
        return "lies at the level of the mean code: its codes have collapsed toward the mean"
    if value > level:
        share = f"{as_percent(value / level - 1)} " if level > 0 else ""
        return (
            f"lies {share}above {short_reference_title('synthetic, psi = 1')}: its codes point further from the mean "
            "style than the generator's own"
        )
    ordered = sorted(references.items(), key=lambda item: item[1])
    below = [label for label, reference in ordered if reference <= value][-1]
    above = next(label for label, reference in ordered if reference >= value)
    where = (
        f"lies at {short_reference_title(above)}"
        if above == below
        else f"lies between {short_reference_title(below)} and {short_reference_title(above)}"
    )
    return f"{where}: its codes point along the mean style more than the generator's own"
