"""What does reading an archive cost, in seconds and memory, against the number of its rows?

A generator of plausible values writes an archive of N rows on disk, in runs of at most 100,000 images: ids, addresses,
digests, metrics of plausible sizes, 1 % failed images, 0.5 % duplicates, and codes of 8 x 64 values, 2 KiB each. Then:

- *open*: `open_archive` and `describe`.
- *codes by id*: the codes of 64 images anywhere, twice: the first call also reads their ids.
- *sql*: means by method and the 10 worst rows, over the newest rows; the first call also reads the columns it names.
- *nearest*: the 10 nearest codes to one, by exact comparison.
- *export*: all codes and ids, block by block, into files of another kind (.npy and CSV).
- *verify*: `verify_archive`, everything.
- *naive*: the same questions the obvious way: all rows in a table and a dictionary by id, all codes in one array; and
  for *verify* every row in a dictionary.

Each cell is a process of its own. Memory is the growth of its largest resident size since before the cell.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from measurement import environment

from lsap_archive import ArchiveWriter, Geometry, PlannedRow, RunPlan, code_arrays, open_archive, verify_archive

GEOMETRY = Geometry(num_ws=8, w_dim=64, noise_sides=())
ARRAYS = code_arrays(GEOMETRY)
METHOD = "lsap_e"
RUN_IMAGES = 100_000
SHARD_ROWS = 512
ASKED = 64
NAIVE_UP_TO = {"naive nearest": 100_000}  # ten times as many take 10 GB
AGGREGATE = "select method, status, count(*) as n, avg(lpips) as lpips, avg(sncd) as sncd from latest group by all"
WORST = "select image_id, lpips from latest where status = 'ok' order by lpips desc limit 10"


def write_archive(url: str, num_rows: int) -> None:
    """An archive of so many plausible rows."""
    writer = ArchiveWriter.open(url, generator_digest="9f86d081", generator_name="faces", geometry=GEOMETRY)
    for start in range(0, num_rows, RUN_IMAGES):
        size = min(RUN_IMAGES, num_rows - start)
        rows = tuple(_planned(start, row) for row in range(size))
        run = writer.start_run(RunPlan(f"{METHOD}-{start:08d}", METHOD, "4a44dc15", {}, {}, rows, ARRAYS, SHARD_ROWS))
        for shard in range(run.num_shards):
            table, codes = _results(rows, run.rows_of(shard))
            run.write_shard(shard, {"w_plus": codes}, table, "first")
        run.publish({})


def image_id(number: int) -> str:
    """As of a folder of faces."""
    return f"{number // 1000:05d}/{number:08d}.png"


def _planned(start: int, row: int) -> PlannedRow:
    number = start + row
    digest = f"{number * 2_654_435_761 % 2**256:064x}"
    return PlannedRow(row, image_id(number), f"s3://faces/ffhq/{image_id(number)}", digest)


def _results(planned: tuple[PlannedRow, ...], part: range) -> tuple[pa.Table, np.ndarray]:
    rng = np.random.default_rng(int(planned[part.start].digest[-16:], 16))
    size = len(part)
    kinds = rng.choice(["ok", "failed", "duplicate"], size, p=[0.985, 0.01, 0.005])
    kinds[0] = "ok"
    is_ok = kinds == "ok"
    first = planned[part.start].image_id

    def where_ok(values: np.ndarray) -> pa.Array:
        return pa.array(values.astype(np.float32), mask=~is_ok)

    table = pa.table(
        {
            "status": kinds.tolist(),
            "reason": [{"failed": "truncated"}.get(kind) for kind in kinds],
            "duplicate_of": [{"duplicate": first}.get(kind) for kind in kinds],
            "width": pa.array([1024] * size, pa.int32()),
            "height": pa.array([1024] * size, pa.int32()),
            "mse": where_ok(rng.lognormal(-3.5, 0.4, size)),
            "lpips": where_ok(rng.lognormal(-1.7, 0.2, size)),
            "sncd": where_ok(rng.beta(2, 12, size)),
            "seconds": where_ok(rng.normal(0.05, 0.005, size)),
        }
    )
    return table, rng.standard_normal((size, GEOMETRY.num_ws, GEOMETRY.w_dim)).astype(np.float32)


def asked_for(num_rows: int) -> list[str]:
    """Ids all over the archive; of shards' first images, which are ok."""
    rng = np.random.default_rng(0)
    runs = rng.integers(-(-num_rows // RUN_IMAGES), size=ASKED) * RUN_IMAGES
    shards = [rng.integers(-(-min(RUN_IMAGES, num_rows - start) // SHARD_ROWS)) for start in runs]
    return [image_id(int(start + shard * SHARD_ROWS)) for start, shard in zip(runs, shards, strict=True)]


def open_it(url: str, num_rows: int) -> dict[str, float]:
    """Header and manifests."""
    return {"open": _seconds(lambda: open_archive(url).describe())}


def codes_by_id(url: str, num_rows: int) -> dict[str, float]:
    """Codes of images by id, cold and warm."""
    archive, ids = open_archive(url), asked_for(num_rows)
    cold = _seconds(lambda: archive.codes(ids, METHOD))
    return {"first": cold, "again": _seconds(lambda: archive.codes(ids, METHOD))}


def sql(url: str, num_rows: int) -> dict[str, float]:
    """Questions over all rows."""
    archive = open_archive(url)
    cold = _seconds(lambda: archive.sql(AGGREGATE))
    return {
        "first": cold,
        "aggregate": _seconds(lambda: archive.sql(AGGREGATE)),
        "worst 10": _seconds(lambda: archive.sql(WORST)),
    }


def nearest(url: str, num_rows: int) -> dict[str, float]:
    """The nearest codes."""
    archive = open_archive(url)
    code = archive.codes([image_id(0)], METHOD)[0]
    return {"nearest": _seconds(lambda: archive.nearest(code, 10, METHOD))}


def export(url: str, num_rows: int) -> dict[str, float]:
    """Codes to .npy and ids to CSV, block by block."""

    def write() -> None:
        archive = open_archive(url)
        folder = Path(tempfile.mkdtemp(dir=Path(url).parent))
        header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, GEOMETRY.num_ws, GEOMETRY.w_dim)}
        with (folder / "ids.csv").open("w") as file, (folder / "codes.npy").open("wb") as codes:
            np.lib.format.write_array_header_1_0(codes, header)
            for run in archive.runs:
                array = archive.array(run.run_id, "w_plus")
                for start in range(0, run.num_rows, SHARD_ROWS):
                    codes.write(np.ascontiguousarray(array[start : start + SHARD_ROWS]).tobytes())
            query = "select image_id, status from history where run_id = $run"
            for run in archive.runs:
                columns = archive.sql(query, run=run.run_id).columns
                csv.writer(file).writerows(zip(*(column.to_pylist() for column in columns), strict=True))
        shutil.rmtree(folder)

    return {"export": _seconds(write)}


def verify(url: str, num_rows: int) -> dict[str, float]:
    """Everything is there and what was written."""
    seconds = _seconds(lambda: _check(verify_archive(url)))
    return {"verify": seconds}


def _check(report: Any) -> None:
    assert report.is_sound, report.problems[:3]


def naive_rows(url: str, num_rows: int) -> dict[str, float]:
    """All rows as Python objects, by id; a mean of them."""
    found: dict[str, Any] = {}

    def read() -> None:
        for row in open_archive(url).rows().to_pylist():
            found[row["image_id"]] = row

    cold = _seconds(read)
    again = _seconds(lambda: [found[one] for one in asked_for(num_rows)])
    mean = _seconds(lambda: float(np.mean([row["lpips"] for row in found.values() if row["lpips"] is not None])))
    return {"first": cold, "again": again, "aggregate": mean}


def naive_nearest(url: str, num_rows: int) -> dict[str, float]:
    """All codes in one array, then the distances of all at once."""
    archive = open_archive(url)

    def find() -> None:
        codes = np.concatenate([archive.array(run.run_id, "w_plus")[:] for run in archive.runs])
        distances = np.sqrt(((codes.astype(np.float64) - codes[0]) ** 2).sum((1, 2)))
        np.argsort(np.nan_to_num(distances, nan=np.inf))[:10]

    return {"nearest": _seconds(find)}


CELLS: dict[str, Callable[[str, int], dict[str, float]]] = {
    "open": open_it,
    "codes by id": codes_by_id,
    "sql": sql,
    "nearest": nearest,
    "export": export,
    "verify": verify,
    "naive rows": naive_rows,
    "naive nearest": naive_nearest,
}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measured(name: str, url: str, num_rows: int) -> dict[str, Any]:
    """One cell, in this process: seconds by question, and the growth of the largest resident size."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = CELLS[name](url, num_rows)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"cell": name, "seconds": {of: round(value, 4) for of, value in seconds.items()}, "mib": round(grown / 1024)}


def in_its_own_process(call: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of a call that shares no memory with others."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def measure(num_rows: int, folder: Path, cells: list[str]) -> dict[str, Any]:
    """Write one archive and ask everything of it."""
    url = str(folder / f"archive-{num_rows}")
    started = time.perf_counter()
    in_its_own_process(write_archive, url, num_rows)
    written = time.perf_counter() - started
    sizes = [file.stat().st_size for file in Path(url).rglob("*") if file.is_file()]
    print(f"{num_rows:,} rows: written in {written:.0f} s, {sum(sizes) / 2**20:,.0f} MiB in {len(sizes):,} files")
    results = []
    for cell in cells:
        if num_rows > NAIVE_UP_TO.get(cell, num_rows):
            continue
        result = in_its_own_process(measured, cell, url, num_rows)
        told = ", ".join(f"{of} {value:.3f} s" for of, value in result["seconds"].items())
        print(f"  {cell:14} {told:60} {result['mib']:>7,} MiB", flush=True)
        results.append(result)
    shutil.rmtree(url)
    return {
        "num_rows": num_rows,
        "write_seconds": round(written, 2),
        "bytes": sum(sizes),
        "files": len(sizes),
        "cells": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--folder", type=Path, help="where archives are written; a temporary one when not given")
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to; the screen when not given")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for num_rows in options.rows:
            result = {
                "benchmark": "archive",
                **environment(torch.device("cpu"), options.commit),
                "load_average": [round(load, 2) for load in os.getloadavg()],
                "geometry": GEOMETRY.to_dict(),
                **measure(num_rows, Path(folder), options.cells),
            }
            if options.output is None:
                print(json.dumps(result))
                continue
            options.output.parent.mkdir(parents=True, exist_ok=True)
            with options.output.open("a") as file:
                print(json.dumps(result), file=file)


if __name__ == "__main__":
    main()
