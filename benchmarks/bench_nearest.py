"""How fast are nearest codes found, and by which index? Exact answers, and three libraries on the same codes.

Codes of 8 x 64 values, 2 KiB each, of two kinds:

- *normal*: every value by itself. No index has it harder: all codes are about as far from each other.
- *mapped*: of the digits' generator, w = mapping(z) in every row, each row moved by 0.3 of the spread of W, as
  inversions are.

First the archive as a user asks it, about codes that are not in it: *streamed* reads all codes at each question,
*exact* has them in memory, *index* is `approximate=True`. Then libraries on one array of the same codes, without an
archive: what each proposes is compared exactly, as the archive does. *numpy* computes all distances in float32; by it
the others are measured.

Recall is the share of the 10 nearest that is found. Each cell is a process of its own; memory is the growth of its
largest resident size while the index is made and asked, the codes not counted.
"""

from __future__ import annotations

import argparse
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
from plausible_archive import ARRAYS, GEOMETRY, METHOD, RUN_IMAGES, SHARD_ROWS, image_id

from domains import digits
from lsap_archive import ArchiveWriter, PlannedRow, RunPlan, build_index, open_archive
from tasks.weights.generators import load_generator

NEAREST, ASKED = 10, 30
SIZE = GEOMETRY.num_ws * GEOMETRY.w_dim
Propose = Callable[[np.ndarray], np.ndarray]


def codes_of(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Codes [count, 512], float32."""
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.standard_normal((count, SIZE), dtype=np.float32)
    generator = load_generator(str(Path(digits.__file__).parent / "generator.safetensors")).generator.freeze()
    found = np.empty((count, GEOMETRY.num_ws, GEOMETRY.w_dim), dtype=np.float32)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for start in range(0, count, 2**14):
            part = found[start : start + 2**14]
            w = generator.map(torch.randn(len(part), generator.config.z_dim, generator=random)).numpy()
            moved = rng.standard_normal(part.shape, dtype=np.float32)
            part[:] = w[:, None] + 0.3 * w.std(axis=0) * moved
    return found.reshape(count, SIZE)


# --- the archive ---------------------------------------------------------------------------------------


def write_archive(url: str, kind: str, count: int) -> None:
    """An archive of these codes, in runs of 100,000 images."""
    codes = codes_of(kind, count).reshape(count, GEOMETRY.num_ws, GEOMETRY.w_dim)
    writer = ArchiveWriter.open(url, generator_digest="9f86d081", generator_name="digits", geometry=GEOMETRY)
    for start in range(0, count, RUN_IMAGES):
        size = min(RUN_IMAGES, count - start)
        rows = tuple(
            PlannedRow(row, image_id(start + row), f"s3://digits/{image_id(start + row)}", f"{start + row:064x}")
            for row in range(size)
        )
        run = writer.start_run(RunPlan(f"run-{start:08d}", METHOD, "4a44dc15", {}, {}, rows, ARRAYS, SHARD_ROWS))
        for shard in range(run.num_shards):
            part = run.rows_of(shard)
            table = pa.table({"status": ["ok"] * len(part)})
            run.write_shard(shard, {"w_plus": codes[start + part.start : start + part.stop]}, table, "first")
        run.publish({})


def of_archive(url: str, kind: str, count: int) -> dict[str, Any]:
    """Median milliseconds of a question, and how much of the exact answer the index finds."""
    archive = open_archive(url)
    targets = codes_of(kind, ASKED, seed=1).reshape(ASKED, GEOMETRY.num_ws, GEOMETRY.w_dim)

    def asked(number: int, **options: Any) -> tuple[float, list[set[str]]]:
        seconds, found = [], []
        for target in targets[:number]:
            started = time.perf_counter()
            answer = archive.nearest(target, NEAREST, METHOD, **options)
            seconds.append(time.perf_counter() - started)
            found.append(set(answer.column("image_id").to_pylist()))
        return float(np.median(seconds)) * 1000, found

    archive.sql("select 1")  # the rows are read
    streamed, _ = asked(2, stay=False)
    first, _ = asked(1)
    exact, wanted = asked(ASKED)
    started = time.perf_counter()
    info = build_index(url, METHOD)
    built = time.perf_counter() - started
    asked(1, approximate=True)
    index, found = asked(ASKED, approximate=True)
    recall = np.mean([len(a & b) / NEAREST for a, b in zip(wanted, found, strict=True)])
    batch = _seconds(lambda: archive.nearest(np.repeat(targets, 2, axis=0), NEAREST, METHOD))
    return {
        "milliseconds": {"streamed": streamed, "first": first, "exact": exact, "index": index},
        "milliseconds_each_of_60": batch * 1000 / (2 * ASKED),
        "recall": round(float(recall), 4),
        "recall_told": info.recall,
        "build_seconds": round(built, 2),
        "index_mib": round(sum(file.stat().st_size for file in Path(url, "indexes").iterdir()) / 2**20, 1),
    }


# --- libraries -----------------------------------------------------------------------------------------


def by_numpy(codes: np.ndarray, folder: Path) -> Propose:
    squares = np.square(codes).sum(axis=1)
    return lambda target: np.argpartition(squares - 2 * (codes @ target), NEAREST)[:NEAREST]


def by_faiss(spec: str, candidates: int, **settings: int) -> Callable[[np.ndarray, Path], Propose]:
    def make(codes: np.ndarray, folder: Path) -> Propose:
        import faiss

        index = faiss.index_factory(SIZE, spec, faiss.METRIC_L2)
        index.train(codes[: 2**17])
        for start in range(0, len(codes), 2**15):
            index.add(codes[start : start + 2**15])
        for name, value in settings.items():
            setattr(index, name, value)
        faiss.write_index(index, str(folder / "index"))
        return lambda target: index.search(target[None], candidates)[1][0]

    return make


def by_usearch(candidates: int, expansion: int) -> Callable[[np.ndarray, Path], Propose]:
    def make(codes: np.ndarray, folder: Path) -> Propose:
        from usearch.index import Index

        index = Index(ndim=SIZE, metric="l2sq", dtype="f16", expansion_search=expansion)
        index.add(np.arange(len(codes)), codes)
        index.save(str(folder / "index"))
        return lambda target: index.search(target, candidates).keys.astype(np.int64)

    return make


def by_lance(num_partitions: int, nprobes: int, refine: int) -> Callable[[np.ndarray, Path], Propose]:
    def make(codes: np.ndarray, folder: Path) -> Propose:
        import lance

        vectors = pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), SIZE)
        table = pa.table({"number": pa.array(np.arange(len(codes))), "code": vectors})
        dataset = lance.write_dataset(table, folder / "index")
        dataset = dataset.create_index(
            "code", index_type="IVF_PQ", metric="l2", num_partitions=num_partitions, num_sub_vectors=SIZE // 8
        )

        def propose(target: np.ndarray) -> np.ndarray:
            query = {"column": "code", "q": target, "k": NEAREST, "nprobes": nprobes, "refine_factor": refine}
            found = dataset.to_table(columns=["number", "_distance"], nearest=query).column("number").to_numpy()
            return np.asarray(found)

        return propose

    return make


LIBRARIES: dict[str, Callable[[np.ndarray, Path], Propose]] = {
    "numpy": by_numpy,
    "FAISS RaBitQ": by_faiss("RaBitQ", 2000, qb=4),
    "FAISS SQ8": by_faiss("SQ8", 100),
    "FAISS IVF256": by_faiss("IVF256,Flat", 100, nprobe=32),
    "usearch HNSW": by_usearch(100, 400),
    "Lance IVF_PQ": by_lance(256, 32, 50),
}


def of_library(name: str, kind: str, count: int, folder: str) -> dict[str, Any]:
    """Making an index, and asking it."""
    codes, targets = codes_of(kind, count), codes_of(kind, ASKED, seed=1)
    exact = by_numpy(codes, Path(folder))
    wanted = [set(exact(target).tolist()) for target in targets]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(dir=folder) as own:
        started = time.perf_counter()
        propose = LIBRARIES[name](codes, Path(own))
        built = time.perf_counter() - started
        propose(targets[0])
        seconds, shares = [], []
        for target, right in zip(targets, wanted, strict=True):
            started = time.perf_counter()
            proposed = np.unique(propose(target))
            near = np.square(codes[proposed] - target).sum(axis=1)
            found = proposed[np.argsort(near)[:NEAREST]]
            seconds.append(time.perf_counter() - started)
            shares.append(len(right & set(found.tolist())) / NEAREST)
        sizes = sum(file.stat().st_size for file in Path(own).rglob("*") if file.is_file())
    return {
        "library": name,
        "build_seconds": round(built, 2),
        "milliseconds": round(float(np.median(seconds)) * 1000, 2),
        "recall": round(float(np.mean(shares)), 4),
        "index_mib": round(sizes / 2**20, 1),
        "memory_mib": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024),
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_its_own_process(call: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of a call that shares no memory with others."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", choices=["normal", "mapped"], default=["normal", "mapped"])
    parser.add_argument("--libraries", nargs="*", choices=list(LIBRARIES), default=list(LIBRARIES))
    parser.add_argument("--no-archive", action="store_true", help="only the libraries")
    parser.add_argument("--folder", type=Path, help="where archives are written; a temporary one when not given")
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to; the screen when not given")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for count in options.rows:
            for kind in options.kinds:
                result: dict[str, Any] = {
                    "benchmark": "nearest",
                    **environment(torch.device("cpu"), options.commit),
                    "load_average": [round(load, 2) for load in os.getloadavg()],
                    "num_rows": count,
                    "kind": kind,
                }
                if not options.no_archive:
                    url = str(Path(folder) / "archive")
                    in_its_own_process(write_archive, url, kind, count)
                    result["archive"] = in_its_own_process(of_archive, url, kind, count)
                    shutil.rmtree(url)
                result["libraries"] = []
                for name in options.libraries:
                    result["libraries"].append(in_its_own_process(of_library, name, kind, count, folder))
                    print(count, kind, result["libraries"][-1], flush=True)
                line = json.dumps(result)
                if options.output is None:
                    print(line)
                    continue
                options.output.parent.mkdir(parents=True, exist_ok=True)
                with options.output.open("a") as file:
                    print(line, file=file)


if __name__ == "__main__":
    main()
