"""From what was measured of refinements to tables and picture, put into the archive under `reports/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lsap_archive import open_archive, to_parquet
from tasks.archived.opening import open_writer
from tasks.refinement.request import RefinementRequest
from tasks.reports.index.write import write_index
from tasks.reports.inheritance.page import draw, number_tables, to_markdown
from tasks.reports.inheritance.study import VALUES_FILE, ComparedMethod, gather
from tasks.reports.paper.gather import measurements_of
from tasks.reports.tables import tables_parquet


def write_inheritance(
    request: RefinementRequest,
    methods: Sequence[ComparedMethod],
    units: Mapping[str, float],
    evaluations: Mapping[str, tuple[str, ...]],
    *,
    judge: str,
    notes: Sequence[str],
) -> tuple[str, tuple[str, ...]]:
    """Compare refinements with the embeddings that they start from.

    Args:
        request: the refinement that filled the archive.
        methods: embeddings and refinements.
        units: by name of the attribute, the change that synthetic codes were moved by.
        evaluations: ids of those that count, by method and edit.
        judge: the network that looked at the images.
        notes: what else is to be told, a sentence each.

    Returns:
        The text, Markdown, and the URLs of text, picture, values (one row for each method, edited attribute and
        image) and numbers (one row for each mean and change, with the query over the values that gives it).
    """
    measurements = measurements_of(open_archive(request.archive), evaluations)
    table = gather(measurements, methods, units, evaluations, judge=judge)
    text = to_markdown(table, notes)
    writer = open_writer(request.archive, request.generator.load())
    files = {
        "inheritance.md": text.encode(),
        "inheritance.png": draw(table),
        VALUES_FILE: to_parquet(table.to_arrow()),
        "inheritance_numbers.parquet": tables_parquet(number_tables(table)),
    }
    urls = tuple(writer.put_report(name, data) for name, data in files.items())
    write_index(writer)
    return text, urls
