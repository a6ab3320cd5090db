"""Every column says what it holds: in Python, in Parquet files, in what is exported, and in the documentation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsap_archive import IMAGES_SCHEMA, MEASUREMENT_SCHEMA, ROW_SCHEMA, open_archive, to_parquet
from lsap_archive.commands.columns import SCHEMAS, as_markdown
from lsap_archive.commands.command import main
from lsap_archive.format.columns import told_of
from lsap_archive.format.rows import from_parquet

PAGE = Path(__file__).parents[3] / "docs" / "columns.md"


def without_descriptions(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.remove_metadata() for field in schema])


def test_the_page_of_the_documentation_is_what_the_command_prints() -> None:
    assert PAGE.read_text() == as_markdown() + "\n", "lsap-archive columns --markdown > docs/columns.md"


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_is_described_in_words_of_its_own(name: str) -> None:
    told = [told_of(field) for field in SCHEMAS[name]]
    assert all(len(one["description"]) > 5 and not one["description"].endswith(".") for one in told)
    described = [one["description"] for one in told]
    assert len(set(described)) == len(described) - ("width" in SCHEMAS[name].names)  # as is height


def test_files_of_an_archive_tell_what_their_columns_hold(
    published: Callable[[Any], Any], local_place: Any, tmp_path: Path
) -> None:
    published(local_place)
    for name, schema in (("rows/shard-00000.parquet", ROW_SCHEMA), ("images.parquet", IMAGES_SCHEMA)):
        found = pq.read_schema(f"{local_place.url}/runs/run-1/{name}")
        assert found.equals(schema, check_metadata=True)
    assert told_of(found.field("row"))["range"] == "from 0"
    rows = open_archive(local_place.url).rows(["seconds"])
    assert told_of(rows.schema.field("seconds"))["unit"] == "s"


@pytest.mark.parametrize("table", ["latest", "rows", "measurements"])
def test_an_exported_table_keeps_the_descriptions(
    table: str, published: Callable[[Any], Any], local_place: Any, tmp_path: Path
) -> None:
    published(local_place)
    out = tmp_path / "out.parquet"
    assert main(["export", local_place.url, str(out), "--table", table]) == 0
    found, known = pq.read_schema(out), MEASUREMENT_SCHEMA if table == "measurements" else ROW_SCHEMA
    assert found.names == known.names
    assert all(told_of(field) == told_of(known.field(field.name)) for field in found)
    assert main(["export", local_place.url, str(out), "--sql", "select 1000 * seconds as seconds from rows"]) == 0
    assert told_of(pq.read_schema(out).field("seconds")) == {}  # milliseconds, say


def test_what_was_written_without_descriptions_is_read_as_what_was_written_with_them() -> None:
    rows = {"evaluation_id": "e", "row": 1, "image_id": "a", "method": "m", "measure": "mse", "value": 0.5, "shard": 0}
    bare = pa.Table.from_pylist([rows], without_descriptions(MEASUREMENT_SCHEMA))
    found = from_parquet(to_parquet(bare, {"note": "kept"}), MEASUREMENT_SCHEMA, "x")
    assert found.equals(pa.Table.from_pylist([rows], MEASUREMENT_SCHEMA), check_metadata=True)


def test_columns_are_told_to_people_and_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["columns", "rows", "--json"]) == 0
    told = {one["column"]: one for one in json.loads(capsys.readouterr().out)["rows"]}
    assert list(told) == ROW_SCHEMA.names and told["seconds"]["unit"] == "s"
    assert main(["columns"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert {f"{name}:" for name in SCHEMAS} <= set(shown)
