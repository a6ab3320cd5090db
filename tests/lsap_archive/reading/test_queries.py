"""SQL over an archive: which rows its tables have, what a query may do, and that it reads what it names."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lsap_archive import (
    ROW_SCHEMA,
    Archive,
    CorruptArchiveError,
    EvaluationPlan,
    PlannedRow,
    QueryError,
    Subject,
    code_arrays,
    open_archive,
)
from lsap_archive.reading import row_columns
from lsap_archive.reading.queries import TABLES

SEVERAL = ["lpips", "lpips", "mse", "attribute"]
BY = ["alex", "vgg", None, "slant"]


def planned(names: str, digest: str = "1") -> tuple[PlannedRow, ...]:
    return tuple(PlannedRow(row, name, f"/{name}.png", digest) for row, name in enumerate(names))


def measure(place: Any, name: str, subject: dict[str, str], rows: int) -> None:
    """Each measure of SEVERAL, of every row; by alex it is the row's number, by vgg ten more."""
    evaluation = place.writer().start_evaluation(
        EvaluationPlan(name, subject, "lsap_o", None, None, {"networks": ["alex", "vgg"]}, {}, rows, rows)
    )
    of_each = [
        {"row": row, "image_id": "ab"[row], "measure": measure, "by": by, "value": row + 10.0 * number}
        for row in range(rows)
        for number, (measure, by) in enumerate(zip(SEVERAL, BY, strict=True))
    ]
    assert evaluation.write_shard(0, pa.Table.from_pylist(of_each)) and evaluation.publish({"note": name})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.lsap_archive.conftest import Place

    return Place(str(tmp_path_factory.mktemp("queries") / "archive"))


@pytest.fixture(scope="module")
def archive(place: Any) -> Archive:
    """Image a twice: its newest row is in run-2. Both runs are measured by two networks, and synthetic images."""
    from tests.lsap_archive.conftest import GEOMETRY, Work

    work = Work(shard_rows=2)
    for number, (run_id, names) in enumerate((("run-1", "ab"), ("run-2", "a"))):
        config = {"settings": {"lr": 0.5 * number, "names": ["é"]}}
        run = place.writer().start_run(work.plan(run_id, rows=planned(names, f"{number}"), config=config))
        work.write_all(run, seed=number)
        assert run.publish({"note": run_id})
    subject = Subject("run-2", "lsap_o", "4a44dc15", "slant", 2.0)
    changes = {"method": "lsap_o/slant", "method_digest": "ed17", "subject": subject, "arrays": code_arrays(GEOMETRY)}
    edit = place.writer().start_run(work.plan("edit-1", rows=planned("a", "1"), **changes))
    arrays = {"w_plus": np.zeros((1, 2, 3), np.float32)}
    assert edit.write_shard(0, arrays, pa.table({"status": ["failed"], "reason": ["no_face"]}), "first")
    assert edit.publish({})
    measure(place, "of-1", {"run_id": "run-1"}, 2)
    measure(place, "again", {"run_id": "run-1"}, 2)
    measure(place, "synthetic", {"network": "tiny"}, 1)
    return open_archive(place.url)


def test_the_newest_row_of_each_method_and_image_and_all_of_them(archive: Archive) -> None:
    newest = [("run-1", "b"), ("run-2", "a"), ("edit-1", "a")]
    for query in ("from latest", "from rows"):
        rows = archive.sql(f"select run_id, image_id {query}").to_pylist()
        assert [tuple(row.values()) for row in rows] == newest
    history = archive.sql("select run_id, image_id from history")
    assert [tuple(row.values()) for row in history.to_pylist()] == [("run-1", "a"), *newest]
    assert archive.rows(["run_id", "image_id"]).to_pylist() == rows
    assert archive.rows(["run_id", "image_id"], history=True).to_pylist() == history.to_pylist()
    assert archive.rows().schema.equals(ROW_SCHEMA)


def test_measurements_are_of_the_newest_rows(archive: Archive) -> None:
    """Of image a only an older row was measured; of b it was twice."""
    query = """select evaluation_id, image_id, count(*) as n from {} group by all order by all"""
    latest = [("again", "b", 4), ("synthetic", "a", 4)]
    assert [tuple(row.values()) for row in archive.sql(query.format("measurements")).to_pylist()] == latest
    every = [tuple(row.values()) for row in archive.sql(query.format("all_measurements")).to_pylist()]
    assert every == [("again", "a", 4), ("again", "b", 4), ("of-1", "a", 4), ("of-1", "b", 4), ("synthetic", "a", 4)]
    assert archive.measurements(["image_id"]).num_rows == 8
    assert archive.measurements(["image_id"], evaluations=["of-1"]).num_rows == 8


def test_runs_and_evaluations_have_dates_and_settings(archive: Archive) -> None:
    runs = archive.sql(
        "select number, run_id, method, created, num_rows, num_ok, num_failed, num_duplicate, subject_run_id, edit, "
        "strength, config->>'$.settings.lr' as lr, config->'$.settings.names'->>0 as name, summary->>'note' as note "
        "from runs order by number"
    ).to_pylist()
    created = [datetime.fromisoformat(run.created) for run in archive.runs]
    assert [run.pop("created") for run in runs] == created and created[0].tzinfo == UTC
    none = {"subject_run_id": None, "edit": None, "strength": None}
    inverted = {"method": "lsap_o", "num_failed": 0, "num_duplicate": 0, "name": "é", **none}
    assert runs[:2] == [
        {"number": 0, "run_id": "run-1", "num_rows": 2, "num_ok": 2, "lr": "0.0", "note": "run-1", **inverted},
        {"number": 1, "run_id": "run-2", "num_rows": 1, "num_ok": 1, "lr": "0.5", "note": "run-2", **inverted},
    ]
    assert (runs[2]["subject_run_id"], runs[2]["edit"], runs[2]["strength"]) == ("run-2", "slant", 2.0)
    assert (runs[2]["num_ok"], runs[2]["num_failed"]) == (0, 1)
    days = archive.sql("select count(*) as n from runs where created > now() - interval 1 day")
    assert days.to_pylist() == [{"n": 3}]
    found = archive.sql(
        'select evaluation_id, run_id, num_measurements, measures, "by" from evaluations order by number'
    )
    assert found.to_pylist()[0] == {
        "evaluation_id": "of-1",
        "run_id": "run-1",
        "num_measurements": 8,
        "measures": ["attribute", "lpips", "mse"],
        "by": ["alex", "slant", "vgg"],
    }
    assert found.column("run_id").to_pylist() == ["run-1", "run-1", None]


def test_no_other_table_can_be_named(archive: Archive) -> None:
    for query in ("show tables", "select table_name from information_schema.tables"):
        assert sorted(archive.sql(query).column(0).to_pylist()) == sorted(TABLES)
    assert archive.sql("select * from duckdb_tables()").num_rows == 0
    views = archive.sql("select view_name from duckdb_views() where not internal").column(0).to_pylist()
    assert sorted(views) == sorted(TABLES)
    for name in ("places", "methods", "twice", "empty", "placed", "is_newest"):
        with pytest.raises(QueryError):
            archive.sql(f"select * from {name}")
    with pytest.raises(QueryError):
        archive.sql("select is_newest from latest")


@pytest.mark.parametrize(
    "query",
    [
        "create table mine as select 1",
        "create or replace view latest as select 1 as run_id",
        "drop view latest",
        "insert into latest select * from latest",
        "delete from history",
        "copy latest to '{folder}/rows.csv'",
        "attach '{folder}/other.db'",
        "set threads = 1",
        "set global TimeZone = 'Asia/Tokyo'",
        "set memory_limit = '1GB'",
        "pragma memory_limit = '1GB'",
        "begin; drop view latest; commit",
        "commit",
        "install httpfs",
        "call enable_logging()",
        "explain analyze copy latest to '{folder}/rows.csv'",
        "prepare mine as select 1",
        "select 1; select 2",
        "pivot latest on status using count(*)",
        "select * from query('select avg(value) from ' || 'measurements')",
        "from query_table('latest')",
    ],
)
def test_a_query_changes_nothing(archive: Archive, tmp_path: Path, query: str) -> None:
    before = archive.sql("select * from history")
    with pytest.raises(QueryError, match="refused"):
        archive.sql(query.replace("{folder}", str(tmp_path)))
    with pytest.raises(QueryError, match="refused"), archive.sql_batches(query.replace("{folder}", str(tmp_path))):
        pass
    assert archive.sql("select * from history").equals(before) and not list(tmp_path.iterdir())
    assert sorted(archive.sql("show tables").column(0).to_pylist()) == sorted(TABLES)
    assert archive.sql("select current_setting('TimeZone') as zone").to_pylist() == [{"zone": "UTC"}]


@pytest.mark.parametrize(
    "query", ["from '{file}'", "from read_csv('{file}')", "select content from read_text('{file}')"]
)
def test_a_query_reads_the_archive_alone(archive: Archive, tmp_path: Path, query: str) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with pytest.raises(QueryError, match="refused"):
        archive.sql(query.replace("{file}", str(tmp_path / "secret.csv")))


@pytest.mark.parametrize(
    "query",
    [
        "select * from latest order by row",
        "from latest",
        "select columns('run_.*') from latest",
        "select l.image_id from latest l natural join history",
        "select l from latest as l",
        "select a from latest as l(a)",
        "select count(*) as n from (select distinct * from latest)",
        "summarize latest",
        "describe latest",
        "select try(columns('mse')) from latest",
        "select try(l) as row_or_null from latest as l",
        "pivot latest on status in ('ok') using count(*) group by method",
        "explain select * from latest",
        "select run_id from history union all by name select * from latest",
        'select "MSE", Status from LATEST',
        "select case when mse > 100 then sncd end as sncd from latest",
    ],
)
def test_a_query_that_is_the_first_finds_all_it_reads(archive: Archive, query: str) -> None:
    """Whichever columns were read before: of an archive that was opened just now, and of one that has read all."""
    archive.sql("select * from latest")
    expected = archive.sql(query).to_pydict()
    assert str(open_archive(archive.url).sql(query).to_pydict()) == str(expected)
    with open_archive(archive.url).sql_batches(query) as batches:
        assert str(batches.read_all().to_pydict()) == str(expected)


def test_only_columns_that_are_named_are_read(archive: Archive) -> None:
    other = open_archive(archive.url)
    assert other.sql("select avg(mse) as mse from latest where method = 'lsap_o'").to_pylist() == [{"mse": 0.5}]
    assert other._runs.rows.read_columns == {"mse", "method", "image_id"}  # which tells what is the newest
    other.codes(["a"], "lsap_o")
    assert other._runs.rows.read_columns == {"mse", "method", "image_id", "status", "duplicate_of"}


def test_a_query_that_would_mix_networks_is_refused_until_it_says_by(archive: Archive) -> None:
    query = "select avg(value) as mean from all_measurements where measure = $measure"
    with pytest.raises(QueryError, match=r"refused: lpips was measured by alex, vgg, .* where \"by\" = 'alex'"):
        archive.sql(query, measure="lpips")
    assert archive.sql(f"{query} and \"by\" = 'alex'", measure="lpips").to_pylist() == [{"mean": 0.4}]
    assert archive.sql(query, measure="mse").to_pylist() == [{"mean": 20.4}]
    with pytest.raises(QueryError, match="lpips"):
        archive.sql("explain select avg(value) from measurements")


def test_several_threads_ask_at_once(archive: Archive) -> None:
    columns = ["mse", "method", "status", "row", "uri", "digest", "shard", "num_steps"] * 3
    queries = [f"select run_id, {name} from history order by all" for name in columns]
    expected = [archive.sql(query) for query in queries]
    other = open_archive(archive.url)

    def ask(query: str) -> pa.Table:
        with other.sql_batches(query) as batches:
            own = batches.read_all()
        assert own.equals(other.sql(query)) and other.sql("select count(*) as n from runs").to_pylist() == [{"n": 3}]
        return own

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, queries)) == expected


def many_files(place: Any, work: Any, number: int = 40) -> Any:
    run = place.writer().start_run(type(work)(num_images=number, shard_rows=1).plan("many"))
    for shard in range(run.num_shards):
        assert work.write(run, shard, seed=shard)
    assert run.publish({})
    return run


@pytest.mark.parametrize("name", ["plain", "it's [a] *"])
def test_many_files_are_read_as_few_are(tmp_path: Path, work: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the folder's name looks like a pattern, and what does not fit into memory."""
    from tests.lsap_archive.conftest import Place

    place = Place(str(tmp_path / name))
    many_files(place, work)
    found = open_archive(place.url).rows()
    assert found.column("image_id").to_pylist() == [f"image-{row}" for row in range(40)]
    assert found.column("mse").to_pylist() == [float(row) for row in range(40)]
    assert found.column("row").to_pylist() == list(range(40)) and found.schema.equals(ROW_SCHEMA)
    monkeypatch.setattr(row_columns, "_FEW_FILES", 1000)
    assert open_archive(place.url).rows().equals(found)
    monkeypatch.setattr(row_columns, "KEPT_IN_MEMORY", 1000)
    monkeypatch.setattr(row_columns, "_FILES_TOGETHER", 7)
    monkeypatch.setattr(row_columns.tempfile, "tempdir", str(tmp_path))
    archive = open_archive(place.url)
    assert archive.rows().equals(found)
    assert archive.sql("select sum(mse) as sum from latest").to_pylist() == [{"sum": sum(range(40))}]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_parts_that_are_read_at_once_come_in_order(
    local_place: Any, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first takes longest; and several are read at a time."""
    many_files(local_place, work)
    monkeypatch.setattr(row_columns, "_FILES_TOGETHER", 7)
    real, both = row_columns.RowColumns._by_database, threading.Barrier(2, timeout=30)

    def slow(self: Any, database: Any, files: Any, names: Any) -> pa.Table:
        first = files[0].rows.start
        if first in (0, 7):
            both.wait()
        if first == 0:
            time.sleep(0.2)
        return real(self, database, files, names)

    monkeypatch.setattr(row_columns.RowColumns, "_by_database", slow)
    found = open_archive(local_place.url).sql("select image_id, mse from latest")
    assert found.column("image_id").to_pylist() == [f"image-{row}" for row in range(40)]
    assert found.column("mse").to_pylist() == [float(row) for row in range(40)]


@pytest.mark.parametrize("together", [256, 7])
@pytest.mark.parametrize("is_sound", [False, True])
def test_one_wrong_file_of_many_is_noticed(
    local_place: Any, work: Any, is_sound: bool, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged, or that of another shard, of which nothing but its digest tells."""
    many_files(local_place, work)
    monkeypatch.setattr(row_columns, "_FILES_TOGETHER", together)
    path = Path(local_place.url) / "runs/many/rows/shard-00017.parquet"
    data = bytearray(path.with_name("shard-00016.parquet").read_bytes() if is_sound else path.read_bytes())
    data[len(data) // 2] ^= not is_sound
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptArchiveError, match="shard-00017"):
        open_archive(local_place.url).sql("select count(*) from latest")


def test_columns_that_older_files_lack_are_null(local_place: Any, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a run that a newer version finished, some files have a column and others do not."""
    from lsap_archive.format import rows as rows_module
    from lsap_archive.writing import run_writer

    older = local_place.writer().start_run(type(work)(num_images=40, shard_rows=1).plan("old"))
    real = run_writer.to_parquet
    for shard in range(40):
        drop = ["noise"] if shard < 30 else []
        monkeypatch.setattr(run_writer, "to_parquet", lambda table, drop=drop: real(table.drop_columns(drop)))
        noise = pa.table({"status": ["ok"], "noise": ["float32"]})
        assert older.write_shard(shard, work.arrays(older, shard), noise, "first")
    monkeypatch.undo()
    assert older.publish({}) and rows_module.SCHEMA_VERSION
    found = open_archive(local_place.url).sql("select noise, count(*) as n from latest group by all order by all")
    assert found.to_pylist() == [{"noise": "float32", "n": 10}, {"noise": None, "n": 30}]
