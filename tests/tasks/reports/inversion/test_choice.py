"""Images of a page are the worst, the best and some at random, always the same, and those that methods failed at."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pyarrow as pa
import pytest

from lsap_archive import FAILED, OK, ROW_SCHEMA
from tasks.reports.inversion.choice import Chosen, choose_images
from tasks.reports.inversion.data import MethodInfo
from tasks.reports.inversion.worked import WorkedImages, worked_images

BASE = MethodInfo("stylegan2_w", "StyleGAN2-W", {}, None)
ALIGNED = MethodInfo("lsap_o_w", "LSAP_O-W", {"sncd_weight": 0.5}, BASE.name)
ENCODER = MethodInfo("e4e", "e4e", {}, None, is_optimization=False)
RUNS = ["first", "second"]


def row(image_id: str, lpips: float | None, method: MethodInfo = ALIGNED, **changes: Any) -> dict[str, Any]:
    known = {"image_id": image_id, "uri": image_id, "digest": image_id, "status": OK, "method": method.name}
    return {**known, "run_id": RUNS[0], "row": int(image_id), "shard": 0, "attempt": "1", "lpips": lpips, **changes}


def chosen(rows: list[dict[str, Any]], num_images: int) -> Chosen:
    table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
    return choose_images(table, RUNS, num_images, [BASE, ALIGNED, ENCODER])


def groups(found: Chosen) -> dict[str, list[str]]:
    told: dict[str, list[str]] = {}
    for image in found.images:
        told.setdefault(image.group, []).append(image.image_id)
    return told


@pytest.fixture(scope="module")
def twenty() -> list[dict[str, Any]]:
    """The LPIPS of the method that aligns rises with the number, that of the other falls."""
    rows = [row(str(number), number / 100) for number in range(20)]
    return rows + [row(str(number), 1 - number / 100, BASE) for number in range(20)]


def test_worst_best_and_random_are_by_the_method_of_the_headline(twenty: list[dict[str, Any]]) -> None:
    found = chosen(twenty, 8)
    by_digest = sorted(map(str, range(3, 17)), key=lambda name: hashlib.md5(name.encode()).hexdigest())
    assert groups(found) == {"worst": ["19", "18", "17"], "best": ["0", "1", "2"], "random": by_digest[:2]}
    assert (found.choice.title, found.choice.num_images) == ("LSAP_O-W", 20)
    assert [one["method"] for one in found.images[0].results] == [ALIGNED.name, BASE.name]
    assert groups(chosen(twenty[::-1], 8)) == groups(found)


@pytest.mark.parametrize(
    ("num_images", "sizes"),
    [
        (0, {}),
        (1, {"worst": 1}),
        (2, {"worst": 1, "best": 1}),
        (16, {"worst": 6, "best": 5, "random": 5}),
        (20, {"other": 20}),
        (30, {"other": 20}),
    ],
)
def test_every_size_of_sheet_has_its_share_of_each(
    num_images: int, sizes: dict[str, int], twenty: list[dict[str, Any]]
) -> None:
    found = chosen(twenty, num_images)
    assert {group: len(names) for group, names in groups(found).items()} == sizes
    assert len({image.image_id for image in (*found.images, *found.spare)}) == len(found.images) + len(found.spare)
    assert len(found.spare) == min(num_images, 20 - len(found.images))


def test_images_without_a_finite_distance_are_neither_best_nor_worst(twenty: list[dict[str, Any]]) -> None:
    strange = [row("0", math.nan), row("19", None), row("1", math.inf)]
    told = groups(chosen([*twenty, *strange], 6))  # the last row of an image counts
    assert (told["worst"], told["best"]) == (["18", "17"], ["2", "3"])
    nothing = [{**one, "lpips": None} for one in twenty]
    assert groups(chosen(nothing, 6)).keys() == {"random"}


def test_what_a_method_failed_at_and_another_did_not_is_shown(twenty: list[dict[str, Any]]) -> None:
    failed = [row(name, None, status=FAILED, reason="non_finite_loss") for name in ("4", "7", "9")]
    hopeless = [row("30", None, method, status=FAILED, reason="truncated") for method in (BASE, ALIGNED)]
    found = chosen([*twenty, *failed, *hopeless], 8)
    assert groups(found)["failed"] == ["4", "7"]
    assert len(found.images) == 8 and "30" not in {image.image_id for image in (*found.images, *found.spare)}
    assert found.choice.num_images == 17
    assert [one["method"] for one in found.images[-1].results] == [BASE.name]


def test_spare_images_are_those_that_were_inverted_last() -> None:
    rows = [row(str(number), 0.5) for number in range(10)]
    rows += [row(str(number), 0.1, run_id=RUNS[1]) for number in (7, 3)]
    found = chosen(rows, 2)
    names = [image.image_id for image in found.spare]
    assert groups(found) == {"worst": ["0"], "best": ["3"]}
    assert names == ["7", "1"]


def test_images_are_counted_once_however_many_methods_they_are_for() -> None:
    rows = [row("0", 0.1), row("1", 0.1), row("2", None, status=FAILED), row("3", None, status=FAILED)]
    rows += [row("0", 0.1, BASE), row("1", 0.1, BASE, run_id=RUNS[1], shard=1), row("2", 0.2, BASE)]
    rows += [row("4", None, status="duplicate"), row("5", 0.1, shard=1)]
    table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
    assert worked_images(table, [(RUNS[0], 0), (RUNS[1], 1)]) == WorkedImages(num_all=5, num_ok=3, num_failed=2)
    assert worked_images(table, [(RUNS[0], 1)]) == WorkedImages(num_all=1, num_ok=1, num_failed=0)
    assert worked_images(table, []) == WorkedImages()
