"""Queries that come over the web reach the archive's tables and nothing else, change nothing, and end."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lsap_archive import Archive, QueryError
from lsap_archive.explorer.chosen import Chosen
from lsap_archive.explorer.selection import Selection
from lsap_archive.explorer.tables import Tables
from lsap_archive.reading.queries import TABLES

SECRET = "what no page may see"


@pytest.fixture(scope="module")
def tables(shown_archive: Archive) -> Tables:
    return Tables(shown_archive, seconds=1.0)


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_csv('{file}')",
        "select * from read_text('{file}')",
        "select * from read_blob('{file}')",
        "select * from read_json('{file}')",
        "select * from parquet_scan('{file}')",
        "select * from '{file}'",
        "select * from sniff_csv('{file}')",
        "select * from glob('{folder}/*')",
        "select * from query('from read_text(''{file}'')')",
        "select * from query_table('{file}')",
        "select * from duckdb_secrets()",
        "select getenv('HOME')",
        "select * from 'http://127.0.0.1:9/x.csv'",
        "select * from read_parquet('s3://bucket/x.parquet')",
        "with a as (insert into images select * from images returning image_id) select * from a",
        "attach '{folder}/new.db'",
        "copy images to '{folder}/new.csv'",
        "copy images from '{file}'",
        "export database '{folder}/new'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "set lock_configuration = false",
        "reset enable_external_access",
        "pragma enable_external_access",
        "call enable_logging(storage = 'file', storage_path = '{folder}/log')",
        "select * from enable_logging()",
        "create table mine as select 1",
        "create or replace view latest as select 1",
        "create macro lower(x) as 'no'",
        "drop table images",
        "delete from images",
        "begin transaction",
        "commit",
        "explain analyze select 1",
        "select 1; select 2",
        "prepare mine as select 1",
        "",
        "select '\0'",
    ],
)
def test_no_query_leads_out_of_the_tables(tables: Tables, tmp_path: Path, query: str) -> None:
    file = tmp_path / "secret.csv"
    file.write_text(SECRET)
    with pytest.raises(QueryError) as refused:
        tables.ask(query.replace("{file}", str(file)).replace("{folder}", str(tmp_path)))
    assert SECRET not in str(refused.value)
    assert [one.name for one in tmp_path.iterdir()] == ["secret.csv"]
    assert tables.ask("select count(*) as number from latest").to_pylist() == [{"number": 2400}]


def test_the_database_is_bounded_and_locked(tables: Tables) -> None:
    names = ("enable_external_access", "lock_configuration", "max_temp_directory_size", "memory_limit")
    found = tables.ask(f"select name, value from duckdb_settings() where name in {names} order by name").to_pylist()
    assert [one["value"] for one in found] == ["false", "true", "3.7 GiB", "953.6 MiB"]


@pytest.mark.parametrize("table", TABLES)
def test_the_tables_of_the_archive_are_there(tables: Tables, shown_archive: Archive, table: str) -> None:
    found = tables.ask(f"select count(*) as number from {table}").to_pylist()
    assert found == shown_archive.sql(f"select count(*) as number from {table}").to_pylist()


def test_networks_are_not_mixed_unseen(tables: Tables) -> None:
    """As the reader has it, so that what is downloaded as SQL runs there as well."""
    with pytest.raises(QueryError, match=r"identity was measured by Faces, faces, .* add where \"by\""):
        tables.columns_of("select image_id from measurements where measure = 'identity' and value < 0.3")
    named = "select image_id from images join measurements using (image_id) where \"by\" = 'faces' and value < 0.3"
    assert tables.columns_of(named) == ["image_id"]


def test_a_query_without_end_is_ended_and_others_are_answered(tables: Tables) -> None:
    endless = "select count(*) from range(10000000) a, range(10000000) b where a.range * b.range % 7 = 3"
    started = time.monotonic()
    with ThreadPoolExecutor() as threads:
        slow = [threads.submit(tables.ask, endless) for _ in range(2)]
        assert tables.ask("select 1 as one").to_pylist() == [{"one": 1}]
        for one in slow:
            with pytest.raises(QueryError, match="longer than 1 seconds and was ended"):
                one.result()
    assert time.monotonic() - started < 20


def test_threads_ask_at_once(tables: Tables) -> None:
    def ask(number: int) -> int:
        found = tables.ask(f"select count(*) + {number} as number from images where mse > 0 or mse is null")
        return int(found.column("number")[0].as_py())

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(64))) == [2400 + number for number in range(64)]


def test_a_condition_that_leaves_its_bracket_makes_no_more_of_what_there_is(
    shown_archive: Archive, tables: Tables
) -> None:
    """What a link asks for is bounded by the archive, whatever SQL is in it."""
    condition = "true) union all by name (select images.* from images, range(1000000000000)"
    found = Chosen(Tables(shown_archive, seconds=10)).places(Selection("lsap_e", condition=f"{condition} limit 99999"))
    assert len(found) == tables.num_rows == 2400
    with pytest.raises(QueryError, match=r"was ended|Out of Memory"):
        Chosen(tables).places(Selection("lsap_e", condition=condition))
