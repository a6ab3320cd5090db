"""What does reading an archive cost, in seconds and memory, against the number of its rows, and beside others?

A generator of plausible values writes an archive of N rows on disk, in runs of at most 100,000 images: ids, addresses,
digests, metrics of plausible sizes, 1 % failed images, 0.5 % duplicates, and codes of 8 x 64 values, 2 KiB each. Then:

- *open*: `open_archive` and `describe`.
- *sql*: means by method and the 10 worst rows, over the newest rows.
- *codes by id*: the codes of 64 images anywhere.
- *nearest*: the 10 nearest codes to one, by exact comparison and by the index.
- *explorer*: what a browser asks for: the first page, all rows sorted worst first and a page of 200 in their middle,
  the histogram of a column, a filter, neighbours, 100 previews. "start" copies the rows into its own database.
- *export*: all codes and ids, block by block, into files of another kind (.npy and CSV).
- *verify*: `verify_archive`, everything.
- *naive rows*: all rows in a table and a dictionary by id.
- *lancedb*, *numpy*: the same questions as of sql, codes by id, nearest and the explorer's pages; see
  `archive_peers.py`. Before anything is timed, all answer each question, and the answers have to be the same.

Each cell, and each of the four kinds of questions to a peer, is a process of its own. A question's first answer counts
by itself, as it reads what it needs; then comes the median of the next ones. Memory is the growth of its largest
resident size since before the cell. Ratios are of processor time, then of seconds; below 1 the archive is faster.
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import archive_peers
import archive_questions
import numpy as np
from archive_questions import APPROXIMATE, Questions, recall, same
from plausible_archive import GEOMETRY, METHOD, SHARD_ROWS, asked_for, write_archive

from lsap_archive import build_index, open_archive, verify_archive

ASKED_TIMES = 8
ENOUGH_SECONDS = 4.0  # of a question after its first answer; then it is not asked again
CHECKED_ANSWERS = 2
RECALLED_ANSWERS = 10


class Spent(NamedTuple):
    """Seconds on the wall, and of the processor: on a busy machine the second says more."""

    seconds: float
    processor: float


def open_it(url: str, num_rows: int) -> dict[str, Spent]:
    """Header and manifests."""
    return {"open": _spent(lambda: open_archive(url).describe())}


def export(url: str, num_rows: int) -> dict[str, Spent]:
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

    return {"export": _spent(write)}


def verify(url: str, num_rows: int) -> dict[str, Spent]:
    """Everything is there and what was written."""
    return {"verify": _spent(lambda: _check(verify_archive(url)))}


def _check(report: Any) -> None:
    assert report.is_sound, report.problems[:3]


def naive_rows(url: str, num_rows: int) -> dict[str, Spent]:
    """All rows as Python objects, by id; a mean of them."""
    found: dict[str, Any] = {}

    def read() -> None:
        for row in open_archive(url).rows().to_pylist():
            found[row["image_id"]] = row

    cold = _spent(read)
    again = _spent(lambda: [found[one] for one in asked_for(num_rows, 0)])
    mean = _spent(lambda: float(np.mean([row["lpips"] for row in found.values() if row["lpips"] is not None])))
    return {"first": cold, "again": again, "aggregate": mean}


SINGLE: dict[str, Callable[[str, int], dict[str, Spent]]] = {
    "open": open_it,
    "export": export,
    "verify": verify,
    "naive rows": naive_rows,
}
OURS: dict[str, Callable[[str, int], Questions]] = {
    "sql": archive_questions.sql,
    "codes by id": archive_questions.codes_by_id,
    "nearest": archive_questions.nearest,
    "explorer": archive_questions.explorer,
}
PEERS: dict[str, dict[str, Callable[[str, int], Questions]]] = {
    "lancedb": {
        "sql": archive_peers.lancedb_sql,
        "codes by id": archive_peers.lancedb_codes,
        "nearest": archive_peers.lancedb_nearest,
        "explorer": archive_peers.lancedb_pages,
    },
    "numpy": {
        "sql": archive_peers.numpy_sql,
        "codes by id": archive_peers.numpy_codes,
        "nearest": archive_peers.numpy_nearest,
        "explorer": archive_peers.numpy_pages,
    },
}
WRITE = {"lancedb": archive_peers.write_lancedb, "numpy": archive_peers.write_numpy}
CELLS = ("open", *OURS, "export", "verify", "naive rows", *PEERS)


def _spent(work: Callable[..., object], *arguments: Any) -> Spent:
    started, used = time.perf_counter(), time.process_time()
    work(*arguments)
    return Spent(time.perf_counter() - started, time.process_time() - used)


def asked(questions: Questions) -> dict[str, Spent]:
    """Of each question the first answer, and the median of the next ones."""
    spent = {}
    for name, ask in questions.items():
        all_of = [_spent(ask, 0)]
        while len(all_of) < ASKED_TIMES and sum(one.seconds for one in all_of[1:]) < ENOUGH_SECONDS:
            all_of.append(_spent(ask, len(all_of)))
        spent[f"{name}, first"] = all_of[0]
        spent[name] = Spent(*map(median, zip(*all_of[1:], strict=True)))
    return spent


def kinds_of(cell: str) -> dict[str, Callable[[str, int], Questions]]:
    """The questions of a cell, by their kind."""
    return PEERS[cell] if cell in PEERS else {cell: OURS[cell]} if cell in OURS else {}


def measured(cell: str, kind: str, url: str, num_rows: int) -> dict[str, Any]:
    """One cell, in this process: seconds by question, and the growth of the largest resident size."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    questions = kinds_of(cell)
    spent = asked(questions[kind](url, num_rows)) if questions else SINGLE[cell](url, num_rows)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "cell": cell,
        "kind": kind,
        "seconds": {of: round(one.seconds, 5) for of, one in spent.items()},
        "processor_seconds": {of: round(one.processor, 5) for of, one in spent.items()},
        "mib": round(grown / 1024),
    }


def answers(cell: str, kind: str, url: str, num_rows: int) -> dict[str, list[Any]]:
    """What is answered to each question, asked several times."""
    many = {*APPROXIMATE, *APPROXIMATE.values()}
    return {
        name: [ask(number) for number in range(RECALLED_ANSWERS if name in many else CHECKED_ANSWERS)]
        for name, ask in kinds_of(cell)[kind](url, num_rows).items()
    }


def check(url: str, num_rows: int, cells: Sequence[str]) -> dict[str, float]:
    """The recall of what is answered nearly, by cell.

    Raises:
        SystemExit: two answer differently.
    """
    recalls = {}
    for kind in OURS:
        found = {
            cell: in_its_own_process(answers, cell, kind, url, num_rows) for cell in cells if kind in kinds_of(cell)
        }
        for question, cell, told in _pairs(found):
            if question in APPROXIMATE:
                recalls[cell] = round(recall(told, found[cell][APPROXIMATE[question]]), 4)
                continue
            other, right = next((one, of[question]) for one, of in found.items() if question in of)
            if not same(told, right):
                raise SystemExit(
                    f"{num_rows} rows, {question}: {other} answers {str(right)[:300]}, {cell} {str(told)[:300]}; "
                    "nothing was timed"
                )
    return recalls


def _pairs(found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    """Question, cell, and what belongs to both."""
    return ((question, cell, of[question]) for cell, of in found.items() for question in of)


def ratios(results: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each question that others answered too: ours, and ours divided by theirs."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        if result["cell"] in (*OURS, *PEERS):
            found.setdefault(result["cell"] if result["cell"] in PEERS else "ours", {}).update(
                {name: (result["processor_seconds"][name], one) for name, one in result["seconds"].items()}
            )
    peers = [name for name in PEERS if name in found]
    lines = [f"  {'ours / theirs':28}{'ours':>20}" + "".join(f"{peer:>20}" for peer in peers)]
    for question, ours in found.get("ours", {}).items():
        theirs = [found[peer].get(question) for peer in peers]
        if not any(theirs):
            continue
        told = [f"{1000 * ours[0]:.2f} ({1000 * ours[1]:.2f}) ms"]
        told += ["-" if one is None else " ".join(_ratios(ours, one)) for one in theirs]
        lines.append(f"  {question:28}" + "".join(f"{one:>20}" for one in told))
    return lines if len(lines) > 1 else []


def _ratios(ours: tuple[float, float], theirs: tuple[float, float]) -> tuple[str, str]:
    processor, seconds = (f"{a / b:.2f}" if b else "inf" for a, b in zip(ours, theirs, strict=True))
    return processor, f"({seconds})"


def surroundings(commit: str | None) -> dict[str, Any]:
    """Code, versions, machine; from a process of its own, and as plain JSON: a process that cells start from, and that
    has once held torch, would hide what they add to its size.
    """
    import torch
    from measurement import environment

    found: dict[str, Any] = json.loads(json.dumps(environment(torch.device("cpu"), commit)))
    return found


def in_its_own_process(call: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of a call that shares no memory with others."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def measure(num_rows: int, folder: Path, cells: Sequence[str]) -> dict[str, Any]:
    """Write one archive, and what others have of it, and ask everything."""
    url = str(folder / f"archive-{num_rows}")
    started = time.perf_counter()
    in_its_own_process(write_archive, url, num_rows)
    written = time.perf_counter() - started
    sizes = [file.stat().st_size for file in Path(url).rglob("*") if file.is_file()]
    print(f"{num_rows:,} rows: written in {written:.0f} s, {sum(sizes) / 2**20:,.0f} MiB in {len(sizes):,} files")
    made: dict[str, dict[str, float]] = {}
    if "nearest" in cells:
        made["ours"] = {"index of codes": _spent(in_its_own_process, build_index, url, METHOD).seconds}
    for peer in [name for name in PEERS if name in cells]:
        made[peer] = in_its_own_process(WRITE[peer], url, num_rows)
    recalls = check(url, num_rows, cells)
    results = []
    for cell in cells:
        for kind in kinds_of(cell) or [cell]:
            result = in_its_own_process(measured, cell, kind, url, num_rows)
            told = ", ".join(f"{of} {value:.3f} s" for of, value in result["seconds"].items())
            print(f"  {cell if kind == cell else f'{cell}, {kind}':20} {told:60} {result['mib']:>7,} MiB", flush=True)
            results.append(result)
    print(*ratios(results), sep="\n", flush=True)
    shutil.rmtree(url)
    shutil.rmtree(archive_peers.folder_of(url), ignore_errors=True)
    return {
        "num_rows": num_rows,
        "write_seconds": round(written, 2),
        "bytes": sum(sizes),
        "files": len(sizes),
        "made_seconds": {side: {what: round(one, 2) for what, one in of.items()} for side, of in made.items()},
        "recall": recalls,
        "cells": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--folder", type=Path, help="where archives are written; a temporary one when not given")
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to; the screen when not given")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for num_rows in options.rows:
            result = {
                "benchmark": "archive",
                **in_its_own_process(surroundings, options.commit),
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
