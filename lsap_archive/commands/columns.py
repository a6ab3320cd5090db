"""`lsap-archive columns`: what the columns of an archive's tables hold; `--markdown` prints docs/columns.md."""

from __future__ import annotations

from lsap_archive.format.columns import columns_markdown
from lsap_archive.format.measurements import MEASUREMENT_SCHEMA
from lsap_archive.format.published_list import LISTED_MEASUREMENTS, LISTED_ROWS
from lsap_archive.format.rows import IMAGES_SCHEMA, ROW_SCHEMA
from lsap_archive.reading.sets import SET_SCHEMA

SCHEMAS = {
    "rows": ROW_SCHEMA,
    "measurements": MEASUREMENT_SCHEMA,
    "set_numbers": SET_SCHEMA,
    "images": IMAGES_SCHEMA,
    "published-rows": LISTED_ROWS,
    "published-measurements": LISTED_MEASUREMENTS,
}
"""By name of the table; `images` is the plan of a run, its images.parquet; the last two are lists in `published/`."""

OF_TABLE = {"latest": ROW_SCHEMA, "history": ROW_SCHEMA, "all_measurements": MEASUREMENT_SCHEMA, **SCHEMAS}
"""What the tables of SQL consist of, as far as they have these columns."""

HEADING = """\
# Columns

Made by `lsap-archive columns --markdown` of the schemas that the tables are written in. Every Parquet file tells the
same in the metadata of its fields: `pyarrow.parquet.read_schema(file).field("sncd").metadata`. Those of older versions
have neither these nor the columns that were added since, which are read as null."""


def as_markdown() -> str:
    """The page of the documentation."""
    return f"{HEADING}\n\n{columns_markdown(SCHEMAS)}"
