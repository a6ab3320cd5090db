"""Refinements beside embeddings: what was planted is found, paired by image; what is printed is what its query says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.reports.inheritance.page import draw, number_tables, to_markdown
from tasks.reports.inheritance.study import ALL, INVERSIONS, OUTCOMES, VALUES_FILE, ComparedMethod, gather
from tasks.reports.tables import tables_parquet

JUDGE = "digits-judge"
IDS = [f"image-{index:02d}" for index in range(40)]
UNITS = {"slant": 10.0, "stroke_width": 0.5}
EFFECT = {"one": 1.2, "two": 0.9, "three": 0.6, "four": 0.3}
WEAKER = {"one": 0.1, "two": 0.2, "three": 0.1, "four": 0.1}
JITTER = dict(zip(IDS, np.random.default_rng(0).normal(size=len(IDS)) * 0.01, strict=True))
METHODS = [
    ComparedMethod(name, name.title(), refiner, "PTI" if refiner else "")
    for name in EFFECT
    for refiner in (None, "pti")
]
QUANTITY = {one.name: one for one in (*INVERSIONS, *OUTCOMES)}


def measurements(unreached: str = "") -> pa.Table:
    found: list[dict[str, Any]] = []

    def add(method: str, image_id: str, measure: str, by: str | None, value: float) -> None:
        if method != unreached:
            found.append({"method": method, "image_id": image_id, "measure": measure, "by": by, "value": value})

    for method in METHODS:
        effect = EFFECT[method.embedding] - (WEAKER[method.embedding] if method.is_refined else 0.0)
        for number, image_id in enumerate(IDS):
            jitter = JITTER[image_id] if method.is_refined else 0.0  # images differ far more than methods do
            add(method.name, image_id, "mse", None, 0.02 + number + (jitter - 0.01 if method.is_refined else 0.0))
            add(method.name, image_id, "lpips", JUDGE, 0.02)
            add(method.name, image_id, "lpips", "digits-features", -1.0)  # was in a loss: must not count
            add(method.name, image_id, "identity", JUDGE, 0.9)
            for attribute, unit in UNITS.items():
                add(method.name, image_id, "attribute", attribute, number)
                for sign, factor in (("more", 1), ("less", -1)):
                    step, equal = (f"{method.name}/{attribute}-{sign}-{kind}" for kind in ("step", "equal"))
                    add(step, image_id, "attribute", attribute, number + factor * unit * (effect + jitter))
                    add(step, image_id, "class_kept", JUDGE, 1.0)
                    add(equal, image_id, "identity", JUDGE, 0.8 + jitter)
                    add(equal, image_id, "class_kept", JUDGE, float(number % 2))
                    add(equal, image_id, "distance_to_real", JUDGE, number)
                    other = next(one for one in UNITS if one != attribute)
                    add(
                        equal,
                        image_id,
                        "attribute",
                        other,
                        number - (0.3 if attribute == "slant" else 0.1) * UNITS[other],
                    )
    return pa.Table.from_pylist(found)


def gathered(unreached: str = ""):
    table = measurements(unreached)
    evaluations = {name: (f"by-{name}",) for name in dict.fromkeys(table.column("method").to_pylist())}
    return gather(table, METHODS, UNITS, evaluations, judge=JUDGE)


@pytest.fixture(scope="module")
def table():
    return gathered()


def test_changes_are_paired_by_image_and_what_is_inherited_is_not_clear(table) -> None:
    two, refined = METHODS[2], METHODS[3]
    weaker = table.compare(refined, QUANTITY["effect"])
    assert table.compare(two, QUANTITY["effect"]).mean.mean == pytest.approx(0.9)
    assert weaker.change.mean == pytest.approx(-0.2, abs=0.01) and weaker.verdict == -1
    closer = table.compare(refined, QUANTITY["mse"])
    assert closer.change.mean == pytest.approx(-0.01, abs=0.005) and closer.verdict == -1
    assert closer.mean.standard_error > 100 * closer.change.standard_error, "images differ more than methods"
    assert table.compare(refined, QUANTITY["identity"]).verdict == 0
    assert table.compare(refined, QUANTITY["class_kept"]).change.interval == (0, 0)
    assert table.compare(METHODS[7], QUANTITY["success"]).mean.mean == 0.0  # a fourth of the wanted effect


def test_each_attribute_is_told_apart(table) -> None:
    leaks = {edits: table.compare(METHODS[0], QUANTITY["leakage"], edits).mean.mean for edits in table.values}
    assert leaks == pytest.approx({ALL: 0.2, "slant": 0.3, "stroke_width": 0.1})


def test_the_order_of_embeddings_is_that_of_their_means(table) -> None:
    assert table.rank_kept("pti", QUANTITY["effect"]) == pytest.approx(1.0)
    few = gather(measurements(), METHODS[:4], UNITS, {}, judge=JUDGE)
    assert np.isnan(few.rank_kept("pti", QUANTITY["effect"])), "two cannot be ranked"


def test_every_number_is_what_its_query_says_of_the_written_values(
    table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(table.to_arrow(), VALUES_FILE)
    numbers = pq.read_table(pa.BufferReader(tables_parquet(number_tables(table)))).to_pylist()
    assert len(numbers) == (8 + 4) * (3 + 3 * len(OUTCOMES))
    with duckdb.connect() as connection:
        for number in numbers[:: len(numbers) // 40]:
            ((value,),) = connection.sql(number["source"]).fetchall()
            assert value == pytest.approx(number["measured"]), number
    changed = next(one for one in numbers if (one["table"], one["row"]) == ("changes/slant", "two/pti"))
    assert {"by-two", "by-two/pti", "by-two/pti/slant-more-step"} <= set(changed["evaluations"])
    assert "by-one" not in changed["evaluations"]


def test_an_edit_that_does_not_reach_its_effect_leaves_a_gap_and_no_number(table) -> None:
    gap = gathered(unreached="two/pti/slant-more-equal")
    assert not gap.compare(METHODS[3], QUANTITY["identity"]).mean.is_there
    assert gap.compare(METHODS[3], QUANTITY["identity"], "stroke_width").mean.is_there
    assert gap.compare(METHODS[3], QUANTITY["effect"]).verdict == -1
    assert np.isnan(gap.rank_kept("pti", QUANTITY["identity"])), "three that have it cannot be ranked"
    text = to_markdown(gap, ["two/pti/slant-more-equal is left out"])
    assert "| Two, PTI |" in text and "- two/pti/slant-more-equal is left out" in text
    assert "| PTI | effect of a fixed step | 0 higher | 0 | 4 lower | −0.12" in text
    assert "| PTI | class kept at equal effect ↑ | 0 | 3 | 0 |" in text
    assert draw(gap).startswith(b"\x89PNG")
