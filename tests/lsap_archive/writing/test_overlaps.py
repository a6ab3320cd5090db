"""Two commands of one source at once, each with a plan of its own: every image counts once, for whoever looks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lsap_archive import (
    Archive,
    EvaluationPlan,
    IncompleteRunError,
    Overlaps,
    PlannedRow,
    RunWriter,
    Subject,
    code_arrays,
    open_archive,
    repair_archive,
    verify_archive,
)

DIGEST = "4a44dc15"


def start(place: Any, work: Any, run_id: str, names: str, shard_rows: int, **contents: str) -> RunWriter:
    """A run of images with one-letter names, all shards committed; its values follow from its id."""
    rows = tuple(
        PlannedRow(row, name, f"/{name}.png", contents.get(name, f"content-{name}")) for row, name in enumerate(names)
    )
    plan = work.plan(run_id, rows=rows, shard_rows=shard_rows, arrays=code_arrays(place.writer().geometry))
    run: RunWriter = place.writer().start_run(plan)
    work.write_all(run, seed=seed_of(run_id))
    return run


def seed_of(run_id: str) -> int:
    return int(run_id.rsplit("-", 1)[1])


def overlaps(place: Any) -> Overlaps:
    return Overlaps.of_archive(place.store)


def publish(place: Any, *runs: RunWriter) -> list[str | None]:
    """One after the other, each by a command that knows nothing of the others."""
    return [overlaps(place).publish(run, lambda _: {}) for run in runs]


def publish_at_once(place: Any, order: Sequence[RunWriter]) -> None:
    """Each sees the manifests of the others only when it looks again, in this order."""
    for run in order:
        assert overlaps(place).seen_in(run) is None
    for run in order:
        run.show({})
    for run in order:
        overlaps(place).settle(run)
        run.tidy()


def check_once(place: Any, wanted: str) -> Archive:
    """Every image counts once, in whatever way it is asked, and verify and repair have nothing to say."""
    archive = open_archive(place.url, place.options)
    names = sorted(wanted)
    for table in ("rows", "latest"):
        found = archive.sql(f"select image_id, method, count(*) as n from {table} group by all order by image_id")
        assert found.to_pylist() == [{"image_id": name, "method": "lsap_o", "n": 1} for name in names]
    assert sorted(archive.rows(["image_id"]).column("image_id").to_pylist()) == names
    assert archive.describe()["num_rows"] == archive.describe()["methods"]["lsap_o"]["ok"] == len(names)
    assert archive.nearest(np.zeros((2, 3)), 99, "lsap_o").num_rows == len(names)
    codes = archive.codes(names, "lsap_o")
    for row, code in zip(archive.sql("select * from latest order by image_id").to_pylist(), codes, strict=True):
        np.testing.assert_array_equal(np.asarray(archive.array(row["run_id"], "w_plus")[row["row"]]), code)
        assert row["mse"] == seed_of(row["run_id"])
    report = verify_archive(place.url, place.options)
    assert (report.problems, report.counts["rows"], report.counts["ok"]) == ([], len(names), len(names))
    assert report.counts["unfinished_runs"] == 0
    repaired = repair_archive(place.url, place.options)
    assert repaired.summary().endswith("nothing to repair"), repaired.summary()
    return archive


# --- who publishes ------------------------------------------------------------------------------------


def test_a_run_whose_images_all_are_there_is_given_up(quick_place: Any, work: Any) -> None:
    first, second = start(quick_place, work, "run-1", "abcde", 2), start(quick_place, work, "run-2", "abcde", 3)
    assert publish(quick_place, first, second) == [None, "all its images are in run run-1, with the same content"]
    check_once(quick_place, "abcde")
    left = [key.removeprefix("runs/run-2/") for key in quick_place.store.keys("runs/run-2")]
    markers = ["_commit/00000.json", "_commit/00001.json", "_retired/run.json"]
    assert left == [*markers, "images.parquet", "plan.json", "w_plus/zarr.json", "zarr.json"]
    assert not second.write_shard(0, work.arrays(second, 0), work.rows(second, 0), "late"), "another's is kept"
    assert publish(quick_place, second) == ["all its images are in run run-1, with the same content"], (
        "it may be repeated"
    )
    assert publish(quick_place, first) == [None]
    check_once(quick_place, "abcde")


def test_images_may_be_there_in_several_runs(memory_place: Any, work: Any) -> None:
    runs = [start(memory_place, work, f"run-{n}", names, 2) for n, names in enumerate(("abc", "def", "bcde"), 1)]
    assert publish(memory_place, *runs)[2] == "all its images are in runs run-1, run-2, with the same content"
    check_once(memory_place, "abcdef")


@pytest.mark.parametrize("shard_rows", [2, 3, 16])
def test_what_both_have_counts_in_the_one_that_was_published_first(
    quick_place: Any, work: Any, shard_rows: int
) -> None:
    runs = start(quick_place, work, "run-1", "abcde", 2), start(quick_place, work, "run-2", "cdefg", shard_rows)
    assert publish(quick_place, *runs) == [None, None]
    archive = check_once(quick_place, "abcdefg")
    assert archive.sql("select image_id from rows where run_id = 'run-2'").column(0).to_pylist() == ["f", "g"]
    retired = [key for key in quick_place.store.keys("runs/run-2/_retired") if "twice" not in key]
    assert len(retired) == {2: 1, 3: 1, 16: 0}[shard_rows]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_of_runs_that_are_published_at_once_the_first_counts(memory_place: Any, work: Any, order: Any) -> None:
    runs = [start(memory_place, work, f"run-{n}", names, n) for n, names in enumerate(("abcd", "abcd", "cdef"), 1)]
    publish_at_once(memory_place, [runs[place] for place in order])
    archive = check_once(memory_place, "abcdef")
    first = runs[order[0]].run_id
    assert archive.sql("select count(*) as n from rows where run_id = $r", r=first).to_pylist() == [{"n": 4}]


def test_the_one_that_got_the_lower_number_counts_although_it_was_last(memory_place: Any, work: Any) -> None:
    """Its manifest was on its way while the other one published and looked at what is there."""
    first, second = (start(memory_place, work, f"run-{n}", "abcde", n) for n in (1, 2))
    manifest = first._verified_manifest({})  # it has its number
    assert publish(memory_place, second) == [None]
    memory_place.store.create("runs/run-1/_manifest.json", manifest.encode())
    assert overlaps(memory_place).settle(first) == ["runs/run-2"]
    first.tidy()
    assert [run.run_id for run in check_once(memory_place, "abcde").runs] == ["run-1"]


def test_other_contents_and_other_methods_are_no_doubles(memory_place: Any, work: Any) -> None:
    """Content that comes back is run again, and the newest counts: that of the content in between does not."""
    runs = [start(memory_place, work, f"run-{n}", "ab", 2, a=a) for n, a in enumerate(("1", "2", "1"), 1)]
    other = memory_place.writer().start_run(replace(work.plan("run-9"), method="e4e", method_digest="0e4e"))
    work.write_all(other)
    assert publish(memory_place, *runs, other) == [None] * 4
    archive = open_archive(memory_place.url)
    query = "select image_id, run_id from {} where method = 'lsap_o' order by all"
    assert [tuple(row.values()) for row in archive.sql(query.format("latest")).to_pylist()] == [
        ("a", "run-3"),
        ("b", "run-1"),
    ]
    assert archive.sql(query.format("history")).num_rows == 4
    assert verify_archive(memory_place.url).is_sound


@pytest.mark.parametrize("reason", ["changed", "no_heic_reader", "unsupported_format"])
def test_what_says_nothing_of_the_content_does_not_count(memory_place: Any, work: Any, reason: str) -> None:
    first = memory_place.writer().start_run(work.plan("run-1", rows=(PlannedRow(0, "a", "/a.png", "content-a"),)))
    status = {"status": ["failed"], "reason": [reason], "message": ["it was not read"]}
    assert first.write_shard(0, work.arrays(first, 0), pa.table(status), "1")
    runs = first, start(memory_place, work, "run-2", "a", 1), start(memory_place, work, "run-3", "a", 2)
    assert publish(memory_place, *runs)[:2] == [None, None]
    archive = open_archive(memory_place.url)
    assert archive.sql("select run_id, status from latest").to_pylist() == [{"run_id": "run-2", "status": "ok"}]
    assert verify_archive(memory_place.url).is_sound and len(archive.runs) == 2


def test_in_a_shard_that_is_there_in_part_what_was_not_read_before_counts(memory_place: Any, work: Any) -> None:
    rows = tuple(PlannedRow(row, name, f"/{name}.png", f"content-{name}") for row, name in enumerate("ab"))
    first = memory_place.writer().start_run(work.plan("run-1", rows=rows, shard_rows=2))
    status = {"status": ["failed", "ok"], "reason": ["no_heic_reader", None], "message": ["it was not read", None]}
    assert first.write_shard(0, work.arrays(first, 0), pa.table(status), "1")
    publish(memory_place, first, start(memory_place, work, "run-2", "ab", 2))
    found = open_archive(memory_place.url).sql("select run_id, image_id, status from history order by all").to_pylist()
    assert [tuple(row.values()) for row in found] == [
        ("run-1", "a", "failed"),
        ("run-1", "b", "ok"),
        ("run-2", "a", "ok"),
    ]


def test_a_run_that_was_given_up_at_work_is_told(memory_place: Any, work: Any) -> None:
    run = start(memory_place, work, "run-1", "abc", 2)
    RunWriter.open(memory_place.url, "run-1").give_up("somebody asked for it")
    with pytest.raises(
        IncompleteRunError, match=r"run-1 was given up .*\(somebody asked for it\): run the same command"
    ):
        publish(memory_place, run)
    assert open_archive(memory_place.url).runs == [] and not memory_place.store.keys("runs/run-1/_staging")
    assert publish(memory_place, start(memory_place, work, "run-2", "abc", 3)) == [None]
    assert publish(memory_place, run) == ["all its images are in run run-2, with the same content"]
    check_once(memory_place, "abc")


def test_a_run_that_is_given_up_while_it_is_published_is_never_seen(memory_place: Any, work: Any) -> None:
    run = start(memory_place, work, "run-1", "abc", 2)
    manifest = run._verified_manifest({})
    run.give_up("somebody asked for it")
    memory_place.store.create("runs/run-1/_manifest.json", manifest.encode())
    assert open_archive(memory_place.url).runs == [] and verify_archive(memory_place.url).is_sound


# --- what is there already ----------------------------------------------------------------------------


def test_repair_lets_what_is_there_twice_count_once(memory_place: Any, work: Any) -> None:
    """As older versions left it: published twice, and once more under way."""
    for run in (start(memory_place, work, "run-1", "abcde", 2), start(memory_place, work, "run-2", "abcdef", 4)):
        assert run.publish({})
    start(memory_place, work, "run-3", "bcdef", 3)
    problems = verify_archive(memory_place.url).problems
    assert len(problems) == 5 and all(problem.is_twice for problem in problems)
    before = memory_place.store.keys()
    planned = repair_archive(memory_place.url, dry_run=True)
    assert memory_place.store.keys() == before
    report = repair_archive(memory_place.url)
    assert replace(planned, dry_run=False) == report
    assert (report.counted_once, report.given_up) == (["5 images of runs/run-2"], ["runs/run-3"])
    assert not report.left and report.next_commands == []
    check_once(memory_place, "abcdef")


def test_what_counts_elsewhere_counts_again_once_that_is_lost(memory_place: Any, work: Any) -> None:
    publish(memory_place, start(memory_place, work, "run-1", "ab", 1), start(memory_place, work, "run-2", "abc", 16))
    assert open_archive(memory_place.url).sql("select run_id from latest where image_id = 'a'").column(0)[
        0
    ].as_py() == ("run-1")
    key = "runs/run-1/w_plus/c/0/0/0"
    memory_place.store.delete(key)
    assert repair_archive(memory_place.url).retired == ["shard 0 of runs/run-1"]
    archive = check_once(memory_place, "abc")
    assert archive.sql("select run_id from latest order by image_id").column(0).to_pylist() == [
        "run-2",
        "run-1",
        "run-2",
    ]


def test_edits_and_measurements_of_both_count_once(memory_place: Any, work: Any) -> None:
    """Both were edited and measured before anybody repaired: the edits have one method, the measurements two runs."""
    writer = memory_place.writer()
    for run_id, names in (("run-1", "abcd"), ("run-2", "cdef")):
        inverted = start(memory_place, work, run_id, names, 3)
        assert inverted.publish({})
        subject = Subject(run_id, "lsap_o", DIGEST, "slant", 3.0)
        changes = {"method": "lsap_o/slant", "method_digest": "ed17", "trace_steps": (), "trace_terms": ()}
        rows = tuple(PlannedRow(**row) for row in inverted.images.to_pylist())
        edit = writer.start_run(work.plan(f"edit-{run_id[-1]}", subject=subject, rows=rows, shard_rows=3, **changes))
        work.write_all(edit, seed=int(run_id[-1]))
        assert edit.publish({})
        for method, measured in (("lsap_o", run_id), ("lsap_o/slant", edit.run_id)):
            plan = EvaluationPlan(f"evaluation-{measured}", {"run_id": measured}, method, None, None, {}, {}, 4, 3)
            evaluation = writer.start_evaluation(plan)
            for shard in range(2):
                rows_of = evaluation.rows_of(shard)
                columns = {"row": list(rows_of), "image_id": [names[row] for row in rows_of]}
                values = {"measure": ["mse"] * len(rows_of), "value": [1.0] * len(rows_of)}
                assert evaluation.write_shard(shard, pa.table({**columns, **values}))
            assert evaluation.publish({})
    assert len(verify_archive(memory_place.url).problems) == 4
    repaired = repair_archive(memory_place.url)
    assert repaired.counted_once == ["2 images of runs/run-2"] and repaired.made_of_them[0] == "runs/edit-2"
    assert repaired.next_commands == ["lsap run edit", "lsap run evaluate"], "as the other may lack what was made of it"
    report = verify_archive(memory_place.url)
    assert report.is_sound and report.counts["rows"] == 12
    archive = open_archive(memory_place.url)
    names = list("abcdef")
    for method in ("lsap_o", "lsap_o/slant"):
        for table in ("rows", "latest", "measurements"):
            found = archive.sql(f"select image_id from {table} where method = $m order by all", m=method)
            assert found.column(0).to_pylist() == names, (table, method)
        assert archive.codes(names, method).shape == (6, 2, 3)
    of_newer = archive.measurements(["image_id"], evaluations=["evaluation-run-2"])
    assert of_newer.column("image_id").to_pylist() == ["e", "f"]


# --- what it costs ------------------------------------------------------------------------------------


def test_what_is_known_is_not_read_to_publish(memory_place: Any, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other runs only the list is asked for, unless they have images between the same names."""
    writer, known = memory_place.writer(), overlaps(memory_place)
    for number, names in enumerate(("ab", "cd", "ef"), 1):
        assert start(memory_place, work, f"run-{number}", names, 2).publish({})
        known.note(f"run-{number}", DIGEST, names[0], names[1])
    last = start(memory_place, work, "run-9", "gh", 2)
    asked: list[str] = []
    get = type(writer.store).get
    monkeypatch.setattr(type(writer.store), "get", lambda self, key, *rest: asked.append(key) or get(self, key, *rest))
    assert known.publish(last, lambda _: {}) is None
    assert not [key for key in asked if key.startswith("runs/") and not key.startswith("runs/run-9/")]
    check_once(memory_place, "abcdefgh")
