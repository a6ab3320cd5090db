"""The study's table: what was planted in rows and measurements comes back, by method and image, and nothing else."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from tasks.reports.editability.study import StudiedMethod, compare_with_controls, correlate, gather

METHODS = (
    StudiedMethod("good", "Good", "W+", pair="a"),
    StudiedMethod("shrunk", "Shrunk", "control", pair="a"),
    StudiedMethod("bad", "Bad", "W+"),
    StudiedMethod("worst", "Worst", "encoder"),
)
SNCD = {"good": 0.05, "shrunk": 0.06, "bad": 0.1, "worst": 0.2}
EFFECT = {"good": 1.0, "shrunk": 0.9, "bad": 0.6, "worst": 0.25}
IDS = [f"image-{index:02d}" for index in range(20)]
ATTRIBUTES = {"slant": 10.0, "stroke_width": 0.5}
RNG = np.random.default_rng(0)
PARTNERS = dict(zip(IDS, [*IDS[1:], IDS[0]], strict=True))
JITTER = dict(zip(IDS, RNG.normal(size=len(IDS)) * 0.001, strict=True))


def inversions() -> list[dict[str, Any]]:
    return [
        {"method": name, "image_id": image_id, "status": "ok", "sncd": sncd + JITTER[image_id], "w_distance": 1.0,
         "lpips": 0.02 + (0.01 if name == "worst" else 0.0)}
        for name, sncd in SNCD.items()
        for image_id in IDS
    ]  # fmt: skip


def measurements() -> list[dict[str, Any]]:
    found = []

    def add(method: str, image_id: str, measure: str, by: str, value: float) -> None:
        found.append({"method": method, "image_id": image_id, "measure": measure, "by": by, "value": value})

    for name, effect in EFFECT.items():
        for number, image_id in enumerate(IDS):
            for attribute, deviation in ATTRIBUTES.items():
                before = number * 0.1
                add(name, image_id, "attribute", attribute, before)
                for sign, factor in (("more", 1), ("less", -1)):
                    moved = before + factor * effect * deviation
                    step = f"{name}/{attribute}-{sign}-step"
                    add(step, image_id, "attribute", attribute, moved)
                    add(step, image_id, "class_kept", "digits-judge", float(number != 0))
                    equal = f"{name}/{attribute}-{sign}-equal"
                    add(equal, image_id, "identity", "digits-judge", effect / 2)
                    add(equal, image_id, "identity", "digits-features", -1.0)  # was in a loss: must not count
                    add(equal, image_id, "class_kept", "digits-judge", float(number % 2))
                    other = next(one for one in ATTRIBUTES if one != attribute)
                    add(equal, image_id, "attribute", other, before - 0.3 * ATTRIBUTES[other])
            add(name, image_id, "distance_to_real", "digits-judge", float(number))
            add(f"{name}/midpoint", image_id, "distance_to_real", "digits-judge", 2 - effect)
    return found


@pytest.fixture(scope="module")
def table():
    rows, measured = (pa.Table.from_pylist(make()) for make in (inversions, measurements))

    def ask(query: str) -> pa.Table:
        with duckdb.connect() as connection:
            connection.register("rows", rows)
            connection.register("measurements", measured)
            return connection.sql(query).to_arrow_table()

    return gather(ask, METHODS, ATTRIBUTES, PARTNERS, judge="digits-judge")


def test_every_quantity_comes_back(table) -> None:
    for index, method in enumerate(METHODS):
        effect = EFFECT[method.name]
        assert table.values["effect"][index] == pytest.approx(effect)
        assert table.values["identity"][index] == pytest.approx(effect / 2)
        assert table.values["leakage"][index] == pytest.approx(0.3)
        assert table.values["midpoint"][index] == pytest.approx(2 - effect)
        is_right = 0.5 < effect < 1.5
        assert table.values["success"][index] == pytest.approx([0.0, *[float(is_right)] * (len(IDS) - 1)])
        ends = [(number + (number + 1) % len(IDS)) / 2 for number in range(len(IDS))]
        assert table.values["detour"][index] == pytest.approx(2 - effect - np.array(ends))
        assert table.values["class_kept"][index] == pytest.approx(np.arange(len(IDS)) % 2)
        assert table.values["sncd"][index].mean() == pytest.approx(SNCD[method.name], abs=1e-3)


def test_a_perfect_predictor_is_found_and_a_constant_one_says_nothing(table) -> None:
    found = {(one.predictor, one.outcome): one for one in correlate(table)}
    assert found["sncd", "effect"].across_methods.value == pytest.approx(-1.0)
    assert found["sncd", "midpoint"].across_methods.value == pytest.approx(1.0)
    assert found["sncd", "effect"].within_images.value == pytest.approx(-1.0)
    assert np.isnan(found["w_distance", "effect"].across_methods.value)


def test_a_control_is_compared_at_its_own_lpips(table) -> None:
    (pair,) = compare_with_controls(table)
    assert (pair.aligned.name, pair.control.name, pair.is_matched) == ("good", "shrunk", True)
    assert pair.differences["effect"].value == pytest.approx(0.1)
    assert pair.differences["sncd"].value == pytest.approx(-0.01)


def test_the_written_table_has_a_row_for_each_method_and_image(table) -> None:
    arrow = table.to_arrow()
    assert arrow.num_rows == len(METHODS) * len(IDS)
    row = arrow.filter(pa.compute.equal(arrow.column("method"), "bad")).to_pylist()[3]
    assert (row["image_id"], row["family"], row["effect"]) == (IDS[3], "W+", pytest.approx(0.6))
    assert table.of(["bad"]).to_arrow().num_rows == len(IDS)
