"""Numbers of whole sets, such as a Fréchet distance: over what readers see, or not there; never over a part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from lsap_archive import (
    SET_SCHEMA,
    CorruptArchiveError,
    EvaluationPlan,
    Manifest,
    Subject,
    open_archive,
    repair_archive,
    verify_archive,
)
from lsap_archive.writing.publication import Publication

BY = {"network": "judge", "digest": "0d1e"}


def fid(value: float, num_images: int) -> dict[str, Any]:
    return {"name": "FD [judge]", "value": value, "num_images": num_images, "num_originals": num_images, **BY}


def invert(place: Any, work: Any, run_id: str, numbers: range, **changes: Any) -> None:
    """Publish a run of these images, two in a shard."""
    rows = tuple(replace(work.plan().rows[0], row=row, image_id=f"image-{n}") for row, n in enumerate(numbers))
    run = place.writer().start_run(work.plan(run_id, rows=rows, **changes))
    work.write_all(run)
    assert run.publish({})


def evaluate(place: Any, run_id: str, num_rows: int, value: float, name: str = "", **changes: Any) -> None:
    """Publish an evaluation with sums of every shard but empty ones."""
    config = {"frechet": BY, "only": name}
    plan = EvaluationPlan(name or f"of-{run_id}", {"run_id": run_id}, "lsap_o", None, None, config, {}, num_rows, 2)
    evaluation = place.writer().start_evaluation(replace(plan, **changes))
    for shard in range(plan.num_shards):
        rows = list(evaluation.rows_of(shard))
        table = {"row": rows, "image_id": [str(row) for row in rows], "measure": ["mse"] * len(rows)}
        state = f"sums {shard} of {plan.evaluation_id}".encode()
        assert evaluation.write_shard(shard, pa.table({**table, "value": [0.5] * len(rows)}), state=state)
    assert evaluation.publish({"fid": fid(value, num_rows), "other": 1})


def shown(place: Any) -> list[tuple[Any, ...]]:
    found = open_archive(place.url).set_numbers()
    assert found.schema.equals(SET_SCHEMA)
    return [(row["method"], row["value"], row["num_images"], row["problem"]) for row in found.to_pylist()]


def summaries(place: Any) -> dict[str, Any]:
    """The distance that each evaluation is seen with."""
    return {one.evaluation_id: one.summary.get("fid", {}).get("value") for one in open_archive(place.url).evaluations}


def add_up(place: Any, value: float) -> list[bytes]:
    """Keep a number of the only set, and tell the sums that it would be made from."""
    archive = open_archive(place.url)
    (one,) = archive.sets
    assert one.is_stale
    states = list(archive.states(one))
    place.writer().keep_set_number(one, fid(value, 99))
    return states


def test_the_number_of_added_images_is_that_of_all(place: Any, work: Any) -> None:
    invert(place, work, "run-1", range(5))
    evaluate(place, "run-1", 5, 2.5)
    if place.options:  # of an object store the rest is the same
        (one,) = open_archive(place.url, place.options).sets
        assert (one.problem, one.source) == (None, "evaluations/of-run-1/_manifest.json: summary.fid")
        return
    assert shown(place) == [("lsap_o", 2.5, 5, None)] and summaries(place) == {"of-run-1": 2.5}
    invert(place, work, "run-2", range(5, 8))
    assert shown(place) == [("lsap_o", None, None, "not_measured")] and summaries(place) == {"of-run-1": None}
    assert open_archive(place.url).sets[0].unmeasured == ("run-2",)
    evaluate(place, "run-2", 3, 9.0)
    assert shown(place) == [("lsap_o", None, None, "stale")]
    assert summaries(place) == {"of-run-1": None, "of-run-2": None}, "none has a number of a part"
    states = add_up(place, 3.25)
    assert states == [b"sums %d of of-run-%d" % (shard, run) for run, shard in ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1))]
    assert shown(place) == [("lsap_o", 3.25, 99, None)]
    assert summaries(place) == {"of-run-1": None, "of-run-2": 3.25}, "the newest has that of the whole"
    archive = open_archive(place.url)
    assert archive.evaluations[1].summary["other"] == 1
    query = 'select method, value, num_images, len(evaluations) as n from set_numbers where "by" = $by'
    assert archive.sql(query, by="judge").to_pylist() == [{"method": "lsap_o", "value": 3.25, "num_images": 99, "n": 2}]
    (told,) = archive.describe()["set_numbers"]
    assert told == {
        "method": "lsap_o",
        "measure": "fid",
        "by": "judge",
        "value": 3.25,
        "num_images": 99,
        "problem": None,
    }
    assert verify_archive(place.url).is_sound


def test_a_retired_shard_drops_out_of_the_number(memory_place: Any, work: Any) -> None:
    invert(memory_place, work, "run-1", range(5))
    evaluate(memory_place, "run-1", 5, 2.5)
    memory_place.store.put("runs/run-1/w_plus/c/1/0/0", b"damaged")
    repair_archive(memory_place.url)
    assert shown(memory_place) == [("lsap_o", None, None, "stale")] and summaries(memory_place) == {"of-run-1": None}
    (line,) = (one for one in verify_archive(memory_place.url).information if "lsap run evaluate" in one)
    assert line.startswith("fid [judge] of lsap_o is not known for the images that readers see")
    assert add_up(memory_place, 4.0) == [b"sums 0 of of-run-1", b"sums 2 of of-run-1"]
    assert shown(memory_place) == [("lsap_o", 4.0, 99, None)] and summaries(memory_place) == {"of-run-1": 4.0}
    invert(memory_place, work, "run-1b", range(2, 4))  # the images again, as the next run makes them
    evaluate(memory_place, "run-1b", 2, 77.0)
    states = add_up(memory_place, 2.5)
    assert states == [b"sums 0 of of-run-1", b"sums 2 of of-run-1", b"sums 0 of of-run-1b"]
    assert summaries(memory_place) == {"of-run-1": None, "of-run-1b": 2.5}
    assert verify_archive(memory_place.url).is_sound


def test_an_edit_loses_what_its_subject_loses(memory_place: Any, work: Any) -> None:
    invert(memory_place, work, "run-1", range(5))
    rows = tuple(replace(work.plan().rows[0], row=row, image_id=f"image-{row}") for row in range(5))
    subject = Subject("run-1", "lsap_o", "4a44dc15", "slant", 3.0)
    changes = {"method": "lsap_o/slant", "method_digest": "ed", "trace_steps": (), "trace_terms": ()}
    run = memory_place.writer().start_run(work.plan("edit-1", rows=rows, subject=subject, **changes))
    work.write_all(run)
    assert run.publish({})
    evaluate(memory_place, "edit-1", 5, 6.5, method="lsap_o/slant", edit="slant", strength=3.0)
    (row,) = open_archive(memory_place.url).set_numbers().to_pylist()
    assert (row["edit"], row["strength"], row["value"]) == ("slant", 3.0, 6.5)
    memory_place.store.put("runs/run-1/w_plus/c/0/0/0", b"damaged")
    repair_archive(memory_place.url)
    assert add_up(memory_place, 7.0) == [b"sums 1 of of-edit-1", b"sums 2 of of-edit-1"]


def test_of_a_run_measured_twice_the_newest_counts_and_networks_stay_apart(memory_place: Any, work: Any) -> None:
    invert(memory_place, work, "run-1", range(5))
    evaluate(memory_place, "run-1", 5, 2.5)
    evaluate(memory_place, "run-1", 5, 2.75, name="again")
    assert shown(memory_place) == [("lsap_o", 2.75, 5, None)]
    assert summaries(memory_place) == {"of-run-1": None, "again": 2.75}
    other = {"frechet": {"network": "inception", "digest": "1"}}
    evaluate(memory_place, "run-1", 5, 30.0, name="by-another", config=other)
    assert shown(memory_place) == [("lsap_o", 2.75, 5, None), ("lsap_o", 30.0, 5, None)]
    assert summaries(memory_place) == {"of-run-1": None, "again": 2.75, "by-another": 30.0}
    evaluate(memory_place, "run-1", 5, 0.0, name="without", config={"frechet": None})  # what was asked of it before
    assert summaries(memory_place)["without"] == 0.0 and len(shown(memory_place)) == 2


def test_an_image_that_is_there_twice_is_not_added_twice(memory_place: Any, work: Any) -> None:
    """A shard whose images all count in another run drops out; with some of them there is no number."""
    invert(memory_place, work, "run-1", range(5))
    evaluate(memory_place, "run-1", 5, 2.5)
    invert(memory_place, work, "run-2", range(2, 7))  # two shards are those of run-1, or partly
    evaluate(memory_place, "run-2", 5, 3.5)
    Publication(memory_place.store, Manifest, "run-2").count_once(["images 2 to 4 are in run-1"])
    assert open_archive(memory_place.url).sql("select count(*) as n from rows").to_pylist() == [{"n": 7}]
    assert shown(memory_place) == [("lsap_o", None, None, "counted_twice")] and set(
        summaries(memory_place).values()
    ) == {None}
    (one,) = open_archive(memory_place.url).sets
    assert (one.mixed, dict(one.parts)) == (("run-2",), {"of-run-1": (0, 1, 2), "of-run-2": (1, 2)})


def test_of_one_image_there_is_no_number(memory_place: Any, work: Any) -> None:
    invert(memory_place, work, "run-1", range(1))
    evaluate(memory_place, "run-1", 1, None)  # type: ignore[arg-type]
    assert shown(memory_place) == [("lsap_o", None, 1, "too_few_images")]


@pytest.mark.parametrize("how", ["truncated", "appended", "swapped"])
def test_a_damaged_number_is_told_and_found_again(memory_place: Any, work: Any, how: str) -> None:
    """And one of another set is never taken for it."""
    invert(memory_place, work, "run-1", range(5))
    evaluate(memory_place, "run-1", 5, 2.5)
    for shard in (0, 1):
        memory_place.writer().store.create(f"runs/run-1/_retired/{shard:05d}.json", b"{}")
        add_up(memory_place, 5.0 + shard)
    first, second = sorted(memory_place.store.keys("sets"), key=lambda key: b"6.0" in memory_place.store.get(key))
    data = memory_place.store.get(second)
    changed = {"truncated": data[:40], "appended": data + b"{}", "swapped": memory_place.store.get(first)}
    memory_place.store.put(second, changed[how])
    with pytest.raises(CorruptArchiveError, match=rf"{second}.*lsap archive repair"):
        open_archive(memory_place.url).set_numbers()
    assert second in [one.key for one in verify_archive(memory_place.url).problems]
    assert second in repair_archive(memory_place.url).removed
    assert shown(memory_place) == [("lsap_o", None, None, "stale")] and add_up(memory_place, 6.0)
    assert verify_archive(memory_place.url).is_sound
