"""The rows and codes of an archive as others keep them, and the same questions asked there.

- *LanceDB*: one table of all columns of the newest rows, with codes as vectors. SQL over it is DuckDB's, as its
  documentation has it; ids have a scalar index, which is its way to find a row by them.
- *numpy*: what a notebook would do. Rows are columns in memory, codes one float32 array in memory, and a dictionary
  leads from ids to both.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import lance
import lancedb
import numpy as np
import pyarrow as pa
from archive_questions import (
    AGGREGATE,
    BINS,
    HIGH,
    NEAREST,
    PAGE,
    SORTED_BY,
    TEXT,
    WORST,
    Questions,
    aggregated,
    listed,
    low,
    middle,
    target,
)
from lancedb.index import BTree, IvfPq
from plausible_archive import GEOMETRY, asked_for

from lsap_archive import open_archive

SIZE = GEOMETRY.num_ws * GEOMETRY.w_dim
SHAPE = (GEOMETRY.num_ws, GEOMETRY.w_dim)
INDEXED_UP_TO = 100_000  # LanceDB's index of so many codes takes a minute or two
_PROBES, _REFINED = 32, 50
_COLUMNS = ("image_id", "method", "status", "lpips", "sncd", "mse", "seconds")


def folder_of(url: str) -> Path:
    """Where the others keep what an archive has."""
    return Path(f"{url}-peers")


def _parts(url: str) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Newest rows and codes [n, K x D] of each run; codes of images that are not ok are left to whoever reads them."""
    archive = open_archive(url)
    for run in archive.runs:
        rows = archive.sql("select * from latest where run_id = $run order by row", run=run.run_id)
        codes = archive.array(run.run_id, "w_plus")[:].reshape(-1, SIZE)
        yield rows, codes[rows.column("row").to_numpy()]


def _is_ok(rows: pa.Table) -> np.ndarray:
    return np.array(rows.column("status").to_pylist()) == "ok"


# --- LanceDB -------------------------------------------------------------------------------------------


def write_lancedb(url: str, num_rows: int) -> dict[str, float]:
    """Write the table and its indexes; seconds of each."""
    parts = _parts(url)
    first = next(parts)

    def batches() -> Iterator[pa.RecordBatch]:
        for rows, codes in (first, *parts):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), SIZE, mask=pa.array(~_is_ok(rows)))
            yield from rows.append_column("w_plus", vectors).to_batches()

    schema = first[0].schema.append(pa.field("w_plus", pa.list_(pa.float32(), SIZE)))
    started = time.perf_counter()
    reader = pa.RecordBatchReader.from_batches(schema, batches())
    lance.write_dataset(reader, folder_of(url) / "rows.lance")  # LanceDB itself takes no row without a vector
    table = _table(url)
    seconds = {"table": time.perf_counter() - started}
    started = time.perf_counter()
    table.create_index("image_id", config=BTree())
    seconds["index of ids"] = time.perf_counter() - started
    if num_rows <= INDEXED_UP_TO:
        started = time.perf_counter()
        partitions = max(round(num_rows**0.5) // 2, 1)
        index = IvfPq("l2", num_partitions=partitions, num_sub_vectors=SIZE // 8)
        table.create_index("w_plus", config=index)
        seconds["index of codes"] = time.perf_counter() - started
    return seconds


def _table(url: str) -> Any:
    return lancedb.connect(folder_of(url)).open_table("rows")


def _sql(url: str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.register("latest", _table(url).to_lance())
    return connection


def lancedb_sql(url: str, num_rows: int) -> Questions:
    """Questions over all rows."""
    connection = _sql(url)
    return {
        "aggregate": lambda number: aggregated(connection.sql(AGGREGATE).to_arrow_table()),
        "worst 10": lambda number: listed(connection.sql(WORST).to_arrow_table()),
    }


def lancedb_codes(url: str, num_rows: int) -> Questions:
    """Codes of images by the index of ids."""
    table = _table(url)

    def codes(number: int) -> np.ndarray:
        ids = asked_for(num_rows, number)
        where = f"image_id in ({', '.join(repr(one) for one in ids)})"
        found = table.search().where(where).select(["image_id", "w_plus"]).limit(len(ids)).to_arrow()
        at = {image_id: place for place, image_id in enumerate(found.column("image_id").to_pylist())}
        vectors = found.column("w_plus").combine_chunks().flatten().to_numpy().reshape(-1, *SHAPE)
        return np.asarray(vectors[[at[image_id] for image_id in ids]])

    return {"codes of 64": codes}


def lancedb_nearest(url: str, num_rows: int) -> Questions:
    """The nearest codes, by comparing all, and by the index where there is one."""
    table = _table(url)

    def ids(search: Any) -> list[str]:
        found: list[str] = search.select(["image_id", "_distance"]).limit(NEAREST).to_arrow().column(0).to_pylist()
        return found

    def search(number: int) -> Any:
        return table.search(target(number).ravel(), vector_column_name="w_plus")

    questions: Questions = {"nearest 10": lambda number: ids(search(number).bypass_vector_index())}
    if num_rows <= INDEXED_UP_TO:
        questions["nearest 10 by index"] = lambda number: ids(search(number).nprobes(_PROBES).refine_factor(_REFINED))
    return questions


def lancedb_pages(url: str, num_rows: int) -> Questions:
    """What the explorer shows, by SQL."""
    connection = _sql(url)

    def rows(query: str) -> list[tuple[Any, ...]]:
        return connection.sql(query).fetchall()

    def all_sorted(number: int) -> dict[str, Any]:
        column, order = SORTED_BY[number % len(SORTED_BY)]
        ((total,),) = rows("select count(*) from latest")
        query = f"select image_id, {column} from latest order by {column} {order} nulls last, image_id limit {PAGE}"
        return {"total": total, "rows": rows(query)}

    def page(number: int) -> dict[str, Any]:
        ((total,),) = rows("select count(*) from latest")
        query = "select image_id, lpips, sncd from latest order by lpips desc nulls last, image_id"
        return {"total": total, "rows": rows(f"{query} limit {PAGE} offset {middle(num_rows, number)}")}

    def histogram(number: int) -> dict[str, Any]:
        column, _ = SORTED_BY[number % len(SORTED_BY)]
        ((least, most, missing),) = rows(
            f"select min({column})::double, max({column})::double, count(*) - count({column}) from latest"
        )
        place = f"least(floor(({column}::double - {least!r}) / ({most!r} - {least!r}) * {BINS}), {BINS - 1})::int"
        counts = [0] * BINS
        for found, count in rows(f"select {place}, count(*) from latest where {column} is not null group by all"):
            counts[found] = count
        return {"low": least, "high": most, "missing": missing, "counts": counts}

    def filtered(number: int) -> dict[str, Any]:
        where = f"lpips between {low(number)!r} and {HIGH!r} and contains(lower(image_id), '{TEXT}')"
        query = f"from latest where {where}"
        ((total,),) = rows(f"select count(*) {query}")
        return {
            "total": total,
            "rows": rows(f"select image_id, lpips {query} order by lpips desc, image_id limit {PAGE}"),
        }

    return {
        "all, worst first": all_sorted,
        "200 in the middle": page,
        "histogram": histogram,
        "filter": filtered,
    }


# --- numpy ---------------------------------------------------------------------------------------------


def write_numpy(url: str, num_rows: int) -> dict[str, float]:
    """Write columns of the rows, and codes, as .npy files; seconds of all."""
    started = time.perf_counter()
    folder = folder_of(url)
    folder.mkdir(exist_ok=True)
    tables = []
    with (folder / "codes.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, SIZE)}
        np.lib.format.write_array_header_1_0(file, header)
        for rows, codes in _parts(url):
            tables.append(rows.select(_COLUMNS))
            file.write(np.where(_is_ok(rows)[:, None], codes, np.float32(np.nan)).tobytes())
    for name, column in zip(_COLUMNS, pa.concat_tables(tables).columns, strict=True):
        values = column.to_numpy()
        np.save(folder / f"{name}.npy", values if values.dtype.kind == "f" else values.astype(np.str_))
    return {"files": time.perf_counter() - started}


def _columns(url: str, *names: str) -> list[np.ndarray]:
    return [np.load(folder_of(url) / f"{name}.npy", allow_pickle=False) for name in names]


def _first_of(values: np.ndarray, count: int, order: str = "desc") -> np.ndarray:
    """The first of an order, what is missing last; rows lie in the order of their ids."""
    return np.argsort(-values if order == "desc" else values, kind="stable")[:count]


def numpy_sql(url: str, num_rows: int) -> Questions:
    """Questions over all rows; they are read by the first."""
    kept: dict[str, Any] = {}

    def columns() -> dict[str, Any]:
        if not kept:
            kept.update(zip(_COLUMNS, _columns(url, *_COLUMNS), strict=True))
            kept["kinds"], kept["kind"] = np.unique(kept["status"], return_inverse=True)
        return kept

    def aggregate(number: int) -> list[tuple[Any, ...]]:
        rows = columns()
        counts = np.bincount(rows["kind"])
        means = []
        for name in ("lpips", "sncd"):
            is_there = ~np.isnan(rows[name])
            sums = np.bincount(rows["kind"][is_there], rows[name][is_there], len(counts))
            numbers = np.bincount(rows["kind"][is_there], minlength=len(counts))
            means.append(np.divide(sums, numbers, out=np.full(len(counts), np.nan), where=numbers > 0).tolist())
        method = str(rows["method"][0])
        return [(method, str(kind), *one) for kind, *one in zip(rows["kinds"], counts.tolist(), *means, strict=True)]

    def worst(number: int) -> list[tuple[Any, ...]]:
        rows = columns()
        values = np.where(np.isnan(rows["lpips"]), -np.inf, rows["lpips"])
        some = np.argpartition(-values, 10)[:10]
        some = some[np.argsort(-values[some])]
        return list(zip(rows["image_id"][some].tolist(), rows["lpips"][some].tolist(), strict=True))

    return {"aggregate": aggregate, "worst 10": worst}


def numpy_codes(url: str, num_rows: int) -> Questions:
    """Codes of images; the first question reads all of them, and makes a dictionary."""
    kept: list[Any] = []

    def codes(number: int) -> np.ndarray:
        if not kept:
            codes, ids = _columns(url, "codes", "image_id")
            kept.extend((codes, {image_id: place for place, image_id in enumerate(ids.tolist())}))
        codes, at = kept
        return np.asarray(codes[[at[one] for one in asked_for(num_rows, number)]].reshape(-1, *SHAPE))

    return {"codes of 64": codes}


def numpy_nearest(url: str, num_rows: int) -> Questions:
    """The nearest codes, in float32; the first question reads all of them."""
    kept: list[np.ndarray] = []

    def ids(number: int) -> list[str]:
        if not kept:
            codes, names = _columns(url, "codes", "image_id")
            squares = np.einsum("nv,nv->n", codes, codes)
            kept.extend((codes, np.where(np.isnan(squares), np.inf, squares), names))
        codes, squares, names = kept
        far = squares - 2 * (codes @ target(number).ravel())
        far[np.isnan(far)] = np.inf
        some = np.argpartition(far, NEAREST)[:NEAREST]
        found: list[str] = names[some[np.argsort(far[some])]].tolist()
        return found

    return {"nearest 10": ids}


def numpy_pages(url: str, num_rows: int) -> Questions:
    """What the explorer shows; columns are read by whoever asks first."""
    kept: dict[str, np.ndarray] = {}

    def column(name: str) -> np.ndarray:
        if name not in kept:
            (kept[name],) = _columns(url, name)
        return kept[name]

    def shown(total: int, some: np.ndarray, *names: str) -> dict[str, Any]:
        columns = [column(name)[some].tolist() for name in ("image_id", *names)]
        return {"total": total, "rows": list(zip(*columns, strict=True))}

    def all_sorted(number: int) -> dict[str, Any]:
        name, order = SORTED_BY[number % len(SORTED_BY)]
        return shown(num_rows, _first_of(column(name), PAGE, order), name)

    def page(number: int) -> dict[str, Any]:
        if "order" not in kept:
            kept["order"] = _first_of(column("lpips"), num_rows)
        start = middle(num_rows, number)
        return shown(num_rows, kept["order"][start : start + PAGE], "lpips", "sncd")

    def histogram(number: int) -> dict[str, Any]:
        values = column(SORTED_BY[number % len(SORTED_BY)][0]).astype(np.float64)
        values = values[~np.isnan(values)]
        least, most = float(values.min()), float(values.max())
        places = np.minimum(((values - least) / (most - least) * BINS).astype(np.int64), BINS - 1)
        counts = np.bincount(places, minlength=BINS).tolist()
        return {"low": least, "high": most, "missing": num_rows - len(values), "counts": counts}

    def filtered(number: int) -> dict[str, Any]:
        values = column("lpips").astype(np.float64)
        places = np.flatnonzero((values >= low(number)) & (values <= HIGH))
        places = places[np.char.find(np.char.lower(column("image_id")[places]), TEXT) >= 0]
        return shown(len(places), places[_first_of(values[places], PAGE)], "lpips")

    return {
        "all, worst first": all_sorted,
        "200 in the middle": page,
        "histogram": histogram,
        "filter": filtered,
    }
