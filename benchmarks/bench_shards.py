"""What do planning and reading of images in shards cost, in a bucket: seconds, memory and requests?

An S3 server on this machine holds the same images as WebDataset tars and as Parquet of `datasets`, whose rows are not
in the order of their names. Four cells for each kind:

- *first*: the archive is empty. Every shard is listed, every image is read for its digest and planned.
- *again*: the archive has all of them, and the machine remembers what the shards hold.
- *elsewhere*: the same on a machine that remembers nothing.
- *read*: all images by shards of work of 512, as workers read them, each with its digest compared.

Each cell is a process of its own. Memory is the growth of its largest resident size; requests are those in the server's
log.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import resource
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bench_planning import SHARD_ROWS, alone, method_plan, open_archive, publish_all
from measurement import append, environment
from PIL import Image
from s3_server import opened_s3_server

from lsap_archive import ArchiveWriter, RunPlan, planned_images
from tasks.inversion.known_images import KnownImages
from tasks.inversion.listing import list_images
from tasks.inversion.run_planner import RunPlanner
from tasks.sources.items import SourceItem
from tasks.sources.shards import place_in_shard
from tasks.sources.source import open_source, plan_items

BUCKET = "shipped"
SIDE = 24  # pixels of an image, about 1.8 kB as PNG
KINDS = {"tar": "{url}/{{000000..{last:06d}}}.tar", "parquet": "{url}/*.parquet#image"}
CELLS = ("first", "again", "elsewhere", "read")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_REQUEST = re.compile(rb'"(HEAD|GET|PUT|POST) (\S+)')


def images_of(shard: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Names and PNG files of a shard, in the order of the names."""
    pixels = np.random.default_rng(shard).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(pixels[number]).save(file, "PNG", compress_level=0)
        yield f"{shard * count + number:08d}.png", file.getvalue()


def tar_of(images: list[tuple[str, bytes]]) -> bytes:
    """A WebDataset's shard: each image with its label."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in images:
            for member, content in ((name, data), (f"{name[:-4]}.cls", b"7")):
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def parquet_of(images: list[tuple[str, bytes]]) -> bytes:
    """A shard of `datasets`: rows in a drawn order, in row groups of 100."""
    order = np.random.default_rng(0).permutation(len(images))
    rows = [{"bytes": images[row][1], "path": images[row][0]} for row in order]
    file = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(rows, IMAGE)}), file, row_group_size=100)
    return file.getvalue()


def fill(num_images: int, num_shards: int) -> None:
    """Put the images into the bucket, once for each kind."""
    fs = fsspec.filesystem("s3")
    for shard in range(num_shards):
        images = list(images_of(shard, num_images // num_shards))
        fs.pipe_file(f"{BUCKET}/tar/{shard:06d}.tar", tar_of(images))
        fs.pipe_file(f"{BUCKET}/parquet/train-{shard:05d}-of-{num_shards:05d}.parquet", parquet_of(images))


def plan(archive: ArchiveWriter, source: str, *, start: bool) -> int:
    """Plan a source as a command does; returns the images of new runs."""
    planned = 0
    with open_source(source) as opened, KnownImages(planned_images(archive.runs()), archive.versions()) as known:
        planner = RunPlanner(known, [method_plan()], shard_rows=SHARD_ROWS, is_taken=archive.is_taken)
        for run in planner.runs(list_images(opened, opened.items(), known)):
            assert isinstance(run, RunPlan)
            planned += run.num_rows
            if start:
                archive.start_run(run)
    return planned


def read(archive: ArchiveWriter, source: str) -> int:
    """Read what is planned, shard by shard of work; returns the images whose digest is the planned one."""
    good = 0
    with open_source(source) as opened:
        for one in planned_images(archive.runs()):
            rows = one.images.select(["image_id", "uri", "digest"]).to_pylist()
            for begin in range(0, len(rows), SHARD_ROWS):
                shard = sorted(rows[begin : begin + SHARD_ROWS], key=lambda row: place_in_shard(row["uri"]))
                images = plan_items(opened, [SourceItem(row["image_id"], row["uri"]) for row in shard])
                good += sum(image.digest == row["digest"] for image, row in zip(images, shard, strict=True))
    return good


def measured(cell: str, folder: str, cache: str, source: str) -> dict[str, Any]:
    """One cell in this process."""
    os.environ["LSAP_CACHE"] = cache
    open_archive(f"{folder}-warm")  # what is paid once: imports
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    archive = open_archive(folder)
    images = read(archive, source) if cell == "read" else plan(archive, source, start=cell == "first")
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "counted": images,
        "seconds": seconds,
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_memory_bytes": 1024 * (after.ru_maxrss - before.ru_maxrss),
        "held_memory_bytes": 1024 * before.ru_maxrss,
    }


def requests_after(log: Path, position: int) -> Mapping[str, int]:
    """Requests for the shards by kind, listings by themselves, after a position in the server's log."""
    found: Counter[str] = Counter()
    for method, target in _REQUEST.findall(log.read_bytes()[position:]):
        found["list" if b"list-type" in target else method.decode().lower()] += 1
    return dict(sorted(found.items()))


def main(arguments: list[str] | None = None) -> None:
    """Measure both kinds and print a line for each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=50)
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to; the screen when not given")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    options = parser.parse_args(arguments)
    surroundings = environment(torch.device("cpu"), options.commit)
    print(f"{'kind':>8}{'cell':>10}{'images':>9}{'seconds':>9}{'cpu s':>8}{'MiB':>6}  requests", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests.log"
        with log.open("wb") as file, opened_s3_server(BUCKET, file) as server:
            os.environ |= {"AWS_ENDPOINT_URL": server.endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
            os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
            fill(options.images, options.shards)
            for kind, pattern in KINDS.items():
                source = pattern.format(url=f"s3://{BUCKET}/{kind}", last=options.shards - 1)
                archive = f"{folder}/{kind}"
                for cell in CELLS:
                    load = [round(one, 2) for one in os.getloadavg()]
                    position = log.stat().st_size
                    cache = f"{folder}/cache-{kind}{'-elsewhere' if cell == 'elsewhere' else ''}"
                    found = alone(measured, cell, archive, cache, source)
                    found["requests"] = requests_after(log, position)
                    if cell == "first":
                        alone(publish_all, archive)
                    print(
                        f"{kind:>8}{cell:>10}{found['counted']:>9,}{found['seconds']:>9.1f}"
                        f"{found['processor_seconds']:>8.1f}{found['peak_memory_bytes'] / 2**20:>6.0f}"
                        f"  {found['requests']}",
                        flush=True,
                    )
                    sizes = {"kind": kind, "cell": cell, "images": options.images, "shards": options.shards}
                    line = {"benchmark": "shards", **surroundings, "load_average": load, **sizes, **found}
                    append(json.dumps(line), options.output)


if __name__ == "__main__":
    main()
