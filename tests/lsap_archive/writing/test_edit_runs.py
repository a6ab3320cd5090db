"""Edit runs: rows of their subject, codes of their own, the noise of the inversion; and archives without them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr

from lsap_archive import (
    ROW_SCHEMA,
    ArchiveKeyError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    PlannedRow,
    RunPlan,
    RunReader,
    RunWriter,
    Subject,
    code_arrays,
    open_archive,
    repair_archive,
    verify_archive,
)

VERSION_1 = Path(__file__).parents[1] / "version_1.zip"
"""Written by version 1: run-1 is published; of run-2, another method, the first of three shards is committed."""
PNG = b"\x89PNG of row "


def edit_plan(work: Any, run: RunWriter, run_id: str = "edit-1", **changes: Any) -> RunPlan:
    """An edit of a run of `work`."""
    subject = Subject(run.run_id, run.plan["method"], run.plan["method_digest"], "slant", 3.0)
    rows = tuple(PlannedRow(**row) for row in run.images.to_pylist())
    values = {
        "run_id": run_id,
        "method": "lsap_o/slant",
        "method_digest": "ed17",
        "rows": rows,
        "trace_steps": (),
        "trace_terms": (),
        "subject": subject,
    }
    plan: RunPlan = work.plan(**{**values, **changes})
    return plan


def publish_edit(work: Any, place: Any, run: RunWriter, seed: int = 1, **changes: Any) -> RunWriter:
    edit: RunWriter = place.writer().start_run(edit_plan(work, run, **changes))
    for shard in range(edit.num_shards):
        rows = pa.table({"status": ["ok"] * len(edit.rows_of(shard))})
        assert edit.write_shard(shard, work.arrays(edit, shard, seed), rows, "first")
    assert edit.publish({})
    return edit


def test_an_edit_has_codes_of_its_own_and_the_noise_of_the_inversion(
    quick_place: Any, work: Any, published: Callable[[Any], RunWriter]
) -> None:
    run = published(quick_place)
    edit = publish_edit(work, quick_place, run)
    archive = open_archive(quick_place.url, quick_place.options)
    assert (archive.methods, archive.edits) == (["lsap_o"], ["lsap_o/slant"])
    ids = ["image-3", "image-0", "image-3"]
    np.testing.assert_array_equal(archive.codes(ids, "lsap_o/slant"), work.expected(edit, seed=1)[[3, 0, 3]])
    np.testing.assert_array_equal(archive.codes(ids, "lsap_o"), work.expected(run)[[3, 0, 3]])
    for index, maps in enumerate(archive.noise(ids, "lsap_o/slant")):
        np.testing.assert_array_equal(maps, work.expected(run, f"noise_{index:02d}")[[3, 0, 3]])
    with pytest.raises(ArchiveKeyError, match="has no array trace"):
        archive.trace(ids, "lsap_o/slant")
    about = archive.describe()
    assert set(about["methods"]) == {"lsap_o"} and about["edits"]["lsap_o/slant"]["ok"] == 5
    assert verify_archive(quick_place.url, quick_place.options).is_sound


def test_rows_of_an_edit_join_with_those_of_its_subject(
    memory_place: Any, work: Any, published: Callable[[Any], RunWriter]
) -> None:
    publish_edit(work, memory_place, published(memory_place))
    archive = open_archive(memory_place.url)
    assert archive.rows().schema.equals(ROW_SCHEMA)
    found = archive.sql(
        "SELECT e.image_id, e.edit, e.strength, s.image_id AS same FROM rows e "
        "JOIN rows s ON e.subject_run_id = s.run_id AND e.subject_row = s.row WHERE e.edit IS NOT NULL ORDER BY e.row"
    ).to_pylist()
    assert [row["image_id"] for row in found] == [row["same"] for row in found] == [f"image-{i}" for i in range(5)]
    assert {(row["edit"], row["strength"]) for row in found} == {("slant", 3.0)}
    assert archive.sql("SELECT count(*) AS n FROM rows WHERE edit IS NULL AND subject_row IS NULL").to_pylist() == [
        {"n": 5}
    ]
    edit = next(run for run in archive.runs if run.subject is not None)
    assert edit.subject == Subject("run-1", "lsap_o", "4a44dc15", "slant", 3.0)


def test_an_edit_keeps_no_array_but_its_codes(
    local_place: Any, work: Any, published: Callable[[Any], RunWriter]
) -> None:
    publish_edit(work, local_place, published(local_place))
    group = zarr.open_group(f"{local_place.url}/runs/edit-1", mode="r", zarr_format=3)
    assert sorted(group) == ["image_id", "w_plus"]


def test_images_of_an_edit_are_kept_and_read(
    quick_place: Any, work: Any, published: Callable[[Any], RunWriter]
) -> None:
    edit = quick_place.writer().start_run(edit_plan(work, published(quick_place)))
    failed = {"status": ["ok", "failed"], "reason": [None, "not_finite"]}
    for shard in range(edit.num_shards):
        first = edit.rows_of(shard).start
        rows = failed if shard == 1 else {"status": ["ok"] * len(edit.rows_of(shard))}
        good = [first] if shard == 1 else list(edit.rows_of(shard))
        images = {row: PNG + str(row).encode() for row in good}
        arrays = work.arrays(edit, shard)
        with pytest.raises(ArchiveMismatchError, match="an image of row 9 was given, which is not an ok row"):
            edit.write_shard(shard, arrays, pa.table(rows), "first", images=[*images.items(), (9, PNG)])
        assert edit.write_shard(shard, arrays, pa.table(rows), "first", images=images.items())
    assert edit.publish({})
    archive = open_archive(quick_place.url, quick_place.options)
    assert archive.images(["image-4", "image-0"], "lsap_o/slant") == [PNG + b"4", PNG + b"0"]
    with pytest.raises(ArchiveKeyError, match="image image-3 has no code of method lsap_o/slant"):
        archive.images(["image-3"], "lsap_o/slant")
    with pytest.raises(ArchiveKeyError, match="run run-1 kept no image of row 0"):
        archive.images(["image-0"], "lsap_o")
    assert verify_archive(quick_place.url, quick_place.options).is_sound
    quick_place.store.put("runs/edit-1/images/00000002.png", PNG + b"x")
    (problem,) = verify_archive(quick_place.url, quick_place.options).problems
    assert problem.key == "runs/edit-1/images/00000002.png" and problem.found.startswith("sha256")


def test_only_an_edit_keeps_images(memory_place: Any, work: Any) -> None:
    run = memory_place.writer().start_run(work.plan())
    with pytest.raises(ArchiveMismatchError, match="an inversion keeps no images"):
        run.write_shard(0, work.arrays(run, 0), work.rows(run, 0), "first", images=[(0, PNG)])


def test_what_cannot_be_edited_is_refused(memory_place: Any, work: Any, published: Any) -> None:
    writer = memory_place.writer()
    unfinished = writer.start_run(work.plan("run-2", method_digest="other"))
    with pytest.raises(ArchiveNotFoundError, match="edits run run-2, which is not published"):
        writer.start_run(edit_plan(work, unfinished))
    run = published(memory_place)
    plan = edit_plan(work, run)
    fewer = replace(plan, rows=plan.rows[:4])
    with pytest.raises(ArchiveMismatchError, match="has not the method and images of run run-1"):
        writer.start_run(fewer)
    edit = publish_edit(work, memory_place, run)
    with pytest.raises(ArchiveMismatchError, match="plan it with the rows of that run"):
        writer.start_run(edit_plan(work, edit, "edit-2"))
    with pytest.raises(ArchiveNotFoundError, match="no run run-9"):
        writer.start_run(replace(plan, run_id="e", subject=replace(plan.subject, run_id="run-9")))
    with pytest.raises(ArchiveMismatchError, match="an edit has no trace"):
        edit_plan(work, run, trace_steps=(0,), trace_terms=("mse",))
    assert open_archive(memory_place.url).edits == ["lsap_o/slant"]


def test_an_edit_that_lost_its_subject_is_found(memory_place: Any, work: Any, published: Any) -> None:
    publish_edit(work, memory_place, published(memory_place))
    memory_place.store.delete_folder("runs/run-1")
    lost, edit = sorted(verify_archive(memory_place.url).problems, key=lambda one: one.key, reverse=True)
    assert (lost.key, edit.key) == ("runs/run-1/_manifest.json", "runs/edit-1/_manifest.json")
    assert "run run-1, which it is made of" in edit.wanted
    with pytest.raises(CorruptArchiveError, match=r"nothing of run-1.* got number 1 .*lsap archive repair"):
        open_archive(memory_place.url)
    report = repair_archive(memory_place.url)
    assert report.retired == ["runs/run-1"] and not report.left and report.next_commands[0] == "lsap run invert"
    assert verify_archive(memory_place.url).is_sound and open_archive(memory_place.url).rows().num_rows == 0


def test_of_an_image_inverted_again_the_edit_of_the_newer_inversion_counts(memory_place: Any, work: Any) -> None:
    """Also when the edit of the older one was published last."""
    writer = memory_place.writer()
    runs = []
    for seed, digest in enumerate(("old", "new")):
        rows = (PlannedRow(0, "a", "file:///a.png", digest),)
        run = writer.start_run(work.plan(f"run-{digest}", rows=rows))
        work.write_all(run, seed)
        assert run.publish({})
        runs.append(run)
    newer = publish_edit(work, memory_place, runs[1], seed=12, run_id="edit-new")
    publish_edit(work, memory_place, runs[0], seed=11, run_id="edit-old")
    archive = open_archive(memory_place.url)
    np.testing.assert_array_equal(archive.codes(["a"], "lsap_o/slant"), work.expected(newer, seed=12))
    np.testing.assert_array_equal(archive.noise(["a"], "lsap_o/slant")[0], work.expected(runs[1], "noise_00", seed=1))


def test_rows_of_an_inversion_that_claim_a_subject_are_refused(memory_place: Any, work: Any) -> None:
    run = memory_place.writer().start_run(work.plan())
    rows = work.rows(run, 0).append_column("edit", pa.array(["slant"] * 2))
    with pytest.raises(ArchiveMismatchError, match="edit of row 0 is 'slant', the plan says None"):
        run.write_shard(0, work.arrays(run, 0), rows, "first")


def test_an_archive_of_version_1_is_read_resumed_and_edited(local_place: Any, work: Any) -> None:
    with zipfile.ZipFile(VERSION_1) as file:
        file.extractall(local_place.url)
    before = {path: path.read_bytes() for path in Path(local_place.url).rglob("*") if path.is_file()}
    assert verify_archive(local_place.url).is_sound
    archive = open_archive(local_place.url)
    assert archive.describe()["format_version"] == 1
    run = RunWriter.open(local_place.url, "run-1")
    ids = [f"image-{row}" for row in range(5)]
    np.testing.assert_array_equal(archive.codes(ids, "lsap_o"), work.expected(run))
    assert archive.rows().schema.equals(ROW_SCHEMA) and archive.rows(["edit"]).column("edit").null_count == 5
    assert [run.subject for run in archive.runs] == [None] and archive.measurements().num_rows == 0

    other = local_place.writer().start_run(work.plan("run-2", method_digest="other"))  # the same plan, as when resumed
    assert other.missing_shards() == [1, 2]
    for shard in (1, 2):
        assert work.write(other, shard, seed=5)
    assert other.publish({})
    edit = publish_edit(work, local_place, run)
    archive = open_archive(local_place.url)
    np.testing.assert_array_equal(archive.codes(ids, "other"), work.expected(other, seed=5))
    np.testing.assert_array_equal(archive.codes(ids, "lsap_o/slant"), work.expected(edit, seed=1))
    np.testing.assert_array_equal(archive.noise(ids, "lsap_o/slant")[0], work.expected(run, "noise_00"))
    assert verify_archive(local_place.url).is_sound
    kept = {path: data for path, data in before.items() if "_staging" not in path.parts}
    assert {path: path.read_bytes() for path in kept} == kept  # nothing of version 1 was rewritten


def test_a_run_is_read_part_by_part(quick_place: Any, work: Any, published: Callable[[Any], RunWriter]) -> None:
    run = published(quick_place)
    edit = publish_edit(work, quick_place, run)
    reader = RunReader.open(quick_place.url, "edit-1", quick_place.options)
    part = range(1, 4)  # the end of the first shard and all of the second
    np.testing.assert_array_equal(reader.codes(part), work.expected(edit, seed=1)[1:4])
    assert reader.rows(part).column("image_id").to_pylist() == ["image-1", "image-2", "image-3"]
    maps = reader.noise(part)
    assert maps is not None
    np.testing.assert_array_equal(maps[1], work.expected(run, "noise_01")[1:4])
    for wrong in (range(4, 6), range(2, 2)):
        with pytest.raises(ArchiveMismatchError, match="run edit-1 has rows 0 to 4, not"):
            reader.codes(wrong)
    with pytest.raises(ArchiveNotFoundError):
        RunReader.open(quick_place.url, "edit-2", quick_place.options)


def test_a_run_without_noise_maps_says_so(memory_place: Any, work: Any) -> None:
    run = memory_place.writer().start_run(work.plan(arrays=code_arrays(memory_place.writer().geometry)))
    work.write_all(run)
    run.publish({})
    assert RunReader.open(memory_place.url, "run-1").noise(range(0, 5)) is None
