"""Refinements: runs made of inversions, with arrays of their own, that are edited like inversions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lsap_archive import (
    ArchiveKeyError,
    ArchiveMismatchError,
    PlannedRow,
    RunArray,
    RunPlan,
    RunReader,
    RunWriter,
    Subject,
    code_arrays,
    open_archive,
    repair_archive,
    trace_arrays,
    verify_archive,
)

IDS = ["image-3", "image-0", "image-3"]
FEATURES = RunArray("features", (2, 4, 4), ("channel", "y", "x"), dtype="float16")


def made_of(work: Any, place: Any, run: RunWriter, run_id: str, **named: Any) -> RunPlan:
    """The plan of a refinement (refiner=...) or of an edit (edit=...) of a run."""
    arrays = code_arrays(place.writer().geometry)
    if "refiner" in named:
        arrays = (*arrays, FEATURES, *trace_arrays((0, 5), ("loss",)))
    plan: RunPlan = work.plan(
        run_id,
        method=f"{run.plan['method']}/{named.get('refiner') or named['edit']}",
        method_digest=run_id,
        rows=tuple(PlannedRow(**row) for row in run.images.to_pylist()),
        arrays=arrays,
        subject=Subject(
            run.run_id, run.plan["method"], run.plan["method_digest"], **{"edit": None, "strength": None, **named}
        ),
    )
    return plan


def published_of(work: Any, place: Any, plan: RunPlan, seed: int) -> RunWriter:
    run: RunWriter = place.writer().start_run(plan)
    for shard in range(run.num_shards):
        arrays = work.arrays(run, shard, seed)
        if "features" in arrays:
            arrays["features"] = arrays["features"].astype(np.float16)
        rows = pa.table({"status": ["ok"] * len(run.rows_of(shard))})
        assert run.write_shard(shard, arrays, rows, "first")
    assert run.publish({})
    return run


@pytest.fixture
def family(work: Any, published: Callable[[Any], RunWriter]) -> Callable[[Any], tuple[RunWriter, RunWriter, RunWriter]]:
    """Publishes an inversion, a refinement of it and an edit of that."""

    def publish(place: Any) -> tuple[RunWriter, RunWriter, RunWriter]:
        inversion = published(place)
        plan = made_of(work, place, inversion, "refined-1", refiner="pti")
        refinement = published_of(work, place, plan, 1)
        plan = made_of(work, place, refinement, "edit-1", edit="slant", strength=3.0, inversion="run-1")
        return inversion, refinement, published_of(work, place, plan, 2)

    return publish


def test_a_refinement_keeps_arrays_of_its_own_and_what_is_made_of_it_finds_them(
    quick_place: Any, work: Any, family: Callable[[Any], tuple[RunWriter, RunWriter, RunWriter]]
) -> None:
    inversion, refinement, edit = family(quick_place)
    archive = open_archive(quick_place.url, quick_place.options)
    assert (archive.methods, archive.edits) == (["lsap_o", "lsap_o/pti"], ["lsap_o/pti/slant"])
    features = work.expected(refinement, "features", seed=1).astype(np.float16)[[3, 0, 3]]
    for method, run, seed in (("lsap_o/pti", refinement, 1), ("lsap_o/pti/slant", edit, 2)):
        np.testing.assert_array_equal(archive.codes(IDS, method), work.expected(run, seed=seed)[[3, 0, 3]])
        np.testing.assert_array_equal(archive.noise(IDS, method)[1], work.expected(inversion, "noise_01")[[3, 0, 3]])
        found = archive.refined(IDS, method)
        assert found.keys() == {"w_plus", "features"}
        np.testing.assert_array_equal(found["features"], features)
        np.testing.assert_array_equal(found["w_plus"], work.expected(refinement, seed=1)[[3, 0, 3]])
        reader = RunReader.open(quick_place.url, run.run_id, quick_place.options)
        of_rows = reader.refined(range(1, 4))
        assert of_rows is not None and of_rows["features"].dtype == np.float16
        np.testing.assert_array_equal(of_rows["w_plus"], work.expected(refinement, seed=1)[1:4])
        maps = reader.noise(range(1, 4))
        assert maps is not None
        np.testing.assert_array_equal(maps[0], work.expected(inversion, "noise_00")[1:4])
    assert archive.trace(IDS, "lsap_o/pti").terms == ("loss",)
    with pytest.raises(ArchiveKeyError, match="run run-1 of method lsap_o is no refinement"):
        archive.refined(IDS, "lsap_o")
    about = archive.describe()
    assert set(about["methods"]) == {"lsap_o", "lsap_o/pti"} and set(about["edits"]) == {"lsap_o/pti/slant"}
    joined = archive.sql(
        "SELECT r.image_id, i.image_id AS same FROM rows r JOIN rows i ON r.subject_run_id = i.run_id "
        "AND r.subject_row = i.row WHERE r.method = 'lsap_o/pti' AND r.edit IS NULL"
    ).to_pylist()
    assert len(joined) == 5 and all(row["image_id"] == row["same"] for row in joined)
    assert verify_archive(quick_place.url, quick_place.options).is_sound


def test_what_is_made_of_a_retired_shard_is_hidden_with_it(
    memory_place: Any, family: Callable[[Any], tuple[RunWriter, RunWriter, RunWriter]]
) -> None:
    family(memory_place)
    key = "runs/run-1/rows/shard-00001.parquet"
    memory_place.store.put(key, b"damaged")
    report = repair_archive(memory_place.url)
    assert report.next_commands == ["lsap run invert", "lsap run refine", "lsap run edit", "lsap run evaluate"]
    left = open_archive(memory_place.url).sql("SELECT method, count(*) AS n FROM rows GROUP BY method").to_pylist()
    assert {row["method"]: row["n"] for row in left} == dict.fromkeys(("lsap_o", "lsap_o/pti", "lsap_o/pti/slant"), 3)
    assert RunReader.open(memory_place.url, "edit-1").hidden == {1}
    assert verify_archive(memory_place.url).is_sound


def test_a_damaged_refinement_is_refined_again_and_its_edits_with_it(
    memory_place: Any, family: Callable[[Any], tuple[RunWriter, RunWriter, RunWriter]]
) -> None:
    family(memory_place)
    memory_place.store.put("runs/refined-1/features/c/2/0/0/0", b"damaged")
    report = repair_archive(memory_place.url)
    assert report.next_commands == ["lsap run refine", "lsap run edit", "lsap run evaluate"]
    assert "1 images will be refined again" in report.summary()
    left = open_archive(memory_place.url).sql("SELECT method, count(*) AS n FROM rows GROUP BY method").to_pylist()
    assert {row["method"]: row["n"] for row in left} == {"lsap_o": 5, "lsap_o/pti": 4, "lsap_o/pti/slant": 4}
    assert verify_archive(memory_place.url).is_sound


def test_what_cannot_be_refined_is_refused(
    memory_place: Any, work: Any, family: Callable[[Any], tuple[RunWriter, RunWriter, RunWriter]]
) -> None:
    inversion, refinement, edit = family(memory_place)
    writer = memory_place.writer()
    with pytest.raises(ArchiveMismatchError, match=r"run refined-1, which it refines: plan it with the rows of that"):
        writer.start_run(made_of(work, memory_place, refinement, "refined-2", refiner="pti"))
    with pytest.raises(ArchiveMismatchError, match="run edit-1, which it refines"):
        writer.start_run(made_of(work, memory_place, edit, "refined-2", refiner="pti"))
    with pytest.raises(ArchiveMismatchError, match="run edit-1, which it edits"):
        writer.start_run(made_of(work, memory_place, edit, "edit-2", edit="slant", strength=1.0))
    with pytest.raises(ArchiveMismatchError, match="run refined-1, which it edits"):  # of which inversion is not told
        writer.start_run(made_of(work, memory_place, refinement, "edit-2", edit="slant", strength=1.0))
    with pytest.raises(ArchiveMismatchError, match="or the refinement of an inversion"):
        made_of(work, memory_place, inversion, "both", edit="slant", refiner="pti")


def test_of_an_image_inverted_again_the_refinement_of_the_newer_inversion_counts(memory_place: Any, work: Any) -> None:
    """Also when that of the older one was published last, and for edits of it."""
    writer = memory_place.writer()
    runs = []
    for seed, digest in enumerate(("old", "new")):
        run = writer.start_run(work.plan(f"run-{digest}", rows=(PlannedRow(0, "a", "file:///a.png", digest),)))
        work.write_all(run, seed)
        assert run.publish({})
        runs.append(run)
    for age, run in reversed(list(enumerate(runs))):
        plan = made_of(work, memory_place, run, f"refined-{age}", refiner="pti")
        refinement = published_of(work, memory_place, replace(plan, method_digest="same"), 10 + age)
        named = {"edit": "slant", "strength": 1.0, "inversion": run.run_id}
        published_of(work, memory_place, made_of(work, memory_place, refinement, f"edit-{age}", **named), 20 + age)
    archive = open_archive(memory_place.url)
    newer = [RunWriter.open(memory_place.url, run_id) for run_id in ("refined-1", "edit-1")]
    np.testing.assert_array_equal(archive.codes(["a"], "lsap_o/pti"), work.expected(newer[0], seed=11))
    np.testing.assert_array_equal(archive.codes(["a"], "lsap_o/pti/slant"), work.expected(newer[1], seed=21))
