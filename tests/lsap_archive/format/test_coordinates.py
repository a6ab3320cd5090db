"""A run's group has a name for each size of a dimension, and its coordinates are kept as all else that it hangs on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lsap_archive import (
    ArchiveKeyError,
    ArchiveMismatchError,
    Geometry,
    RunArray,
    RunWriter,
    code_arrays,
    noise_arrays,
    open_archive,
    repair_archive,
    trace_arrays,
    verify_archive,
)
from lsap_archive.format.coordinates import dimension_names
from lsap_archive.format.documents import decode_document, encode_document
from lsap_archive.format.shards import run_metadata

GEOMETRY = Geometry(num_ws=2, w_dim=8, noise_sides=(4, 8, 8, (8, 4)))
COORDINATE_OBJECTS = [f"{name}/{of}" for name in ("image_id", "step", "term") for of in ("c/0", "zarr.json")]


def test_a_name_has_one_size_and_says_which_where_there_are_several() -> None:
    arrays = (
        *code_arrays(GEOMETRY),
        *noise_arrays(GEOMETRY),
        *trace_arrays((0, 10), ("mse",)),
        RunArray("residual", (3, 5, 5), ("channel", "row", "column")),
        RunArray("guide", (8,), ("channel",)),
    )
    assert dimension_names(arrays) == {
        "w_plus": ("image", "layer", "channel"),
        "noise_00": ("image", "y_4", "x_4"),
        "noise_01": ("image", "y_8", "x_8"),
        "noise_02": ("image", "y_8", "x_8"),
        "noise_03": ("image", "y_8", "x_4"),
        "trace": ("image", "step", "term"),
        "residual": ("image", "channel_3", "row", "column"),
        "guide": ("image", "channel_8"),
    }


@pytest.mark.parametrize(
    ("declared", "names"),
    [
        pytest.param([((3, 3), ("channel", "channel"))], [("channel", "channel_3")], id="one name twice"),
        pytest.param([((3,), ("image",))], [("image_3",)], id="that of the images"),
        pytest.param([((3,), ("a_0",))], [("a_0_3",)], id="that of an array"),
        pytest.param([((3,), ("step",))], [("step_3",)], id="that of a coordinate"),
        pytest.param(
            [((3,), ("y",)), ((4,), ("y",)), ((9,), ("y_3",))], [("a_0_y",), ("y_4",), ("y_3",)], id="taken by another"
        ),
    ],
)
def test_names_that_would_not_do_are_not_taken(declared: list[Any], names: list[Any]) -> None:
    arrays = [RunArray(f"a_{index}", *of) for index, of in enumerate(declared)]
    assert [of[1:] for of in dimension_names(arrays).values()] == names


def test_arrays_are_not_named_as_coordinates(work: Any) -> None:
    with pytest.raises(ArchiveMismatchError, match="run run-1 declares an array term, as one of the coordinates"):
        work.plan(arrays=(*code_arrays(GEOMETRY), RunArray("term", (1,), ("x",))))


def test_coordinates_are_planned_published_copied_and_the_same_on_every_start(
    memory_place: Any, work: Any, published: Callable[[Any], RunWriter]
) -> None:
    run = published(memory_place)
    store = memory_place.store
    plan = json.loads(store.get("runs/run-1/plan.json"))
    for named in ([one["name"] for one in plan["objects"]], [one.name for one in run.manifest().files]):
        assert set(COORDINATE_OBJECTS) <= set(named)
    for name in COORDINATE_OBJECTS:
        assert store.get(f"runs/run-1/{name}") == store.get(f"runs/run-1/_copy/{name}")
    again = memory_place.writer().start_run(work.plan("run-2"))
    for name in COORDINATE_OBJECTS:
        assert store.get(f"runs/{again.run_id}/{name}") == store.get(f"runs/run-1/{name}")
    with pytest.raises(ArchiveKeyError, match="run run-1 has no array image_id"):
        open_archive(memory_place.url).array("run-1", "image_id")


@pytest.mark.parametrize("name", COORDINATE_OBJECTS)
@pytest.mark.parametrize("is_copied", [True, False])
def test_damaged_coordinates_are_noticed_and_get_their_bytes_back(
    memory_place: Any, published: Callable[[Any], RunWriter], name: str, is_copied: bool
) -> None:
    published(memory_place)
    store, key = memory_place.store, f"runs/run-1/{name}"
    before = store.get(key)
    store.put(key, before[:-1] + b"!")
    if not is_copied:
        store.delete(f"runs/run-1/_copy/{name}")
    assert key in {problem.key for problem in verify_archive(memory_place.url).problems}
    report = repair_archive(memory_place.url)
    assert key in report.restored and not report.retired and store.get(key) == before
    assert verify_archive(memory_place.url).is_sound


def test_ids_that_are_not_the_planned_ones_are_told(
    memory_place: Any, published: Callable[[Any], RunWriter], work: Any
) -> None:
    """As a writer that is not ours might have it: the manifest says the same."""
    run = published(memory_place)
    other = work.plan("run-2", rows=tuple(replace(row, image_id=f"other-{row.row}") for row in work.plan().rows))
    memory_place.writer().start_run(other)
    data = memory_place.store.get("runs/run-2/image_id/c/0")
    memory_place.store.delete_folder("runs/run-2")
    memory_place.store.put("runs/run-1/image_id/c/0", data)
    manifest = run.manifest()
    measured = {"size": memory_place.store.digest("runs/run-1/image_id/c/0")[0]}
    measured["sha256"] = memory_place.store.digest("runs/run-1/image_id/c/0")[1]
    files = tuple(replace(one, **measured) if one.name == "image_id/c/0" else one for one in manifest.files)
    for key in ("runs/run-1/_manifest.json", "runs/run-1/_copy/_manifest.json"):
        memory_place.store.put(key, replace(manifest, files=files).encode())
    memory_place.store.put("runs/run-1/_copy/image_id/c/0", data)
    found = [str(problem) for problem in verify_archive(memory_place.url).problems]
    assert [one for one in found if "other image ids" in one and "image_id/c/0" in one]


def test_a_run_that_version_6_began_is_gone_on_with_and_repaired(memory_place: Any, work: Any) -> None:
    """It has no coordinates, and keeps the metadata that it began with, bit for bit."""
    writer, store = memory_place.writer(), memory_place.store
    begun = writer.start_run(work.plan())
    plan = decode_document(store.get("runs/run-1/plan.json"), "plan")
    metadata = run_metadata(
        replace(work.plan(), arrays=tuple(begun.arrays.values())), "9f86d081", has_coordinates=False
    )
    for name in COORDINATE_OBJECTS:
        store.delete(f"runs/run-1/{name}")
    for name, data in metadata.items():
        store.put(f"runs/run-1/{name}", data)
    objects = [
        one | dict(zip(("size", "sha256"), store.digest(f"runs/run-1/{one['name']}"), strict=True))
        for one in plan["objects"]
        if one["name"] not in COORDINATE_OBJECTS
    ]
    document = encode_document({**plan, "objects": objects, "format_version": 6}, "plan")
    store.put("runs/run-1/plan.json", document)
    run = writer.start_run(work.plan())
    work.write_all(run)
    assert run.publish({}) and verify_archive(memory_place.url).is_sound
    assert {one.name for one in run.manifest().files}.isdisjoint(COORDINATE_OBJECTS)
    for name in metadata:
        for key in (f"runs/run-1/{name}", f"runs/run-1/_copy/{name}"):
            store.delete(key)
    report = repair_archive(memory_place.url)
    assert not report.retired and verify_archive(memory_place.url).is_sound
    assert {name: store.get(f"runs/run-1/{name}") for name in metadata} == metadata
    np.testing.assert_array_equal(open_archive(memory_place.url).codes(["image-4"], "lsap_o"), work.expected(run)[4:])
