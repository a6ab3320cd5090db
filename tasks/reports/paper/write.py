"""A reproduction from what was measured: tables, figures and claims put together and written below one folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lsap_archive import Store, is_archive, open_archive
from tasks.archived.opening import open_writer
from tasks.reports.index.write import put_link
from tasks.reports.page import now, versions_of
from tasks.reports.paper.claims import Claim, examine
from tasks.reports.paper.claims_of_refinement import examine_refinements
from tasks.reports.paper.figure4 import Clouds, parquet_of, picture_of, png_of
from tasks.reports.paper.figure5 import EditedImage, sheet
from tasks.reports.paper.gather import (
    Inverted,
    Looks,
    draw_clouds,
    gather,
    measurements_of,
    show_edits,
)
from tasks.reports.paper.page import (
    ContactSheets,
    Reproduction,
    provenance_of,
    remarks,
    render_reproduction,
    tables_markdown,
)
from tasks.reports.paper.published import paper_problem
from tasks.reports.paper.tables import (
    Evidence,
    ShownEdit,
    edit_table,
    fidelity_table,
    table_1,
    table_2,
    table_3,
    table_4,
)
from tasks.reports.paper.traced_numbers import asking
from tasks.reports.tables import Table, tables_parquet
from tasks.weights.generators import GeneratorFile

TABLE3_ARCHIVE = "archive of table 3"
PAPER_SYNTHETIC = 5000
VERSIONED = ("torch", "prefect", "ray", "duckdb", "torchmetrics")


@dataclass(frozen=True)
class ShownMethods:
    """What a figure of pictures shows.

    Attributes:
        methods: in order.
        num_images: how many.
    """

    methods: tuple[str, ...]
    num_images: int


@dataclass(frozen=True)
class PaperRequest:
    """What is to be written.

    Attributes:
        parts: tables and figures, such as "table1".
        stem: name of the page without its suffix.
        output: URL of the folder.
        archive: URL of the archive of the inversions and of Table 2.
        generator: path or URL of the weights.
        domain: name of the domain.
        about: what its images are.
        source: of the evaluated images.
        methods: rows of Table 1.
        compared: encoders of Table 2 and Figure 4, by name with their titles.
        table4: rows of Table 4.
        edits: in order.
        looks: what looked at the images.
        num_synthetic: images of Table 2.
        layer: of Figure 4.
        entries: of Figure 4.
        samples: synthetic codes of Figure 4; None for as many as images.
        seed: of these codes.
        figure3: what it shows.
        figure5: what it shows.
        device: where pictures are made.
        config_yaml: the configuration, for print.
    """

    parts: tuple[str, ...]
    stem: str
    output: str
    archive: str
    generator: GeneratorFile
    domain: str
    about: str
    source: str
    methods: tuple[str, ...]
    compared: Mapping[str, str]
    table4: tuple[str, ...]
    edits: tuple[ShownEdit, ...]
    looks: Looks
    num_synthetic: int
    layer: int
    entries: tuple[int, int]
    samples: int | None
    seed: int
    figure3: ShownMethods
    figure5: ShownMethods
    device: str
    config_yaml: str


@dataclass(frozen=True)
class MeasuredParts:
    """What the flow has made, as far as it was asked for.

    Attributes:
        inverted: the inversions, or None.
        evaluations: ids of their evaluations and of those of their edits, by method or edit.
        refused: why an edit of equal effect has no strength, by edited method, such as "psp/slant_equal".
        versions: digest of each edit, which tells it from others of its name.
        synthetic: ids of the evaluations of synthetic images, by encoder.
        trained: inversions by the encoders of Table 3, or None.
        trained_evaluations: ids of their evaluations, by method.
        weights: lambda of each of these methods.
        trainings: how they were trained, to be told in a caption.
    """

    inverted: Inverted | None = None
    evaluations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    synthetic: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trained: Inverted | None = None
    trained_evaluations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    trainings: str = ""


@dataclass(frozen=True)
class WrittenReproduction:
    """What was written.

    Attributes:
        page: URL of the HTML page.
        files: URLs of everything, the page included.
        markdown: the tables and claims.
        num_numbers: measured numbers in the tables.
    """

    page: str
    files: tuple[str, ...]
    markdown: str
    num_numbers: int


def write_reproduction(request: PaperRequest, parts: MeasuredParts, seconds: float) -> WrittenReproduction:
    """Put everything together, and write page, Markdown, Parquet, figures and contact sheets.

    Args:
        request: what is to be written.
        parts: what was measured.
        seconds: wall time so far.
    """
    evidence = _evidence(request, parts)
    drawn = _draw(request, parts)
    data = _put_together(request, parts, evidence, drawn, seconds)
    return _write(request, data, drawn)


@dataclass(frozen=True)
class _Drawn:
    """The figures, as far as they were asked for; `edited` has the pictures of figures 3 and 5 by name."""

    clouds: Clouds | None
    cloud_ids: dict[str, list[str]]
    edited: dict[str, tuple[EditedImage, ...]]
    labels: tuple[str, ...]

    def sheets(self, figure: str) -> ContactSheets | None:
        """A figure of pictures on the page, or None."""
        if not (edited := self.edited.get(figure)):
            return None
        files = {image.image_id: _sheet_name(figure, number) for number, image in enumerate(edited)}
        return ContactSheets(edited, self.labels, files)


def _evidence(request: PaperRequest, parts: MeasuredParts) -> dict[str, Evidence]:
    """What each table is made from: "images", "synthetic", "trained"."""
    found = {}
    common: dict[str, Any] = {"looks": request.looks, "edits": request.edits, "domain": request.domain}
    if parts.inverted is not None:
        archive = open_archive(request.archive)
        gathered = gather(parts.inverted, archive, evaluations=parts.evaluations, **common)
        found["images"] = replace(gathered, refused=parts.refused)
    if "table2" in request.parts:
        found["synthetic"] = _synthetic_evidence(request, parts.synthetic)
    if parts.trained is not None:
        archive = open_archive(parts.trained.request.archive)
        found["trained"] = gather(parts.trained, archive, evaluations=parts.trained_evaluations, **common)
    return found


def _synthetic_evidence(request: PaperRequest, evaluations: Mapping[str, tuple[str, ...]]) -> Evidence:
    archive = open_archive(request.archive)
    problem = None if request.domain == "face" else paper_problem(request.domain, 0)
    if request.domain == "face" and request.num_synthetic != PAPER_SYNTHETIC:
        problem = f"the paper took {PAPER_SYNTHETIC:,} synthetic images, this run {request.num_synthetic:,}"
    return Evidence(
        ask=asking(measurements_of(archive, evaluations)),
        titles=request.compared,
        evaluations=evaluations,
        domain=request.domain,
        paper_problem=problem,
    )


def _draw(request: PaperRequest, parts: MeasuredParts) -> _Drawn:
    clouds: Clouds | None = None
    ids: dict[str, list[str]] = {}
    edited: dict[str, tuple[EditedImage, ...]] = {}
    labels = {"": "inversion"}
    for edit in request.edits:
        labels[edit.fixed] = f"{edit.title}, strength {edit.strength:g}"
        if edit.equal is not None:
            labels[edit.equal] = f"{edit.title}, equal effect"
    if parts.inverted is not None and "figure4" in request.parts:
        clouds, ids = draw_clouds(
            parts.inverted,
            tuple(request.compared),
            layer=request.layer,
            entries=request.entries,
            samples=request.samples,
            seed=request.seed,
            device=request.device,
        )
    for name, shown in (("figure3", request.figure3), ("figure5", request.figure5)):
        if parts.inverted is not None and name in request.parts:
            edited[name] = show_edits(
                parts.inverted,
                shown.methods,
                labels,
                absent=parts.refused,
                versions=parts.versions,
                num_images=shown.num_images,
                device=request.device,
            )
    return _Drawn(clouds, ids, edited, tuple(labels.values()))


def _tables(request: PaperRequest, parts: MeasuredParts, evidence: dict[str, Evidence]) -> Iterator[Table]:
    images = evidence.get("images")
    if images is not None and "table1" in request.parts:
        yield table_1(images, request.methods)
        for edit in request.edits:
            yield edit_table(images, request.methods, edit)
        yield fidelity_table(images, request.methods)
    if "synthetic" in evidence:
        yield table_2(evidence["synthetic"], tuple(request.compared), request.num_synthetic)
    if "trained" in evidence:
        yield table_3(evidence["trained"], parts.weights, parts.trainings)
    if images is not None and "table4" in request.parts:
        yield table_4(images, request.table4)


def _claims(request: PaperRequest, evidence: dict[str, Evidence]) -> tuple[Claim, ...]:
    if "images" not in evidence or "table1" not in request.parts:
        return ()
    images = evidence["images"]
    shown = replace(images, titles={name: images.titles[name] for name in request.methods})
    return (*examine(shown), *examine_refinements(shown))


def _put_together(
    request: PaperRequest, parts: MeasuredParts, evidence: dict[str, Evidence], drawn: _Drawn, seconds: float
) -> Reproduction:
    archives = {"archive": request.archive}
    if parts.trained is not None:
        archives[TABLE3_ARCHIVE] = parts.trained.request.archive
    inverted = parts.inverted or parts.trained
    problems = dict.fromkeys(one.paper_problem for one in evidence.values() if one.paper_problem is not None)
    return Reproduction(
        title=f"The paper's tables on {request.domain}",
        created=now(),
        domain=request.domain,
        about=request.about,
        source="synthetic images" if inverted is None else request.source,
        num_images=request.num_synthetic if inverted is None else inverted.num_images,
        archives=archives,
        paper_problem="; ".join(problems) or None,
        tables=tuple(_tables(request, parts, evidence)),
        claims=_claims(request, evidence),
        figures={} if drawn.clouds is None else {"Figure 4: codes in W, S and Sᴺ": picture_of(drawn.clouds)},
        sheets=drawn.sheets("figure5"),
        refined_sheets=drawn.sheets("figure3"),
        networks={} if inverted is None else request.looks.digests(),
        provenance=provenance_of(request.generator.load(), versions_of(VERSIONED)),
        config_yaml=request.config_yaml,
        files={"tables": _tables_name(request)},
        seconds=seconds,
        table_archives={"table3": TABLE3_ARCHIVE},
    )


def _write(request: PaperRequest, data: Reproduction, drawn: _Drawn) -> WrittenReproduction:
    store = Store.from_url(request.output)
    markdown = tables_markdown(data.title, data.tables, data.claims, remarks(data))
    page = f"{request.stem}.html"
    files = {
        f"{request.stem}.md": markdown.encode(),
        _tables_name(request): tables_parquet(data.tables),
        **{
            _sheet_name(figure, number): sheet(image, drawn.labels)
            for figure, edited in drawn.edited.items()
            for number, image in enumerate(edited)
        },
    }
    if drawn.clouds is not None:
        files["figure4.png"] = png_of(drawn.clouds)
        files["figure4.parquet"] = parquet_of(drawn.clouds, drawn.cloud_ids)
    files[page] = render_reproduction(data).encode()
    for name, content in files.items():
        store.put(name, content)
    kind = "reproduce" if request.stem == "report" else f"reproduce_{request.stem}"
    for archive in filter(is_archive, dict.fromkeys(data.archives.values())):  # of Table 3 alone the first is not there
        writer = open_writer(archive, request.generator.load())
        writer.keep_published_lists()  # the page says how to read by them
        put_link(writer, kind, title=data.title, created=data.created, url=store.join(page))
    num_numbers = sum(cell.measured.is_there for table in data.tables for row in table.rows for cell in row.cells)
    return WrittenReproduction(store.join(page), tuple(store.join(name) for name in files), markdown, num_numbers)


def _tables_name(request: PaperRequest) -> str:
    return f"{request.stem}_tables.parquet"


def _sheet_name(figure: str, number: int) -> str:
    return f"{figure}/{number:02d}.png"
