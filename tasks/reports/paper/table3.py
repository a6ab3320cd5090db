"""From the archive of a reproduction to its tables, put into the archive under `reports/`."""

from __future__ import annotations

from collections.abc import Sequence

from lsap_archive import open_archive
from lsap_core.alignment.references import reference_rows
from tasks.archived.anchors import open_anchor
from tasks.archived.opening import open_writer
from tasks.archived.runs import current_rows
from tasks.inversion.plan import facts_of
from tasks.inversion.request import InversionRequest
from tasks.reports.paper.encoder_comparison import Variant, compare_encoders
from tasks.reports.paper.encoder_tables import draw, to_markdown, to_parquet


def write_table3(
    request: InversionRequest,
    published: Sequence[Variant],
    seeds: Sequence[int],
    sweep: Sequence[Variant],
    sweep_seeds: Sequence[int],
) -> tuple[str, tuple[str, ...]]:
    """Compare what the archive shows of these encoders.

    Args:
        request: the inversion that filled the archive.
        published: variants of the first table.
        seeds: of their trainings.
        sweep: variants of the second, by rising lambda.
        sweep_seeds: of their trainings.

    Returns:
        The text, Markdown, and the URLs of text, figure and Parquet file.
    """
    facts = facts_of(request)
    loaded = request.generator.load()
    rows = current_rows(open_archive(request.archive), facts.methods, facts.anchor, facts.encoders)
    references = reference_rows(loaded.generator.eval(), open_anchor(request.archive, facts.anchor)).labelled()
    comparison = compare_encoders(rows, published, seeds, sweep, sweep_seeds, references)
    text = to_markdown(comparison)
    writer = open_writer(request.archive, loaded)
    files = {"table3.md": text.encode(), "table3.png": draw(comparison), "table3.parquet": to_parquet(comparison)}
    return text, tuple(writer.put_report(name, data) for name, data in files.items())
