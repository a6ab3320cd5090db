"""Previews of an archive: written with shards, read by image and method, and worth no code when they are damaged."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lsap_archive import (
    ArchiveKeyError,
    ArchiveMismatchError,
    CorruptArchiveError,
    PlannedRow,
    Preview,
    RunWriter,
    Store,
    StoredObject,
    Subject,
    code_arrays,
    open_archive,
    repair_archive,
    verify_archive,
)
from lsap_archive.format.previews import largest_previews
from lsap_archive.reading.previews import KeptPreviews, previews_of_manifest

IDS = [f"image-{row}" for row in range(5)]
FIRST = "runs/run-1/previews/shard-00000.parquet"


def webp(text: str) -> bytes:
    """The header of a picture of 8 x 8 pixels, and a text, which tells it apart."""
    body = b"\x2f" + struct.pack("<I", 7 | 7 << 14) + text.encode().ljust(40)
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def rows_of(statuses: Iterable[str], **columns: Any) -> pa.Table:
    found = list(statuses)
    reasons = ["truncated" if status == "failed" else None for status in found]
    return pa.table({"status": found, "reason": pa.array(reasons, pa.string()), **columns})


def write(run: RunWriter, work: Any, name: str, rows: pa.Table | None = None, *, originals: bool = True) -> None:
    """Every shard, with previews that name the run and the row."""
    for shard in range(run.num_shards):
        planned = run.rows_of(shard)
        table = rows_of(["ok"] * len(planned)) if rows is None else rows.slice(planned.start, len(planned))
        is_ok = [status == "ok" for status in table.column("status").to_pylist()]
        previews = [
            Preview(row, webp(f"{name} {row}"), webp(f"original {row} in {name}") if originals else None)
            for row, ok in zip(planned, is_ok, strict=True)
            if ok
        ]
        assert run.write_shard(shard, work.arrays(run, shard), table, "first", previews=previews)
    assert run.publish({})


def start(place: Any, work: Any, run_id: str = "run-1", **changes: Any) -> RunWriter:
    run: RunWriter = place.writer().start_run(work.plan(run_id, arrays=code_arrays(place.writer().geometry), **changes))
    return run


def edit_of(place: Any, work: Any) -> RunWriter:
    subject = Subject("run-1", "lsap_o", "4a44dc15", "slant", 2.0)
    return start(place, work, "edit-1", method="lsap_o/slant", method_digest="ed17", subject=subject)


def test_previews_are_read_by_image_and_method(place: Any, work: Any) -> None:
    write(start(place, work), work, "run-1")
    write(edit_of(place, work), work, "edit-1", originals=False)
    archive = open_archive(place.url, place.options)
    asked = ["image-4", "image-0", "image-4", "never seen"]
    assert archive.previews(asked, "lsap_o") == [webp("run-1 4"), webp("run-1 0"), webp("run-1 4"), None]
    assert archive.previews(asked, "lsap_o/slant") == [webp("edit-1 4"), webp("edit-1 0"), webp("edit-1 4"), None]
    original = [webp(f"original {row} in run-1") for row in (4, 0, 4)]
    assert archive.original_previews(asked) == [*original, None]
    assert archive.previews([], "lsap_o") == []
    with pytest.raises(ArchiveKeyError, match="no published run of method psp"):
        archive.previews(IDS, "psp")
    assert verify_archive(place.url, place.options).is_sound
    about = archive.describe()
    sizes = {key: size for key, size in place.store.sizes().items() if "/previews/" in key}
    assert len(sizes) == 6
    for key, kind, method in (("run-1", "methods", "lsap_o"), ("edit-1", "edits", "lsap_o/slant")):
        told = about[kind][method]["preview_bytes"]
        assert told == sum(size for name, size in sizes.items() if key in name) > 0


def test_images_without_a_code_have_none_and_duplicates_that_of_their_original(memory_place: Any, work: Any) -> None:
    table = rows_of(
        ["ok", "failed", "duplicate", "duplicate", "ok"],
        duplicate_of=pa.array([None, None, "image-4", "image-1", None], pa.string()),
    )
    write(start(memory_place, work), work, "run-1", table)
    archive = open_archive(memory_place.url)
    kept = [0, None, 4, None, 4]
    assert archive.previews(IDS, "lsap_o") == [None if row is None else webp(f"run-1 {row}") for row in kept]
    originals = [None if row is None else webp(f"original {row} in run-1") for row in kept]
    assert archive.original_previews(IDS) == originals
    changed = (PlannedRow(0, "image-4", "file:///4.png", "new-4"),)
    write(start(memory_place, work, "run-2", rows=changed), work, "run-2")
    archive = open_archive(memory_place.url)
    assert archive.previews(["image-2", "image-4"], "lsap_o") == [webp("run-1 4"), webp("run-2 0")]


def test_the_newest_run_counts_also_where_it_kept_none_but_originals_are_those_there_are(
    memory_place: Any, work: Any
) -> None:
    write(start(memory_place, work), work, "run-1")
    write(start(memory_place, work, "run-2", method="psp", method_digest="b5"), work, "run-2")
    changed = tuple(PlannedRow(row, image_id, "file:///1.png", f"new-{row}") for row, image_id in enumerate(IDS[:2]))
    newest = start(memory_place, work, "run-3", rows=changed)
    work.write_all(newest)
    assert newest.publish({})
    archive = open_archive(memory_place.url)
    assert archive.previews(IDS[:3], "lsap_o") == [None, None, webp("run-1 2")]
    assert archive.original_previews(IDS[:3]) == [webp(f"original {row} in run-2") for row in range(3)]


def test_a_retired_shard_shows_none(local_place: Any, work: Any) -> None:
    write(start(local_place, work), work, "run-1")
    local_place.store.delete("runs/run-1/rows/shard-00001.parquet")
    repair_archive(local_place.url)
    archive = open_archive(local_place.url)
    assert [one is not None for one in archive.previews(IDS, "lsap_o")] == [True, True, False, False, True]
    assert [one is not None for one in archive.original_previews(IDS)] == [True, True, False, False, True]


@pytest.mark.parametrize("row", [1, 2])
def test_previews_are_of_ok_rows_of_the_shard(memory_place: Any, work: Any, row: int) -> None:
    run = start(memory_place, work)
    with pytest.raises(ArchiveMismatchError, match=f"a preview of row {row} was given, which is not an ok row"):
        run.write_shard(
            0, work.arrays(run, 0), rows_of(["ok", "failed"]), "first", previews=[Preview(row, webp("other"))]
        )
    assert run.missing_shards() == [0, 1, 2]


def test_originals_are_kept_once_with_the_inversion(memory_place: Any, work: Any) -> None:
    write(start(memory_place, work), work, "run-1")
    edit = edit_of(memory_place, work)
    with pytest.raises(ArchiveMismatchError, match="an original of row 0 was given: its inversion keeps it"):
        write(edit, work, "edit-1")


def damage(store: Store, how: str) -> None:
    data = store.get(FIRST)
    if how == "gone":
        store.delete(FIRST)
    else:
        store.put(FIRST, {"altered": data[:-20] + bytes(20), "longer": data + b"#", "empty": b""}[how])


@pytest.mark.parametrize("how", ["altered", "longer", "empty", "gone"])
def test_damaged_previews_are_told_and_cost_no_code(memory_place: Any, work: Any, how: str) -> None:
    write(start(memory_place, work), work, "run-1")
    before = open_archive(memory_place.url).codes(IDS, "lsap_o")
    sound = memory_place.store.get(FIRST)
    damage(memory_place.store, how)
    archive = open_archive(memory_place.url)
    if how != "gone":
        with pytest.raises(CorruptArchiveError, match=FIRST):
            archive.previews(IDS, "lsap_o")
        memory_place.store.put(FIRST, sound)  # an error is not remembered
        assert archive.previews(["image-0"], "lsap_o") == [webp("run-1 0")]
        damage(memory_place.store, how)
        assert [one.key for one in verify_archive(memory_place.url).problems] == [FIRST]
        assert repair_archive(memory_place.url, dry_run=True).removed == [FIRST]
        assert repair_archive(memory_place.url).removed == [FIRST]
    report = verify_archive(memory_place.url)
    assert report.is_sound
    assert any(FIRST in told for told in report.information)
    assert repair_archive(memory_place.url).to_dict()["removed"] == []
    archive = open_archive(memory_place.url)
    assert [one is not None for one in archive.previews(IDS, "lsap_o")] == [False, False, True, True, True]
    assert (archive.codes(IDS, "lsap_o") == before).all()


def test_damaged_previews_are_mended_from_what_was_staged(local_place: Any, work: Any, tmp_path: Path) -> None:
    run = start(local_place, work)
    for shard in range(run.num_shards):
        previews = [Preview(row, webp(f"run-1 {row}")) for row in run.rows_of(shard)]
        assert run.write_shard(shard, work.arrays(run, shard), work.rows(run, shard), "first", previews=previews)
    assert run.show({})  # killed before it tidied up
    damage(local_place.store, "altered")
    assert repair_archive(local_place.url).restored == [FIRST]
    assert open_archive(local_place.url).previews(["image-0"], "lsap_o") == [webp("run-1 0")]


def test_a_run_under_way_makes_a_shard_again_whose_previews_are_lost(local_place: Any, work: Any) -> None:
    run = start(local_place, work)
    previews = [Preview(row, webp(f"run-1 {row}")) for row in run.rows_of(0)]
    assert run.write_shard(0, work.arrays(run, 0), work.rows(run, 0), "first", previews=previews)
    for key in local_place.store.sizes():
        if "/previews/" in key:
            local_place.store.put(key, b"")
    assert [one.key for one in verify_archive(local_place.url).problems] == [FIRST]
    repair_archive(local_place.url)
    assert run.missing_shards() == [0, 1, 2]


def test_nothing_is_left_of_previews_of_a_run_that_is_given_up(memory_place: Any, work: Any) -> None:
    run = start(memory_place, work)
    previews = [Preview(row, webp(f"run-1 {row}")) for row in run.rows_of(0)]
    assert run.write_shard(0, work.arrays(run, 0), work.rows(run, 0), "first", previews=previews)
    assert FIRST in memory_place.store.sizes()
    run.give_up("nobody wants it")
    assert not [key for key in memory_place.store.sizes() if "/previews/" in key]


def test_more_than_previews_can_be_is_never_read(memory_place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> bytes:
        raise AssertionError("it was read")

    store = memory_place.store
    store.put("previews.parquet", b"longer than it says")
    monkeypatch.setattr(Store, "get", read)
    for size, told in (
        (2 * largest_previews(16), "previews of 16 images have"),
        (3, "has 19 bytes, the manifest says 3"),
    ):
        with pytest.raises(CorruptArchiveError, match=told):
            previews_of_manifest(store, "previews.parquet", StoredObject("previews.parquet", size, "0" * 64), 16)


def test_a_file_is_read_once_and_the_last_ones_are_kept(
    memory_place: Any, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(start(memory_place, work), work, "run-1")
    archive, read = open_archive(memory_place.url), list[str]()
    get = Store.get
    monkeypatch.setattr(Store, "get", lambda self, key, *part: read.append(key) or get(self, key, *part))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: archive.previews(IDS, "lsap_o"), range(16)))
    assert all(one == [webp(f"run-1 {row}") for row in range(5)] for one in answers)
    assert archive.original_previews(IDS)[4] == webp("original 4 in run-1")
    files = [f"runs/run-1/previews/shard-0000{shard}.parquet" for shard in range(3)]
    assert sorted(key for key in read if "/previews/" in key) == files
    small = KeptPreviews(archive._runs, kept_bytes=1)
    for _ in range(2):
        assert small.pictures(IDS, [0]) == answers[0]
    assert len([key for key in read if "/previews/" in key]) == 9
    assert not small._files
