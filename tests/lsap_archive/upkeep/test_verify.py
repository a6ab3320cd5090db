"""Verification finds what damage a digest cannot show: rows and arrays that do not agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lsap_archive import CorruptArchiveError, Manifest, PlannedRow, ShardCommit, StoredObject, verify_archive
from lsap_archive.format.documents import sha256_of
from lsap_archive.format.shards import encode_shard


def replace_object(place: Any, name: str, data: bytes) -> None:
    """Put another object, and a manifest that names it, as a faulty writer would have."""
    key = "runs/run-1/_manifest.json"
    manifest = Manifest.decode(place.store.get(key), key)
    files = [StoredObject(name, len(data), sha256_of(data)) if file.name == name else file for file in manifest.files]
    place.store.put(f"runs/run-1/{name}", data)
    for one in (key, "runs/run-1/_copy/_manifest.json"):
        place.store.put(one, Manifest(**{**vars(manifest), "files": tuple(files)}).encode())
    for shard in range(manifest.num_shards):
        marker = f"runs/run-1/_commit/{shard:05d}.json"
        commit = ShardCommit.decode(place.store.get(marker), marker)
        objects = tuple(next(file for file in files if file.name == one.name) for one in commit.objects)
        place.store.put(marker, replace(commit, objects=objects).encode())


def test_a_sound_archive_is_counted(place: Any, published: Callable[[Any], Any]) -> None:
    published(place)
    report = verify_archive(place.url, place.options)
    assert report.is_sound and report.information == []
    # plan, images, group, four arrays and three coordinates with values, each with its copy, and per shard four arrays
    # and the rows; lists and queries
    assert report.counts["objects"] == 2 * (2 + 5 + 3 * 2) + 3 * 5 + 4 + 3
    assert report.counts["published_runs"] == 1 and report.counts["rows"] == 5
    assert json.loads(json.dumps(report.to_dict()))["is_sound"] is True


def test_codes_that_are_nan_at_ok_rows_are_found(memory_place: Any, work: Any, published: Any) -> None:
    run = published(memory_place)
    values = work.arrays(run, 1)["w_plus"]
    values[1] = np.nan
    metadata = memory_place.store.get("runs/run-1/w_plus/zarr.json")
    blob = encode_shard(metadata, 1, values)
    assert blob is not None
    replace_object(memory_place, "w_plus/c/1/0/0", blob)
    (problem,) = verify_archive(memory_place.url).problems
    assert problem.key == "runs/run-1/w_plus/c/1/0/0"
    assert problem.found == "values that are not finite at 1 ok rows, first 1"


def test_a_shard_that_fails_its_checksum_is_found(memory_place: Any, published: Callable[[Any], Any]) -> None:
    published(memory_place)
    data = bytearray(memory_place.store.get("runs/run-1/w_plus/c/0/0/0"))
    data[3] ^= 1
    replace_object(memory_place, "w_plus/c/0/0/0", bytes(data))
    (problem,) = verify_archive(memory_place.url).problems
    assert problem.key == "runs/run-1/w_plus/c/0/0/0" and "cannot be decoded" in problem.found


def test_an_image_done_twice_is_found(memory_place: Any, work: Any) -> None:
    writer = memory_place.writer()
    rows = (PlannedRow(0, "a", "u", "same"),)
    for run_id in ("run-1", "run-2"):
        run = writer.start_run(work.plan(run_id, rows=rows))
        work.write_all(run)
        run.publish({})
    (problem,) = verify_archive(memory_place.url).problems
    assert problem.key == "runs/run-2/_manifest.json"
    assert problem.found == "image a of content same a second time, first in run run-1"


def test_leftovers_are_named_as_information(memory_place: Any, work: Any, published: Any) -> None:
    run = published(memory_place)
    run.stage(0, work.arrays(run, 0), work.rows(run, 0), "late")
    memory_place.store.put("runs/run-1/notes.txt", b"mine")
    other = memory_place.writer().start_run(work.plan("run-2", method_digest="other"))
    work.write(other, 2)
    report = verify_archive(memory_place.url)
    assert report.is_sound
    lines = "\n".join(report.information)
    assert "runs/run-1/_staging/00000/late." in lines
    assert "runs/run-1/notes.txt is named by no manifest" in lines
    assert "runs/run-2 is not published: 1 of 3 shards are committed" in lines
    assert len(report.information) == 3
    assert not run.publish({})  # publishing again clears what was left in staging
    assert "late." not in "\n".join(verify_archive(memory_place.url).information)


def test_a_damaged_marker_of_an_unfinished_run_is_found(memory_place: Any, work: Any) -> None:
    run = memory_place.writer().start_run(work.plan())
    work.write(run, 0)
    memory_place.store.put("runs/run-1/_commit/00000.json", b"{")
    (problem,) = verify_archive(memory_place.url).problems
    assert problem.key == "runs/run-1/_commit/00000.json"
    with pytest.raises(CorruptArchiveError, match=r"_commit/00000.json is not JSON"):
        run.promote_committed()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [5, 100_000, 100_000]}, "declared"),
        ({"shape": [5, 2, -3]}, "cannot be decoded"),
        ({"shape": "12"}, "cannot be decoded"),
        ({"data_type": "float64"}, "other codecs"),
        ({"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]}, "other codecs"),
    ],
)
def test_metadata_of_an_array_that_lie_are_listed_and_nothing_is_made_of_them(
    memory_place: Any, published: Any, change: dict[str, Any], words: str
) -> None:
    published(memory_place)
    store, name = memory_place.store, "w_plus/zarr.json"
    lying = json.dumps(json.loads(store.get(f"runs/run-1/{name}")) | change).encode()
    replace_object(memory_place, name, lying)
    problems = verify_archive(memory_place.url).problems
    assert any(words in problem.found for problem in problems if problem.key.startswith("runs/run-1/w_plus/c/"))
