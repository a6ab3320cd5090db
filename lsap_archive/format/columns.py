"""What a column of a table is: told in the metadata of its pyarrow field, which Parquet files keep."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

DESCRIPTION, UNIT, RANGE = "description", "unit", "range"
"""Keys of the metadata."""


def column(
    name: str, kind: pa.DataType, description: str, *, unit: str = "", values: str = "", is_needed: bool = False
) -> pa.Field:
    """A field that tells what it holds.

    Args:
        name: of the column.
        kind: type of its values.
        description: what they are, without a full stop at the end.
        unit: what they are counted in, such as "s" or "px"; "" where they have none.
        values: which ones there can be, such as "-1 to 1".
        is_needed: whether every row has one.
    """
    told = {DESCRIPTION: description, UNIT: unit, RANGE: values}
    return pa.field(name, kind, nullable=not is_needed, metadata={key: text for key, text in told.items() if text})


def told_of(field: pa.Field) -> dict[str, str]:
    """Description, unit and range of a field, as far as it tells; nothing of one that an older writer made."""
    metadata = {key.decode(): text.decode() for key, text in (field.metadata or {}).items()}
    return {key: metadata[key] for key in (DESCRIPTION, UNIT, RANGE) if key in metadata}


def with_descriptions(schema: pa.Schema, known: pa.Schema) -> pa.Schema:
    """A schema whose columns tell what those of the same name in another one tell; others stay as they are."""
    fields = [
        field.with_metadata(known.field(field.name).metadata) if field.name in known.names else field
        for field in schema
    ]
    return pa.schema(fields, schema.metadata)


def columns_table(schema: pa.Schema) -> list[dict[str, str]]:
    """What there is to tell of each column of a table, in order."""
    return [
        {
            "column": field.name,
            "type": str(field.type),
            "null": "" if not field.nullable else "may be",
            **{key: told_of(field).get(key, "") for key in (UNIT, RANGE, DESCRIPTION)},
        }
        for field in schema
    ]


def columns_markdown(tables: Mapping[str, pa.Schema]) -> str:
    """A section for each table, by its heading."""
    sections = []
    for heading, schema in tables.items():
        rows = columns_table(schema)
        lines = [f"| {' | '.join(rows[0])} |", f"|{' --- |' * len(rows[0])}"]
        for row in rows:
            cells = [f"`{row['column']}`", *(text.replace("|", "\\|") for text in list(row.values())[1:])]
            lines.append(f"| {' | '.join(cells)} |")
        sections.append(f"## {heading}\n\n" + "\n".join(lines))
    return "\n\n".join(sections)
