"""Evaluations: measured shard by shard, kept once, seen when they are whole, joined with the rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from lsap_archive import (
    MEASUREMENT_SCHEMA,
    ArchiveKeyError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    EvaluationPlan,
    EvaluationWriter,
    IncompleteRunError,
    open_archive,
    verify_archive,
)


def plan_of(evaluation_id: str = "evaluation-1", **changes: Any) -> EvaluationPlan:
    values: dict[str, Any] = {
        "evaluation_id": evaluation_id,
        "subject": {"run_id": "run-1"},
        "method": "lsap_o",
        "edit": None,
        "strength": None,
        "config": {"lpips": ("vgg",)},
        "provenance": {},
        "num_rows": 5,
        "shard_rows": 2,
    }
    return EvaluationPlan(**{**values, **changes})


def measured(evaluation: EvaluationWriter, shard: int, offset: float = 0.0, **only: str | None) -> pa.Table:
    """mse of every row, LPIPS by two networks, of which one sees no face in odd rows."""
    rows = []
    for row in evaluation.rows_of(shard):
        for measure, by in (("mse", None), ("lpips", "vgg"), ("identity", "faces")):
            lacks = measure == "identity" and row % 2
            value = None if lacks else offset + row
            problem = "no_face" if lacks else None
            rows.append((row, f"image-{row}", measure, by, value, problem))
    if only:
        rows = [row for row in rows if (row[2], row[3]) == (only["measure"], only["by"])]
    names = ("row", "image_id", "measure", "by", "value", "problem")
    return pa.table({name: [row[index] for row in rows] for index, name in enumerate(names)})


def write_all(evaluation: EvaluationWriter, **options: Any) -> None:
    for shard in range(evaluation.plan.num_shards):
        assert evaluation.write_shard(shard, measured(evaluation, shard, **options))


def test_measurements_join_with_rows_once_they_are_published(quick_place: Any, published: Callable[[Any], Any]) -> None:
    published(quick_place)
    evaluation = quick_place.writer().start_evaluation(plan_of())
    again = EvaluationWriter.open(quick_place.url, "evaluation-1", quick_place.options)
    assert evaluation.missing_shards() == [0, 1, 2] and again.plan.document() == plan_of().document()
    assert again.write_shard(1, measured(again, 1), state=b"sums of 1")
    assert not evaluation.write_shard(1, measured(evaluation, 1, offset=9.0), state=b"other sums")
    with pytest.raises(IncompleteRunError, match=r"lacks 2 of 3 shards \(0, 2\)"):
        evaluation.publish({})
    assert evaluation.write_shard(0, measured(evaluation, 0), state=b"sums of 0")
    assert evaluation.write_shard(2, measured(evaluation, 2), state=b"sums of 2")
    assert open_archive(quick_place.url, quick_place.options).evaluations == []
    assert list(evaluation.states()) == [b"sums of 0", b"sums of 1", b"sums of 2"]
    assert evaluation.publish({"frechet": {"value": 1.5}}) and not again.publish({})
    archive = open_archive(quick_place.url, quick_place.options)
    (info,) = archive.evaluations
    assert (info.run_id, info.num_measurements, info.summary) == ("run-1", 15, {"frechet": {"value": 1.5}})
    assert archive.measurements().schema.equals(MEASUREMENT_SCHEMA)
    found = archive.sql(
        'SELECT r.uri, m.value, m.problem FROM measurements m JOIN rows r USING (run_id, "row") '
        "WHERE m.measure = 'identity' AND m.\"by\" = 'faces' ORDER BY r.row"
    ).to_pylist()
    assert found[:2] == [
        {"uri": "file:///images/0.png", "value": 0.0, "problem": None},
        {"uri": "file:///images/1.png", "value": None, "problem": "no_face"},
    ]
    report = verify_archive(quick_place.url, quick_place.options)
    assert report.is_sound and report.information == []
    assert (report.counts["evaluations"], report.counts["measurements"]) == (1, 15)


def test_of_racing_attempts_one_is_kept_whole(place: Any, published: Callable[[Any], Any]) -> None:
    published(place)
    place.writer().start_evaluation(plan_of())
    wins: list[float] = []
    barrier = threading.Barrier(3)

    def attempt(offset: float) -> None:
        own = EvaluationWriter.open(place.url, "evaluation-1", place.options)
        barrier.wait()
        if own.write_shard(0, measured(own, 0, offset=offset)):
            wins.append(offset)

    threads = [threading.Thread(target=attempt, args=(offset,)) for offset in (10.0, 20.0, 30.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    evaluation = EvaluationWriter.open(place.url, "evaluation-1", place.options)
    for shard in evaluation.missing_shards():
        evaluation.write_shard(shard, measured(evaluation, shard))
    evaluation.publish({})
    (offset,) = wins
    table = open_archive(place.url, place.options).measurements(["row", "measure", "value"]).to_pylist()
    assert [row["value"] for row in table if row["measure"] == "mse" and row["row"] < 2] == [offset, offset + 1]


def test_what_is_measured_again_counts_once_and_what_is_not_stays(
    memory_place: Any, published: Callable[[Any], Any]
) -> None:
    published(memory_place)
    writer = memory_place.writer()
    for name, offset, only in (
        ("first", 0.0, {}),
        ("second", 100.0, {"measure": "mse", "by": None}),
        ("third", 200.0, {"measure": "lpips", "by": "vgg"}),
    ):
        evaluation = writer.start_evaluation(plan_of(name))
        write_all(evaluation, offset=offset, **only)
        evaluation.publish({})
    archive = open_archive(memory_place.url)
    assert [info.evaluation_id for info in archive.evaluations] == ["first", "second", "third"]
    values = {(row["measure"], row["row"]): row["value"] for row in archive.measurements(method="lsap_o").to_pylist()}
    assert len(values) == archive.measurements().num_rows == 15
    assert values["mse", 0] == 100.0 and values["lpips", 4] == 204.0 and values["identity", 2] == 2.0
    assert archive.measurements(method="other").num_rows == 0
    assert archive.measurements(evaluations=["second", "first"]).num_rows == 5 + 15
    assert archive.sql("SELECT count(*) AS n FROM all_measurements").to_pylist() == [{"n": 15 + 5 + 5}]
    with pytest.raises(ArchiveKeyError, match="no published evaluation fourth"):
        archive.measurements(evaluations=["fourth"])


def test_synthetic_evaluations_have_no_run_and_stay_apart(memory_place: Any) -> None:
    writer = memory_place.writer()
    for name, seed, method in (("a", 0, "e4e"), ("b", 1, "e4e"), ("c", 0, "psp"), ("d", 0, "e4e")):
        subject = {"synthetic": {"count": 2, "psi": 1.0, "seed": seed}}
        evaluation = writer.start_evaluation(plan_of(name, subject=subject, method=method, num_rows=2))
        write_all(evaluation, offset=ord(name))
        evaluation.publish({})
    table = open_archive(memory_place.url).measurements()
    assert table.column("run_id").null_count == table.num_rows
    assert table.column("evaluation_id").unique().to_pylist() == ["b", "c", "d"]  # d measured what a had


def test_parts_of_measurements_are_all_of_them(memory_place: Any) -> None:
    """Some shards at a time, in order, over several evaluations."""
    writer = memory_place.writer()
    for name, method in (("a", "e4e"), ("b", "psp")):
        subject = {"synthetic": {"count": 40, "psi": 1.0, "seed": 0}}
        evaluation = writer.start_evaluation(plan_of(name, subject=subject, method=method, num_rows=40))
        write_all(evaluation)
        evaluation.publish({})
    archive = open_archive(memory_place.url)
    columns = ["measure", "value", "method"]
    parts = list(archive.measurement_parts(columns, evaluations=["b", "a", "b"]))
    assert [part.num_rows for part in parts] == [96, 24, 96, 24]  # shards of 2 images and 3 measures
    assert pa.concat_tables(parts).equals(archive.measurements(columns, evaluations=["b", "a"]))
    with pytest.raises(ArchiveKeyError, match="no column fid"):
        list(archive.measurement_parts(["fid"], evaluations=["a"]))
    with pytest.raises(ArchiveKeyError, match="no published evaluation c"):
        list(archive.measurement_parts(columns, evaluations=["c"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row": [7]}, r"mse of row 7 was given, the shard has 0 to 1"),
        ({"value": [float("nan")]}, r"mse of row 0 is nan: leave it null and name the problem"),
        ({"value": [None]}, r"needs either a value or a problem"),
        ({"problem": ["no_face"]}, r"needs either a value or a problem"),
        ({"image_id": [None]}, r"column image_id has 1 nulls"),
        ({"run_id": ["run-1"]}, r"unknown columns run_id: leave them out"),
    ],
)
def test_measurements_that_are_not_those_of_the_plan_are_refused(
    changes: dict[str, list[Any]], message: str, memory_place: Any
) -> None:
    evaluation = memory_place.writer().start_evaluation(plan_of())
    row = {"row": [0], "image_id": ["image-0"], "measure": ["mse"], "value": [0.5]}
    with pytest.raises(ArchiveMismatchError, match=message):
        evaluation.write_shard(0, pa.table({**row, **changes}))
    twice = pa.table({name: value * 2 for name, value in row.items()})
    with pytest.raises(ArchiveMismatchError, match="mse of row 0 was given twice"):
        evaluation.write_shard(0, twice)
    assert evaluation.missing_shards() == [0, 1, 2]


def test_another_plan_of_the_same_id_is_refused(memory_place: Any) -> None:
    writer = memory_place.writer()
    writer.start_evaluation(plan_of())
    with pytest.raises(ArchiveMismatchError, match="was planned with another config"):
        writer.start_evaluation(plan_of(config={"lpips": ("alex",)}))
    with pytest.raises(ArchiveNotFoundError, match="has no evaluation other"):
        EvaluationWriter.open(memory_place.url, "other")


def test_damage_is_found(memory_place: Any, published: Callable[[Any], Any]) -> None:
    published(memory_place)
    writer = memory_place.writer()
    evaluation = writer.start_evaluation(plan_of())
    write_all(evaluation)
    assert verify_archive(memory_place.url).information == [
        "evaluations/evaluation-1 is not published: 3 of 3 shards are measured"
    ]
    evaluation.publish({})
    key = "evaluations/evaluation-1/shards/00001.parquet"
    data = bytearray(memory_place.store.get(key))
    data[40] ^= 1
    memory_place.store.put(key, bytes(data))
    memory_place.store.put("evaluations/evaluation-1/notes.txt", b"mine")
    report = verify_archive(memory_place.url)
    assert [problem.key for problem in report.problems] == [key]
    assert report.information == ["evaluations/evaluation-1/notes.txt is named by no manifest"]
    archive = open_archive(memory_place.url)
    assert archive.sql("SELECT count(*) AS n FROM rows").to_pylist() == [{"n": 5}]  # rows do not need it
    with pytest.raises(CorruptArchiveError, match=r"00001\.parquet is"):
        archive.measurements()
    memory_place.store.delete("runs/run-1/_manifest.json")
    wanted = "5 rows in run run-1"
    assert wanted in [problem.wanted for problem in verify_archive(memory_place.url).problems]


def test_an_archive_without_evaluations_has_an_empty_table(memory_place: Any) -> None:
    memory_place.writer()
    archive = open_archive(memory_place.url)
    assert archive.sql("SELECT count(*) AS n FROM measurements").to_pylist() == [{"n": 0}]
    with pytest.raises(ArchiveKeyError, match="no column fid: the measurements have evaluation_id"):
        archive.measurements(["fid"])


def test_a_calibration_is_kept_once(place: Any) -> None:
    writer = place.writer()
    assert writer.get_calibration("c0ffee") is None
    assert writer.keep_calibration("c0ffee", {"strength": 2.5}) == {"strength": 2.5}
    assert writer.keep_calibration("c0ffee", {"strength": 9.0}) == {"strength": 2.5}
