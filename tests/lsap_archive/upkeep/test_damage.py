"""A damaged object is noticed wherever it is read: whole, in part, and as a sound object of another place."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lsap_archive import (
    Archive,
    CorruptArchiveError,
    PlannedRow,
    RunReader,
    RunWriter,
    Store,
    open_archive,
    repair_archive,
    verify_archive,
)
from lsap_archive.format.measurements import MEASUREMENT_SCHEMA
from lsap_archive.format.rows import from_parquet, to_parquet

VERSION_2 = Path(__file__).parents[1] / "version_2.zip"
"""Written by version 2: run-1, edit-1 of it with images and evaluation-1 are published, of run-2 one shard of three."""
REPAIR = r"lsap archive repair"


@pytest.fixture
def large_shard(memory_place: Any, work: Any) -> RunWriter:
    """One run of 46 rows in a shard of three inner chunks of 16."""
    rows = tuple(PlannedRow(row, f"image-{row}", f"file:///{row}.png", f"content-{row}") for row in range(46))
    run = memory_place.writer().start_run(work.plan(rows=rows, shard_rows=48))
    work.write_all(run)
    assert run.publish({})
    return run


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def ends_of_chunks(data: bytes) -> list[int]:
    """Where the three inner chunks of a shard's object end, each with its checksum, as its index tells."""
    return [int(start + size) for start, size in np.frombuffer(data[-52:-4], "<u8").reshape(3, 2)]


def test_a_flipped_bit_is_noticed_by_whoever_reads_it(large_shard: RunWriter) -> None:
    """At 24 seeded positions: a read of one row notices exactly the damage of its own chunk, or of the index."""
    store, key = large_shard.store, "runs/run-1/w_plus/c/0/0/0"
    data, expected = (
        store.get(key),
        open_archive(large_shard.store.url).codes(["image-0", "image-16", "image-32"], "lsap_o"),
    )
    rng = np.random.default_rng(7)
    ends = ends_of_chunks(data)
    assert ends == sorted(ends) and ends[-1] == len(data) - 52
    positions = [*rng.integers(len(data), size=20), 0, ends[0] - 4, len(data) - 52, len(data) - 1]
    chunks = [next((chunk for chunk, end in enumerate(ends) if at < end), None) for at in positions]
    assert {0, 1, 2, None} <= set(chunks)
    for at, damaged in zip(positions, chunks, strict=True):
        store.put(key, flipped(data, int(at)))
        archive = open_archive(store.url)
        for chunk in range(3):
            if damaged in (chunk, None):
                with pytest.raises(CorruptArchiveError, match=rf"{key}.*{REPAIR}"):
                    archive.codes([f"image-{16 * chunk}"], "lsap_o")
            else:
                found = archive.codes([f"image-{16 * chunk}"], "lsap_o")
                np.testing.assert_array_equal(found, expected[chunk : chunk + 1])


def test_a_part_of_another_shards_object_is_noticed(memory_place: Any, work: Any) -> None:
    """One row of three inner chunks: its checksum is right, and it is not the one that the manifest names."""
    rows = tuple(PlannedRow(row, f"image-{row}", f"file:///{row}.png", f"content-{row}") for row in range(96))
    run = memory_place.writer().start_run(work.plan(rows=rows, shard_rows=48))
    work.write_all(run)
    assert run.publish({})
    first, second = "runs/run-1/w_plus/c/0/0/0", "runs/run-1/w_plus/c/1/0/0"
    objects = run.store.get(first), run.store.get(second)
    run.store.put(first, objects[1])
    run.store.put(second, objects[0])
    archive = open_archive(memory_place.url)
    for image_id, key in (("image-20", first), ("image-70", second)):
        with pytest.raises(CorruptArchiveError, match=rf"{key} holds a chunk of checksum .*{REPAIR}"):
            archive.codes([image_id], "lsap_o")


READERS: dict[str, tuple[str, Callable[[Archive], object]]] = {
    "w_plus/c/{}/0/0": ("codes", lambda archive: archive.codes(["image-0"], "lsap_o")),
    "noise_01/c/{}/0/0": ("noise", lambda archive: archive.noise(["image-0"], "lsap_o")),
    "trace/c/{}/0/0": ("trace", lambda archive: archive.trace(["image-0"], "lsap_o")),
    "rows/shard-{:05d}.parquet": ("sql", lambda archive: archive.sql("select count(*) from rows")),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("how", ["swapped", "truncated", "deleted"])
def test_another_shards_object_is_noticed_on_read(memory_place: Any, published: Any, name: str, how: str) -> None:
    published(memory_place)
    store, key = memory_place.store, f"runs/run-1/{name.format(0)}"
    if how == "deleted":
        store.delete(key)
    else:
        store.put(key, store.get(f"runs/run-1/{name.format(1)}") if how == "swapped" else store.get(key)[:-7])
    with pytest.raises(CorruptArchiveError, match=rf"{key}.*{REPAIR}"):
        READERS[name][1](open_archive(memory_place.url))


def test_every_way_to_read_codes_notices(memory_place: Any, published: Any) -> None:
    published(memory_place)
    store = memory_place.store
    store.put("runs/run-1/w_plus/c/0/0/0", store.get("runs/run-1/w_plus/c/1/0/0"))
    archive, reader = open_archive(memory_place.url), RunReader.open(memory_place.url, "run-1")
    code = archive.codes(["image-4"], "lsap_o")[0]  # of a shard that is whole
    for read in (
        lambda: archive.nearest(code, 1, "lsap_o"),
        lambda: reader.codes(range(5)),
        lambda: reader.codes(range(1, 2)),
        lambda: archive.array("run-1", "w_plus")[:],
    ):
        with pytest.raises(CorruptArchiveError, match=r"w_plus.*lsap archive repair"):
            read()


def test_metadata_of_arrays_is_checked_before_it_is_believed(memory_place: Any, published: Any) -> None:
    published(memory_place)
    key = "runs/run-1/w_plus/zarr.json"
    text = memory_place.store.get(key)
    memory_place.store.put(key, text.replace(b'"NaN"', b'"-1"'))
    with pytest.raises(CorruptArchiveError, match=rf"{key}.*{REPAIR}"):
        open_archive(memory_place.url).codes(["image-0"], "lsap_o")


def test_pages_of_tables_have_checksums() -> None:
    """What no manifest names yet, measurements of an evaluation under way, tells damage of its values itself."""
    values = {"row": range(500), "value": np.random.default_rng(0).standard_normal(500), "shard": [0] * 500}
    arrays = [pa.array(values.get(field.name, ["1"] * 500)).cast(field.type) for field in MEASUREMENT_SCHEMA]
    table = pa.Table.from_arrays(arrays, schema=MEASUREMENT_SCHEMA)
    data = to_parquet(table)
    unnoticed = []
    for at in range(4, len(data), 13):
        try:
            if not from_parquet(flipped(data, at), MEASUREMENT_SCHEMA, "x").equals(table):
                unnoticed.append(at)
        except CorruptArchiveError:
            continue
    assert len(unnoticed) <= 10, "a few bits of the footer say nothing of the values"
    assert all(at > 0.6 * len(data) for at in unnoticed)


@pytest.fixture
def version_2(tmp_path: Path) -> str:
    with zipfile.ZipFile(VERSION_2) as file:
        file.extractall(tmp_path / "archive")
    return str(tmp_path / "archive")


def test_an_archive_of_version_2_is_read_repaired_and_written_further(version_2: str, work: Any) -> None:
    run = RunWriter.open(version_2, "run-1")
    before = {key: run.store.get(key) for key in run.store.sizes()}
    report = verify_archive(version_2)
    assert report.is_sound and len([one for one in report.information if "has no copy of" in one]) == 3
    repaired = repair_archive(version_2)
    assert len(repaired.copied) == (7 + 1) + (4 + 1) + 2 and not repaired.restored
    assert {key: run.store.get(key) for key in before} == before
    archive = open_archive(version_2)
    np.testing.assert_array_equal(archive.codes(["image-3"], "lsap_o"), work.expected(run)[3:4])
    assert archive.images(["image-3"], "lsap_o/slant") == [b"\x89PNG 3"] and archive.measurements().num_rows == 5
    store = Store.from_url(version_2)
    store.put("runs/run-1/w_plus/c/1/0/0", flipped(store.get("runs/run-1/w_plus/c/1/0/0"), 9))
    store.put("runs/run-1/images.parquet", b"")
    assert repair_archive(version_2).retired == ["shard 1 of runs/run-1"]
    assert verify_archive(version_2).is_sound
    other = RunWriter.open(version_2, "run-2")
    for shard in other.missing_shards():
        assert work.write(other, shard)
    assert other.publish({}) and other.manifest().sequence == 1
    archive = open_archive(version_2)
    assert [one.run_id for one in archive.runs] == ["run-1", "edit-1", "run-2"]
    np.testing.assert_array_equal(archive.codes(["image-3"], "e4e"), work.expected(other)[3:4])
    assert archive.rows().num_rows == 3 + 3 + 5
