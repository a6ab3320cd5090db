"""The study of inheritance for people: one picture, tables in Markdown; and every number with where it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.reports.editability.edited_alike import Quantity
from tasks.reports.figure_style import figure_png
from tasks.reports.inheritance.study import ALL, INVERSIONS, OUTCOMES, ComparedMethod, Comparison, InheritanceTable
from tasks.reports.tables import Cell, Column, Table, TableRow
from tasks.reports.text import as_number, count_of
from tasks.visible_text import in_markdown, markdown_table, visible

SHORT = {
    "mse": "MSE",
    "lpips": "LPIPS",
    "inversion_identity": "identity",
    "identity": "identity, edited",
    "class_kept": "class kept",
}
"""Names of quantities above columns, where they are not their own."""
DECIMALS = {"mse": 4, "lpips": 4, "distance": 2}
DRAWN = (INVERSIONS[1], *(one for one in OUTCOMES if one.name != "class_kept"))
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SPREAD = 0.5
"""Of the lines of one embedding in the picture, in distances between embeddings."""


def to_markdown(table: InheritanceTable, notes: Sequence[str]) -> str:
    """What changes and what stays in a few lines, then every comparison.

    Args:
        table: of the study.
        notes: what else whoever asked should know, a sentence each.
    """
    parts = [
        f"{count_of(len(table.embeddings), 'embedding')}, {count_of(len(table.refiners), 'refiner')}, "
        f"{count_of(len(table.image_ids), 'image')}. In brackets the paired change from the embedding alone, ± half "
        "its 95 % t interval over images.",
        "### What refinement changes",
        _verdicts(table),
        "### Are embeddings ranked as before?",
        _ranks(table),
        *(part for edits in table.values for part in (f"### {_heading(edits)}", _comparisons(table, edits))),
        *(["\n".join(f"- {in_markdown(note)}" for note in notes)] if notes else []),
    ]
    return "\n\n".join(parts) + "\n"


def number_tables(table: InheritanceTable) -> list[Table]:
    """Means and changes by edited attribute, in the form in which every number tells its query and evaluations."""
    tables = []
    for edits in table.values:
        columns = tuple(
            Column(one.name, one.title, better=_better(one), decimals=_decimals(one)) for one in table.quantities(edits)
        )
        compared = [(method, _of(table, method, edits)) for method in table.methods]
        means = tuple(_row(method, [Cell(one.mean) for one in cells]) for method, cells in compared)
        changes = tuple(
            _row(method, [Cell(one.change) for one in cells if one.change is not None])
            for method, cells in compared
            if method.is_refined
        )
        tables.append(Table(f"means/{edits}", _heading(edits), "Means over images.", columns, means))
        about = "Paired changes from the embedding alone."
        tables.append(Table(f"changes/{edits}", _heading(edits), about, columns, changes))
    return tables


def draw(table: InheritanceTable) -> bytes:
    """Every embedding alone and refined: a PNG file."""
    figure = Figure(figsize=(13, 2.6 + 1.0 * len(table.embeddings)), dpi=120, layout="constrained")
    axes = figure.subplots(2, 3, sharey=True)
    colors = {name: COLORS[index % len(COLORS)] for index, name in enumerate(table.refiners)}
    for ax, quantity in zip(axes.flat, DRAWN, strict=True):
        _panel(ax, table, quantity, colors)
    last = axes[0, 0]
    handles = [last.errorbar([], [], fmt="|", markersize=12, markeredgewidth=2, color="#222222", label="code alone")]
    handles += [
        last.errorbar([], [], xerr=[], fmt="o", color=colors[name], label=visible(title))
        for name, title in table.refiners.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=11)
    figure.suptitle(
        f"The same {count_of(len(table.image_ids), 'image')}, all edited alike: each embedding alone, and refined with "
        "the 95 % interval of the paired change.\nWhat is inherited stays at its embedding's mark.",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    return figure_png(figure)


def _panel(ax: Axes, table: InheritanceTable, quantity: Quantity, colors: dict[str, str]) -> None:
    names = list(colors)
    for place, embedding in enumerate(table.embeddings):
        ax.axhline(place, color="#e4e4e4", linewidth=0.8, zorder=0)
        alone = table.compare(embedding, quantity).mean.mean
        height = SPREAD / 2 + 0.08
        ax.vlines(alone, place - height, place + height, color="#222222", linewidth=2, zorder=1)
        for method in table.methods:
            if method.embedding != embedding.embedding or method.refiner is None:
                continue
            one = table.compare(method, quantity)
            assert one.change is not None
            shift = SPREAD * ((names.index(method.refiner) + 0.5) / len(names) - 0.5)
            half = _half(one)
            error = [[half if math.isfinite(half) else 0.0]] * 2
            ax.errorbar(one.mean.mean, place + shift, xerr=error, fmt="o", markersize=5, color=colors[method.refiner])
    better = {None: "1 is right", True: "higher is better", False: "lower is better"}[quantity.higher_is_better]
    ax.set_title(f"{quantity.title} ({better})", fontsize=10, loc="left")
    if quantity.higher_is_better is None:
        ax.axvline(1, color="#999999", linewidth=0.8, linestyle=(0, (3, 2)), zorder=0)
    ax.set_yticks(range(len(table.embeddings)), [visible(one.title) for one in table.embeddings], parse_math=False)
    ax.set_ylim(len(table.embeddings) - 0.5, -0.5)
    ax.tick_params(labelsize=9, left=False)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _verdicts(table: InheritanceTable) -> str:
    lines = [["refiner", "quantity", "clearly better", "not clear", "clearly worse", "mean change"]]
    for refiner, title in table.refiners.items():
        refined = [method for method in table.methods if method.refiner == refiner]
        for quantity in table.quantities(ALL):
            compared = [one for one in (table.compare(method, quantity) for method in refined) if one.mean.is_there]
            ups, downs = (sum(one.verdict == way for one in compared) for way in (1, -1))
            better, worse = (downs, ups) if quantity.higher_is_better is False else (ups, downs)
            better_is, worse_is = ("", "") if quantity.arrow else (" higher", " lower")
            changes = [one.change.mean for one in compared if one.change is not None]
            lines.append(
                [
                    title,
                    f"{quantity.title} {quantity.arrow}".rstrip(),
                    f"{better}{better_is}",
                    str(len(compared) - better - worse),
                    f"{worse}{worse_is}",
                    _signed(sum(changes) / len(changes) if changes else math.nan, _decimals(quantity)),
                ]
            )
    about = (
        f"Of {count_of(len(table.embeddings), 'embedding')}; clear is a change whose 95 % interval does not hold zero. "
        "Where nothing changes, one in twenty is clear by chance."
    )
    return f"{about}\n\n{markdown_table(lines, 'llr')}"


def _ranks(table: InheritanceTable) -> str:
    lines = [["refiner", *map(_head, OUTCOMES)]]
    for refiner, title in table.refiners.items():
        lines.append([title, *(_signed(table.rank_kept(refiner, one), 2) for one in OUTCOMES)])
    about = "Spearman's correlation over embeddings of their means, alone and refined; 1 where their order is kept."
    return f"{about}\n\n{markdown_table(lines)}"


def _comparisons(table: InheritanceTable, edits: str) -> str:
    lines = [["method", *map(_head, table.quantities(edits))]]
    for method in table.methods:
        lines.append([method.title, *map(_cell, _of(table, method, edits))])
    return markdown_table(lines)


def _of(table: InheritanceTable, method: ComparedMethod, edits: str) -> list[Comparison]:
    return [table.compare(method, one, edits) for one in table.quantities(edits)]


def _row(method: ComparedMethod, cells: Sequence[Cell]) -> TableRow:
    return TableRow(method.name, method.title, tuple(cells))


def _cell(one: Comparison) -> str:
    decimals = _decimals(one.quantity)
    mean = as_number(one.mean.mean, decimals)
    if one.change is None or not one.change.is_there:
        return mean
    change = _signed(one.change.mean, decimals)
    return f"{mean} ({change} ± {as_number(_half(one), decimals)})"


def _half(one: Comparison) -> float:
    assert one.change is not None
    return one.change.interval[1] - one.change.mean


def _signed(value: float, decimals: int) -> str:
    return as_number(value, decimals) if value < 0 or not math.isfinite(value) else f"+{as_number(value, decimals)}"


def _heading(edits: str) -> str:
    return "Edits of every attribute" if edits == ALL else f"Edits of {edits.replace('_', ' ')}"


def _head(quantity: Quantity) -> str:
    return f"{SHORT.get(quantity.name, quantity.name)} {quantity.arrow}".rstrip()


def _better(quantity: Quantity) -> str | None:
    return {None: None, True: "higher", False: "lower"}[quantity.higher_is_better]


def _decimals(quantity: Quantity) -> int:
    return DECIMALS.get(quantity.name, 3)
