"""A shard is written once, whole, by one attempt, whoever is killed and whoever races."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lsap_archive import (
    ArchiveMismatchError,
    ArchiveNotFoundError,
    ArchiveWriter,
    CorruptArchiveError,
    Geometry,
    IncompleteRunError,
    PlannedRow,
    RunWriter,
    StoreUnavailableError,
    code_arrays,
    noise_arrays,
    open_archive,
    verify_archive,
)
from lsap_archive.format.shards import group_metadata


def contents(place: Any) -> dict[str, bytes]:
    return {key: place.store.get(key) for key in place.store.sizes()}


def assert_complete(place: Any, work: Any, run: RunWriter) -> None:
    """Everything is readable, right, there once, and nothing is left over."""
    archive = open_archive(place.url, place.options)
    ids = [f"image-{row}" for row in range(5)]
    assert archive.rows(["image_id"]).column("image_id").to_pylist() == ids
    np.testing.assert_array_equal(archive.codes(ids, "lsap_o"), work.expected(run))
    report = verify_archive(place.url, place.options)
    assert report.problems == [] and report.information == []
    assert report.counts["ok"] == 5


def test_what_is_written_is_what_is_read(place: Any, work: Any, published: Any) -> None:
    run = published(place)
    archive = open_archive(place.url, place.options)
    ids = ["image-4", "image-0", "image-3", "image-0"]
    rows = [4, 0, 3, 0]
    np.testing.assert_array_equal(archive.codes(ids, "lsap_o"), work.expected(run)[rows])
    for index, maps in enumerate(archive.noise(ids, "lsap_o")):
        np.testing.assert_array_equal(maps, work.expected(run, f"noise_{index:02d}")[rows])
    trace = archive.trace(ids, "lsap_o")
    np.testing.assert_array_equal(trace.values, work.expected(run, "trace")[rows])
    assert trace.steps == (0, 10) and trace.terms == ("mse", "lpips", "sncd")
    table = archive.rows()
    assert table.column("row").to_pylist() == list(range(5))
    assert table.column("shard").to_pylist() == [0, 0, 1, 1, 2]
    assert set(table.column("attempt").to_pylist()) == {"first"}
    assert table.column("digest")[3].as_py() == "content-3"
    assert_complete(place, work, run)


def test_a_run_is_opened_from_its_url_in_another_process(quick_place: Any, work: Any) -> None:
    quick_place.writer().start_run(work.plan())
    run = RunWriter.open(quick_place.url, "run-1", quick_place.options)
    assert (run.num_rows, run.shard_rows, run.num_shards) == (5, 2, 3)
    assert run.plan["config"] == {"num_steps": 20, "weights": [1.0, 0.5]}
    assert run.planned_rows(2).column("image_id").to_pylist() == ["image-4"]
    work.write_all(run)
    assert run.publish({})
    assert_complete(quick_place, work, run)
    with pytest.raises(ArchiveNotFoundError, match="no run other, or no more: run the command"):
        RunWriter.open(quick_place.url, "other", quick_place.options)
    with pytest.raises(ArchiveNotFoundError, match="is not an archive"):
        RunWriter.open(quick_place.url + "-none", "run-1", quick_place.options)


def test_writing_a_shard_twice_changes_no_byte(place: Any, work: Any) -> None:
    run = place.writer().start_run(work.plan())
    assert work.write(run, 1, seed=0)
    before = contents(place)
    assert not work.write(run, 1, seed=0)
    assert not work.write(run, 1, seed=99, attempt="second")
    assert contents(place) == before
    assert run.committed_shards() == {1} and run.missing_shards() == [0, 2]


def test_equal_results_are_equal_bytes(memory_place: Any, work: Any) -> None:
    run = memory_place.writer().start_run(work.plan())
    first, second = (run.stage(0, work.arrays(run, 0), work.rows(run, 0), "same") for _ in range(2))
    assert [(one.name, one.sha256) for one in first.objects] == [(one.name, one.sha256) for one in second.objects]
    assert first.token != second.token


def test_racing_attempts_that_differ_leave_rows_that_match_codes(place: Any, work: Any) -> None:
    writer = place.writer()
    run = writer.start_run(work.plan())
    wins: list[tuple[int, int]] = []
    barrier = threading.Barrier(3)

    def attempt(seed: int) -> None:
        own = RunWriter.open(place.url, "run-1", place.options)
        for shard in range(own.num_shards):
            barrier.wait()
            if work.write(own, shard, seed=seed, attempt="same-name"):
                wins.append((shard, seed))

    threads = [threading.Thread(target=attempt, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(shard for shard, _ in wins) == [0, 1, 2]
    assert run.publish({})
    archive = open_archive(place.url, place.options)
    seeds = archive.rows(["mse"]).column("mse").to_pylist()
    codes = archive.codes([f"image-{row}" for row in range(5)], "lsap_o")
    for shard, seed in wins:
        rows = list(run.rows_of(shard))
        assert [seeds[row] for row in rows] == [float(seed)] * len(rows)
        np.testing.assert_array_equal(codes[rows], work.arrays(run, shard, seed)["w_plus"])
    assert verify_archive(place.url, place.options).is_sound


def test_killed_after_staging_the_shard_is_run_again(quick_place: Any, work: Any) -> None:
    run = quick_place.writer().start_run(work.plan())
    run.stage(0, work.arrays(run, 0, seed=50), work.rows(run, 0, seed=50), "killed")
    assert run.committed_shards() == set()
    report = verify_archive(quick_place.url, quick_place.options)
    assert report.is_sound and any("_staging/00000/killed." in line for line in report.information)
    again = RunWriter.open(quick_place.url, "run-1", quick_place.options)
    work.write_all(again)
    assert again.publish({})
    assert_complete(quick_place, work, run)


@pytest.mark.parametrize(
    ("place", "copies"),
    [
        *((kind, copies) for kind in ("local", "memory") for copies in (0, 1, 3)),
        pytest.param("s3", 1, marks=pytest.mark.object_store),
    ],
    indirect=["place"],
)
def test_killed_after_the_commit_the_shard_is_promoted_by_whoever_resumes(place: Any, work: Any, copies: int) -> None:
    run = place.writer().start_run(work.plan())
    staged = run.stage(0, work.arrays(run, 0), work.rows(run, 0), "killed")
    assert run.commit(staged)
    for stored in staged.objects[:copies]:
        run.promote_object(stored)
    again = RunWriter.open(place.url, "run-1", place.options)
    assert again.committed_shards() == {0}
    assert len(again.promote_committed()) == len(staged.objects) - copies
    assert again.promote_committed() == []
    work.write(again, 1)
    work.write(again, 2)
    assert again.publish({})
    assert_complete(place, work, run)


def test_killed_after_the_commit_publishing_alone_repairs(quick_place: Any, work: Any) -> None:
    run = quick_place.writer().start_run(work.plan())
    for shard in range(3):
        assert run.commit(run.stage(shard, work.arrays(run, shard), work.rows(run, shard), "killed"))
    assert RunWriter.open(quick_place.url, "run-1", quick_place.options).publish({})
    assert_complete(quick_place, work, run)


def test_killed_before_the_manifest_nothing_is_visible_and_publishing_again_completes(place: Any, work: Any) -> None:
    writer = place.writer()
    run = writer.start_run(work.plan())
    work.write_all(run)
    assert open_archive(place.url, place.options).runs == []
    assert open_archive(place.url, place.options).rows().num_rows == 0
    (unfinished,) = place.writer().unfinished_runs("4a44dc15")
    assert unfinished.missing_shards() == [] and writer.unfinished_runs("other") == []
    assert unfinished.publish({})
    assert writer.unfinished_runs() == []
    assert_complete(place, work, run)


def test_a_process_killed_at_work_leaves_a_run_that_resumes(local_place: Any, work: Any) -> None:
    run = local_place.writer().start_run(work.plan())
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from conftest import Work
from lsap_archive import RunWriter
run, work = RunWriter.open({local_place.url!r}, "run-1"), Work()
work.write(run, 0)
staged = run.stage(1, work.arrays(run, 1), work.rows(run, 1), "killed")
run.commit(staged)
run.promote_object(staged.objects[0])
print("half promoted", flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "half promoted\n"
        os.kill(process.pid, signal.SIGKILL)
    again = RunWriter.open(local_place.url, "run-1")
    assert again.missing_shards() == [2]
    again.promote_committed()
    work.write(again, 2)
    assert again.publish({})
    assert_complete(local_place, work, run)


def test_publishing_needs_every_shard(place: Any, work: Any) -> None:
    run = place.writer().start_run(work.plan())
    work.write(run, 1)
    with pytest.raises(IncompleteRunError, match=r"run-1 lacks 2 of 3 shards \(0, 2\): run these shards"):
        run.publish({})
    assert not run.is_published


def test_publishing_twice_and_by_two_coordinators_is_harmless(place: Any, work: Any) -> None:
    run = place.writer().start_run(work.plan())
    work.write_all(run)
    barrier = threading.Barrier(2)
    won: list[bool] = []

    def publish() -> None:
        own = RunWriter.open(place.url, "run-1", place.options)
        barrier.wait()
        won.append(own.publish({"by": threading.get_ident()}))

    threads = [threading.Thread(target=publish) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False, True]
    before = contents(place)
    assert not run.publish({"other": 1})
    assert contents(place) == before
    assert not any("_staging" in key for key in before)
    assert_complete(place, work, run)


def test_an_orphan_that_finishes_after_publication_changes_nothing(quick_place: Any, work: Any) -> None:
    run = quick_place.writer().start_run(work.plan())
    late = run.stage(0, work.arrays(run, 0, seed=77), work.rows(run, 0, seed=77), "orphan")
    work.write_all(run)
    winner = run.commit_of(0)
    assert run.publish({})
    before = contents(quick_place)
    assert not run.commit(late)
    run.discard(late)
    run.promote(winner)  # an orphaned winner repeats its copies: their sources are gone, all was done before
    assert contents(quick_place) == before


def test_a_damaged_object_is_repaired_from_staging_when_publishing(place: Any, work: Any) -> None:
    run = place.writer().start_run(work.plan())
    work.write_all(run)
    key = "runs/run-1/w_plus/c/1/0/0"
    data = place.store.get(key)
    place.store.put(key, data[:5] + bytes([data[5] ^ 1]) + data[6:])
    place.store.delete("runs/run-1/rows/shard-00002.parquet")
    assert run.publish({})
    assert_complete(place, work, run)


def test_what_cannot_be_repaired_is_not_published(quick_place: Any, work: Any) -> None:
    run = quick_place.writer().start_run(work.plan())
    work.write_all(run)
    quick_place.store.delete("runs/run-1/w_plus/c/1/0/0")
    quick_place.store.delete_folder("runs/run-1/_staging/00001")
    with pytest.raises(CorruptArchiveError, match=r"w_plus/c/1/0/0 needs it"):
        run.publish({})
    assert not run.is_published
    quick_place.store.put("runs/run-1/w_plus/zarr.json", b"{}")
    with pytest.raises(CorruptArchiveError):
        run.publish({})


def test_another_generator_or_geometry_is_refused(quick_place: Any) -> None:
    quick_place.writer()
    wanted = {"generator_name": "tiny", "storage_options": quick_place.options}
    with pytest.raises(
        ArchiveMismatchError,
        match="holds codes of generator 9f86d081, this run has 0000: name that generator's file",
    ):
        ArchiveWriter.open(quick_place.url, generator_digest="0000", geometry=quick_place.writer().geometry, **wanted)
    with pytest.raises(ArchiveMismatchError, match=r"num_ws=2.*num_ws=4"):
        ArchiveWriter.open(quick_place.url, generator_digest="9f86d081", geometry=Geometry(4, 3, (4, 8)), **wanted)


def test_a_store_that_ignores_conditions_is_refused(local_place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrite(path: str, data: bytes) -> bool:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        return True

    monkeypatch.setattr("lsap_archive.stores.store.create_local", overwrite)
    with pytest.raises(StoreUnavailableError, match="create-only"):
        local_place.writer()


def test_starting_a_run_again_opens_it_and_another_plan_is_refused(quick_place: Any, work: Any) -> None:
    writer = quick_place.writer()
    run = writer.start_run(work.plan())
    work.write(run, 0)
    before = contents(quick_place)
    again = writer.start_run(work.plan(provenance={"host": "another"}))
    assert again.committed_shards() == {0} and contents(quick_place) == before
    other = tuple(PlannedRow(row, f"image-{row}", "file:///x.png", "changed") for row in range(5))
    for change, name in (
        ({"config": {"num_steps": 21}}, "config"),
        ({"rows": other}, "images_digest"),
        ({"method_digest": "b"}, "method_digest"),
        ({"shard_rows": 4}, "shard_rows"),
    ):
        with pytest.raises(ArchiveMismatchError, match=f"planned with another {name}"):
            writer.start_run(work.plan(**change))


def test_two_coordinators_start_the_same_run(place: Any, work: Any) -> None:
    barrier = threading.Barrier(4)
    started: list[RunWriter] = []

    def start() -> None:
        writer = place.writer()
        barrier.wait()
        started.append(writer.start_run(work.plan()))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({str(run.plan) for run in started}) == 1 and len(started) == 4
    work.write_all(started[0])
    assert started[1].publish({})
    assert_complete(place, work, started[2])


def test_a_start_that_was_cut_short_is_not_a_run_and_can_be_repeated(quick_place: Any, work: Any) -> None:
    writer = quick_place.writer()
    writer.start_run(work.plan())
    quick_place.store.delete("runs/run-1/plan.json")
    assert writer.runs() == [] and writer.unfinished_runs() == []
    report = verify_archive(quick_place.url, quick_place.options)
    assert report.is_sound and report.information == ["runs/run-1 has no plan: a start that was cut short"]
    with pytest.raises(ArchiveMismatchError, match="with another plan: choose another run id"):
        writer.start_run(work.plan(method="sam"))
    run = writer.start_run(work.plan())
    work.write_all(run)
    assert run.publish({})
    assert_complete(quick_place, work, run)


def test_rows_that_are_not_ok_keep_nan(quick_place: Any, work: Any) -> None:
    run = quick_place.writer().start_run(work.plan())
    work.write(run, 0)
    rows = pa.table(
        {
            "status": ["failed", "duplicate"],
            "reason": ["truncated", None],
            "message": ["the file ends after 12 bytes", None],
            "duplicate_of": [None, "image-0"],
        }
    )
    assert run.write_shard(1, work.arrays(run, 1), rows, "first")  # whatever the arrays hold there
    work.write(run, 2)
    assert run.publish({})
    archive = open_archive(quick_place.url, quick_place.options)
    for name in run.arrays:
        values = np.asarray(archive.array("run-1", name)[:])
        assert np.isnan(values[2:4]).all()
        np.testing.assert_array_equal(values[[0, 1, 4]], work.expected(run, name)[[0, 1, 4]])
    assert archive.runs[0].rows_by_status == {"ok": 3, "failed": 1, "duplicate": 1}
    report = verify_archive(quick_place.url, quick_place.options)
    assert report.is_sound
    assert {name: report.counts[name] for name in ("ok", "failed", "duplicate")} == {
        "ok": 3,
        "failed": 1,
        "duplicate": 1,
    }


def test_arrays_that_are_not_those_of_the_plan_are_refused_and_nothing_is_written(memory_place: Any, work: Any) -> None:
    run = memory_place.writer().start_run(work.plan())
    good, rows = work.arrays(run, 0), work.rows(run, 0)
    before = contents(memory_place)
    not_finite = good["w_plus"].copy()
    not_finite[1, 0, 0] = np.inf
    for arrays, message in (
        ({**good, "w_plus": good["w_plus"][:1]}, r"float32\(1, 2, 3\), float32\(2, 2, 3\) is wanted"),
        ({**good, "w_plus": good["w_plus"].astype(np.float64)}, r"float64\(2, 2, 3\)"),
        ({**good, "w_plus": not_finite}, "image-1 is ok, yet its values are not finite"),
        ({**good, "noise_02": good["noise_00"]}, "no array is named noise_02"),
        ({name: good[name] for name in good if name != "w_plus"}, "w_plus is missing"),
        ({name: good[name] for name in good if name != "noise_01"}, "noise_01 is missing"),
    ):
        with pytest.raises(ArchiveMismatchError, match=message):
            run.write_shard(0, arrays, rows, "first")
    with pytest.raises(ArchiveMismatchError, match="shards 0 to 2, not 3"):
        run.write_shard(3, good, rows, "first")
    assert contents(memory_place) == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"status": ["ok"]}, "1 rows were given, the plan has 2"),
        ({"mse": [0.1, 0.2]}, "status is missing"),
        ({"status": ["ok", "fine"]}, "status 'fine'"),
        ({"status": ["ok", None]}, "status has 1 nulls"),
        ({"status": ["ok", "failed"]}, "image-1 is failed and has no reason"),
        ({"status": ["duplicate", "ok"]}, "image-0 is duplicate and has no duplicate_of"),
        ({"status": ["ok", "ok"], "psnr": [1.0, 2.0]}, "unknown columns psnr"),
        ({"status": ["ok", "ok"], "mse": ["a", "b"]}, "column mse is string, float is wanted"),
        ({"status": ["ok", "ok"], "row": [1, 0]}, "row of row 0 is 1, the plan says 0"),
        ({"status": ["ok", "ok"], "digest": ["content-0", "x"]}, "digest of row 1 is 'x'"),
    ],
)
def test_rows_that_are_not_those_of_the_plan_are_refused(
    memory_place: Any, work: Any, rows: dict[str, Any], message: str
) -> None:
    run = memory_place.writer().start_run(work.plan())
    with pytest.raises(ArchiveMismatchError, match=message):
        run.write_shard(0, work.arrays(run, 0), pa.table(rows), "first")
    assert run.committed_shards() == set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ()}, "no images"),
        ({"shard_rows": 20}, "shard_rows is 20"),
        ({"shard_rows": 0}, "shard_rows is 0"),
        ({"trace_terms": ()}, "2 trace steps and 0 terms"),
        ({"rows": (PlannedRow(1, "a", "u", "d"),)}, "image a has row 1 at place 0"),
        ({"rows": (PlannedRow(0, "a", "u", "d"), PlannedRow(1, "a", "u", "d"))}, "image a is planned twice"),
    ],
)
def test_a_plan_that_cannot_be_worked_is_refused(work: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchiveMismatchError, match=message):
        work.plan(**changes)


def test_a_config_that_is_not_json_is_refused(memory_place: Any, work: Any) -> None:
    for config in ({"weight": float("nan")}, {"weight": np.float32(1)}, {"f": object()}):
        with pytest.raises(ArchiveMismatchError, match="cannot be written as JSON"):
            memory_place.writer().start_run(work.plan(config=config))


def test_large_noise_maps_are_read_one_by_one() -> None:
    geometry = Geometry(18, 512, (4, 256, 1024))
    arrays = (*code_arrays(geometry), *noise_arrays(geometry))
    documents = group_metadata(arrays, 1000, 64, {})
    rows = {}
    for array in arrays:
        (sharding,) = json.loads(documents[f"{array.name}/zarr.json"])["codecs"]
        rows[array.name] = sharding["configuration"]["chunk_shape"][0]
    assert rows == {"w_plus": 16, "noise_00": 16, "noise_01": 16, "noise_02": 1}


def test_shards_of_many_chunks_keep_rows_in_place(memory_place: Any, work: Any) -> None:
    work = type(work)(num_images=75, shard_rows=32)
    run = memory_place.writer().start_run(work.plan())
    assert run.num_shards == 3
    for shard in (2, 0, 1):
        assert work.write(run, shard)
    assert run.publish({})
    archive = open_archive(memory_place.url)
    order = np.random.default_rng(0).permutation(75)
    codes = archive.codes([f"image-{row}" for row in order], "lsap_o")
    np.testing.assert_array_equal(codes, work.expected(run)[order])
    array = archive.array("run-1", "w_plus")
    assert (array.shape, array.chunks, array.shards) == ((75, 2, 3), (16, 2, 3), (32, 2, 3))
    assert verify_archive(memory_place.url).is_sound


def test_anchors_and_reports_are_kept(place: Any) -> None:
    writer = place.writer()
    assert writer.get_anchor("abc") is None
    assert writer.put_anchor("abc", b"first") and not writer.put_anchor("abc", b"second")
    assert writer.get_anchor("abc") == b"first"
    url = writer.put_report("run-1/index.html", b"<p>1")
    assert url == f"{place.url}/reports/run-1/index.html"
    writer.put_report("run-1/index.html", b"<p>2")
    assert place.store.get("reports/run-1/index.html") == b"<p>2"


@pytest.mark.object_store
def test_credentials_are_nowhere_in_the_archive(s3_place: Any, work: Any) -> None:
    place, secrets = s3_place, s3_place.options
    run = place.writer().start_run(work.plan())
    work.write_all(run)
    with pytest.raises(ArchiveMismatchError, match="would hold a credential"):
        run.publish({"options": secrets})
    assert run.publish({})
    texts = [repr(run), repr(place.writer()), repr(open_archive(place.url, place.options)), repr(place.store)]
    for data in [*contents(place).values(), *(text.encode() for text in texts)]:
        assert secrets["secret"].encode() not in data and secrets["key"].encode() not in data
