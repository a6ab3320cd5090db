"""The paper's tables from the measurements of an archive: which number stands in which cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tasks.measuring.measures import MEASURES
from tasks.reports.paper.published import (
    BENCHMARK,
    PSNR_OFFSET,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TITLES,
    Published,
    Rows,
    published_row,
)
from tasks.reports.paper.traced_numbers import Ask, Measure, Subject, mean_difference, mean_of, mean_strength
from tasks.reports.statistics import NOTHING_MEASURED, Number
from tasks.reports.tables import Cell, Column, Table, TableRow
from tasks.reports.text import listed, reference_title


@dataclass(frozen=True)
class ShownEdit:
    """An edit of the tables.

    Attributes:
        name: such as "slant".
        fixed: name of the edit with one strength for every method, as in "<method>/<fixed>".
        equal: name of the edit whose strength gives every method the same mean change, or None.
        attribute: what it is meant to change, or None where nothing measures that.
        unit: of the attribute.
        strength: the one strength.
        change: the change wanted at equal effect, in standard deviations of the attribute.
    """

    name: str
    fixed: str
    equal: str | None = None
    attribute: str | None = None
    unit: str = ""
    strength: float = 0.0
    change: float = 0.0

    @property
    def title(self) -> str:
        """For people."""
        return self.name.replace("_", " ")

    @property
    def compared(self) -> str:
        """The edit after which identity is compared: at equal effect where that exists."""
        return self.equal or self.fixed


@dataclass(frozen=True)
class Evidence:
    """What the tables are made from.

    Attributes:
        ask: answers SQL over the archive.
        titles: of the methods by name, in the order of the rows.
        evaluations: ids of the evaluations that count, by method or "method/edit".
        lpips: networks of LPIPS; the first is the column that the paper has.
        identity: networks of identity; the first is the column that the paper has.
        judge: the network that tells classes, or None.
        attributes: unit of each measured attribute by name.
        edits: in order.
        refused: why an edit of equal effect has no strength, by edited method, such as "psp/slant_equal".
        frechet: distances of sets of images, by method.
        frechet_network: its network, or None.
        references: SNCD of codes whose alignment is known, by printed label.
        refiner_notes: what has to be known of the networks of refiners, a sentence each.
        domain: name of the domain.
        paper_problem: why the paper's numbers do not belong here; None where they do.
    """

    ask: Ask
    titles: Mapping[str, str]
    evaluations: Mapping[str, tuple[str, ...]]
    lpips: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    judge: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    edits: tuple[ShownEdit, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    frechet: Mapping[str, Number] = field(default_factory=dict)
    frechet_network: str | None = None
    references: Mapping[str, float] = field(default_factory=dict)
    refiner_notes: tuple[str, ...] = ()
    domain: str = ""
    paper_problem: str | None = None

    @property
    def has_paper(self) -> bool:
        """Whether the paper's numbers stand beside the measured ones."""
        return self.paper_problem is None

    def subject(self, method: str, edit: str | None = None) -> Subject:
        """A method's inversions, or one edit of them."""
        name = method if edit is None else f"{method}/{edit}"
        return Subject(name, self.evaluations.get(name, ()))

    def mean(self, method: str, measure: str, by: str | None = None, *, edit: str | None = None) -> Number:
        """The mean of a measure over a method's images."""
        return mean_of(self.ask, self.subject(method, edit), Measure(measure, by))

    def change(self, method: str, edit: str, attribute: str, *, size: bool = False) -> Number:
        """How far an edit moved an attribute, from the inversion on."""
        subjects = self.subject(method, edit), self.subject(method)
        return mean_difference(self.ask, *subjects, Measure("attribute", attribute), size=size)


Columns = list[tuple[Column, dict[str, Number]]]  # each with its numbers by method


def table_1(evidence: Evidence, methods: Sequence[str]) -> Table:
    """Inversion, editing consistency, and identity after edits."""
    columns = [*_fidelity_columns(evidence, methods), *_consistency_columns(evidence, methods)]
    for edit in evidence.edits:
        columns += _after_columns(evidence, methods, edit)
    after = [
        f"{edit.title}: " + (f"a mean change of {edit.change:g} SD" if edit.equal else f"strength {edit.strength:g}")
        for edit in evidence.edits
    ]
    notes = [_reference_note(evidence)] if evidence.references else []
    notes += _refined_notes(evidence, methods, has_lec=bool(evidence.edits))
    if after:
        notes.append(f"Identity after an edit compares the original with the edited inversion ({'; '.join(after)}).")
        strengths = ", ".join(f"{edit.title} at {edit.strength:g}" for edit in evidence.edits)
        notes.append(f"LEC grows with the strength of its edit, even for a perfect encoder; here {strengths}.")
    return _table(
        "table1",
        "Table 1: inversion and editing",
        "Fidelity and alignment of the inversions, how consistently an encoder takes its own edits back (LEC), and how "
        "much of the identity is left after edits.",
        evidence,
        columns,
        methods,
        TABLE_1 if evidence.domain == "face" else {},
        notes,
    )


def edit_table(evidence: Evidence, methods: Sequence[str], edit: ShownEdit) -> Table:
    """One edit of every method: at one strength, and at equal effect."""
    columns = _edit_columns(evidence, methods, edit, edit.fixed, f"strength {edit.strength:g}", is_fixed=True)
    if edit.equal is not None:
        columns += _edit_columns(evidence, methods, edit, edit.equal, "equal effect", is_fixed=False)
    caption = f"What the edit {edit.title} does to the inversions of each method."
    if edit.equal is not None:
        caption += (
            " At equal effect every method has the strength of its own that gives the same mean change: "
            f"{edit.change:g} SD of {edit.attribute.replace('_', ' ') if edit.attribute else 'it'} over synthetic "
            "images. Only then can be compared what is left of the image."
        )
    notes = [
        f"{evidence.titles[method]} has no strength of equal effect: {evidence.refused[f'{method}/{edit.equal}']}"
        for method in methods
        if f"{method}/{edit.equal}" in evidence.refused
    ]
    return _table(f"edit-{edit.name}", f"Edit: {edit.title}", caption, evidence, columns, methods, {}, notes)


def fidelity_table(evidence: Evidence, methods: Sequence[str]) -> Table:
    """What else is measured of the inversions, beside the benchmark of the authors' toolbox."""
    network = evidence.frechet_network
    frechet = "FID" if network in (None, "inception") else "Fréchet distance"
    has_toolbox = evidence.has_paper and evidence.domain == "face"
    told_again = {"mse", "lpips", "identity"} if has_toolbox else set()  # the toolbox reports them too
    columns: Columns = [pair for pair in _fidelity_columns(evidence, methods) if pair[0].name in told_again]
    columns += [
        (_column("psnr", "PSNR", decimals=2), _each(evidence, methods, "psnr")),
        (_column("ms_ssim", "MS-SSIM"), _each(evidence, methods, "ms_ssim")),
        (_column("w_distance", "distance to w̄", decimals=3), _each(evidence, methods, "w_distance")),
        (Column("frechet", frechet, network or "", "lower", 2), dict(evidence.frechet)),
    ]
    if evidence.judge is not None:
        title = "distance to real images"
        numbers = _each(evidence, methods, "distance_to_real", evidence.judge)
        columns.append((_column("distance_to_real", title, evidence.judge), numbers))
        numbers = _each(evidence, methods, "class_kept", evidence.judge)
        columns.append((_column("class_kept", "class kept", evidence.judge, decimals=3), numbers))
    published = {row: {**values, "psnr": float(values["psnr"]) + PSNR_OFFSET} for row, values in BENCHMARK.items()}
    table = _table(
        "fidelity",
        "Inversions by other measures",
        "Not in the paper: measures that other work reports.",
        evidence,
        columns,
        methods,
        published if has_toolbox else {},
        paper="toolbox",
    )
    if table.paper is None:
        return table
    note = (
        f"Toolbox: the benchmark in its README; {PSNR_OFFSET} dB are added to its PSNR, which takes 2, not 4, for the "
        "squared range of the images."
    )
    return replace(table, notes=(*table.notes, note))


def table_2(evidence: Evidence, encoders: Sequence[str], num_images: int) -> Table:
    """How far the code of a synthetic image comes back from its true one."""
    columns: Columns = []
    spaces = (("w", "W", 2), ("s", "S", 2), ("s_n", "Sᴺ", 4))
    for name, title, decimals in spaces:
        column = _column(f"disalignment_{name}", title, decimals=decimals)
        columns.append((column, _each(evidence, encoders, column.name)))
    for scale, decimals in (("per_entry", 4), ("frobenius", 2)):
        for name, title, _ in spaces[:2]:
            column = _column(f"disalignment_{name}_{scale}", title, decimals=decimals)
            columns.append((column, _each(evidence, encoders, column.name)))
    return _table(
        "table2",
        "Table 2: synthetic images inverted again",
        f"Distance of the codes that an encoder gives to {num_images:,} synthetic images from the codes that made "
        "them: squared Euclidean in W and S, cosine in Sᴺ, means over images and layers.",
        evidence,
        columns,
        encoders,
        TABLE_2 if evidence.domain == "face" else {},
        ["The paper does not say how it adds up over entries; its magnitudes fit squared distances per layer."],
    )


def table_3(evidence: Evidence, weights: Mapping[str, float], about: str = "") -> Table:
    """LSAP_E over lambda.

    Args:
        evidence: of the archive with the trained encoders.
        weights: lambda of each method that belongs to the sweep.
        about: the trainings, to be told in the caption.
    """
    methods = sorted(weights, key=lambda name: weights[name])
    published = {name: TABLE_3[f"{weights[name]:g}"] for name in methods if f"{weights[name]:g}" in TABLE_3}
    evidence = replace(evidence, titles={name: f"λ = {weights[name]:g}" for name in methods})
    return _table(
        "table3",
        "Table 3: LSAP_E over λ",
        f"The same training with another weight of SNCD{about}.",
        evidence,
        [*_fidelity_columns(evidence, methods), *_consistency_columns(evidence, methods)],
        methods,
        published if evidence.domain == "face" else {},
        [_reference_note(evidence)] if evidence.references else [],
    )


def table_4(evidence: Evidence, methods: Sequence[str]) -> Table:
    """Encoders on a domain that is not faces."""
    wanted = {"mse", "lpips", "sncd"}
    columns = [pair for pair in _fidelity_columns(evidence, methods) if pair[0].name in wanted]
    return _table(
        "table4",
        f"Table 4: encoders on {evidence.domain}",
        "e4e and LSAP_E outside of faces" + (", and refined." if any("/" in name for name in methods) else "."),
        evidence,
        columns,
        methods,
        TABLE_4.get(evidence.domain, {}),
        [
            *([_reference_note(evidence)] if evidence.references else []),
            *_refined_notes(evidence, methods, has_lec=False),
        ],
    )


def _fidelity_columns(evidence: Evidence, methods: Sequence[str]) -> Columns:
    columns: Columns = [(_column("mse", "MSE"), _each(evidence, methods, "mse"))]
    for index, network in enumerate(evidence.lpips):
        column = _column("lpips", "LPIPS", network, name=f"lpips/{network}" if index else "")
        columns.append((column, _each(evidence, methods, "lpips", network)))
    for index, network in enumerate(evidence.identity):
        column = _column("identity", "identity", network, name=f"identity/{network}" if index else "")
        columns.append((column, _each(evidence, methods, "identity", network)))
    columns.append((_column("sncd", "SNCD"), _each(evidence, methods, "sncd")))
    return columns


def _consistency_columns(evidence: Evidence, methods: Sequence[str]) -> Columns:
    columns: Columns = []
    for edit in evidence.edits:
        column = _column("lec", edit.title, name=f"lec/{edit.name}", decimals=3, group="LEC")
        columns.append((column, _each(evidence, methods, "lec", edit.fixed)))
    return columns


def _after_columns(evidence: Evidence, methods: Sequence[str], edit: ShownEdit) -> Columns:
    return [
        (
            _column("identity", edit.title, network, name=f"identity_after/{edit.name}", group="identity after edit"),
            _each(evidence, methods, "identity", network, edit=edit.compared),
        )
        for network in evidence.identity[:1]  # the others stand in the edit's own table
    ]


def _edit_columns(
    evidence: Evidence, methods: Sequence[str], edit: ShownEdit, name: str, group: str, *, is_fixed: bool
) -> Columns:
    mode = "fixed" if is_fixed else "equal"
    columns: Columns = []
    if not is_fixed:
        strengths = {method: mean_strength(evidence.ask, evidence.subject(method, name)) for method in methods}
        columns.append((Column(f"strength/{mode}", "strength", "", None, 2, group), strengths))
    if edit.attribute is not None:
        moved = {method: evidence.change(method, name, edit.attribute) for method in methods}
        column = Column(f"change/{mode}", "change", edit.unit, None, 3, group)
        columns.append((column, moved))
    for other, unit in evidence.attributes.items():
        if other != edit.attribute:
            leaked = {method: evidence.change(method, name, other, size=True) for method in methods}
            title = f"{other.replace('_', ' ')} moved along"
            columns.append((Column(f"leakage/{other}/{mode}", title, unit, "lower", 3, group), leaked))
    for network in evidence.identity:
        numbers = _each(evidence, methods, "identity", network, edit=name)
        column = _column("identity", "identity", network, name=f"identity/{network}/{mode}", group=group)
        columns.append((column, numbers))
    if evidence.judge is not None:
        numbers = _each(evidence, methods, "class_kept", evidence.judge, edit=name)
        title = "class kept"
        column = _column("class_kept", title, evidence.judge, name=f"class_kept/{mode}", decimals=3, group=group)
        columns.append((column, numbers))
    return columns


def _column(
    measure: str, title: str, network: str = "", *, name: str = "", decimals: int = 4, group: str = ""
) -> Column:
    """A column of a measure, whose unit and better way stand in the table of measures."""
    known = MEASURES[measure]
    return Column(name or measure, title, network or known.unit, known.better, decimals, group)


def _each(
    evidence: Evidence, methods: Sequence[str], measure: str, by: str | None = None, *, edit: str | None = None
) -> dict[str, Number]:
    return {method: evidence.mean(method, measure, by, edit=edit) for method in methods}


def _table(
    name: str,
    title: str,
    caption: str,
    evidence: Evidence,
    columns: Columns,
    methods: Sequence[str],
    published: Rows | Mapping[str, Mapping[str, Published]],
    notes: Sequence[str] = (),
    *,
    paper: str = "paper",
) -> Table:
    """Rows and columns without the empty ones; rows that only the paper has come last."""
    has_paper = evidence.has_paper and bool(published)
    told = published if has_paper else {}
    measured = {published_row(method) for method in methods}
    rows = [*methods, *(row for row in told if row not in measured)]
    shown = [
        (column, numbers)
        for column, numbers in columns
        if any(number.is_there for number in numbers.values()) or any(column.name in values for values in told.values())
    ]
    table_rows = tuple(
        TableRow(
            row,
            evidence.titles.get(row) or TITLES.get(row, row),
            tuple(
                Cell(numbers.get(row, NOTHING_MEASURED), told.get(published_row(row), {}).get(column.name))
                for column, numbers in shown
            ),
        )
        for row in rows
    )
    skipped = _skipped_note(columns, evidence)
    return Table(
        name,
        title,
        caption,
        tuple(column for column, _ in shown),
        table_rows,
        paper if has_paper else None,
        (*notes, *([skipped] if skipped else [])),
    )


def _skipped_note(columns: Columns, evidence: Evidence) -> str:
    """Which images have no value and why; a measure that no image has is told once."""
    parts = []
    for column, numbers in columns:
        lost = {name: number for name, number in numbers.items() if number.skipped}
        reasons = ", ".join(sorted({number.problem for number in lost.values() if number.problem})) or "no reason kept"
        title = " ".join(filter(None, (column.group, column.title)))
        if lost and not any(number.is_there for number in numbers.values()):
            parts.append(f"{title} of all images ({reasons})")
        elif lost:
            counts = ", ".join(f"{evidence.titles.get(name, name)} {number.skipped:,}" for name, number in lost.items())
            parts.append(f"{title} of some ({counts}; {reasons})")
    return f"Without a value, and left out of the means: {'; '.join(parts)}." if parts else ""


def _refined_notes(evidence: Evidence, methods: Sequence[str], *, has_lec: bool) -> list[str]:
    """What has to be known of columns that are about codes, where rows are of more than codes."""
    if not any("/" in name for name in methods):
        return []
    lec = "LEC belongs to an encoder and its own codes: refined rows have none, as in the paper. "
    told = [f"Of the networks of refiners: {'; '.join(evidence.refiner_notes)}."] if evidence.refiner_notes else []
    sncd = "SNCD of a refined row is that of its code, which is only a part of what makes its image."
    return [lec + sncd if has_lec else sncd, *told]


def _reference_note(evidence: Evidence) -> str:
    levels = [f"{reference_title(label)} {value:.4f}" for label, value in evidence.references.items()]
    return (
        f"SNCD of codes whose alignment is known: {listed(levels)}. A value near the floor or the mean code means "
        "codes that point along the mean style, not better ones."
    )
