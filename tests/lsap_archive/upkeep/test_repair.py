"""Every kind of object, damaged in every way: verify names it, repair mends it, and only what is lost is made again."""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lsap_archive import (
    ArchiveError,
    ArchiveKeyError,
    ArchiveMismatchError,
    CorruptArchiveError,
    EvaluationPlan,
    EvaluationWriter,
    IncompleteRunError,
    RunReader,
    RunWriter,
    Store,
    StoreUnavailableError,
    Subject,
    give_up_unfinished,
    open_archive,
    repair_archive,
    verify_archive,
)
from lsap_archive.format.calibrations import decode_calibration
from lsap_archive.format.documents import decode_document, encode_document, sha256_of
from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.manifest import Manifest, RunPlanDocument, ShardCommit, decode_header
from lsap_archive.format.sequence import next_sequence
from lsap_archive.reading.retirement import Retirement


def npz(value: float) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, sums=np.full(8, value))
    return buffer.getvalue()


def evaluation_plan(evaluation_id: str = "evaluation-1", run_id: str = "run-1") -> EvaluationPlan:
    return EvaluationPlan(evaluation_id, {"run_id": run_id}, "lsap_o", None, None, {}, {}, 5, 2)


def measured(rows: range) -> pa.Table:
    ids = [f"image-{row}" for row in rows]
    return pa.table(
        {"row": list(rows), "image_id": ids, "measure": ["mse"] * len(rows), "value": [0.5 + r for r in rows]}
    )


def build(place: Any, work: Any) -> None:
    """An inversion, an edit of it with kept images, an evaluation; another run and evaluation are under way."""
    writer = place.writer()
    writer.put_anchor("a0", npz(1.0))
    writer.keep_calibration("c0", {"strength": 3.0})
    run = writer.start_run(work.plan())
    work.write_all(run)
    assert run.publish({"note": "test"})
    subject = Subject("run-1", "lsap_o", "4a44dc15", "slant", 3.0)
    changes = {"method": "lsap_o/slant", "method_digest": "ed17", "trace_steps": (), "trace_terms": ()}
    config = {"calibration": {"strength": 3.0}, "calibration_digest": "c0"}
    edit = writer.start_run(work.plan("edit-1", subject=subject, config=config, **changes))
    for shard in range(edit.num_shards):
        rows = pa.table({"status": ["ok"] * len(edit.rows_of(shard))})
        images = [(row, b"\x89PNG %d" % row) for row in edit.rows_of(shard)]
        assert edit.write_shard(shard, work.arrays(edit, shard, 1), rows, "first", images=images)
    assert edit.publish({})
    evaluation = writer.start_evaluation(evaluation_plan())
    for shard in range(3):
        assert evaluation.write_shard(shard, measured(evaluation.rows_of(shard)), state=npz(shard))
    assert evaluation.publish({"fid": {"value": 2.5}})
    other = writer.start_run(work.plan("run-2", method="e4e", method_digest="0e4e"))
    for shard in (0, 1):
        assert work.write(other, shard)
    under_way = writer.start_evaluation(evaluation_plan("evaluation-2"))
    assert under_way.write_shard(1, measured(under_way.rows_of(1)), state=npz(9))


@pytest.fixture(scope="module")
def objects() -> Iterator[list[dict[str, bytes]]]:
    """Every object of such an archive, once the first test has made it."""
    yield []


@pytest.fixture
def whole(memory_place: Any, work: Any, objects: list[dict[str, bytes]]) -> Any:
    """A place with such an archive."""
    if not objects:
        build(memory_place, work)
        objects.append(contents(memory_place))
    for key, data in objects[0].items():
        memory_place.store.put(key, data)
    return memory_place


def contents(place: Any) -> dict[str, bytes]:
    return {key: place.store.get(key) for key in sorted(place.store.sizes())}


def other_of(store: Store, key: str) -> bytes:
    """A sound object of the same kind."""
    pattern = re.sub(r"\d+", r"\\d+", re.escape(key))
    return next(
        data
        for one in sorted(store.sizes())
        if re.fullmatch(pattern, one) and (data := store.get(one)) != store.get(key)
    )


def damage(store: Store, key: str, how: str) -> None:
    data = store.get(key)
    if how == "deleted":
        store.delete(key)
    elif how == "truncated":
        store.put(key, data[: len(data) // 2])
    elif how == "deep":
        store.put(key, b"[" * 20_000)
    elif how == "flipped":
        at = np.random.default_rng(len(data)).integers(len(data))
        store.put(key, data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
    else:
        store.put(key, other_of(store, key))


RESTORED = [
    "archive.json",
    "runs/run-1/_manifest.json",
    "runs/run-1/plan.json",
    "runs/run-1/images.parquet",
    "runs/run-1/zarr.json",
    "runs/run-1/w_plus/zarr.json",
    "runs/run-1/_copy/images.parquet",
    "runs/run-1/_commit/00001.json",
    "evaluations/evaluation-1/_manifest.json",
    "evaluations/evaluation-1/plan.json",
    "calibrations/c0.json",
    "anchors/a0.npz",
    "_copy/anchors/a0.json",
    "sequence/0000000001.json",
]
RETIRED = {
    "runs/run-1/w_plus/c/1/0/0": ("run-1", 1, ("flipped", "truncated", "deleted", "swapped")),
    "runs/run-1/noise_01/c/1/0/0": ("run-1", 1, ("swapped",)),
    "runs/run-1/trace/c/2/0/0": ("run-1", 2, ("flipped",)),
    "runs/run-1/rows/shard-00000.parquet": ("run-1", 0, ("swapped", "deleted")),
    "runs/edit-1/w_plus/c/1/0/0": ("edit-1", 1, ("truncated",)),
    "runs/edit-1/images/00000003.png": ("edit-1", 1, ("swapped",)),
}
REMOVED = {
    "runs/run-2/plan.json": ["runs/run-2/plan.json"],
    "runs/run-2/images.parquet": ["runs/run-2/plan.json", "runs/run-2/images.parquet"],
    "runs/run-2/_commit/00001.json": ["runs/run-2/_commit/00001.json"],
    "evaluations/evaluation-2/plan.json": ["evaluations/evaluation-2/plan.json"],
    "evaluations/evaluation-2/shards/00001.parquet": ["evaluations/evaluation-2/shards/00001.parquet"],
    "evaluations/evaluation-2/states/00001.npz": [
        "evaluations/evaluation-2/shards/00001.parquet",
        "evaluations/evaluation-2/states/00001.npz",
    ],
}


DEEP = [key for key in RESTORED if key.endswith(".json") and "zarr" not in key]


@pytest.mark.parametrize(
    ("key", "how"),
    [(key, ("flipped", "deleted")[at % 2]) for at, key in enumerate(RESTORED)] + [(key, "deep") for key in DEEP],
)
def test_what_follows_from_something_else_is_restored_bit_for_bit(whole: Any, key: str, how: str) -> None:
    before = contents(whole)
    damage(whole.store, key, how)
    found = verify_archive(whole.url)
    assert key in {problem.key for problem in found.problems}
    assert found.counts["evaluations"] == 1 or "evaluation" in key, "the rest is looked at"
    report = repair_archive(whole.url)
    assert report.restored == [key] and not (report.retired or report.removed or report.left)
    assert verify_archive(whole.url).is_sound
    if "_commit" in key or key == "archive.json":  # says the same, of another time
        return
    assert contents(whole) == before


@pytest.mark.parametrize(("key", "how"), [(key, how) for key, of in RETIRED.items() for how in of[2]])
def test_a_shard_that_cannot_be_restored_is_retired(whole: Any, work: Any, key: str, how: str) -> None:
    run_id, shard, _ = RETIRED[key]
    damage(whole.store, key, how)
    assert key in {problem.key for problem in verify_archive(whole.url).problems}
    damaged = whole.store.get(key) if whole.store.exists(key) else None
    planned = repair_archive(whole.url, dry_run=True)
    assert not whole.store.keys(f"runs/{run_id}/_retired")
    report = repair_archive(whole.url)
    assert replace(planned, dry_run=False) == report
    assert report.retired == [f"shard {shard} of runs/{run_id}"] and not (report.restored or report.removed)
    told = report.runs[run_id]
    assert (told.retired_shards, told.images) == ([shard], 1 if shard == 2 else 2)
    assert report.next_commands[0] == ("lsap run edit" if run_id == "edit-1" else "lsap run invert")
    assert damaged is None or whole.store.get(key) == damaged, "nothing is written in place"
    assert repair_archive(whole.url).summary().endswith("nothing to repair")
    found = verify_archive(whole.url)
    assert found.is_sound and any(
        f"shard {shard} of runs/{run_id} is retired: {key}" in one for one in found.information
    )


def test_readers_see_nothing_of_a_retired_shard(whole: Any, work: Any) -> None:
    damage(whole.store, "runs/run-1/w_plus/c/1/0/0", "flipped")
    repair_archive(whole.url)
    archive = open_archive(whole.url)
    assert [(row["run_id"], row["row"]) for row in archive.rows(["run_id", "row"]).to_pylist()] == [
        (run_id, row) for run_id in ("run-1", "edit-1") for row in (0, 1, 4)
    ]
    assert archive.sql("select count(*) as n from rows where image_id in ('image-2', 'image-3')").to_pylist() == [
        {"n": 0}
    ]
    assert archive.measurements(["row"]).column("row").to_pylist() == [0, 1, 4]
    for method in ("lsap_o", "lsap_o/slant"):
        with pytest.raises(KeyError, match=f"has no image image-2 of method {method}"):
            archive.codes(["image-2"], method)
    assert archive.nearest(archive.codes(["image-4"], "lsap_o")[0], 9, "lsap_o").num_rows == 3
    about = archive.describe()
    assert (about["num_rows"], about["methods"]["lsap_o"]["ok"], about["edits"]["lsap_o/slant"]["ok"]) == (6, 3, 3)
    assert archive.sql("select sum(num_ok) as n from runs").to_pylist() == [{"n": 6}]
    writer = whole.writer()
    reader = RunReader.open(whole.url, "run-1")
    rows = reader.rows(range(1, 5))
    assert rows.column("status").to_pylist() == ["ok", "failed", "failed", "ok"]
    assert rows.column("reason").to_pylist() == [None, "retired", "retired", None]
    assert rows.column("image_id").to_pylist() == [f"image-{row}" for row in range(1, 5)]
    codes = reader.codes(range(1, 5))
    np.testing.assert_array_equal(codes[[0, 3]], work.expected(RunWriter.open(whole.url, "run-1"))[[1, 4]])
    assert np.isnan(codes[1:3]).all()
    # the images again, as the next run makes them
    rows = tuple(replace(row, row=place) for place, row in enumerate(work.plan().rows[2:4]))
    again = writer.start_run(work.plan("run-1b", rows=rows))
    work.write_all(again, seed=5)
    assert again.publish({})
    assert verify_archive(whole.url).is_sound
    np.testing.assert_array_equal(
        open_archive(whole.url).codes(["image-2"], "lsap_o"), work.expected(again, seed=5)[:1]
    )


@pytest.mark.parametrize("key", REMOVED)
def test_what_nobody_sees_yet_is_taken_away(whole: Any, work: Any, key: str) -> None:
    damage(whole.store, key, "flipped" if key.endswith("json") else "truncated")
    assert key in {problem.key for problem in verify_archive(whole.url).problems}
    assert repair_archive(whole.url, dry_run=True).removed == REMOVED[key]
    report = repair_archive(whole.url)
    assert report.removed == REMOVED[key] and not (report.restored or report.retired or report.left)
    assert verify_archive(whole.url).is_sound
    writer = whole.writer()
    run = writer.start_run(work.plan("run-2", method="e4e", method_digest="0e4e"))
    missing = [1, 2] if "_commit" in key else [2]
    assert run.missing_shards() == missing
    for shard in missing:
        assert work.write(run, shard)
    assert run.publish({})
    np.testing.assert_array_equal(open_archive(whole.url).codes(["image-2"], "e4e"), work.expected(run)[2:3])
    evaluation = writer.start_evaluation(evaluation_plan("evaluation-2"))
    assert evaluation.missing_shards() == ([0, 1, 2] if "/evaluation-2/s" in key else [0, 2])


def test_committed_objects_come_back_from_where_they_were_staged(whole: Any, work: Any) -> None:
    damage(whole.store, "runs/run-2/w_plus/c/0/0/0", "flipped")
    assert verify_archive(whole.url).is_sound, "publishing copies it once more"
    run = RunWriter.open(whole.url, "run-2")
    (staged,) = (one.staged for one in run.commit_of(0).objects if one.name.startswith("w_plus"))
    damage(whole.store, f"runs/run-2/{staged}", "flipped")
    (problem,) = verify_archive(whole.url).problems
    assert problem.key == "runs/run-2/w_plus/c/0/0/0" and "here or where it was staged" in problem.wanted
    assert repair_archive(whole.url).removed == ["runs/run-2/_commit/00000.json"]
    assert run.missing_shards() == [0, 2] and verify_archive(whole.url).is_sound


def test_a_retired_evaluation_is_taken_over_but_for_what_is_damaged(whole: Any) -> None:
    damage(whole.store, "evaluations/evaluation-1/shards/00001.parquet", "flipped")
    assert repair_archive(whole.url).retired == ["evaluations/evaluation-1"]
    assert verify_archive(whole.url).is_sound and open_archive(whole.url).evaluations == []
    plan, retired = whole.writer().unretired(evaluation_plan())
    assert (plan.evaluation_id, retired) == ("evaluation-1.2", ("evaluation-1",))
    evaluation = whole.writer().start_evaluation(plan)
    assert evaluation.take_over("evaluation-1") == [0, 2] and evaluation.missing_shards() == [1]
    assert evaluation.take_over("evaluation-1") == []
    assert list(evaluation.states()) == [npz(0), npz(2)]
    assert evaluation.write_shard(1, measured(range(2, 4)), state=npz(1)) and evaluation.publish({})
    assert open_archive(whole.url).measurements(["value"]).column("value").to_pylist() == [
        0.5 + row for row in range(5)
    ]
    assert verify_archive(whole.url).is_sound


@pytest.mark.parametrize("how", ["flipped", "deleted"])
def test_without_copies_a_manifest_follows_from_the_markers(whole: Any, how: str) -> None:
    before = json.loads(whole.store.get("runs/run-1/_manifest.json"))
    whole.store.delete_folder("runs/run-1/_copy")
    damage(whole.store, "runs/run-1/_manifest.json", how)
    with pytest.raises(CorruptArchiveError, match="lsap archive repair"):
        open_archive(whole.url)
    repair_archive(whole.url)
    after = json.loads(whole.store.get("runs/run-1/_manifest.json"))
    assert {name for name in before if before[name] != after[name]} == {"created", "summary", "document_sha256"}
    assert whole.store.exists("runs/run-1/_copy/_manifest.json") and verify_archive(whole.url).is_sound


def test_an_evaluation_that_lost_its_manifest_and_the_copy_of_it_is_told_and_published_again(whole: Any) -> None:
    for name in ("_manifest.json", "_copy/_manifest.json"):
        whole.store.delete(f"evaluations/evaluation-1/{name}")
    with pytest.raises(CorruptArchiveError, match=r"evaluation-1/_manifest\.json is missing, and .* was published"):
        open_archive(whole.url).measurements()
    report = repair_archive(whole.url)
    assert report.removed == ["evaluations/evaluation-1/_manifest.json"] and "lsap run evaluate" in report.next_commands
    assert verify_archive(whole.url).is_sound and open_archive(whole.url).evaluations == []
    evaluation = whole.writer().start_evaluation(evaluation_plan())
    assert evaluation.missing_shards() == [] and evaluation.publish({})
    assert open_archive(whole.url).measurements().num_rows == 5 and verify_archive(whole.url).is_sound


def test_a_run_under_way_is_not_taken_for_one_that_was_lost(whole: Any, work: Any) -> None:
    """Not even when its writer was killed after it was given its number, before the manifest."""
    run = RunWriter.open(whole.url, "run-2")
    assert work.write(run, 2)
    next_sequence(whole.store, "run-2")
    assert "run-2" not in [one.run_id for one in open_archive(whole.url).runs]
    report = verify_archive(whole.url)
    assert report.is_sound and any("run-2 is not published: 3 of 3" in one for one in report.information)
    assert run.publish({}) and verify_archive(whole.url).is_sound


def test_a_run_that_lost_what_all_of_it_hangs_on_is_retired(whole: Any, work: Any) -> None:
    whole.store.delete_folder("runs/run-1/_copy")
    damage(whole.store, "runs/run-1/plan.json", "truncated")
    report = repair_archive(whole.url)
    assert report.retired == ["runs/run-1"] and report.runs["run-1"].images == 5
    assert verify_archive(whole.url).is_sound
    archive = open_archive(whole.url)
    assert archive.methods == [] and archive.rows().num_rows == 0 and archive.measurements().num_rows == 0
    writer = whole.writer()
    assert writer.is_taken("run-1")
    assert [run.run_id for run in writer.unfinished_runs()] == ["run-2"]


def test_metadata_follows_from_the_manifest_where_there_is_no_copy(whole: Any) -> None:
    whole.store.delete_folder("runs/edit-1/_copy")
    damage(whole.store, "runs/edit-1/w_plus/zarr.json", "deleted")
    report = repair_archive(whole.url)
    assert report.restored == ["runs/edit-1/w_plus/zarr.json"] and not report.retired
    assert {name.rsplit("/", 1)[1] for name in report.copied} == {
        "plan.json",
        "images.parquet",
        "zarr.json",
        "0",  # image_id/c/0
        "_manifest.json",
    }


def test_what_retires_counts_by_its_presence_alone(whole: Any) -> None:
    damage(whole.store, "runs/run-1/w_plus/c/1/0/0", "flipped")
    repair_archive(whole.url)
    whole.store.put("runs/run-1/_retired/00001.json", b"{")
    assert open_archive(whole.url).rows().num_rows == 6
    (problem,) = verify_archive(whole.url).problems
    assert problem.key == "runs/run-1/_retired/00001.json"
    assert (
        repair_archive(whole.url).restored == ["runs/run-1/_retired/00001.json"] and verify_archive(whole.url).is_sound
    )
    whole.store.delete("runs/run-1/_retired/00001.json")  # then the damage is seen again, and repaired again
    assert repair_archive(whole.url).retired == ["shard 1 of runs/run-1"]


def test_two_repairs_at_once_do_what_one_does(whole: Any) -> None:
    for key in ("runs/run-1/w_plus/c/1/0/0", "runs/run-1/plan.json", "runs/run-2/_commit/00000.json"):
        damage(whole.store, key, "flipped")
    reports: list[Any] = []
    threads = [threading.Thread(target=lambda: reports.append(repair_archive(whole.url))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 2 and verify_archive(whole.url).is_sound
    assert whole.store.keys("runs/run-1/_retired") == ["runs/run-1/_retired/00001.json"]
    assert RunWriter.open(whole.url, "run-2").missing_shards() == [0, 2]


def test_a_repair_that_is_killed_at_any_write_is_done_by_the_next(
    whole: Any, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = (
        "runs/run-1/w_plus/c/1/0/0",
        "runs/run-1/_manifest.json",
        "runs/run-2/_commit/00000.json",
        "anchors/a0.npz",
    )
    for key in damaged:
        damage(whole.store, key, "flipped")
    before = contents(whole)
    ends, wanted = [], None
    for allowed in (9, 0, 1, 2, 3):  # the first one is not killed
        whole.store.delete_folder("runs")
        for key, data in before.items():
            whole.store.put(key, data)
        left = [allowed]

        def killed_in_time(write: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                if not left[0]:
                    raise StoreUnavailableError("killed")
                left[0] -= 1
                return write(*arguments)

            return call

        with monkeypatch.context() as patch:
            for name in ("put", "create", "delete"):
                patch.setattr(Store, name, killed_in_time(getattr(Store, name)))
            if wanted is None:
                repair_archive(whole.url)
            else:
                with pytest.raises(StoreUnavailableError):
                    repair_archive(whole.url)
        if wanted is not None:
            repair_archive(whole.url)
        kept = {key: data for key, data in contents(whole).items() if "_retired" not in key}
        retired = whole.store.keys("runs/run-1/_retired")
        wanted = wanted or (kept, retired)
        ends.append((kept, retired) == wanted)
    assert ends == [True] * 5
    assert left == [0]


def test_contradictions_of_sound_objects_are_left_to_people(whole: Any, work: Any) -> None:
    """An edit of the same run twice, which no command makes: inversions alone are known to be there twice."""
    subject = Subject("run-1", "lsap_o", "4a44dc15", "slant", 3.0)
    changes = {"method": "lsap_o/slant", "method_digest": "ed17", "trace_steps": (), "trace_terms": ()}
    run = whole.writer().start_run(work.plan("edit-1b", subject=subject, **changes))
    work.write_all(run)
    run.publish({})
    report = repair_archive(whole.url)
    assert len(report.left) == 5 and "a second time, first in run edit-1" in report.left[0]
    assert not (report.restored or report.retired or report.removed or report.counted_once)


def test_what_is_under_way_can_be_given_up(whole: Any, work: Any) -> None:
    before = contents(whole)
    planned = give_up_unfinished(whole.url, ["run-2", "evaluations/evaluation-2"], dry_run=True)
    assert contents(whole) == before
    report = give_up_unfinished(whole.url, ["run-2", "evaluations/evaluation-2"])
    assert replace(planned, dry_run=False) == report
    assert report.given_up == ["runs/run-2", "evaluations/evaluation-2"] and report.runs["run-2"].images == 5
    assert report.next_commands == ["lsap run invert", "lsap run edit", "lsap run evaluate"]
    assert "given up: runs/run-2" in report.summary()
    gone = before.keys() - contents(whole).keys()
    assert all("/_staging/" in key or re.search(r"/(c|rows|shards|states)/", key) for key in gone) and gone
    assert {key.split("/")[1] for key in gone} == {"run-2", "evaluation-2"}
    writer, verified = whole.writer(), verify_archive(whole.url)
    assert writer.unfinished_runs() == [] and writer.is_taken("run-2")
    assert writer.unretired(evaluation_plan("evaluation-2"))[0].evaluation_id == "evaluation-2.2"
    taking = writer.start_evaluation(evaluation_plan("evaluation-2.2"))
    assert taking.take_over("evaluation-2") == [] and taking.missing_shards() == [0, 1, 2]
    assert verified.is_sound and (verified.counts["unfinished_runs"], verified.counts["retired_runs"]) == (0, 1)
    assert repair_archive(whole.url).summary().endswith("nothing to repair")
    assert give_up_unfinished(whole.url, ["run-2"]).given_up == ["runs/run-2"], "once more changes nothing"


def test_whoever_works_on_what_is_given_up_is_told_at_the_end(whole: Any, work: Any) -> None:
    run, evaluation = RunWriter.open(whole.url, "run-2"), EvaluationWriter.open(whole.url, "evaluation-2")
    give_up_unfinished(whole.url, ["run-2", "evaluation-2"])
    assert work.write(run, 2)
    for shard in range(3):
        assert evaluation.write_shard(shard, measured(evaluation.rows_of(shard)))
    for publish in (run.publish, evaluation.publish):
        with pytest.raises((IncompleteRunError, CorruptArchiveError)):
            publish({})
    with pytest.raises(IncompleteRunError, match="run-2 was given up while it was worked on"):
        run.refuse_given_up()
    assert not whole.store.keys("evaluations/evaluation-2/shards") and run.is_tidy
    archive = open_archive(whole.url)
    assert [one.run_id for one in archive.runs] == ["run-1", "edit-1"] and len(archive.evaluations) == 1


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("run-1", ArchiveMismatchError, "run-1 is published in .* and readers see it: only what is under way"),
        ("evaluation-1", ArchiveMismatchError, "evaluation-1 is published"),
        ("run-7", ArchiveKeyError, "has no run or evaluation run-7: .*; of runs that is run-2"),
        ("evaluations/run-2", ArchiveKeyError, "has no run or evaluation evaluations/run-2"),
        ("../run-2", ArchiveKeyError, "has no run or evaluation"),
    ],
)
def test_what_cannot_be_given_up_is_refused(whole: Any, name: str, error: type[Exception], message: str) -> None:
    before = contents(whole)
    with pytest.raises(error, match=message):
        give_up_unfinished(whole.url, ["run-2", name])
    assert contents(whole) == before


def test_an_archive_of_a_newer_version_is_left_alone(whole: Any) -> None:
    key = "runs/run-1/_manifest.json"
    values = json.loads(whole.store.get(key)) | {"format_version": 99}
    del values["document_sha256"]
    whole.store.put(key, encode_document(values, key))
    before = whole.store.get(key)
    report = repair_archive(whole.url)
    assert report.left and whole.store.get(key) == before and not report.retired
    values = json.loads(whole.store.get("archive.json")) | {"format_version": 99}
    del values["document_sha256"]
    whole.store.put("archive.json", encode_document(values, "archive.json"))
    with pytest.raises(ArchiveMismatchError, match="format version 99"):
        repair_archive(whole.url)


# --- documents whose digest is right, and nothing else -------------------------------------------------------

SIGNED = [
    *(key for key in RESTORED if key.endswith(".json") and "zarr" not in key),
    *(f"runs/edit-1/{name}" for name in ("_manifest.json", "plan.json", "_commit/00000.json", "_copy/_manifest.json")),
    *("runs/run-2/plan.json", "runs/run-2/_commit/00001.json", "runs/run-1/_retired/00002.json"),
    *("evaluations/evaluation-2/plan.json", "evaluations/evaluation-1/_retired.json"),
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 3, 2**31, 2**53 + 1, 10**15, 10**30, 1e308, -1e308, 0.5, 4, 99]),
    st.sampled_from(["", "12", "NaN", "../x", "a/b", "\0", "\ud800", "run-1", "ok", "float32", "x" * 300]),
)
NONSENSE = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["name", "run_id", "size", "a"]), inner, max_size=3),
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something else can be put into a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for name, one in inner:
        yield (*path, name)
        if len(path) < 3:
            yield from places(one, (*path, name))


def forged(data: bytes, draw: Any) -> bytes:
    """The document with something else in one place, or without it, and with the digest of that."""
    document = json.loads(data)
    del document["document_sha256"]
    path = draw(st.sampled_from(sorted(places(document), key=repr)))
    at = document
    for name in path[:-1]:
        at = at[name]
    if draw(st.integers(0, 4)):
        at[path[-1]] = draw(NONSENSE)
    else:
        del at[path[-1]]
    body = (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()
    document["document_sha256"] = sha256_of(body)
    return json.dumps(document).encode()


def look_through(url: str) -> None:
    """All that readers and writers do with documents."""

    def read() -> None:
        archive = open_archive(url)
        archive.describe()
        ids = archive.rows(["image_id"]).column("image_id").to_pylist()[:2]
        archive.measurements()
        for method in (*archive.methods, *archive.edits):
            archive.codes(ids, method)
            archive.noise(ids, method)

    def read_a_run() -> None:
        reader = RunReader.open(url, "run-1")
        reader.rows(range(5))
        reader.codes(range(5))

    def write() -> None:
        run = RunWriter.open(url, "run-2")
        run.missing_shards()
        run.promote_committed()

    def evaluate() -> None:
        EvaluationWriter.open(url, "evaluation-2").missing_shards()

    for look in (read, read_a_run, write, evaluate, lambda: repair_archive(url, dry_run=True)):
        with contextlib.suppress(ArchiveError):  # nothing else is raised
            look()
    verify_archive(url).to_dict()  # lists what it finds, and raises nothing


@pytest.fixture
def signed(memory_place: Any, work: Any, objects: list[dict[str, bytes]]) -> dict[str, bytes]:
    """Every object of such an archive, and what retires a shard and an evaluation of it."""
    if not objects:
        build(memory_place, work)
        objects.append(contents(memory_place))
    retired = {
        "runs/run-1/_retired/00002.json": Retirement("run-1", 2, ("lost",), "2026").encode(),
        "evaluations/evaluation-1/_retired.json": Retirement("evaluation-1", None, ("lost",), "2026").encode(),
    }
    return {**objects[0], **retired}


ONCE = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@settings(ONCE, max_examples=250)
@given(data=st.data())
def test_a_document_is_read_as_what_it_is_or_refused_by_its_key(signed: dict[str, bytes], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(SIGNED))
    forgery = forged(signed[key], data.draw)
    try:
        decode(key, forgery)
    except (CorruptArchiveError, ArchiveMismatchError) as refusal:
        assert key in str(refusal) and "\n" not in str(refusal) and len(str(refusal)) < 1000


def decode(key: str, data: bytes) -> object:
    """As readers and writers do."""
    name = key.rsplit("/", 1)[-1]
    is_run = key.startswith("runs/")
    if key == "archive.json":
        return decode_header(data, key)
    if name == "_manifest.json":
        return (Manifest if is_run else EvaluationInfo).decode(data, key)
    if name == "plan.json":
        plan = decode_document(data, key)
        return (RunPlanDocument if is_run else EvaluationPlan).of(plan, key)
    if "_commit" in key:
        return ShardCommit.decode(data, key)
    if "_retired" in key:
        return Retirement.decode(data, key)
    return decode_calibration(data, key) if key.startswith("calibrations") else decode_document(data, key)


@settings(ONCE, max_examples=15)
@given(data=st.data())
def test_a_signed_document_that_makes_no_sense_is_one_sentence_or_a_listed_damage(
    memory_place: Any, signed: dict[str, bytes], data: st.DataObject
) -> None:
    store = memory_place.store
    for key, content in signed.items():
        if "_retired" not in key and (not store.exists(key) or store.get(key) != content):
            store.put(key, content)
    for retired in (key for key in signed if "_retired" in key):
        store.delete(retired)
    key = data.draw(st.sampled_from(SIGNED))
    store.put(key, forged(signed[key], data.draw))
    look_through(memory_place.url)
