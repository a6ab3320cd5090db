"""An archive of plausible rows and random codes, which benchmarks ask questions of."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pyarrow as pa

from lsap_archive import ArchiveWriter, Geometry, PlannedRow, Preview, RunPlan, code_arrays

GEOMETRY = Geometry(num_ws=8, w_dim=64, noise_sides=())
ARRAYS = code_arrays(GEOMETRY)
METHOD = "lsap_e"
RUN_IMAGES = 100_000
SHARD_ROWS = 512
ASKED = 64


def write_archive(url: str, num_rows: int) -> None:
    """An archive of so many plausible rows, the first shard of each run with previews."""
    writer = ArchiveWriter.open(url, generator_digest="9f86d081", generator_name="faces", geometry=GEOMETRY)
    for start in range(0, num_rows, RUN_IMAGES):
        size = min(RUN_IMAGES, num_rows - start)
        rows = tuple(_planned(start, row) for row in range(size))
        run = writer.start_run(RunPlan(f"{METHOD}-{start:08d}", METHOD, "4a44dc15", {}, {}, rows, ARRAYS, SHARD_ROWS))
        for shard in range(run.num_shards):
            table, codes = _results(rows, run.rows_of(shard))
            previews = _previews(table, run.rows_of(shard)) if shard == 0 else []
            run.write_shard(shard, {"w_plus": codes}, table, "first", previews=previews)
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


def _previews(table: pa.Table, part: range) -> list[Preview]:
    """A small picture of every image that is ok."""
    rng = np.random.default_rng(part.start)
    found = []
    for row, status in zip(part, table.column("status").to_pylist(), strict=True):
        if status == "ok":
            file = io.BytesIO()
            shades = rng.integers(256, size=(8, 8), dtype=np.uint8)
            PIL.Image.fromarray(shades).resize((64, 64)).save(file, "webp")
            found.append(Preview(row, file.getvalue()))
    return found


def asked_for(num_rows: int, number: int) -> list[str]:
    """Ids all over the archive, others for each number; of shards' first images, which are ok."""
    rng = np.random.default_rng(number)
    runs = rng.integers(-(-num_rows // RUN_IMAGES), size=ASKED) * RUN_IMAGES
    shards = [rng.integers(-(-min(RUN_IMAGES, num_rows - start) // SHARD_ROWS)) for start in runs]
    return [image_id(int(start + shard * SHARD_ROWS)) for start, shard in zip(runs, shards, strict=True)]
