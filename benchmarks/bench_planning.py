"""What does planning cost, in seconds and memory, against the number of images?

A synthetic bucket lists N images, page by page as an S3 listing comes, and an archive on disk has all of them but the
new ones. Three cells for each N:

- *first*: the archive is empty. Every image is read (a few bytes each) and planned.
- *again*: of the images that the archive has, one of a thousand has another content, and one of a thousand is new.
- *naive*: the same as *again*, with all images in a list and all that is known in a dictionary.

Each cell is a process of its own. Memory is the growth of its largest resident size since before the plan.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measurement import environment

from lsap_archive import ArchiveWriter, Geometry, Manifest, RunPlan, RunWriter, StoredObject, planned_images
from lsap_core.presets import method
from tasks.inversion.known_images import KnownImages
from tasks.inversion.listing import list_images
from tasks.inversion.methods import MethodPlan, plan_method
from tasks.inversion.run_planner import RunPlanner
from tasks.sources.items import LeftOut, SourceItem
from tasks.sources.source import Source, digest_bytes
from tasks.weights.networks import NetworkChoice

GEOMETRY = Geometry(18, 512, tuple(4 * 2 ** ((layer + 1) // 2) for layer in range(17)))
SHARD_ROWS = 512
OBJECTS_OF_A_SHARD = 20  # at 1024 px: codes, 17 noise maps, trace and rows
EVERY = 1000  # one of so many has changed, and as many are new
NAIVE_UP_TO = 1_000_000


@dataclass(frozen=True)
class Bucket:
    """A source of so many images, before or after some of them have changed and some have come."""

    num_images: int
    is_later: bool
    kind: str = "bucket"

    def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
        """Images in the order of their names."""
        for number in range(self.num_images):
            name = f"{number // 1000:05d}/{number:08d}.png"
            is_changed = self.is_later and number % EVERY == 0
            yield SourceItem(name, f"s3://faces/{name}", version=f"{etag(number, is_changed)}-300000")
            if self.is_later and number % EVERY == 1:
                name = f"{name[:-4]}_new.png"
                yield SourceItem(name, f"s3://faces/{name}", version=f"{etag(number, True)}-300001")

    def read(self, uri: str) -> bytes:
        """Content that belongs to the name and the moment."""
        return f"{uri} {self.is_later}".encode()

    def close(self) -> None:
        """Nothing to let go of."""


def etag(number: int, is_changed: bool) -> str:
    """32 hexadecimal digits."""
    return hashlib.md5(f"{number} {is_changed}".encode(), usedforsecurity=False).hexdigest()


def method_plan() -> MethodPlan:
    """A method over these images."""
    networks = NetworkChoice("digits-features", "digits-features")
    return plan_method(
        method("lsap_o_w_plus"),
        generator_digest="g",
        anchor="a",
        networks=networks,
        fit="refuse",
        seed=0,
        geometry=GEOMETRY,
    )


def open_archive(folder: str) -> ArchiveWriter:
    """The archive that is planned into."""
    return ArchiveWriter.open(folder, generator_digest="g", generator_name="ffhq", geometry=GEOMETRY)


def plan_first(folder: str, num_images: int) -> int:
    """Plan everything into an empty archive; returns the images of new runs."""
    archive = open_archive(folder)
    return _plan(archive, Source("bucket", Bucket(num_images, is_later=False)))


def plan_again(folder: str, num_images: int) -> int:
    """Plan what is new; nothing is written."""
    return _plan(open_archive(folder), Source("bucket", Bucket(num_images, is_later=True)), start=False)


def _plan(archive: ArchiveWriter, source: Source, *, start: bool = True) -> int:
    planned = 0
    with KnownImages(planned_images(archive.runs()), archive.versions()) as known:
        planner = RunPlanner(known, [method_plan()], shard_rows=SHARD_ROWS, is_taken=archive.is_taken)
        for plan in planner.runs(list_images(source, source.items(), known)):
            assert isinstance(plan, RunPlan)
            planned += plan.num_rows
            if start:
                archive.start_run(plan)
    return planned


def plan_naively(folder: str, num_images: int) -> int:
    """The same with everything in memory."""
    known = {
        image_id: (digest, version)
        for one in planned_images(open_archive(folder).runs())
        for image_id, digest, version in zip(
            *(one.images.column(name).to_pylist() for name in ("image_id", "digest", "version")), strict=True
        )
    }
    source = Source("bucket", Bucket(num_images, is_later=True))
    images = []
    for item in list(source.items()):
        digest, version = known.get(item.image_id, (None, None))
        images.append((item, digest if version == item.version else digest_bytes(source.read(item))))
    return len([item for item, digest in images if known.get(item.image_id, (None,))[0] != digest])


PLANS = {"first": plan_first, "again": plan_again, "naive": plan_naively}


def publish(run: RunWriter) -> None:
    """Give a run a manifest as large as a finished run has; its shards are not made, as planning reads none."""
    files = [StoredObject(**stored) for stored in run.plan["objects"]]
    files += [
        StoredObject(f"noise_{number:02d}/c/{shard}/0/0", 1, "0" * 64)
        for shard in range(run.num_shards)
        for number in range(OBJECTS_OF_A_SHARD)
    ]
    kept = ("method", "method_digest", "config", "provenance", "num_rows", "shard_rows", "num_shards")
    manifest = Manifest(
        run_id=run.run_id,
        created=run.plan["created"],
        arrays=tuple(run.arrays.values()),
        rows_by_status={"ok": run.num_rows, "failed": 0, "duplicate": 0},
        summary={},
        generator=run.generator,
        geometry=run.geometry.to_dict(),
        schema_version=3,
        files=tuple(files),
        **{name: run.plan[name] for name in kept},
    )
    assert run.store.create(f"runs/{run.run_id}/_manifest.json", manifest.encode())


def measured(cell: str, folder: str, num_images: int) -> dict[str, Any]:
    """One plan in this process: seconds on the wall and of the processor, and bytes at the peak."""
    plan_first(f"{folder}-{cell}", 10)  # what is paid once: imports, the first database
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    planned = PLANS[cell](folder, num_images)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "images": num_images,
        "cell": cell,
        "planned": planned,
        "seconds": seconds,
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_memory_bytes": 1024 * (after.ru_maxrss - before.ru_maxrss),
        "held_memory_bytes": 1024 * before.ru_maxrss,
    }


def alone(function: Any, *arguments: Any) -> Any:
    """The result of a function called in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def publish_all(folder: str) -> None:
    """Every run of the archive."""
    for run in open_archive(folder).runs():
        publish(run)


def main(arguments: list[str] | None = None) -> None:
    """Measure every size and print a line for each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to; the screen when not given")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    parser.add_argument("--folder", help="where the archive is put for a while; a temporary one when not given")
    options = parser.parse_args(arguments)
    surroundings = environment(torch.device("cpu"), options.commit)
    print(f"{'images':>12}{'cell':>8}{'planned':>12}{'seconds':>10}{'s/million':>11}{'MiB':>8}", flush=True)
    for num_images in options.images:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for cell in PLANS:
                if cell == "naive" and num_images > NAIVE_UP_TO:
                    continue
                load = [round(one, 2) for one in os.getloadavg()]
                found = alone(measured, cell, f"{folder}/archive", num_images)
                if cell == "first":
                    alone(publish_all, f"{folder}/archive")
                show(found, {"benchmark": "planning", **surroundings, "load_average": load, **found}, options.output)


def show(found: dict[str, Any], line: dict[str, Any], output: Path | None) -> None:
    """A row of the table, and a JSON line."""
    print(
        f"{found['images']:>12,}{found['cell']:>8}{found['planned']:>12,}{found['seconds']:>10.2f}"
        f"{1e6 * found['seconds'] / found['images']:>11.1f}{found['peak_memory_bytes'] / 2**20:>8.0f}",
        flush=True,
    )
    text = json.dumps(line)
    if output is None:
        print(text)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a") as file:
            print(text, file=file)


if __name__ == "__main__":
    main()
