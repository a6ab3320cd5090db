"""From the archive of a study of editability to its tables and picture, put into the archive under `reports/`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lsap_archive import open_archive, to_parquet
from lsap_core.alignment.references import reference_rows
from lsap_core.errors import ConfigError
from tasks.archived.anchors import open_anchor
from tasks.archived.opening import open_writer
from tasks.inversion.plan import facts_of
from tasks.inversion.request import InversionRequest
from tasks.reports.editability.page import Study, draw, findings_table, to_markdown
from tasks.reports.editability.study import StudiedMethod, StudyTable, compare_with_controls, correlate, gather
from tasks.reports.index.write import write_index

LEAST_METHODS = 4
"""Of a group of methods that gets correlations of its own."""


def write_study(
    request: InversionRequest, methods: Sequence[StudiedMethod], units: Mapping[str, float], partners: Mapping[str, str]
) -> tuple[str, tuple[str, ...]]:
    """Compare what the archive shows of these methods.

    Args:
        request: the inversion that filled the archive.
        methods: to compare.
        units: by name of the attribute, the change that synthetic codes were moved by.
        partners: by image, the other end of its midpoint.

    Returns:
        The text, Markdown, and the URLs of text, picture, values (one row for each method and image) and correlations.
    """
    facts = facts_of(request)
    loaded = request.generator.load()
    references = reference_rows(loaded.generator.eval(), open_anchor(request.archive, facts.anchor)).labelled()
    judge = request.networks.judge
    assert judge is not None  # without one the study is refused
    table = gather(open_archive(request.archive).sql, methods, units, partners, judge=judge)
    findings = correlate(table)
    for title, part in _groups(table):
        findings += correlate(part, title)
    study = Study(table, findings, compare_with_controls(table), references)
    text = to_markdown(study)
    writer = open_writer(request.archive, loaded)
    files = {
        "editability.md": text.encode(),
        "editability.png": draw(study),
        "editability.parquet": to_parquet(table.to_arrow()),
        "editability_correlations.parquet": to_parquet(findings_table(findings)),
    }
    urls = tuple(writer.put_report(name, data) for name, data in files.items())
    write_index(writer)
    return text, urls


def partners_by_label(archive: str, methods: Sequence[str], label: str) -> dict[str, str]:
    """For every image that all methods inverted, the next one of its class: a ring through each class.

    Args:
        archive: URL of the archive.
        methods: names of inversions.
        label: regular expression whose first group is the class, in the image's id.

    Raises:
        ConfigError: an id without a class, or a class with one image only.
    """
    shown = open_archive(archive).sql(
        "select image_id from latest where status = 'ok' and method in (select unnest($methods)) "
        "group by image_id having count(distinct method) = $count order by image_id",
        methods=list(methods),
        count=len(methods),
    )
    classes: dict[str, list[str]] = {}
    for image_id in shown.column("image_id").to_pylist():
        found = re.search(label, image_id)
        if found is None or not found.groups():
            raise ConfigError(f'label "{label}" finds no class in image id {image_id}; wanted one group that does')
        classes.setdefault(found[1], []).append(image_id)
    partners: dict[str, str] = {}
    for name, ids in classes.items():
        if len(ids) < 2:
            raise ConfigError(f"class {name} has one image, {ids[0]}: a midpoint wants two; take more images")
        partners |= dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    return dict(sorted(partners.items()))


def _groups(table: StudyTable) -> list[tuple[str, StudyTable]]:
    """Kinds of methods with enough of them: what holds across all might be a difference between kinds alone."""
    kinds = {"W+ optimized from the mean code, control included": ("W+", "control"), "encoders": ("encoder",)}
    groups = []
    for title, families in kinds.items():
        part = table.of([method.name for method in table.methods if method.family in families])
        if len(part.methods) >= LEAST_METHODS:
            groups.append((title, part))
    return groups
