"""Of several runs the one published last counts, whatever clocks say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lsap_archive import EvaluationPlan, PlannedRow, open_archive, verify_archive
from lsap_archive.format.layout import SEQUENCE_PREFIX
from lsap_archive.format.sequence import next_sequence


def set_clock(monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    """A machine whose clock is off."""

    def now() -> str:
        return (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="microseconds")

    for module in ("run_writer", "evaluation_writer", "publication", "archive_writer"):
        monkeypatch.setattr(f"lsap_archive.writing.{module}.utc_now", now)


@pytest.mark.parametrize("hours", [(1, -1), (-1, 1), (0, 0)])
def test_writers_with_wrong_clocks_come_one_after_the_other(
    quick_place: Any, work: Any, monkeypatch: pytest.MonkeyPatch, hours: tuple[float, float]
) -> None:
    runs = []
    for seed, off in enumerate(hours):
        set_clock(monkeypatch, off)
        rows = (PlannedRow(0, "a", "file:///a.png", f"content-{seed}"),)
        run = quick_place.writer().start_run(work.plan(f"run-{'zy'[seed]}", rows=rows))  # by name the other way round
        work.write_all(run, seed)
        assert run.publish({})
        evaluation = quick_place.writer().start_evaluation(
            EvaluationPlan(f"of-{'zy'[seed]}", {"run_id": "run-z"}, "lsap_o", None, None, {"n": seed}, {}, 1, 1)
        )
        measured = pa.table({"row": [0], "image_id": ["a"], "measure": ["mse"], "value": [float(seed)]})
        assert evaluation.write_shard(0, measured) and evaluation.publish({})
        runs.append(run)
    first, last = (run.manifest() for run in runs)
    assert (first.created > last.created) == (hours[0] > hours[1])
    assert (first.sequence, last.sequence) == (1, 3) and first.order < last.order
    archive = open_archive(quick_place.url)
    assert [run.run_id for run in archive.runs] == ["run-z", "run-y"]
    np.testing.assert_array_equal(archive.codes(["a"], "lsap_o"), work.expected(runs[1], seed=1))
    assert archive.rows(["digest"], history=True).column("digest").to_pylist() == [
        "content-0",
        "content-1",
    ]  # the newest is last
    assert archive.rows(["digest"]).column("digest").to_pylist() == ["content-1"]
    assert archive.sql("select value from all_measurements order by value").column(0).to_pylist() == [0.0, 1.0]
    assert archive.measurements().num_rows == 0  # both were of a row that is not the newest
    assert verify_archive(quick_place.url).is_sound


def test_no_number_is_given_twice(place: Any) -> None:
    store = place.store
    numbers = [next_sequence(store, f"run-{index}") for index in range(3)]
    assert numbers == [1, 2, 3]
    store.create(f"{SEQUENCE_PREFIX}/0000000004.json", b"taken between looking and writing")
    real, looks = store.keys, iter([store.keys(SEQUENCE_PREFIX)[:3]])
    store.keys = lambda prefix: next(looks, real(prefix))
    assert next_sequence(store, "run-9") == 5


def test_runs_of_older_versions_come_first_in_the_order_of_their_clocks(memory_place: Any, work: Any) -> None:
    manifests = []
    for name in ("run-1", "run-2", "run-3"):
        run = memory_place.writer().start_run(work.plan(name, method_digest=name))
        work.write_all(run)
        run.publish({})
        manifests.append(run.manifest())
    old = [replace(one, sequence=0, created=created) for one, created in zip(manifests, "312", strict=True)]
    assert [one.run_id for one in sorted(old, key=lambda one: one.order)] == ["run-2", "run-3", "run-1"]
    assert [one.run_id for one in sorted([manifests[0], *old[1:]], key=lambda one: one.order)] == [
        "run-2",
        "run-3",
        "run-1",
    ]
