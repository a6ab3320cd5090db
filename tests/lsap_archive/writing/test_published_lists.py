"""What other readers go by is what readers of this package see, whoever publishes, retires, is killed or late."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from lsap_archive import (
    MEASUREMENT_SCHEMA,
    ROW_SCHEMA,
    ArchiveKeyError,
    ArchiveMismatchError,
    EvaluationPlan,
    Overlaps,
    PlannedRow,
    RunWriter,
    Store,
    Subject,
    code_arrays,
    duckdb_view,
    open_archive,
    repair_archive,
    to_parquet,
    verify_archive,
)
from lsap_archive.format.manifest import Manifest
from lsap_archive.writing.publication import Publication
from lsap_archive.writing.published_lists import keep_published_lists, stale_lists

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "archive_format.md"
TABLES = ("latest", "measurements", "all_measurements")


def images(*numbers: int, content: str = "a") -> tuple[PlannedRow, ...]:
    return tuple(
        PlannedRow(row, f"image-{number}", f"file:///{number}.png", f"{content}{number}")
        for row, number in enumerate(numbers)
    )


def start(place: Any, work: Any, run_id: str, rows: tuple[PlannedRow, ...], **changes: Any) -> RunWriter:
    arrays = code_arrays(place.writer().geometry)
    run: RunWriter = place.writer().start_run(work.plan(run_id, rows=rows, arrays=arrays, **changes))
    return run


def measure(place: Any, name: str, run_id: str, measures: tuple[str, ...], num_rows: int, value: float) -> None:
    method = run_id if run_id == "edit" else "lsap_o"
    plan = EvaluationPlan(name, {"run_id": run_id}, method, None, None, {}, {}, num_rows, 2)
    evaluation = place.writer().start_evaluation(plan)
    for shard in range(plan.num_shards):
        rows = [row for row in evaluation.rows_of(shard) for _ in measures]
        measured = {"row": rows, "image_id": [f"x{row}" for row in rows]}
        measured["measure"] = list(measures) * len(evaluation.rows_of(shard))
        evaluation.write_shard(shard, pa.table({**measured, "by": [None] * len(rows), "value": [value] * len(rows)}))
    assert evaluation.publish({})


def build(place: Any, work: Any) -> None:
    """Two generations, a retired shard, a row there twice, the copy of a failed image, an edit, a run under way."""
    first = start(place, work, "first", images(0, 1, 2, 3, 4))
    failed = pa.table(
        {
            "status": ["failed", "duplicate"],
            "reason": ["truncated", None],
            "message": ["it ends", None],
            "duplicate_of": [None, "image-0"],
        }
    )
    assert first.write_shard(0, work.arrays(first, 0), failed, "one")
    for shard in (1, 2):
        assert work.write(first, shard, 1)
    assert first.publish({})
    second = start(place, work, "second", images(5, 2, 6, 7))  # image 2 has the content that it has in first
    third = start(place, work, "third", images(3, 8, content="b"))  # image 3 has changed
    for seed, run in ((2, second), (3, third)):
        work.write_all(run, seed)
        run.show({})
    assert Overlaps.of_archive(place.store).settle(second) == ["1 rows of runs/second"]
    second.tidy()
    third.tidy()
    subject = Subject("first", "lsap_o", "4a44dc15", "slant", 1.0)
    edit = start(place, work, "edit", images(0, 1, 2, 3, 4), method="lsap_o/slant", method_digest="ed", subject=subject)
    for shard in range(3):
        table = pa.table({"status": ["ok"] * len(edit.rows_of(shard))})
        assert edit.write_shard(shard, work.arrays(edit, shard), table, "one")
    assert edit.publish({})
    measure(place, "old", "first", ("mse", "lpips"), 5, 1.0)
    measure(place, "new", "first", ("mse",), 5, 2.0)
    measure(place, "of-second", "second", ("mse",), 4, 3.0)
    measure(place, "of-edit", "edit", ("mse",), 5, 4.0)
    Publication(place.store, Manifest, "first").retire(["gone"], 2)  # image 4, in the edit and the measurements too
    keep_published_lists(place.store)
    under_way = start(place, work, "under-way", images(9, 0, content="c"), method="lsap_e", method_digest="e")
    assert work.write(under_way, 0, 9)


def as_of_version_3(place: Any) -> None:
    """Take away of a file of rows what older versions did not write."""
    path = Path(place.url) / "runs/third/rows/shard-00000.parquet"
    table = pq.read_table(path)
    path.write_bytes(to_parquet(table.drop_columns(["noise", "altered", "subject_run_id", "edit"])))


@dataclass(frozen=True)
class Whole:
    """Such an archive, below a path that SQL and patterns have words in, and what this package shows of it."""

    place: Any
    seen: dict[str, list[dict[str, Any]]]

    def listed(self, name: str) -> list[str]:
        files = pq.read_table(f"{self.place.url}/published/{name}.parquet").column("file").to_pylist()
        return [f"{self.place.url}/{file}" for file in files]


def build_whole(place: Any, work: Any) -> Whole:
    build(place, work)
    archive = open_archive(place.url)
    whole = Whole(place, {name: told(archive.sql(f"select * from {name}")) for name in TABLES})
    assert archive.files("rows") == whole.listed("rows")
    assert archive.files("measurements") == whole.listed("measurements")
    as_of_version_3(place)
    return whole


def told(table: pa.Table) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=lambda row: str(row))


def by_duckdb(url: str, table: str, connection: Any = None) -> pa.Table:
    with connection or duckdb.connect() as asked:
        asked.execute(duckdb_view(url, table))
        return asked.sql(f"from {table}").to_arrow_table()


def test_duckdb_alone_gives_what_readers_see(local_place: Any, work: Any, tmp_path: Path) -> None:
    whole = build_whole(type(local_place)(str(tmp_path / "it's an [archive] *" / "of b")), work)
    for table in TABLES:
        found = by_duckdb(whole.place.url, table)
        assert found.column_names == (ROW_SCHEMA if table == "latest" else MEASUREMENT_SCHEMA).names
        assert told(found) == whole.seen[table], table
    latest = {(row["method"], row["image_id"]): row for row in whole.seen["latest"]}
    assert latest["lsap_o", "image-1"]["status"] == "failed"  # so that these cases are there
    assert latest["lsap_o", "image-2"]["run_id"] == "first" and latest["lsap_o", "image-3"]["run_id"] == "third"
    assert ("lsap_o", "image-4") not in latest and ("lsap_o/slant", "image-4") not in latest
    assert len(whole.seen["measurements"]) == 4 + 4 + 3 + 4 == len(whole.seen["all_measurements"]) - 4


def test_other_readers_do_by_the_documentation(local_place: Any, work: Any) -> None:
    whole = build_whole(local_place, work)
    section = DOCUMENTATION.read_text().split("## For other readers")[1].split("\n## ")[0]
    sql, python = (
        text.replace("archives/digits", whole.place.url)
        for text in re.findall(r"```[a-z]+\n(.*?)```", section, re.DOTALL)
    )
    wanted = {(row["method"], row["image_id"], row["run_id"]) for row in whole.seen["latest"]}

    with duckdb.connect() as connection:
        answer = connection.execute(sql).fetchall()
        assert {row[0] for row in answer} == {row["method"] for row in whole.seen["latest"]}
        assert set(connection.sql("select method, image_id, run_id from latest").fetchall()) == wanted

    by_polars: dict[str, Any] = {}
    exec(python, by_polars)
    assert set(by_polars["latest"].select("method", "image_id", "run_id").rows()) == wanted

    files = whole.listed("rows")
    assert by_polars["files"] == files
    by_arrow, by_pandas = ds.dataset(files).to_table(), pd.read_parquet(files)
    assert by_arrow.schema.names == list(by_pandas.columns) == ROW_SCHEMA.names
    assert by_arrow.num_rows == len(by_pandas) == len(wanted) + 2  # one that is older, one that is left out


def test_other_tables_are_refused_by_name(local_place: Any, published: Callable[[Any], Any]) -> None:
    published(local_place)
    with pytest.raises(ArchiveKeyError, match="no files of 'runs': 'rows' and 'measurements'"):
        open_archive(local_place.url).files("runs")
    with pytest.raises(ArchiveMismatchError, match="'rows': one of latest, all_measurements, measurements"):
        duckdb_view(local_place.url, "rows")
    assert by_duckdb(local_place.url, "measurements").num_rows == 0  # nothing was measured, and that is no error


@pytest.mark.object_store
def test_duckdb_reads_an_object_store(s3_place: Any, published: Callable[[Any], Any]) -> None:
    """By way of fsspec: the extension that DuckDB itself would take has to be downloaded."""
    published(s3_place)
    connection = duckdb.connect()
    connection.register_filesystem(fsspec.filesystem("s3", **s3_place.options, use_listings_cache=False))
    assert by_duckdb(s3_place.url, "latest", connection).num_rows == 5


def test_nothing_is_written_where_nothing_has_changed(quick_place: Any, published: Callable[[Any], Any]) -> None:
    run, store = published(quick_place), quick_place.store
    before = {key: store.get(key) for key in store.keys("published")}
    assert len(before) == 7
    table = pq.read_table(pa.BufferReader(before["published/rows.parquet"]))
    other_bytes = pa.BufferOutputStream()
    pq.write_table(table, other_bytes, compression="none")  # as another version of the writer has it
    store.put("published/rows.parquet", other_bytes.getvalue().to_pybytes())
    assert keep_published_lists(store, anew=True) == []
    run.tidy()
    assert store.get("published/rows.parquet") == other_bytes.getvalue().to_pybytes()


def test_what_killed_commands_left_stale_is_made_up_for_by_the_next_one(quick_place: Any, work: Any) -> None:
    run = quick_place.writer().start_run(work.plan())
    work.write_all(run)
    assert run.show({})  # and is killed
    assert len(stale_lists(quick_place.store, anew=False)) == 7 and not run.is_tidy
    run.tidy()
    assert stale_lists(quick_place.store, anew=True) == {}
    Publication(quick_place.store, Manifest, "run-1").retire(["gone"], 0)  # and is killed again
    assert [problem.key for problem in verify_archive(quick_place.url).problems] == ["published/rows.parquet"]
    quick_place.writer().keep_published_lists()
    assert verify_archive(quick_place.url).is_sound


@pytest.mark.parametrize("key", ["rows.parquet", "measurements.parquet", "no_rows.parquet", "latest.sql"])
@pytest.mark.parametrize("damage", [None, b"torn"])
def test_damage_is_told_and_mended(
    key: str, damage: bytes | None, memory_place: Any, published: Callable[[Any], Any]
) -> None:
    published(memory_place)
    store, key = memory_place.store, f"published/{key}"
    before = store.get(key)
    store.delete(key) if damage is None else store.put(key, damage)
    assert [problem.key for problem in verify_archive(memory_place.url).problems] == [key]
    assert (
        repair_archive(memory_place.url, dry_run=True).restored == [key]
        and not verify_archive(memory_place.url).is_sound
    )
    assert repair_archive(memory_place.url).restored == [key]
    assert store.get(key) == before and verify_archive(memory_place.url).is_sound


def test_who_writes_last_leaves_lists_that_agree(memory_place: Any, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has looked and not yet written when another publishes and writes: what the first then writes is stale."""
    first = start(memory_place, work, "first", images(0, 1))
    second = start(memory_place, work, "second", images(2, 3))
    work.write_all(first)
    work.write_all(second, 1)
    put, under_way = Store.put, []

    def put_late(store: Store, key: str, data: bytes) -> None:
        if key == "published/rows.parquet" and not under_way:
            under_way.append(key)
            assert second.publish({})
        put(store, key, data)

    monkeypatch.setattr(Store, "put", put_late)
    assert first.publish({})
    assert stale_lists(memory_place.store, anew=True) == {}
    assert {row["run_id"] for row in by_pyarrow(memory_place)} == {None, "first", "second"}


def by_pyarrow(place: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(pa.BufferReader(place.store.get("published/rows.parquet"))).to_pylist()
    return found


def test_who_gives_up_what_somebody_publishes_meanwhile_takes_it_from_the_list(memory_place: Any, work: Any) -> None:
    run = start(memory_place, work, "first", images(0, 1))
    work.write_all(run)
    assert run.publish({})
    run.give_up("its images are elsewhere")
    assert [row["file"] for row in by_pyarrow(memory_place)] == ["published/no_rows.parquet"]


def test_manifests_are_read_once_and_damage_elsewhere_stops_nobody(memory_place: Any, work: Any) -> None:
    """The damaged run stays in the list as it was: `verify` tells of it, and readers of this package refuse it."""
    first, second = (start(memory_place, work, name, images(number)) for number, name in enumerate(("first", "second")))
    work.write_all(first)
    work.write_all(second)
    assert first.publish({})
    manifest = memory_place.store.get("runs/first/_manifest.json")
    memory_place.store.put("runs/first/_manifest.json", b"torn")
    assert second.publish({})
    assert {row["run_id"] for row in by_pyarrow(memory_place)} == {None, "first", "second"}
    memory_place.store.put("runs/first/_manifest.json", manifest)
    assert verify_archive(memory_place.url).is_sound


def test_a_run_in_the_place_of_one_that_somebody_removed_is_listed_as_it_is(memory_place: Any, work: Any) -> None:
    for content in "ab":
        run = start(memory_place, work, "first", images(0, 1, content=content))
        work.write_all(run)
        assert run.publish({})
        assert by_pyarrow(memory_place)[1]["age"].startswith(f"{'ab'.index(content) + 1:010d} ")
        memory_place.store.delete_folder("runs")
    start(memory_place, work, "second", images(0))
    keep_published_lists(memory_place.store)
    assert [row["run_id"] for row in by_pyarrow(memory_place)] == [None]
