"""How arrays lie in their objects: chunks that fit the run, compressed, and not believed before they are looked at."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from google_crc32c import value as crc32c

from lsap_archive import (
    ArchiveWriter,
    CorruptArchiveError,
    Geometry,
    PlannedRow,
    RunArray,
    RunPlan,
    code_arrays,
    expected_bytes,
    noise_arrays,
    open_archive,
    repair_archive,
    verify_archive,
)
from lsap_archive.format.chunks import laid_out, stored_rows
from lsap_archive.format.documents import decode_document, encode_document, sha256_of
from lsap_archive.format.shards import decode_shard, shard_checksums

MASK = RunArray("mask", (4, 4), ("y", "x"), dtype="uint8")


@pytest.mark.parametrize(
    ("num_rows", "shard_rows", "wanted"),
    [
        (1, 512, 1),
        (4, 16, 4),
        (17, 512, 9),
        (40, 64, 15),
        (17, 16, 2),
        (14, 8, 2),
        (75, 32, 16),
        (1000, 512, 16),
        (20, 10, 10),
    ],
)
def test_chunks_of_small_runs_have_no_more_rows_than_they(num_rows: int, shard_rows: int, wanted: int) -> None:
    """At most one row for eight of the run fills up chunks, and no chunk reaches into another shard."""
    (array,) = laid_out([MASK], num_rows, shard_rows)
    assert array.chunk_rows == wanted
    assert 8 * (stored_rows(array, num_rows, shard_rows) - num_rows) <= num_rows
    assert num_rows <= shard_rows or shard_rows % wanted == 0
    (large,) = laid_out([RunArray("noise_16", (1024, 1024), ("y", "x"))], num_rows, shard_rows)
    assert large.chunk_rows == 1, "they are read one by one"


@pytest.mark.parametrize("num_images", [3, 40])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_run_takes_the_bytes_that_are_expected_of_it(memory_place: Any, num_images: int, dtype: str) -> None:
    """Before version 6 a run of three images took five times as many."""
    geometry = Geometry(8, 64, (32, 64))
    arrays = (*code_arrays(geometry), *noise_arrays(geometry, dtype))
    rows = tuple(PlannedRow(row, f"{row}.png", f"file:///{row}.png", f"{row:064x}") for row in range(num_images))
    writer = ArchiveWriter.open(memory_place.url, generator_digest="9f86", generator_name="x", geometry=geometry)
    run = writer.start_run(RunPlan("run-1", "lsap_o", "4a44", {}, {}, rows, arrays, shard_rows=512))
    numbers = np.random.default_rng(0)
    shape = (num_images,)
    values = {one.name: numbers.standard_normal(shape + one.item_shape).astype(one.dtype) for one in arrays}
    assert run.write_shard(0, values, pa.table({"status": ["ok"] * num_images}), "first") and run.publish({})
    chunks = sum(file.size for file in run.manifest().files if "/c/" in file.name)
    expected = expected_bytes(arrays, num_images) - expected_bytes((), num_images)
    assert 0.9 < chunks / expected < 1.1
    maps = open_archive(memory_place.url).noise(["1.png"], "lsap_o")
    for found, wanted in zip(maps, (values["noise_00"], values["noise_01"]), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found[0], wanted[1].astype(np.float32))
    assert open_archive(memory_place.url).describe()["methods"]["lsap_o"]["noise"] == [dtype]


@pytest.mark.parametrize("field", [4, 12], ids=["bytes that it unpacks to", "bytes that it is read from"])
def test_a_chunk_that_claims_more_than_it_holds_is_not_unpacked(memory_place: Any, published: Any, field: int) -> None:
    """Whoever made it may have put sound checksums everywhere."""
    run = published(memory_place)
    store, name = memory_place.store, "w_plus/c/0/0/0"
    (stored,) = (file for file in run.manifest().files if file.name == name)
    blob = bytearray(store.get(f"runs/run-1/{name}"))
    blob[field : field + 4] = (2**30).to_bytes(4, "little")
    (size,) = struct.unpack("<Q", blob[-4 - 2 * 16 :][8:16])  # of the first of two chunks, in the index
    blob[size - 4 : size] = crc32c(bytes(blob[: size - 4])).to_bytes(4, "little")
    metadata = store.get("runs/run-1/w_plus/zarr.json")
    with pytest.raises(CorruptArchiveError, match="does not unpack to the 24 bytes that it holds"):
        decode_shard(metadata, 0, bytes(blob), name, 2, (2, 3))
    store.put(f"runs/run-1/{name}", bytes(blob))
    manifest = run.manifest()
    told = replace(
        stored, sha256=sha256_of(bytes(blob)), checksums=shard_checksums(metadata, bytes(blob)), size=len(blob)
    )
    files = tuple(told if file.name == name else file for file in manifest.files)
    store.put("runs/run-1/_manifest.json", replace(manifest, files=files).encode())
    with pytest.raises(CorruptArchiveError, match="does not unpack to the 24 bytes that it holds"):
        open_archive(memory_place.url).codes(["image-0"], "lsap_o")


def test_other_codecs_are_refused(memory_place: Any, published: Any) -> None:
    published(memory_place)
    metadata = json.loads(memory_place.store.get("runs/run-1/w_plus/zarr.json"))
    metadata["codecs"][0]["configuration"]["codecs"][1] = {"name": "gzip", "configuration": {"level": 5}}
    blob = memory_place.store.get("runs/run-1/w_plus/c/0/0/0")
    with pytest.raises(CorruptArchiveError, match="by other codecs than sharded float32 or float16 or uint8"):
        decode_shard(json.dumps(metadata).encode(), 0, blob, "w_plus", 2, (2, 3))


def test_what_version_5_began_is_finished_as_it_was_begun(memory_place: Any, work: Any, monkeypatch: Any) -> None:
    """Its arrays are not compressed, and their metadata say so; a new run beside it is."""
    writer, store = memory_place.writer(), memory_place.store
    with monkeypatch.context() as before:
        before.setattr("lsap_archive.writing.archive_writer.laid_out", lambda arrays, *sizes: arrays)
        work.write(writer.start_run(work.plan()), 0)
    key = "runs/run-1/plan.json"
    values = decode_document(store.get(key), key)
    for array in values["arrays"]:
        del array["compression"], array["chunk_rows"]
    store.put(key, encode_document({**values, "format_version": 5}, key))
    metadata = store.get("runs/run-1/noise_00/zarr.json")
    assert b"blosc" not in metadata
    run = writer.start_run(work.plan())
    assert run.missing_shards() == [1, 2]
    assert work.write(run, 1) and work.write(run, 2) and run.publish({})
    store.delete("runs/run-1/noise_00/zarr.json")
    store.delete("runs/run-1/_copy/noise_00/zarr.json")
    assert repair_archive(memory_place.url).restored, "from what the manifest declares"
    assert store.get("runs/run-1/noise_00/zarr.json") == metadata
    other = writer.start_run(work.plan("run-2", method="lsap_e", method_digest="9e86"))
    work.write_all(other)
    assert other.publish({}) and b"blosc" in store.get("runs/run-2/noise_00/zarr.json")
    archive = open_archive(memory_place.url)
    for method in ("lsap_o", "lsap_e"):
        np.testing.assert_array_equal(archive.codes(["image-2", "image-4"], method), work.expected(run)[[2, 4]])
    assert verify_archive(memory_place.url).is_sound


def test_a_manifest_whose_chunks_do_not_fill_its_shards_is_damage(memory_place: Any, published: Any) -> None:
    published(memory_place)
    key = "runs/run-1/_manifest.json"
    values = decode_document(memory_place.store.get(key), key)
    values["arrays"][0]["chunk_rows"] = 3
    memory_place.store.put(key, encode_document(values, key))
    with pytest.raises(CorruptArchiveError, match="chunks of 3 rows of w_plus do not fill shards of 2"):
        open_archive(memory_place.url)
