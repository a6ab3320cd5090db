"""A run keeps what its plan declares: arrays of which writer, reader, verify and repair have never heard."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr

from lsap_archive import (
    ArchiveKeyError,
    ArchiveMismatchError,
    CorruptArchiveError,
    Manifest,
    RunArray,
    RunPlan,
    RunReader,
    RunWriter,
    code_arrays,
    noise_arrays,
    open_archive,
    repair_archive,
    trace_arrays,
    verify_archive,
)
from lsap_archive.format.arrays import declared_arrays
from lsap_archive.format.chunks import laid_out
from lsap_archive.format.documents import decode_document, encode_document
from lsap_archive.format.shards import run_metadata

FEATURES = RunArray(
    "features", (8, 4, 4), ("channel", "y", "x"), is_needed=False, attributes={"of": "a refinement", "layers": [3, 4]}
)
MASK = RunArray("mask", (4, 4), ("y", "x"), dtype="uint8")


def refined_plan(work: Any, place: Any, **changes: Any) -> RunPlan:
    """A run of five images, two a shard, that keeps features where it has some, and a mask of every image."""
    plan: RunPlan = work.plan(arrays=(*code_arrays(place.writer().geometry), FEATURES, MASK), **changes)
    return plan


def values_of(run: RunWriter, shard: int) -> dict[str, np.ndarray]:
    """What is written of a shard: features of the second one only, and a mask of nothing in the third."""
    rng, size = np.random.default_rng(shard), len(run.rows_of(shard))
    codes = rng.standard_normal((size, 2, 3)).astype(np.float32)
    mask = rng.integers(0, 2, (size, 4, 4), np.uint8) if shard < 2 else np.zeros((size, 4, 4), np.uint8)
    features = {"features": rng.standard_normal((size, 8, 4, 4)).astype(np.float32)} if shard == 1 else {}
    return {"w_plus": codes, "mask": mask, **features}


def publish(work: Any, place: Any) -> RunWriter:
    """That run, whose image-3 failed."""
    run: RunWriter = place.writer().start_run(refined_plan(work, place))
    for shard in range(run.num_shards):
        failed = {"status": ["ok", "failed"], "reason": [None, "non_finite_code"]}
        rows = failed if shard == 1 else {"status": ["ok"] * len(run.rows_of(shard))}
        assert run.write_shard(shard, values_of(run, shard), pa.table(rows), "first")
    assert run.publish({})
    return run


def test_arrays_of_any_name_are_written_and_read(place: Any, work: Any) -> None:
    run = publish(work, place)
    reader = RunReader.open(place.url, "run-1", place.options)
    mask = reader.array("mask", range(5))
    assert mask.dtype == np.uint8 and mask.shape == (5, 4, 4)
    for shard, rows in enumerate(([0, 1], [2], [4])):
        np.testing.assert_array_equal(mask[rows], values_of(run, shard)["mask"][: len(rows)])
    assert not mask[3].any(), "the image failed"
    features = reader.array("features", range(5))
    np.testing.assert_array_equal(features[2], values_of(run, 1)["features"][0])
    assert np.isnan(features[[0, 1, 3, 4]]).all()
    with pytest.raises(ArchiveKeyError, match="run run-1 has no array noise_00"):
        reader.array("noise_00", range(5))
    archive = open_archive(place.url, place.options)
    np.testing.assert_array_equal(archive.array("run-1", "mask")[4], np.zeros((4, 4)))
    with pytest.raises(ArchiveKeyError, match="has no array noise_00"):
        archive.noise(["image-0"], "lsap_o")
    report = verify_archive(place.url, place.options)
    assert report.is_sound and report.information == []


def test_other_readers_of_zarr_find_them_with_names_and_attributes(local_place: Any, work: Any) -> None:
    publish(work, local_place)
    group = zarr.open_group(f"{local_place.url}/runs/run-1", mode="r", zarr_format=3)
    assert sorted(group.array_keys()) == ["features", "image_id", "mask", "w_plus"]
    assert group["features"].metadata.dimension_names == ("image", "channel_8", "y", "x")  # codes have channels too
    assert dict(group["features"].attrs) == FEATURES.attributes
    assert (group["mask"].dtype, group["mask"].fill_value, group["mask"].shape) == (np.uint8, 0, (5, 4, 4))


def test_plan_and_manifest_say_what_there_is(memory_place: Any, work: Any) -> None:
    run = publish(work, memory_place)
    for name in ("plan.json", "_manifest.json"):
        document = json.loads(memory_place.store.get(f"runs/run-1/{name}"))
        assert document["format_version"] == 7
        assert [array["name"] for array in document["arrays"]] == ["w_plus", "features", "mask"]
    planned = laid_out(refined_plan(work, memory_place).arrays, num_rows=5, shard_rows=2)
    assert run.manifest().arrays == tuple(run.arrays.values()) == planned
    other = replace(refined_plan(work, memory_place), arrays=code_arrays(run.geometry))
    with pytest.raises(ArchiveMismatchError, match="was planned with another arrays"):
        memory_place.writer().start_run(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": None}, "mask is missing; the plan needs it"),
        ({"mask": np.zeros((2, 4, 4), np.float32)}, r"mask .* is float32\(2, 4, 4\), uint8\(2, 4, 4\) is wanted"),
        ({"features": np.full((2, 8, 4, 4), np.nan, np.float32)}, "image-0 is ok, yet its values are not finite"),
        ({"noise_00": np.zeros((2, 4, 4), np.float32)}, "no array is named noise_00; the run has w_plus, features"),
    ],
)
def test_values_that_are_not_as_declared_are_refused(
    memory_place: Any, work: Any, change: dict[str, Any], message: str
) -> None:
    run = memory_place.writer().start_run(refined_plan(work, memory_place))
    arrays = {name: values for name, values in {**values_of(run, 0), **change}.items() if values is not None}
    with pytest.raises(ArchiveMismatchError, match=message):
        run.write_shard(0, arrays, pa.table({"status": ["ok", "ok"]}), "first")
    assert run.missing_shards() == [0, 1, 2]


@pytest.mark.parametrize("name", ["features/c/1/0/0/0", "mask/c/2/0/0"])
@pytest.mark.parametrize("how", ["flipped", "deleted"])
def test_damage_of_any_array_is_found_and_its_shard_is_retired(
    memory_place: Any, work: Any, name: str, how: str
) -> None:
    publish(work, memory_place)
    key, shard = f"runs/run-1/{name}", int(name.split("/")[2])
    data = memory_place.store.get(key)
    memory_place.store.delete(key) if how == "deleted" else memory_place.store.put(key, data[:9] + b"x" + data[10:])
    assert [problem.key for problem in verify_archive(memory_place.url).problems] == [key]
    assert repair_archive(memory_place.url).retired == [f"shard {shard} of runs/run-1"]
    assert verify_archive(memory_place.url).is_sound
    reader = RunReader.open(memory_place.url, "run-1")
    assert np.isnan(reader.codes(reader_rows := range(2 * shard, min(2 * shard + 2, 5)))).all()
    assert not reader.array("mask", reader_rows).any()
    assert not np.isnan(reader.codes(range(2))).any()


def test_metadata_of_any_array_follows_from_the_manifest_and_that_from_the_markers(
    memory_place: Any, work: Any
) -> None:
    run, store = publish(work, memory_place), memory_place.store
    manifest, names = run.manifest(), ("runs/run-1/mask/zarr.json", "runs/run-1/features/zarr.json")
    before = {name: store.get(name) for name in names}
    store.delete_folder("runs/run-1/_copy")
    for name in names:
        store.delete(name)
    assert set(repair_archive(memory_place.url).restored) == set(names)
    assert {name: store.get(name) for name in names} == before
    store.delete_folder("runs/run-1/_copy")
    store.put("runs/run-1/_manifest.json", b"{")
    assert repair_archive(memory_place.url).restored == ["runs/run-1/_manifest.json"]
    assert run.manifest() == replace(manifest, created=run.manifest().created)
    assert verify_archive(memory_place.url).is_sound


def test_a_manifest_without_what_is_needed_is_noticed(memory_place: Any, work: Any) -> None:
    publish(work, memory_place)
    key = "runs/run-1/_manifest.json"
    manifest = Manifest.decode(memory_place.store.get(key), key)
    kept = tuple(file for file in manifest.files if not file.name.startswith(("mask/c/2", "features/c")))
    for one in (key, "runs/run-1/_copy/_manifest.json"):
        memory_place.store.put(one, replace(manifest, files=kept).encode())
    problems = {problem.key: problem.wanted for problem in verify_archive(memory_place.url).problems}
    assert problems["runs/run-1/mask/c/2/0/0"] == "values of 1 ok rows"
    assert not any("features" in one for one in problems), "nobody needs them"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../mask"},
        {"name": "rows"},
        {"name": "Mask"},
        {"item_shape": (4,)},
        {"item_shape": (4, 0)},
        {"dtype": "object"},
    ],
)
def test_what_is_no_array_is_refused_by_plans_and_of_manifests(
    memory_place: Any, work: Any, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ArchiveMismatchError, match="a name such as 'noise_00', sides of at least 1"):
        replace(MASK, **wrong)
    publish(work, memory_place)
    key = "runs/run-1/_manifest.json"
    values = decode_document(memory_place.store.get(key), key)
    values["arrays"][-1].update(wrong)
    memory_place.store.put(key, encode_document(values, key))
    with pytest.raises((ArchiveMismatchError, CorruptArchiveError), match="run-1/_manifest"):
        open_archive(memory_place.url)


def test_a_plan_has_codes_of_its_archive_and_each_array_once(memory_place: Any, work: Any) -> None:
    writer = memory_place.writer()
    with pytest.raises(ArchiveMismatchError, match="run run-1 has no array w_plus: declare code_arrays"):
        writer.start_run(work.plan(arrays=(MASK,)))
    codes = replace(*code_arrays(writer.geometry), item_shape=(2, 4))
    with pytest.raises(ArchiveMismatchError, match=r"w_plus of an image is \(2, 4\), the archive holds \(2, 3\)"):
        writer.start_run(work.plan(arrays=(codes,)))
    with pytest.raises(ArchiveMismatchError, match="declares an array twice: mask, mask"):
        work.plan(arrays=(MASK, MASK))


# --- plans of versions that declared nothing ----------------------------------------------------------


def undeclared(place: Any) -> None:
    """Make plan.json of run-1 as versions before 4 wrote it."""
    key = "runs/run-1/plan.json"
    values = decode_document(place.store.get(key), key)
    del values["arrays"], values["format_version"]
    place.store.put(key, encode_document(values, key))


def test_a_run_that_was_planned_before_version_4_is_gone_on_with_by_the_same_plan(
    quick_place: Any, work: Any, published: Callable[[Any], RunWriter]
) -> None:
    writer = quick_place.writer()
    work.write(writer.start_run(work.plan()), 0)
    undeclared(quick_place)
    run = writer.start_run(work.plan())
    assert run.missing_shards() == [1, 2]
    assert [name for name, array in run.arrays.items() if array.is_needed] == ["w_plus"]
    assert run.write_shard(1, {"w_plus": work.arrays(run, 1)["w_plus"]}, work.rows(run, 1), "without-noise")
    with pytest.raises(ArchiveMismatchError, match="was planned with another trace_steps"):
        writer.start_run(work.plan(trace_steps=(0,)))
    assert work.write(run, 2) and run.publish({})
    assert json.loads(quick_place.store.get("runs/run-1/_manifest.json"))["format_version"] == 7
    archive = open_archive(quick_place.url)
    np.testing.assert_array_equal(archive.codes(["image-2"], "lsap_o"), work.expected(run)[2:3])
    with pytest.raises(ArchiveKeyError, match="run-1 kept no noise_00 for shard 1"):
        archive.noise(["image-2"], "lsap_o")
    assert verify_archive(quick_place.url).is_sound


@pytest.mark.parametrize("version", ["3, with noise maps that an encoder has not", "5", "6"])
def test_a_start_that_an_older_version_cut_short_is_repeated(memory_place: Any, work: Any, version: str) -> None:
    """Its metadata told of other arrays, of none that are compressed, or of no coordinates."""
    writer, plan = memory_place.writer(), work.plan(trace_steps=(), trace_terms=())
    if version != "3, with noise maps that an encoder has not":
        plan = replace(plan, arrays=code_arrays(writer.geometry))
    if version == "6":
        plan = replace(plan, arrays=laid_out(plan.arrays, plan.num_rows, plan.shard_rows))
    for name, data in run_metadata(plan, writer.generator["digest"], has_coordinates=False).items():
        memory_place.store.create(f"runs/run-1/{name}", data)
    encoder = replace(plan, arrays=code_arrays(writer.geometry))
    with pytest.raises(ArchiveMismatchError, match="left by a start of run run-1 with another plan"):
        writer.start_run(replace(encoder, method="sam"))
    run = writer.start_run(encoder)
    work.write_all(run)
    assert run.publish({})
    assert open_archive(memory_place.url).codes(["image-0"], "lsap_o").shape == (1, 2, 3)
    assert verify_archive(memory_place.url).is_sound


def test_a_plan_of_a_newer_version_is_refused(memory_place: Any, work: Any) -> None:
    writer = memory_place.writer()
    writer.start_run(work.plan())
    key = "runs/run-1/plan.json"
    values = decode_document(memory_place.store.get(key), key)
    memory_place.store.put(key, encode_document({**values, "format_version": 8}, key))
    with pytest.raises(ArchiveMismatchError, match=r"plan.json is of format version 8, .* install the lsap_archive"):
        writer.runs()


def test_what_older_documents_do_not_declare_follows_from_what_they_say(memory_place: Any) -> None:
    geometry = memory_place.writer().geometry
    told = {"trace_steps": [0, 10], "trace_terms": ["mse"]}
    noise = tuple(replace(one, is_needed=False) for one in noise_arrays(geometry))
    assert declared_arrays(told, geometry, "x") == (
        *code_arrays(geometry),
        *noise,
        *trace_arrays([0, 10], ["mse"]),
    )
    edit = {"trace_steps": [], "trace_terms": [], "subject": {"run_id": "run-1"}}
    assert declared_arrays(edit, geometry, "x") == code_arrays(geometry)
