"""What readers get, and what they are told when they cannot have it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr

from lsap_archive import (
    ROW_SCHEMA,
    Archive,
    ArchiveKeyError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    PlannedRow,
    QueryError,
    RunReader,
    code_arrays,
    open_archive,
    verify_archive,
)


def publish_run(
    place: Any, work: Any, run_id: str, rows: list[tuple[str, str, dict[str, Any]]], seed: int, shard_rows: int = 16
) -> Any:
    """A published run of (image id, digest, columns of the row)."""
    planned = tuple(PlannedRow(i, image_id, f"file:///{image_id}", d) for i, (image_id, d, _) in enumerate(rows))
    run = place.writer().start_run(work.plan(run_id, rows=planned, shard_rows=shard_rows))
    names = {"status": "ok", "reason": None, "message": None, "duplicate_of": None}
    table = pa.table({name: [row.get(name, value) for _, _, row in rows] for name, value in names.items()})
    for shard in range(run.num_shards):
        part = run.rows_of(shard)
        assert run.write_shard(shard, work.arrays(run, shard, seed), table.slice(part.start, len(part)), "first")
    assert run.publish({})
    return run


def test_an_empty_archive_is_read(memory_place: Any) -> None:
    memory_place.writer()
    archive = open_archive(memory_place.url)
    assert archive.runs == [] and archive.methods == []
    assert archive.rows().schema.equals(ROW_SCHEMA) and archive.rows().num_rows == 0
    assert archive.sql("SELECT count(*) AS n FROM rows").to_pylist() == [{"n": 0}]
    with pytest.raises(ArchiveKeyError, match="no published run of method lsap_o: it has none"):
        archive.codes(["a"], "lsap_o")


def test_no_archive_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArchiveNotFoundError, match="is not an archive"):
        open_archive(str(tmp_path))


def test_runs_and_description(memory_place: Any, published: Callable[[Any], Any]) -> None:
    run = published(memory_place)
    archive = open_archive(memory_place.url)
    (info,) = archive.runs
    assert (info.run_id, info.method, info.num_rows, info.summary) == ("run-1", "lsap_o", 5, {"note": "test"})
    assert info.provenance == {"seed": 7} and info.created == run.manifest().created
    about = archive.describe()
    counts = {"runs": 1, "ok": 5, "failed": 0, "duplicate": 0}
    assert about["methods"] == {
        "lsap_o": {**counts, "num_bytes": about["num_bytes"], "preview_bytes": 0, "noise": ["float32"]}
    }
    assert about["generator"] == {"digest": "9f86d081", "name": "tiny"}
    assert about["num_bytes"] == sum(
        size for key, size in memory_place.store.sizes("runs/run-1").items() if "/_" not in key
    )


def test_rows_and_sql(place: Any, published: Callable[[Any], Any]) -> None:
    published(place)
    archive = open_archive(place.url, place.options)
    assert archive.rows().schema.equals(ROW_SCHEMA)
    assert archive.rows(["row", "shard"]).column_names == ["row", "shard"]
    found = archive.sql("SELECT image_id FROM rows WHERE row >= $first ORDER BY row DESC", first=3)
    assert found.to_pylist() == [{"image_id": "image-4"}, {"image_id": "image-3"}]
    with pytest.raises(ArchiveKeyError, match="no column psnr: the rows have run_id, row"):
        archive.rows(["psnr"])
    with pytest.raises(QueryError, match="refused"):
        archive.sql("SELECT nothing FROM rows")
    with pytest.raises(QueryError, match="archive"):
        archive.sql("SELECT * FROM archive")  # DuckDB may not look into the caller's variables


def test_unknown_and_failed_images_are_named_with_the_reason(memory_place: Any, work: Any) -> None:
    failed = {"status": "failed", "reason": "not_an_image", "message": "the file begins with PK"}
    rows = [("a", "1", {}), ("b", "2", failed), ("c", "2", {"status": "duplicate", "duplicate_of": "b"})]
    publish_run(memory_place, work, "run-1", rows, seed=0)
    archive = open_archive(memory_place.url)
    with pytest.raises(ArchiveKeyError, match="has no image zebra of method lsap_o") as caught:
        archive.codes(["a", "zebra"], "lsap_o")
    assert isinstance(caught.value, KeyError)
    with pytest.raises(ArchiveKeyError, match=r"image b has no code .* reason not_an_image: the file begins with PK"):
        archive.codes(["b"], "lsap_o")
    with pytest.raises(ArchiveKeyError, match=r"image c \(it has the content of b\) has no code"):
        archive.codes(["c"], "lsap_o")
    with pytest.raises(ArchiveKeyError, match="no published run of method sam: it has lsap_o"):
        archive.codes(["a"], "sam")
    with pytest.raises(ArchiveKeyError, match="no published run run-2: it has run-1"):
        archive.array("run-2", "w_plus")
    with pytest.raises(ArchiveKeyError, match="has no array styles"):
        archive.array("run-1", "styles")


def test_duplicates_of_what_failed_are_shown_as_failed(memory_place: Any, work: Any) -> None:
    """As they were written before schema version 4: with the original in another shard, and before it."""
    failed = {"status": "failed", "reason": "not_an_image", "message": "the file begins with PK"}
    copy = {"status": "duplicate", "duplicate_of": "d"}
    same = {"status": "duplicate", "duplicate_of": "a"}
    rows = [("a", "1", {}), ("b", "2", copy), ("c", "1", same), ("d", "2", failed)]
    publish_run(memory_place, work, "run-1", [*rows, ("e", "2", copy)], seed=0, shard_rows=2)
    told = [("a", "ok"), ("b", "failed"), ("c", "duplicate"), ("d", "failed"), ("e", "failed")]
    archive = open_archive(memory_place.url)
    found = archive.sql("select image_id from rows where status = 'failed' and reason = 'not_an_image'")
    assert found.column("image_id").to_pylist() == ["b", "d", "e"]
    reader = RunReader.open(memory_place.url, "run-1")
    for table in (archive.rows(), reader.rows(range(5))):
        assert list(zip(*(table.column(name).to_pylist() for name in ("image_id", "status")), strict=True)) == told
    assert reader.rows(range(1, 3)).column("reason").to_pylist() == ["not_an_image", None]


def test_a_duplicate_has_the_code_of_its_original(memory_place: Any, work: Any) -> None:
    duplicate = {"status": "duplicate", "duplicate_of": "a"}
    first = publish_run(memory_place, work, "run-1", [("b", "1", duplicate), ("a", "1", {})], seed=1)
    archive = open_archive(memory_place.url)
    np.testing.assert_array_equal(archive.codes(["b"], "lsap_o")[0], work.expected(first, seed=1)[1])
    # a changes; c has a's old content: its code is that of the old content, as is b's
    second = publish_run(memory_place, work, "run-2", [("a", "2", {}), ("c", "1", duplicate)], seed=2)
    archive = open_archive(memory_place.url)
    codes = archive.codes(["a", "b"], "lsap_o")
    np.testing.assert_array_equal(codes[0], work.expected(second, seed=2)[0])
    np.testing.assert_array_equal(codes[1], work.expected(first, seed=1)[1])


def test_a_duplicate_of_an_image_of_an_older_run(memory_place: Any, work: Any) -> None:
    first = publish_run(memory_place, work, "run-1", [("a", "1", {})], seed=1)
    publish_run(memory_place, work, "run-2", [("a", "2", {})], seed=2)
    lonely = {"status": "duplicate", "duplicate_of": "gone"}
    duplicate = {"status": "duplicate", "duplicate_of": "a"}
    publish_run(memory_place, work, "run-3", [("d", "1", duplicate), ("e", "9", lonely)], seed=3)
    archive = open_archive(memory_place.url)
    np.testing.assert_array_equal(archive.codes(["d"], "lsap_o")[0], work.expected(first, seed=1)[0])
    with pytest.raises(ArchiveKeyError, match=r"image e is a duplicate of gone, of which .* has no row"):
        archive.codes(["e"], "lsap_o")


def test_a_duplicate_of_a_duplicate_is_followed_and_a_circle_is_said(memory_place: Any, work: Any) -> None:
    first = publish_run(memory_place, work, "run-1", [("a", "1", {})], seed=1)
    rows = [
        (image_id, digest, {"status": "duplicate", "duplicate_of": of})
        for image_id, digest, of in (("b", "1", "a"), ("c", "1", "b"), ("x", "9", "y"), ("y", "9", "x"))
    ]
    publish_run(memory_place, work, "run-2", rows, seed=2)
    archive = open_archive(memory_place.url)
    expected = work.expected(first, seed=1)[0]
    np.testing.assert_array_equal(archive.codes(["c", "b", "a", "c"], "lsap_o"), np.stack([expected] * 4))
    with pytest.raises(CorruptArchiveError, match="image x is a duplicate of itself: run it again"):
        archive.codes(["c", "x"], "lsap_o")


def test_the_newest_run_of_an_image_counts(memory_place: Any, work: Any) -> None:
    first = publish_run(memory_place, work, "z-old", [("a", "1", {}), ("b", "1b", {})], seed=1)
    second = publish_run(memory_place, work, "a-new", [("a", "2", {})], seed=2)
    archive = open_archive(memory_place.url)
    codes = archive.codes(["a", "b"], "lsap_o")
    np.testing.assert_array_equal(codes[0], work.expected(second, seed=2)[0])
    np.testing.assert_array_equal(codes[1], work.expected(first, seed=1)[1])
    assert archive.rows(history=True).num_rows == 3
    newest = [("b", "z-old"), ("a", "a-new")]
    assert [tuple(row.values()) for row in archive.rows(["image_id", "run_id"]).to_pylist()] == newest
    assert [run.run_id for run in archive.runs] == ["z-old", "a-new"]
    near = archive.nearest(work.expected(first, seed=1)[0], 5, "lsap_o")
    assert sorted(near.column("image_id").to_pylist()) == ["a", "b"]
    assert archive.rows(["image_id", "digest"], history=True).to_pylist()[-1] == {"image_id": "a", "digest": "2"}
    assert verify_archive(memory_place.url).is_sound


def test_methods_are_kept_apart_by_name_and_by_digest(memory_place: Any, work: Any) -> None:
    writer = memory_place.writer()
    for number, (method, digest) in enumerate((("lsap_o", "x1"), ("lsap_o", "x2"), ("lsap_e", "x3"))):
        run = writer.start_run(work.plan(f"run-{number}", method=method, method_digest=digest))
        work.write_all(run, seed=number)
        run.publish({})
    archive = open_archive(memory_place.url)
    assert archive.methods == ["lsap_e", "lsap_o"]
    for method, seed in (("lsap_o", 1), ("x1", 0), ("x2", 1), ("lsap_e", 2)):
        np.testing.assert_array_equal(archive.codes(["image-4"], method)[0], work.expected(run, seed=seed)[4])


def test_runs_without_noise_or_trace_say_so(memory_place: Any, work: Any) -> None:
    plan = work.plan(trace_steps=(), trace_terms=(), arrays=code_arrays(memory_place.writer().geometry))
    run = memory_place.writer().start_run(plan)
    for shard in range(3):
        assert run.write_shard(shard, {"w_plus": work.arrays(run, shard)["w_plus"]}, work.rows(run, shard), "a")
    assert run.publish({})
    archive = open_archive(memory_place.url)
    np.testing.assert_array_equal(archive.codes(["image-2"], "lsap_o")[0], work.expected(run)[2])
    with pytest.raises(ArchiveKeyError, match="run-1 has no array noise_00"):
        archive.noise(["image-2"], "lsap_o")
    with pytest.raises(ArchiveKeyError, match="run-1 has no array trace"):
        archive.trace(["image-2"], "lsap_o")
    assert verify_archive(memory_place.url).is_sound


def test_nearest_is_exact(quick_place: Any, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsap_archive.reading.nearest.exact._BLOCK_PRODUCTS", 1)  # one code at a time
    run = quick_place.writer().start_run(work.plan())
    work.write_all(run)
    run.publish({})
    archive = open_archive(quick_place.url, quick_place.options)
    codes = work.expected(run).astype(np.float64)
    for code in (codes[3] + 0.01, np.array([0.5, -0.5, 1.0])):
        wanted = np.sqrt(((codes - code) ** 2).sum((1, 2)))
        found = archive.nearest(code, 3, "lsap_o")
        assert found.column("row").to_pylist() == np.argsort(wanted)[:3].tolist()
        np.testing.assert_allclose(found.column("distance").to_numpy(), np.sort(wanted)[:3], rtol=1e-12)
    assert archive.nearest(codes[0], 99, "lsap_o").num_rows == 5
    assert found.column_names == ["image_id", "distance", "uri", "run_id", "row"]


def test_nearest_refuses_what_is_no_code(memory_place: Any, published: Callable[[Any], Any]) -> None:
    published(memory_place)
    archive = open_archive(memory_place.url)
    for code in (np.zeros((3, 3)), np.zeros(2), np.full(3, np.nan), np.zeros((0, 2, 3))):
        with pytest.raises(ArchiveMismatchError, match=r"\(2, 3\) or \(3,\) is wanted"):
            archive.nearest(code, 1, "lsap_o")
    with pytest.raises(ArchiveMismatchError, match="k is 0"):
        archive.nearest(np.zeros(3), 0, "lsap_o")


def test_plain_zarr_opens_a_run(local_place: Any, work: Any, published: Callable[[Any], Any]) -> None:
    run = published(local_place)
    group = zarr.open_group(f"{local_place.url}/runs/run-1", mode="r", zarr_format=3)
    assert sorted(group.array_keys()) == ["image_id", "noise_00", "noise_01", "step", "term", "trace", "w_plus"]
    assert list(group["image_id"][:]) == [f"image-{row}" for row in range(5)]
    np.testing.assert_array_equal(np.asarray(group["w_plus"][:]), work.expected(run))
    assert group.attrs["trace_terms"] == ["mse", "lpips", "sncd"]
    assert group["w_plus"].metadata.dimension_names == ("image", "layer", "channel")


def test_an_archive_is_a_snapshot(memory_place: Any, work: Any, published: Callable[[Any], Any]) -> None:
    published(memory_place)
    archive = open_archive(memory_place.url)
    publish_run(memory_place, work, "run-2", [("x", "1", {})], seed=2)
    assert archive.rows().num_rows == 5
    assert open_archive(memory_place.url).rows().num_rows == 6


def read_everything(archive: Archive) -> None:
    ids = [f"image-{row}" for row in range(5)]
    archive.codes(ids, "lsap_o")
    archive.noise(ids, "lsap_o")
    archive.trace(ids, "lsap_o")


DAMAGED = (
    "w_plus/c/1/0/0",
    "noise_01/c/2/0/0",
    "trace/c/0/0/0",
    "rows/shard-00001.parquet",
    "w_plus/zarr.json",
)


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_found_by_reading_and_by_verifying(
    memory_place: Any, published: Callable[[Any], Any], name: str, damage: str
) -> None:
    published(memory_place)
    store, key = memory_place.store, f"runs/run-1/{name}"
    data = store.get(key)
    if damage == "flip":
        store.put(key, bytes([data[0] ^ 1]) + data[1:])
    elif damage == "truncate":
        store.put(key, data[: len(data) // 2])
    else:
        store.delete(key)
    with pytest.raises(CorruptArchiveError) as caught:
        read_everything(open_archive(memory_place.url))
    assert name in str(caught.value).replace(" ", "/")
    problems = verify_archive(memory_place.url).problems
    assert [problem.key for problem in problems] == [f"runs/run-1/{name}"]
    assert problems[0].found and problems[0].wanted and name in str(problems[0])


def test_damage_is_found_in_every_store(place: Any, published: Callable[[Any], Any]) -> None:
    published(place)
    place.store.delete("runs/run-1/noise_00/c/0/0/0")
    key = "runs/run-1/w_plus/c/1/0/0"
    place.store.put(key, place.store.get(key)[:-30])
    with pytest.raises(CorruptArchiveError, match="w_plus/c/1/0/0"):
        open_archive(place.url, place.options).codes(["image-2"], "lsap_o")
    with pytest.raises(CorruptArchiveError, match="noise_00/c/0/0/0 is missing"):
        open_archive(place.url, place.options).noise(["image-0"], "lsap_o")
    problems = verify_archive(place.url, place.options).problems
    assert {problem.key for problem in problems} == {key, "runs/run-1/noise_00/c/0/0/0"}


@pytest.mark.parametrize("key", ["runs/run-1/_manifest.json", "archive.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damaged_documents_are_found(memory_place: Any, published: Callable[[Any], Any], key: str, damage: str) -> None:
    published(memory_place)
    text = memory_place.store.get(key)
    memory_place.store.put(key, text.replace(b'"num_ws": 2', b'"num_ws": 3') if damage == "flip" else text[:-40])
    with pytest.raises(CorruptArchiveError, match=key):
        open_archive(memory_place.url)
    report = verify_archive(memory_place.url)
    assert [problem.key for problem in report.problems] == [key] and not report.is_sound


def test_a_newer_format_is_refused(memory_place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsap_archive.format.manifest.FORMAT_VERSION", 8)
    with pytest.raises(ArchiveMismatchError, match="is of format version 8, this package reads 1, 2, 3, 4, 5, 6, 7"):
        memory_place.writer()
    with pytest.raises(ArchiveMismatchError, match="is of format version 8"):
        open_archive(memory_place.url)


def test_reading_needs_no_torch(local_place: Any, published: Callable[[Any], Any]) -> None:
    published(local_place)
    script = f"""
import sys
import lsap_archive
archive = lsap_archive.open_archive({local_place.url!r})
assert archive.codes(["image-1"], "lsap_o").shape == (1, 2, 3)
assert archive.sql("SELECT count(*) AS n FROM rows").to_pylist() == [{{"n": 5}}]
print([name for name in ("torch", "ray", "prefect", "s3fs") if name in sys.modules])
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (answer.stdout, answer.stderr) == ("[]\n", "")
